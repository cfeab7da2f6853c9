"""An attempt that was sent, as those see it who judge it."""

from __future__ import annotations

from typing import Protocol

from lbclient.breaker import Breaker, Permit
from lbclient.endpoint import Endpoint

__all__ = ["Sent"]


class Sent(Protocol):
    """To whom it went, with whose permit, and how long it took to the answer's headers."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it went."""
        ...

    @property
    def breaker(self) -> Breaker:
        """The endpoint's at that time: it stands for the machine that was there."""
        ...

    @property
    def permit(self) -> Permit:
        """That breaker's leave to send it."""
        ...

    @property
    def beside(self) -> int:
        """So many others were in flight at that endpoint when it was sent."""
        ...

    @property
    def started(self) -> float:
        """When it was sent, in clock time."""
        ...

    @property
    def epoch(self) -> int:
        """`Charges.epoch` when it was sent."""
        ...

    @property
    def fault(self) -> str:
        """What it is called, if it was one."""
        ...

    @property
    def elapsed(self) -> float:
        """Seconds."""
        ...
