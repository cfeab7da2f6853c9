"""What the control plane runs: something that is due at a time, again and again."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Job"]


class Job(Protocol):
    """One service's discovery, or one registration's renewal. Its rounds may block."""

    turn: int
    """The scheduler's ticket for the next round."""

    @property
    def next_at(self) -> float:
        """When the next round is due, by `clock`."""
        ...

    @property
    def stopped(self) -> bool:
        """True where no round is to follow."""
        ...

    @property
    def busy(self) -> bool:
        """True while a round is under way."""
        ...

    @property
    def large(self) -> bool:
        """True where a round may compute for long, and others wait for the interpreter."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def claim(self) -> bool:
        """Claim the round that is due; False while it is not due, or one is under way."""
        ...

    def run(self) -> None:
        """One round, after `claim`."""
        ...
