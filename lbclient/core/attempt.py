"""One attempt: from the pick to the verdict, and to the end of its body.

Two attempts of one call may race: the first good answer is the call's outcome.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from contextvars import Token
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from lbclient._internal import deadline
from lbclient._internal.deadline import Expiry
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Signal
from lbclient.core.engine import Engine, SlotOwner
from lbclient.core.picker import Pick
from lbclient.endpoint import Endpoint
from lbclient.endpoint.breaker import Breaker, Permit
from lbclient.endpoint.classifier import Classifier, Verdict, fault_name
from lbclient.telemetry import NOOP_SPAN, Attributes, CallSpan, Semantics

__all__ = ["Attempt", "HedgeRace"]

R = TypeVar("R")


class RacingAttempt(Protocol):
    """What a race knows of an attempt."""

    expiry: Expiry | None
    endpoint: Endpoint


A = TypeVar("A", bound=RacingAttempt)


class HedgeRace(Generic[A]):
    """Attempts enter and leave on whichever thread carries them out."""

    __slots__ = ("_lock", "_running", "attempts", "ended", "over", "winner")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._running: list[A] = []
        self.attempts: list[A] = []
        """All of them, in the order in which they began."""
        self.winner: A | None = None
        """The one whose answer is the outcome, once there is one."""
        self.over = False
        self.ended = Signal()
        """Set when it is over."""

    @property
    def places(self) -> Collection[Endpoint]:
        """Where attempts are under way. Hold the lock."""
        return [one.endpoint for one in self._running]

    def begun(self, attempt: A) -> None:
        """It is under way."""
        with self._lock:
            self._running.append(attempt)
            self.attempts.append(attempt)

    def is_losing(self, attempt: A, verdict: Verdict | None) -> bool:
        """It has ended, with an answer or without: True where another one is the outcome."""
        with self._lock:
            self._running.remove(attempt)
            if self.over:
                return True
            if verdict is not None and verdict.good:
                self.winner = attempt
                self._end()
            return False

    def end(self) -> None:
        """Whoever is still under way need not go on."""
        with self._lock:
            self._end()
            for one in self._running:
                if one.expiry is not None:
                    one.expiry.expire()

    def _end(self) -> None:
        self.over = True
        self.ended.set()


class _Facts(NamedTuple):
    """What is kept of an attempt whose response the caller holds.

    Not the attempt itself: it knows its call, whose earlier errors know the frames that hold the
    response, which then would never be dropped.
    """

    endpoint: Endpoint
    breaker: Breaker
    permit: Permit
    concurrent: int
    started: float
    epoch: int
    fault: str
    elapsed: float


_LOSING: Attributes = {"lbclient.lost": True}
"""Marks the slower attempt of a hedged call, in its span and its duration."""


class Caller(Protocol):
    """What an attempt asks of the call that makes it."""

    engine: Engine
    span: CallSpan
    semantics: Semantics
    now: float
    started: float
    deadline: float | None
    timed: bool
    race: HedgeRace[Any] | None

    classify: Classifier
    """What the outcome of an attempt means, by itself."""

    def expiry(self) -> Expiry:
        """When an attempt that starts now must end, where the call is `timed`."""
        ...

    def verdict(self, attempt: Attempt[Any], error: Exception) -> Verdict:
        """What the error of an attempt means."""
        ...


class Attempt(Generic[R]):
    """Holds one permit and one place in flight, and gives each back exactly once.

    A shell enters it, sends, and sets `result`. Leaving it judges: an error after which the call
    may go on is kept in `error`; any other passes through. `hold` keeps the place in flight, and
    an innocent verdict, open until `finish`: for an answer whose body is still to be read.
    """

    __slots__ = (
        "_call",
        "_failure",
        "_held",
        "_owner",
        "_settled",
        "_span",
        "_token",
        "breaker",
        "concurrent",
        "deadline_expired",
        "elapsed",
        "endpoint",
        "epoch",
        "error",
        "expiry",
        "instance",
        "losing",
        "pick",
        "reason",
        "replaces",
        "result",
        "started",
        "status",
        "verdict",
    )

    def __init__(self, call: Caller, pick: Pick, replaces: R | None, resend: int) -> None:
        self._call = call
        self.pick = pick
        self.reason = pick.reason
        endpoint = self.endpoint = pick.endpoint
        self.instance = endpoint.instance
        self._held, self._settled = False, False
        self._owner: SlotOwner | None = None
        self._failure: str | None = None
        """The name of the exception that ended it, where one did."""
        self._token: Token[Expiry | None] | None = None
        self._span = NOOP_SPAN if call.span.silent else call.span.attempt(resend, self.instance)
        self.breaker = endpoint.breaker
        self.concurrent = endpoint.in_flight - 1  # read without the lock: one more or less is fine
        self.started = call.now
        self.epoch = call.engine.charges.epoch
        self.elapsed = 0.0
        self.expiry = call.expiry() if call.timed else None
        self.replaces = replaces
        """The answer that this attempt is to replace: close it before sending."""
        self.result: R | None = None
        self.status: int | None = None
        self.error: Exception | None = None
        self.losing = False
        """True where another attempt of its call was quicker."""
        self.deadline_expired = False
        """True where our own deadline ended it."""
        self.verdict: Verdict | None = None

    @property
    def fault(self) -> str:
        """What it is called, if it was one."""
        return self._failure or fault_name(self.status, None)

    @property
    def permit(self) -> Permit:
        """Its breaker's leave to send it."""
        return self.pick.permit

    @property
    def open(self) -> bool:
        """True while it counts as in flight."""
        return self.pick.taken

    def __enter__(self) -> Attempt[R]:
        if self.expiry is not None or self._span is not NOOP_SPAN:
            self._span.enter()
            self._token = deadline.enter(self.expiry)
        if (race := self._call.race) is not None:
            race.begun(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._token is not None:
            self._leave(self._token)
        call = self._call
        engine, classify = call.engine, call.classify
        clock = engine.clock
        self.elapsed = clock() - self.started
        verdict = None
        if error is None and not (verdict := classify(self.result)).good:
            verdict = verdict.of_result()
        if (race := call.race) is not None and race.is_losing(self, verdict):
            self._lose()
            return isinstance(error, Exception) and not is_interruption(error)
        if verdict is None:
            return error is not None and self._failed(error)
        self.verdict = verdict
        engine.answered(self, self.pick, verdict, held=self._held)
        if self._held:
            self._stays(verdict)
        else:
            self._settled = True
        quiet = verdict.good and call.semantics.minimal
        if self._span is not NOOP_SPAN or not (quiet or engine.telemetry.counts.untimed):
            self._tell(None)
        return False

    def hold(self, holder: object | None = None) -> None:
        """Its answer has a body that is still to be read: `finish` comes later.

        It also comes if `holder`, which is to call it, is dropped before. From here on it has the
        time of the call, not of the attempt.
        """
        if holder is not None:
            engine = self._call.engine
            self._owner = engine.owned(holder, partial(engine.give_back, self.pick))
        self._held = True
        if self.expiry is not None:
            self.expiry.at = math.inf if self._call.deadline is None else self._call.deadline

    def finish(self, error: BaseException | None = None) -> None:
        """The body has ended, was closed, or broke with `error`. More than once does no harm."""
        if error is not None:
            self._failure = fault_name(None, error)
            if isinstance(error, Exception):
                self.verdict = self._call.verdict(self, error)
            self._close(self._charge(error), release=True)
        else:
            self._close(self.verdict, release=True)
        if self._call.engine.outbox.pending:
            self._call.engine.outbox.publish()

    def abandon(self) -> None:
        """It was cancelled before it began, or interrupted while it stood: nobody is charged."""
        if self._token is not None:
            self._leave(self._token)
        if self.expiry is not None:
            self.expiry.at = math.inf  # where it was interrupted before it had the token
        self._span.end()
        self._close(None, release=True)

    def take(self) -> R:
        """Its result, which it then no longer holds."""
        result, self.result = self.result, None
        return result  # type: ignore[return-value]  # asked for once, after it was set

    def release_slot(self) -> None:
        """Count as in flight no more: its answer, still unread, waits for a retry."""
        with self._call.engine.lock:
            if self.pick.taken:
                self._call.engine.release(self.pick)

    def _failed(self, error: BaseException) -> bool:
        """True where the call may go on."""
        self._failure = fault_name(None, error)
        failure = error if isinstance(error, Exception) else None
        self.verdict = None if failure is None else self._call.verdict(self, failure)
        self._close(self._charge(error), release=True)
        self._tell(error)
        if failure is None or not self._ours():
            return False
        self.error = failure
        return True

    def _stays(self, verdict: Verdict) -> None:
        """Its body is still to be read."""
        engine = self._call.engine
        if verdict.fault or verdict.again != "never":
            self._close(verdict, release=False)
            return
        if self.permit.probe:
            engine.probe_answered(self)
        if self._owner is not None:
            self._owner.give_back = partial(engine.dropped, self.pick, self._facts(), verdict)

    def _facts(self) -> _Facts:
        return _Facts(
            self.endpoint,
            self.breaker,
            self.permit,
            self.concurrent,
            self.started,
            self.epoch,
            self.fault,
            self.elapsed,
        )

    def _lose(self) -> None:
        """Another attempt is the outcome of the call: nobody is charged, and it counts as nothing.

        Its instance has taken so long at the least.
        """
        self.losing = True
        endpoint = self.endpoint
        with self._call.engine.lock:
            if self.elapsed > (endpoint.latency or 0.0):
                endpoint.record_latency(self.elapsed)
            self._call.engine.learned(endpoint, self.elapsed, failed=False)
        self._span.end(_LOSING)
        if (labels := self._call.semantics.duration(None)) is not None:
            self._call.engine.telemetry.counts.duration(self.elapsed, {**labels, **_LOSING})
        self._close(None, release=True)

    def _ours(self) -> bool:
        """False for an exception that says nothing of the instance: the caller's own."""
        verdict = self.verdict
        return self.deadline_expired or (
            verdict is not None and (verdict.fault or verdict.again != "never")
        )

    def _charge(self, error: BaseException) -> Verdict | None:
        """An exception without fault is neutral, and so is everything that is no `Exception`."""
        verdict = self.verdict if isinstance(error, Exception) else None
        return verdict if verdict is not None and verdict.fault else None

    def _close(self, verdict: Verdict | None, *, release: bool) -> None:
        engine = self._call.engine
        with engine.lock:
            if not self._settled:
                engine.record_outcome(self, verdict)
                self._settled = True  # if that was interrupted, `abandon` hands the permit back
            if release and self.pick.taken:
                engine.release(self.pick)
            if release and self._owner is not None:
                engine.owners.discard(self._owner)
                self._owner = None

    def _leave(self, token: Token[Expiry | None]) -> None:
        self._token = None
        if deadline.leave(token):
            self._span.leave()

    def _tell(self, error: BaseException | None) -> None:
        semantics, span = self._call.semantics, self._span
        if span.recording:
            span.end(semantics.outcome(self.result, error))
        else:
            span.end()
        counts = self._call.engine.telemetry.counts
        if counts.untimed:
            return
        labels = semantics.duration(self.result if error is None else error)
        if labels is not None:
            counts.duration(self.elapsed, labels)
