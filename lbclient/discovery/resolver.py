"""The protocols for a discovery of your own: a resolver is asked for instances, and a watcher
reports each change. Also the resolver of a static list.

This file also has the texts for logs and errors of discovery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from lbclient._internal.interruption import is_interruption
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError, LoadBalancingError

__all__ = ["Resolver", "StaticResolver", "Watcher", "listed", "text_of", "usable"]

_SHOWN = 5


def listed(refused: Iterable[RejectedRecord]) -> str:
    """Describe refused records for a text. If there are many, only a few are named.

    The records are sorted, so that the same records always give the same text.
    """
    shown = sorted({f"{one.record}: {one.reason}" for one in refused})
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more


def text_of(error: BaseException | None) -> str:
    """Describe an error in one line.

    The error may be of a class of the user: its text may be empty, and its `str()` may raise an
    exception.
    """
    try:
        kind, text = type(error).__name__, str(error)
        if not text or not isinstance(error, LoadBalancingError | OSError):
            text = f"{kind}: {text}" if text else kind  # the text of a KeyError is only the key
        return text if text.isprintable() else repr(text)[1:-1]
    except Exception as failure:  # an error without a usable text must not end discovery
        if is_interruption(failure):
            raise
        return type(error).__name__


@runtime_checkable
class Resolver(Protocol):
    """Finds the instances of a service. Implement this protocol for a discovery of your own."""

    def resolve(self) -> Answer:
        """Return the full set of current instances.

        This method may block, since it is called on a background thread, one call at a time. If it
        raises an exception or returns no instances, the last good set stays in use. If it raises
        `ServiceAbsent`, that set is dropped.
        """
        ...


@runtime_checkable
class Watcher(Protocol):
    """Sends the instances of a service whenever they change. Implement this protocol instead of
    `Resolver` if your registry can report changes.
    """

    def watch(self, update: Callable[[Answer], None], alive: Callable[[], None]) -> None:
        """Watch the service until the watch fails or `close` is called. This method may block,
        since it is called on a background thread of its own.

        Call `update` with the full set of current instances: first with the set at the beginning,
        then after each change. Call `alive` when the registry has confirmed, in another way, that
        nothing has changed. Any thread may call both functions, and neither of them blocks.

        If this method raises an exception, or returns, it is called again after 1 to 30 s, and the
        last good set stays in use. If it raises `ServiceAbsent`, that set is dropped.
        """
        ...

    def close(self) -> None:
        """Make `watch` return within a second. Called from another thread than `watch`, when the
        balancer was closed or is no longer used."""
        ...


def usable(answer: object, about: str = "") -> Answer:
    """Check the result of `resolve`, and return it. Raises DiscoveryError if it contains no
    instances for calls."""
    if not isinstance(answer, Answer):
        kind = type(answer).__name__
        raise DiscoveryError(f"resolve(){about} must return an lbclient.Answer, not {kind}")
    if not answer.instances:
        reasons = f"; refused {listed(answer.refused)}" if answer.refused else ""
        raise DiscoveryError(f"the answer{about} holds no usable instance{reasons}")
    return answer


class StaticResolver:
    """Always returns the instances that the user passed. `resolve` is called only once."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._answer = Answer(instances)

    def __repr__(self) -> str:
        return f"<StaticResolver of {len(self._answer.instances)} instances>"

    def resolve(self) -> Answer:
        """Return the instances."""
        return self._answer
