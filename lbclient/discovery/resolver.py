"""What discovers instances: an object with `resolve`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lbclient.instance import Answer

__all__ = ["Resolver"]


@runtime_checkable
class Resolver(Protocol):
    """Where a service's instances come from; also what a caller's own discovery looks like."""

    def resolve(self) -> Answer:
        """The full set of instances now.

        It may block: it is called on a background thread, one call at a time. An exception, or an
        empty answer, keeps the last good set; `ServiceAbsent` drops it.
        """
        ...
