"""What discovers instances: an object with `resolve`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lbclient.discovery.words import listed
from lbclient.errors import DiscoveryError
from lbclient.instance import Answer

__all__ = ["Resolver", "usable"]


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
