"""The second attempt of a call, sent beside a first that takes long.

`HedgeRace` (`core/attempt.py`) decides which of the two wins. The driver then ends the other: event
loops cancel its task (`balancer/event_loops.py`), threads let its deadline expire
(`balancer/threads.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Generic, Protocol, TypeVar

from lbclient._internal.deadline import Expiry
from lbclient._internal.signals import Signal
from lbclient.core.attempt import Attempt, HedgeRace
from lbclient.core.engine import Engine
from lbclient.core.picker import Pick, PickRequest
from lbclient.endpoint import Endpoint
from lbclient.endpoint.classifier import Classifier, Verdict
from lbclient.telemetry import CallSpan, Semantics

__all__ = ["Hedge"]

R = TypeVar("R")


class HedgedCall(PickRequest, Protocol[R]):
    """What a hedge has from its call."""

    engine: Engine
    deadline: float | None
    started: float
    race: HedgeRace[Attempt[R]] | None
    classify: Classifier
    semantics: Semantics
    span: CallSpan
    tried: list[Endpoint]

    def expiry_from(self, now: float) -> Expiry:
        """When an attempt that starts at that time must end."""
        ...

    def verdict(self, attempt: Attempt[R], error: Exception) -> Verdict:
        """What the error of an attempt means."""
        ...


class Hedge(Generic[R]):
    """One attempt of `call` at most, as steps for a shell. It is not repeated and waits for nobody:
    where no other instance has room, or the budget of hedges is empty, there is none."""

    __slots__ = (
        "_attempt",
        "_call",
        "caller",
        "classify",
        "deadline",
        "engine",
        "idempotent",
        "key",
        "now",
        "pick",
        "race",
        "rng",
        "semantics",
        "settles",
        "span",
        "started",
        "timed",
        "waiting",
    )

    def __init__(self, call: HedgedCall[R]) -> None:
        self._call = call
        self._attempt: Attempt[R] | None = None
        self.engine = call.engine
        self.deadline = call.deadline
        self.idempotent = True
        self.settles = False
        self.classify = call.classify
        self.key = call.key
        self.caller = call.caller
        self.now = self.started = call.started
        self.pick: Pick | None = None
        self.waiting: Signal | None = None
        self.race = call.race
        self.rng = call.rng
        self.semantics = call.semantics
        self.span = call.span
        self.timed = True

    def __iter__(self) -> Iterator[Attempt[R]]:
        pick = self.engine.pick_hedge(self)
        if pick is None:
            return
        attempt: Attempt[R] = Attempt(self, pick, None, len(self.tried))
        self._attempt, self.pick = attempt, None
        self._call.tried.append(pick.endpoint)
        yield attempt

    def abandon(self) -> None:
        """It was interrupted: whatever it holds is given back."""
        if self.pick is not None:
            self.engine.give_back(self.pick)
        if self._attempt is not None:
            self._attempt.abandon()

    @property
    def tried(self) -> Collection[Endpoint]:
        """Endpoints that attempts of the call went to."""
        return self._call.tried

    @property
    def under_way(self) -> Collection[Endpoint]:
        """Where an attempt of the call is under way. Hold the lock."""
        return self._call.under_way

    def expiry(self) -> Expiry:
        """When an attempt that starts now must end."""
        return self._call.expiry_from(self.now)

    def verdict(self, attempt: Attempt[R], error: Exception) -> Verdict:
        """What the error of an attempt means."""
        return self._call.verdict(attempt, error)

    def leftover(self) -> R | None:
        """An answer that was not the quickest good one, to be closed."""
        attempt, race = self._attempt, self.race
        if attempt is None or race is None or attempt is race.winner:
            return None
        return attempt.take()
