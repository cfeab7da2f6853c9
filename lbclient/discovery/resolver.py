"""The protocol of a resolver, an object with `resolve` that finds instances, and the static list.

This file also has the texts for logs and errors of discovery.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from lbclient._internal.interruption import is_interruption
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError, LoadBalancingError

__all__ = ["Resolver", "StaticResolver", "listed", "text_of", "usable"]

_SHOWN = 5


def listed(refused: Iterable[RejectedRecord]) -> str:
    """Describe refused records, or a few of them if there are many.

    The records are sorted, so that the same records always make the same text.
    """
    shown = sorted({f"{one.record}: {one.reason}" for one in refused})
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more


def text_of(error: BaseException | None) -> str:
    """Describe an error in one line.

    The error may be of a user's own class. Its text may be empty, and its `str()` may fail.
    """
    try:
        kind, text = type(error).__name__, str(error)
        if not text or not isinstance(error, LoadBalancingError | OSError):
            text = f"{kind}: {text}" if text else kind  # str(KeyError) is only the key
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


def usable(answer: object, about: str = "") -> Answer:
    """Check the result of `resolve`. Raises DiscoveryError if it has no instances for calls."""
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
