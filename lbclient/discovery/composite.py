"""Several sources as one: the first that answers, or all together.

The parts of a round are asked one after another. Each may keep a state of its own, which one call
at a time is promised; nobody waits for a round but whoever calls before the first answer; and an
order makes the same failures the same text. The price: a silent part delays the others by the time
it takes, about 5 s for a name in DNS, while the last good set stands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from lbclient._internal import validation
from lbclient.discovery.resolver import Resolver, text_of, usable
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError, ServiceAbsent

__all__ = ["Composite", "FirstOf", "Part", "Service", "Union"]

_SOON = 5.0
"""Within so many seconds whoever failed is asked again."""


class Part(NamedTuple):
    """One of several sources, and what to call it in logs and errors."""

    name: str
    resolver: Resolver

    def ask(self) -> Answer | Exception:
        """A usable answer, or why there is none."""
        try:
            return usable(self.resolver.resolve())
        except Exception as error:  # noqa: BLE001  # a caller's own may raise anything
            return error


class Composite(ABC):
    """A service made of others: a description, which each balancer brings to life for itself.

    Each of `services` is whatever may be passed as `service`, another composite included.
    Raises TypeError where there is none.
    """

    def __init__(self, *services: Service) -> None:
        if not services:
            raise TypeError(f"{type(self).__name__} must be given at least one service")
        self.services = tuple(  # an iterator would serve one balancer only
            list(one) if isinstance(one, Iterator) else one for one in services
        )

    @abstractmethod
    def over(self, parts: Sequence[Part], clock: Callable[[], float]) -> Resolver:
        """What resolves it, given what resolves the parts; `clock` tells monotonic seconds."""


class FirstOf(Composite):
    """The first of several services that discovery knows instances of.

    A later one serves while the earlier ones give no answer, and these are asked again every few
    seconds, so that an earlier one serves again as soon as it answers. The one that serves and
    merely fails (a lost packet) keeps what it said last for `patience` seconds from its first
    failure; where it declares itself absent, the next is used at once.

    It is discovery that is asked, not the instances: for a fall-back when instances fail, put both
    into one `Union` and give the second a higher `priority`.

    Raises TypeError or ValueError for no service, or a patience that is no number of 0 or more.
    """

    def __init__(self, *services: Service, patience: float = 60.0) -> None:
        super().__init__(*services)
        self.patience = validation.number("patience (seconds)", patience)

    def over(self, parts: Sequence[Part], clock: Callable[[], float]) -> Resolver:
        """What asks them in order."""
        return FirstOfResolver(parts, self.patience, clock)


class Union(Composite):
    """The instances of several services together.

    All are asked in each round, which is due when the first of their answers runs out. One that
    fails keeps what it said last, for as long as it fails, and is named among the refused; one that
    declares itself absent has none. Of duplicates the lowest priority counts, then the largest
    weight. Where all fail, so does the round, and the last good set stands.

    Raises TypeError for no service.
    """

    def __init__(self, *services: Service) -> None:
        super().__init__(*services)

    def over(self, parts: Sequence[Part], clock: Callable[[], float]) -> Resolver:  # noqa: ARG002
        """What asks them all."""
        return UnionResolver(parts)


Service: TypeAlias = str | Iterable[str | Instance] | Resolver | Composite
"""Whatever may be passed as `service`."""


class FirstOfResolver:
    """`FirstOf`, brought to life for one balancer."""

    def __init__(self, parts: Sequence[Part], patience: float, clock: Callable[[], float]) -> None:
        self._parts = parts
        self._patience = patience
        self._clock = clock
        self._serving: Part | None = None
        self._failing_since: float | None = None

    def resolve(self) -> Answer:
        """The first usable answer.

        Raises DiscoveryError where none is, and while the one that serves is given time.
        """
        failures: list[tuple[Part, Exception]] = []
        serving, absent = self._serving, False
        for part in self._parts:
            got = part.ask()
            if isinstance(got, Answer):
                self._serving, self._failing_since = part, None
                return _for_now(got) if failures else got
            failures.append((part, got))
            if part is self._serving and not self._given_up(got):
                raise _failure([(part, got)])
            absent = absent or (part is serving and isinstance(got, ServiceAbsent))
        raise _failure(failures, absent=absent)

    def _given_up(self, error: Exception) -> bool:
        if isinstance(error, ServiceAbsent):
            self._serving = self._failing_since = None
            return True
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since >= self._patience


class UnionResolver:
    """`Union`, brought to life for one balancer."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._known: dict[int, Answer] = {}

    def resolve(self) -> Answer:
        """All that is known. Raises DiscoveryError where nothing is, or nothing new."""
        failures = [
            (part, got)
            for place, part in enumerate(self._parts)
            if (got := self._ask(place, part)) is not None
        ]
        told = len(failures) < len(self._parts) or any(map(_absent, failures))
        if not (told and self._known):
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
        got = part.ask()
        if isinstance(got, Answer):
            self._known[place] = got
            return None
        if isinstance(got, ServiceAbsent):
            self._known.pop(place, None)
        return got


def _for_now(answer: Answer) -> Answer:
    """Good until those who failed are asked again."""
    ttl = _SOON if answer.ttl is None else min(answer.ttl, _SOON)
    return Answer(answer.instances, ttl, answer.refused)


def _absent(failure: tuple[Part, Exception]) -> bool:
    return isinstance(failure[1], ServiceAbsent)


def _failure(failures: Sequence[tuple[Part, Exception]], *, absent: bool = False) -> DiscoveryError:
    """One for all. Absent is what all say is absent, and that of which nobody else knows."""
    kind = ServiceAbsent if absent or all(map(_absent, failures)) else DiscoveryError
    error = kind("; ".join(f"{part.name}: {text_of(error)}" for part, error in failures))
    error.__cause__ = failures[0][1]
    return error
