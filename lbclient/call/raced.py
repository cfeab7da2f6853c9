"""The part of a call that lets a second attempt go beside the first."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

from lbclient.call.attempt import Attempt
from lbclient.call.race import Race
from lbclient.core import Core
from lbclient.endpoint import Endpoint
from lbclient.info import AttemptInfo, record
from lbclient.retry import Stopped
from lbclient.terms import Terms

__all__ = ["Raced"]

R = TypeVar("R")


class Raced(Generic[R]):
    """What a shell asks of a call to carry out two attempts at a time."""

    __slots__ = (
        "_last",
        "_records",
        "_stopped",
        "_terms",
        "core",
        "idempotent",
        "race",
        "timed",
        "tried",
    )

    core: Core
    idempotent: bool
    race: Race[Attempt[R]] | None
    timed: bool
    tried: list[Endpoint]
    _last: Attempt[R] | None
    _records: list[AttemptInfo]
    _stopped: Stopped | None
    _terms: Terms

    @property
    def over(self) -> bool:
        """True where another attempt has brought the outcome, or nobody wants one any more."""
        return self.race is not None and self.race.over

    @property
    def under_way(self) -> Collection[Endpoint]:
        """Where an attempt of it is under way while it looks for another. Hold the lock."""
        return () if self.race is None else self.race.places

    def hedge_after(self) -> float | None:
        """Seconds after which a second attempt may go beside the first.

        None for a call that may not be repeated, or whose body cannot be sent twice at a time.
        """
        hedging = self.core.hedging
        if hedging is None or not self.idempotent or self._terms.replayable is not None:
            return None
        with self.core.lock:
            after = hedging.after()
        if after is not None:
            race = self.race = Race(self.core.lock)
            self.timed = True
            self.core.calls[self] = race.ended
        return after

    def leftover(self) -> R | None:
        """An answer that another one has made needless, to be closed.

        One that is not good stands, where there is no better.
        """
        last, race = self._last, self.race
        if race is None or last is None or last is race.winner:
            return None
        return last.take() if last.lost or race.winner is not None else None

    def _after(self, race: Race[Attempt[R]]) -> Attempt[R] | None:
        """The attempt that is the outcome of a race; in the records it is the last.

        One that still is under way stays with whoever carries it out.
        """
        if race.winner is not None:
            self._stopped = None
        outcome, race.winner = race.winner or self._last, None
        attempts, race.attempts = race.attempts, []
        attempts.sort(key=lambda one: one is outcome)
        self._records = [record(one) for one in attempts]
        if outcome is self._last:
            self._last = None
        return outcome if attempts else None
