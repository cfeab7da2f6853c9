"""A hedged call: a second attempt if the first one is slow. The first good answer is the outcome.

The steps of the call are one lane, and the steps of its hedge are another. Both lanes run
concurrently. A driver for threads runs the two lanes as follows:

    with Lanes(call, after) as lanes:
        ...                             run `Lane(lanes, call)` on another thread
        for step in lanes:
            if isinstance(step, Pause):
                ...                     wait
            else:
                ...                     run `step`, the lane of the hedge, on another thread
        ...                             wait for `lanes.done`

The driver runs each lane as follows:

    try:
        with lane:
            for step in lane:
                ...                     as the steps of any call
    finally:
        if lane.leftover is not None:
            ...                         close it
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Generic, Self, TypeVar

from lbclient._internal.deadline import Expiry
from lbclient._internal.signals import Pause, Signal
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.call_info import AttemptInfo
from lbclient.core.picker import Pick, PickRequest
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["HedgeRace", "Lane", "Lanes"]

R = TypeVar("R")


class HedgeRace(Generic[R]):
    """The attempts of a hedged call. They may begin and end on several threads."""

    __slots__ = ("_lock", "_running", "attempts", "ended", "over", "winner")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._running: dict[Attempt[R], tuple[Endpoint, Expiry | None]] = {}
        self.attempts: list[Attempt[R]] = []
        """All attempts, in the order in which they began."""
        self.winner: Attempt[R] | None = None
        """The attempt whose answer is the outcome; None until it is known."""
        self.over: bool = False
        self.ended: Signal = Signal()
        """Set when the outcome is known, or the call has ended."""

    @property
    def endpoints(self) -> Collection[Endpoint]:
        """The endpoints with an attempt in flight. Read this property with the lock held."""
        return [endpoint for endpoint, _ in self._running.values()]

    def begin(self, attempt: Attempt[R], endpoint: Endpoint, expiry: Expiry | None) -> None:
        """Record an attempt that begins at `endpoint`. `expiry` can end the attempt early."""
        with self._lock:
            self._running[attempt] = endpoint, expiry
            self.attempts.append(attempt)
            if self.over and expiry is not None:
                expiry.expire()

    def is_losing(self, attempt: Attempt[R], verdict: Verdict | None) -> bool:
        """Record that an attempt has ended, with or without an answer. True if another attempt is
        the outcome.
        """
        with self._lock:
            del self._running[attempt]
            if self.over:
                return True
            if verdict is not None and verdict.good:
                self.winner = attempt
                self._end()
            return False

    def outcome(self, last: Attempt[R] | None) -> tuple[Attempt[R] | None, list[AttemptInfo]]:
        """Return the attempt that is the outcome, and the records of all attempts. The record of
        the outcome is the last one. If no answer was good, `last` is the outcome. Call this method
        once."""
        outcome, self.winner = self.winner or last, None
        attempts, self.attempts = self.attempts, []
        attempts.sort(key=lambda attempt: attempt is outcome)
        return outcome if attempts else None, [attempt.info() for attempt in attempts]

    def end(self) -> None:
        """Cancel the attempts that are still in flight."""
        with self._lock:
            self._end()
            for _, expiry in self._running.values():
                if expiry is not None:
                    expiry.expire()

    def _end(self) -> None:
        self.over = True
        self.ended.set()


class Lanes(Generic[R]):
    """The lanes of a call that may be hedged, for a driver.

    Iteration yields the steps that run concurrently with the lane of the call itself: first the
    pause before the hedge, and then the lane of the hedge. Then the driver waits for `done`, or for
    both lanes. Leaving the context cancels the attempts that are still in flight, and raises the
    exception of a lane, if there is one. A lane may continue after that, and ends by itself.
    """

    def __init__(self, call: Call[R], after: float) -> None:
        self._call = call
        self._after = after
        self._lock = call.engine.lock
        self._open: set[Call[R] | Hedge[R]] = {call}
        """The lanes that have not ended."""
        self._error: BaseException | None = None
        self._decided = False
        """True once `done` is set, or is about to be set after the lock is released."""
        self.done: Signal = Signal()
        """Set once the lane of the outcome has ended, any lane has ended with an exception, or all
        lanes have ended.
        """
        self._race: HedgeRace[R] = HedgeRace(self._lock)
        call.race = self._race
        call.timed = True
        call.engine.calls[call] = self._race.ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, _: object, __: object) -> None:
        with self._lock:
            self._decided = True
            self.done.set()
            self._race.end()
            error, self._error = self._error, None
        try:
            if error is not None and kind is None:
                raise error
        finally:
            del error  # its traceback holds this frame

    def __iter__(self) -> Iterator[Pause | Lane[R]]:
        yield Pause(self._after, self.done)
        last = self._call.last
        answering = last is None or last.answering
        if not (self.done.is_set or answering or self._call.unwanted()):
            hedge = Hedge(self._call)
            with self._lock:
                if self._open and not self._race.over:
                    self._open.add(hedge)
            if hedge in self._open:
                yield Lane(self, hedge)

    def end(self, lane: Lane[R], error: BaseException | None) -> bool:
        """Record that the steps of `lane` have ended. Returns True if their exception is to be
        raised to the caller. Only the first exception is raised, and only if there was no outcome
        before.
        """
        with self._lock:
            steps, last, winner = lane.steps, lane.steps.last, self._race.winner
            won = winner is not None and last is winner
            if steps in self._open:
                if won:
                    last = None if self._call in self._open else self._call.last
                if last is not None and (self._race.over or steps is not self._call):
                    lane.leftover = last.take()
                self._open.discard(steps)
            raised = error is not None and not self._decided
            if raised:
                self._error = error
            done = raised or won or not self._open
            self._decided = self._decided or done
        if done:  # without the lock: the thread that is woken takes it
            self.done.set()
        return raised


class Lane(Generic[R]):
    """One of the two concurrent sequences of steps of a hedged call: the steps of the call itself,
    or those of its hedge."""

    __slots__ = ("_lanes", "leftover", "steps")

    def __init__(self, lanes: Lanes[R], steps: Call[R] | Hedge[R]) -> None:
        self._lanes = lanes
        self.steps: Call[R] | Hedge[R] = steps
        self.leftover: R | None = None
        """A response that must be closed, since the call returns another result. Set when the steps
        end. If there is no good response, the call returns a bad one.
        """

    def __iter__(self) -> Iterator[Pause | Attempt[R]]:
        return iter(self.steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return self.end(error) and isinstance(error, Exception)

    def end(self, error: BaseException | None) -> bool:
        """Record that the steps have ended. True if the exception is to be raised to the caller."""
        if error is not None:
            self.steps.abandon()
        return self._lanes.end(self, error)


class Hedge(PickRequest, Generic[R]):
    """The hedge of a call, as steps: at most one second attempt.

    The second attempt is not retried and waits for no slot. If no other instance has a free slot,
    or the hedging budget is empty, there is no second attempt.
    """

    __slots__ = ("_call", "last")

    # Repeated: a type checker may otherwise infer other types from the assignments below.
    accepts_tried: bool
    caller: int | None
    idempotent: bool
    key: object
    now: float
    rng: random.Random
    tried: list[Endpoint]

    def __init__(self, call: Call[R]) -> None:
        self._call = call
        self.last: Attempt[R] | None = None
        self.caller, self.key, self.rng = call.caller, call.key, call.rng
        self.idempotent, self.accepts_tried = True, False
        self.now, self.tried = call.started, call.tried
        self.pick: Pick | None = None
        self.waiting: Signal | None = None

    def __iter__(self) -> Iterator[Attempt[R]]:
        pick = self._call.engine.pick_hedge(self)
        if pick is None:
            return
        attempt: Attempt[R] = Attempt(self._call, pick, None, len(self.tried))
        self.last, self.pick = attempt, None
        self.tried.append(pick.endpoint)
        yield attempt

    def abandon(self) -> None:
        """Give back the slot and the permit of the hedge, since it was interrupted."""
        if self.pick is not None:
            self._call.engine.give_back(self.pick)
        if self.last is not None:
            self.last.abandon()
