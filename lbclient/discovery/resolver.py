"""A resolver discovers instances: an object with `resolve`. A static list is one.

Also how discovery tells in logs and errors what it was given.
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
    """In an order of their own, so that the same ones make the same text, and not all of many."""
    shown = sorted({f"{one.record}: {one.reason}" for one in refused})
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more


def text_of(error: BaseException | None) -> str:
    """What it says, in one line. It may be the caller's own, and say nothing, or fail to say it."""
    try:
        kind, text = type(error).__name__, str(error)
        if not text or not isinstance(error, LoadBalancingError | OSError):
            text = f"{kind}: {text}" if text else kind  # that of a KeyError is but the key
        return text if text.isprintable() else repr(text)[1:-1]
    except Exception as failure:  # no error of an error's text may end discovery
        if is_interruption(failure):
            raise
        return type(error).__name__


@runtime_checkable
class Resolver(Protocol):
    """Where a service's instances come from; also what a caller's own discovery looks like."""

    def resolve(self) -> Answer:
        """The full set of instances now.

        It may block: it is called on a background thread, one call at a time. An exception, or an
        empty answer, keeps the last good set; `ServiceAbsent` drops it.
        """
        ...


def usable(answer: object, about: str = "") -> Answer:
    """What `resolve` returned, if calls can go by it. Raises DiscoveryError."""
    if not isinstance(answer, Answer):
        kind = type(answer).__name__
        raise DiscoveryError(f"resolve(){about} must return an lbclient.Answer, not {kind}")
    if not answer.instances:
        reasons = f"; refused {listed(answer.refused)}" if answer.refused else ""
        raise DiscoveryError(f"the answer{about} holds no usable instance{reasons}")
    return answer


class StaticResolver:
    """The caller's own word: always the same instances, never asked again."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._answer = Answer(instances)

    def resolve(self) -> Answer:
        """The list."""
        return self._answer
