"""Combines several sources: the first one that answers, or all together.

The sources (parts) are asked one after another. So each part gets one call at a time and may have
state, and the same failures always give the same error text. Calls wait for the sources only before
the first answer. The disadvantage of this order: a part that does not answer delays the other parts
by its timeout, which is about 5 s for a name in DNS. Meanwhile the last good set of instances stays
in use.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from lbclient._internal import validation
from lbclient.discovery.resolver import Resolver, Watcher, text_of, usable
from lbclient.discovery.watched import WatchedResolver
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError, ServiceAbsent

__all__ = ["Composite", "FirstOf", "Part", "Service", "Union", "confirmed_at"]

_SOON = 5.0
"""A part that failed is asked again after at most this number of seconds."""


class Part(NamedTuple):
    """One of several sources, and its name in logs and errors."""

    name: str
    resolver: Resolver

    def ask(self) -> Answer | Exception:
        """Return a usable answer, or the reason why there is no answer."""
        try:
            return usable(self.resolver.resolve())
        except Exception as error:  # noqa: BLE001  # a user's resolver may raise anything
            return error


class Composite(ABC):
    """A service that consists of other services. Each balancer builds its own resolver from it.

    Each of `services` is anything that may be passed as `service`, including another composite.
    Raises TypeError if there is no service.
    """

    def __init__(self, *services: Service) -> None:
        if not services:
            raise TypeError(f"{type(self).__name__} must be given at least one service")
        # This is a tuple, since only one balancer could use an iterator
        self.services: tuple[Service, ...] = tuple(
            list(one) if isinstance(one, Iterator) else one for one in services
        )

    def __repr__(self) -> str:
        shown = (
            repr(validation.bare(one)) if isinstance(one, str) else f"<{type(one).__name__}>"
            for one in getattr(self, "services", ())
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    @abstractmethod
    def over(self, parts: Sequence[Part], clock: Callable[[], float]) -> Resolver:
        """Make the resolver from the resolvers of the parts. `clock` returns monotonic seconds."""


class FirstOf(Composite):
    """The instances of the first of several services for which discovery has an answer.

    A later service is used while the earlier services give no answer. The earlier services are
    asked again every few seconds, so each of them is used again soon after it answers. If a lookup
    of the service in use fails (because of a lost packet, for example), the last answer of this
    service stays in use for `patience` seconds from the first failure. If the service is declared
    absent, the next one is used at once.

    `FirstOf` handles failures of discovery, not failures of instances. To use another service when
    instances fail, put both services into one `Union`, and give the instances of the second a
    higher `priority`.

    Raises TypeError or ValueError if there is no service, or if `patience` is not a number of at
    least 0.
    """

    def __init__(self, *services: Service, patience: float = 60.0) -> None:
        super().__init__(*services)
        self.patience: float = validation.number("patience (seconds)", patience)

    def over(self, parts: Sequence[Part], clock: Callable[[], float]) -> Resolver:
        """Make a resolver that asks the parts in order."""
        return FirstOfResolver(parts, self.patience, clock)


class Union(Composite):
    """The instances of several services together.

    All services are asked in each round. The next round is due when the first of their answers
    expires. While lookups of a service fail, its last answer stays in use, and the service is
    listed among the refused records. A service that is declared absent has no instances. If there
    are two entries for one instance, the entry with the lower priority is used; if the priorities
    are equal, the entry with the larger weight is used. If all services fail, the round fails, and
    the last good set stays in use.

    Raises TypeError if there is no service.
    """

    def __init__(self, *services: Service) -> None:
        super().__init__(*services)

    def over(self, parts: Sequence[Part], clock: Callable[[], float]) -> Resolver:  # noqa: ARG002
        """Make a resolver that asks all parts."""
        return UnionResolver(parts)


Service: TypeAlias = str | Iterable[str | Instance] | Resolver | Watcher | Composite
"""Anything that may be passed as `service`."""


class FirstOfResolver:
    """The resolver of a `FirstOf`, for one balancer."""

    def __init__(self, parts: Sequence[Part], patience: float, clock: Callable[[], float]) -> None:
        self._parts = parts
        self._patience = patience
        self._clock = clock
        self.serving: Part | None = None
        """The part whose instances are in use."""
        self._failing_since: float | None = None

    def __repr__(self) -> str:
        serving, names = self.serving, ", ".join(part.name for part in self._parts)
        return (
            f"<FirstOfResolver of {names}{'' if serving is None else f'; {serving.name} serves'}>"
        )

    def resolve(self) -> Answer:
        """Return the first usable answer.

        Raises DiscoveryError if there is none, or while the service in use fails for less than
        `patience` seconds.
        """
        failures: list[tuple[Part, Exception]] = []
        serving, absent = self.serving, False
        for part in self._parts:
            result = part.ask()
            if isinstance(result, Answer):
                self.serving, self._failing_since = part, None
                return _for_now(result) if failures else result
            failures.append((part, result))
            if part is self.serving and not self._given_up(result):
                raise _failure([(part, result)])
            absent = absent or (part is serving and isinstance(result, ServiceAbsent))
        raise _failure(failures, absent=absent)

    def _given_up(self, error: Exception) -> bool:
        if isinstance(error, ServiceAbsent):
            self.serving = self._failing_since = None
            return True
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since >= self._patience


class UnionResolver:
    """The resolver of a `Union`, for one balancer."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._known: dict[int, Answer] = {}

    def __repr__(self) -> str:
        return f"<UnionResolver of {', '.join(part.name for part in self.parts)}>"

    def resolve(self) -> Answer:
        """Return all known instances.

        Raises DiscoveryError if none are known, or if no part gave a new answer.
        """
        failures = [
            (part, error)
            for place, part in enumerate(self.parts)
            if (error := self._ask(place, part)) is not None
        ]
        news = len(failures) < len(self.parts) or any(map(_absent, failures))
        if not (news and self._known):
            raise _failure(failures, absent=not self._known and any(map(_absent, failures)))
        answers = [self._known[place] for place in sorted(self._known)]
        ttls = [one.ttl for one in answers if one.ttl is not None] + [_SOON for _ in failures]
        return Answer(
            (one for answer in answers for one in answer.instances),
            min(ttls, default=None),
            [
                *(RejectedRecord(part.name, text_of(error)) for part, error in failures),
                *(one for answer in answers for one in answer.refused),
            ],
        )

    def _ask(self, place: int, part: Part) -> Exception | None:
        result = part.ask()
        if isinstance(result, Answer):
            self._known[place] = result
            return None
        if isinstance(result, ServiceAbsent):
            self._known.pop(place, None)
        return result


def confirmed_at(resolver: Resolver, answered_at: float) -> float:
    """Return the time at which the last answer of a resolver was last known to be right: when it
    was returned (`answered_at`), or when a watch has confirmed it later.

    For a watch, only its own signs of life count, since it returns its last answer again and again.
    The watches of a `Union` count together, without those that have failed.
    """
    while isinstance(resolver, FirstOfResolver) and resolver.serving is not None:
        resolver = resolver.serving.resolver
    if isinstance(resolver, WatchedResolver):
        return resolver.heard_at
    watches = [one.heard_at for one in _watches_of(resolver) if not one.failed]
    return max(answered_at, min(watches, default=-math.inf))


def _watches_of(resolver: Resolver) -> Iterator[WatchedResolver]:
    """Yield the watches whose answers a resolver uses."""
    if isinstance(resolver, WatchedResolver):
        yield resolver
    elif isinstance(resolver, UnionResolver):
        for part in resolver.parts:
            yield from _watches_of(part.resolver)
    elif isinstance(resolver, FirstOfResolver) and resolver.serving is not None:
        yield from _watches_of(resolver.serving.resolver)


def _for_now(answer: Answer) -> Answer:
    """Return the same answer, but with a `ttl` that ends when the failed parts are asked again."""
    ttl = _SOON if answer.ttl is None else min(answer.ttl, _SOON)
    return Answer(answer.instances, ttl, answer.refused)


def _absent(failure: tuple[Part, Exception]) -> bool:
    return isinstance(failure[1], ServiceAbsent)


def _failure(failures: Sequence[tuple[Part, Exception]], *, absent: bool = False) -> DiscoveryError:
    """Make one error from the errors of several parts.

    The error is ServiceAbsent if `absent` is set, or if all parts are declared absent.
    """
    kind = ServiceAbsent if absent or all(map(_absent, failures)) else DiscoveryError
    error = kind("; ".join(f"{part.name}: {text_of(error)}" for part, error in failures))
    error.__cause__ = failures[0][1]
    return error
