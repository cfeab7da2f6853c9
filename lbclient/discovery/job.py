"""What the control plane runs, again and again, each when it is due; and who runs it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Companion", "Job", "Scheduler"]


class Job(Protocol):
    """A service's discovery or health checks, or a registration's renewal. Its rounds may block."""

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
    def quick(self) -> bool:
        """True where a round neither blocks nor computes for long, and so needs no thread."""
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


class Companion(Job, Protocol):
    """A job over the instances of a service, for as long as they are followed."""

    def begin(self) -> None:
        """The first call of this process has come."""
        ...

    def stop(self) -> None:
        """No round is to follow."""
        ...


class Scheduler(Protocol):
    """Who runs the rounds of jobs: background threads, or virtual time."""

    generation: object
    """Another object in a forked child."""

    def schedule(self, job: Job) -> None:
        """Run the next round of `job` at its `next_at`."""
        ...
