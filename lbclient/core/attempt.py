"""One attempt: from the pick to the verdict, and to the end of its body.

Two attempts of a hedged call may run at the same time. The first good answer is the call's outcome.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextvars import Token
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from lbclient._internal import deadline
from lbclient._internal.deadline import CURRENT, Deadline, Expiry, applicable
from lbclient._internal.interruption import is_interruption
from lbclient.core.call_info import AttemptInfo
from lbclient.core.engine import Engine, SlotOwner
from lbclient.core.picker import Pick, PickRequest
from lbclient.endpoint.classifier import (
    FINE,
    NO_LOCAL_PORT,
    Classifier,
    Verdict,
    answered,
    fault_name,
    lacked_port,
)
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.telemetry.semantics import Attributes, Semantics
from lbclient.telemetry.spans import NOOP_SPAN, CallSpan

if TYPE_CHECKING:
    from lbclient.core.hedge import HedgeRace

__all__ = ["Attempt", "CallState"]

R = TypeVar("R")

_ROUNDED = 0.001
"""The header of a deadline contains whole milliseconds. So for the instance, the deadline may be
earlier by up to this many seconds."""
_LOSING: Attributes = {"lbclient.lost": True}
"""Marks the slower attempt of a hedged call, in its span and its duration."""


class CallState(PickRequest, Generic[R]):
    """The state of a call that its picks, waits and attempts need."""

    __slots__ = (
        "classify",
        "context",
        "deadline",
        "engine",
        "inherited",
        "race",
        "semantics",
        "since",
        "span",
        "timed",
    )

    classify: Classifier
    """The classifier, which says what the outcome of an attempt means."""
    context: Deadline | None
    """The innermost deadline of the context in which the call began."""
    deadline: float | None
    """The clock time when the call must end."""
    engine: Engine
    inherited: bool
    """True if `deadline` was not set by the call itself, but by a `with lbclient.deadline(...)`
    block around it, or by a request that this service handles."""
    race: HedgeRace[R] | None
    """Decides between the attempts of a call that may be hedged; else None."""
    semantics: Semantics
    since: float
    """The time when the deadline began to run. This is before the call if earlier requests share
    the deadline."""
    span: CallSpan
    timed: bool
    """True if the attempts of the call have a time limit."""

    @property
    def over(self) -> bool:
        """True if another attempt has decided the outcome of the call, or the outcome is no longer
        needed."""
        return self.race is not None and self.race.over

    @property
    def under_way(self) -> Collection[Endpoint]:
        """The endpoints that have an attempt of this call in flight. Read this property with the
        lock held."""
        return () if self.race is None else self.race.endpoints

    def expiry(self, started: float) -> Expiry:
        """The time at which an attempt that began at `started` must end, if the call is `timed`."""
        timeout = self.engine.retry_rules.policy.attempt_timeout
        ends = [] if self.deadline is None else [self.deadline]
        if timeout is not None:
            ends.append(started + timeout)
        return Expiry(min(ends, default=math.inf), self.engine.clock, outer=self.context)

    def overdue(self, early: float = 0.0) -> bool:
        """True once the deadline of the call has expired, or will within `early` seconds."""
        return self.deadline is not None and self.engine.clock() >= self.deadline - early

    def had_time(self, started: float) -> bool:
        """True if an attempt that began at `started`, and that the deadline ended, had enough time
        for an answer: at least half of the time of the call. If the deadline was set outside the
        call, the attempt must also have lasted at least as long as answers usually take. Otherwise
        callers with short deadlines would take healthy instances out of rotation."""
        half = ((self.deadline or 0.0) - self.since) / 2
        takes = (self.engine.answer_time or 0.0) if self.inherited else 0.0
        return started - self.since <= half and self.engine.clock() - started >= takes

    def excuses(self, verdict: Verdict, started: float) -> bool:
        """True if a bad answer, such as 504, says nothing about its instance. This is so if the
        instance was told the deadline, the deadline has expired, and the attempt had too little
        time."""
        return not verdict.rest and self.overdue(_ROUNDED) and not self.had_time(started)

    def unwanted(self) -> bool:
        """True once the outcome of the call is no longer needed, since the block or request whose
        deadline limits the call was ended early."""
        return any(one.ended() for one in applicable(self.context))


class Attempt(Generic[R]):
    """Holds one permit and one slot, and gives each back exactly once.

    A driver enters the attempt as a context manager, sends the request, and sets `result`. When the
    driver leaves the attempt, the outcome is classified: an error after which the call may continue
    is stored in `error`, and any other error is raised. If the body of an answer is still to be
    read, `hold` keeps the slot until `finish`. In this case, a verdict without fault is recorded at
    `finish`.
    """

    __slots__ = (
        "_call",
        "_held",
        "_owner",
        "_recorded",
        "_span",
        "_token",
        "deadline_expired",
        "endpoint",
        "error",
        "expiry",
        "instance",
        "losing",
        "pick",
        "replaces",
        "result",
        "status",
        "verdict",
    )

    def __init__(self, call: CallState[R], pick: Pick, replaces: R | None, resend: int) -> None:
        self._call = call
        self.pick: Pick = pick
        self.endpoint: Endpoint = pick.endpoint
        self.instance: Instance = pick.endpoint.instance
        self._held, self._recorded = False, False
        self._owner: SlotOwner | None = None
        self._token: Token[Deadline | None] | None = None
        self._span = NOOP_SPAN if call.span.silent else call.span.attempt(resend, self.instance)
        self.expiry: Expiry | None = call.expiry(pick.started) if call.timed else None
        self.replaces: R | None = replaces
        """The answer to the previous attempt, which this attempt replaces. It must be closed before
        this attempt is sent."""
        self.result: R | None = None
        self.status: int | None = None
        self.error: Exception | None = None
        self.losing: bool = False
        """True if another attempt of the same call was faster."""
        self.deadline_expired: bool = False
        """True if a deadline of this client ended the attempt."""
        self.verdict: Verdict | None = None

    @property
    def reason(self) -> str:
        """The reason why the instance was chosen."""
        return self.pick.reason

    @property
    def answering(self) -> bool:
        """True while the rest of the body is still to arrive, if the latency is measured up to the
        first byte of the body."""
        return self.verdict is None and self.pick.elapsed > 0

    @property
    def open(self) -> bool:
        """True while the attempt counts as in flight."""
        return self.pick.taken

    def __enter__(self) -> Attempt[R]:
        if self.expiry is not None or self._span is not NOOP_SPAN:
            self._span.enter()
            self._token = deadline.enter(self.expiry)
        if (race := self._call.race) is not None:
            race.begin(self, self.endpoint, self.expiry)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if self._token is not None:
            self._leave(self._token)
        call, pick = self._call, self.pick
        engine, classify = call.engine, call.classify
        clock = engine.clock
        if not pick.elapsed:
            pick.elapsed = clock() - pick.started
        verdict = None
        if error is None and not (verdict := classify(self.result)).good:
            verdict = verdict.of_result()
        if (race := call.race) is not None and race.is_losing(self, verdict):
            self._lose()
            return isinstance(error, Exception) and not is_interruption(error)
        if verdict is None:
            return error is not None and self._failed(error)
        self.verdict = verdict
        if verdict.fault:
            pick.fault = fault_name(self.status, None)
        if verdict.fault and call.deadline is not None and call.excuses(verdict, pick.started):
            self._close(None, release=not self._held)
        else:
            engine.record_answer(pick, verdict, held=self._held)
            if self._held:
                self._stays(verdict)
            else:
                self._recorded = True
        quiet = verdict.good and call.semantics.minimal
        if self._span is not NOOP_SPAN or not (quiet or engine.telemetry.metrics.untimed):
            self._tell(None)
        return False

    def answered(self) -> None:
        """Measure the latency up to now, although the attempt continues."""
        self.pick.elapsed = self._call.engine.clock() - self.pick.started

    def hold(self, holder: object | None = None) -> None:
        """Keep the slot until `finish`, since the body of the answer is still to be read.

        `holder` is an object that will call `finish`. If it is garbage collected before, the slot
        is given back anyway. From now on, only the deadline of the whole call limits the attempt.
        """
        if holder is not None:
            engine = self._call.engine
            self._owner = engine.owned(holder, partial(engine.give_back, self.pick))
        self._held = True
        if self.expiry is not None:
            self.expiry.at = math.inf if self._call.deadline is None else self._call.deadline

    def finish(self, error: BaseException | None = None) -> None:
        """End the attempt: the body has ended, was closed, or failed with `error`. May be called
        twice."""
        if error is None:
            self._close(self.verdict, release=True)
        else:
            self._close(self._verdict_on(error), release=True)
        if self._call.engine.outbox.pending:
            self._call.engine.outbox.publish()

    def abandon(self) -> None:
        """Give back the permit and the slot, since the attempt was cancelled before it began, or
        interrupted. No instance is charged.
        """
        if self._token is not None:
            self._leave(self._token)
        if self.expiry is not None:
            self.expiry.at = math.inf
            if CURRENT.get() is self.expiry:  # interrupted before the token was stored
                CURRENT.set(self.expiry.outer)
        self._span.end()
        self._close(None, release=True)

    def end_span_later(self) -> None:
        """End the span when the outbox is published."""
        self._span.end_later(self._call.engine.outbox.pending)

    def take(self) -> R:
        """Return the result. The attempt keeps no reference to it."""
        result, self.result = self.result, None
        return result  # type: ignore[return-value]  # called once, after it was set

    def release_slot(self) -> None:
        """Stop counting the attempt as in flight, while its unread answer waits for a retry."""
        with self._call.engine.lock:
            if self.pick.taken:
                self._call.engine.release(self.pick)

    def info(self) -> AttemptInfo:
        """The public record of the attempt."""
        return AttemptInfo(
            self.instance, self.status, self.error, self.pick.elapsed, self.pick.reason
        )

    def _failed(self, error: BaseException) -> bool:
        """Record an attempt that ended with an error. Returns True if the call may continue."""
        self.pick.elapsed = self._call.engine.clock() - self.pick.started
        self._close(self._verdict_on(error), release=True)
        self._tell(error)
        verdict = self.verdict
        if not isinstance(error, Exception) or verdict is None:
            return False
        if not (self.deadline_expired or verdict.fault or verdict.again != "never"):
            return False  # the caller's own error: it says nothing about the instance
        self.error = error
        return True

    def _verdict_on(self, error: BaseException) -> Verdict | None:
        """Classify an exception. Returns the verdict if it is a fault. Returns None if it is not a
        fault, or if the exception is not an `Exception`; then no instance is charged."""
        self.pick.fault = fault_name(None, error)
        if not isinstance(error, Exception):
            return None
        self.verdict = self._classify(error)
        return self.verdict if self.verdict.fault else None

    def _classify(self, error: Exception) -> Verdict:
        """Return the verdict on an error: what it means, and whether the instance is at fault."""
        call, engine = self._call, self._call.engine
        if engine.abandoned:
            return FINE
        verdict = call.classify(error)
        if verdict.unreachable:
            if lacked_port(error, self.instance):
                return NO_LOCAL_PORT
            with engine.lock:
                verdict = replace(verdict, fault=engine.reachability.record_failure(self.pick))
        elif answered(error):
            with engine.lock:
                engine.reachability.record_success(self.pick)
        if not verdict.fault:
            return verdict
        if call.overdue():
            self.deadline_expired = True
            verdict = Verdict(fault=call.had_time(self.pick.started))
        missed = self.expiry is not None and self.expiry.missed
        return replace(verdict, fault=False) if missed else verdict

    def _stays(self, verdict: Verdict) -> None:
        """Keep the attempt in flight, since the body of its answer is still to be read. If the
        answer is bad, its verdict is recorded now."""
        engine = self._call.engine
        if verdict.fault or verdict.again != "never":
            self._close(verdict, release=False)
            return
        if verdict.rest:  # the back-off begins now, since the body may take minutes
            with engine.lock:
                engine.back_off(self.pick, verdict.rest)
            verdict = self.verdict = replace(verdict, rest=0.0)
        if self.pick.permit.probe:
            engine.end_probe(self.pick)
        if self._owner is not None:
            self._owner.give_back = partial(engine.record_dropped, self.pick, verdict)

    def _lose(self) -> None:
        """Record that another attempt is the outcome of the call. No instance is charged."""
        self.losing = True
        engine, elapsed = self._call.engine, self.pick.elapsed
        engine.record_loss(self.pick)
        self._span.end(_LOSING)
        if (labels := self._call.semantics.duration(None)) is not None:
            metric = self._call.semantics.metric
            engine.telemetry.metrics.duration(metric, elapsed, {**labels, **_LOSING})
        self._close(None, release=True)

    def _close(self, verdict: Verdict | None, *, release: bool) -> None:
        engine = self._call.engine
        with engine.lock:
            if not self._recorded:
                engine.record_outcome(self.pick, verdict)
                self._recorded = True  # if interrupted before, `abandon` gives the permit back
            if release and self.pick.taken:
                engine.release(self.pick)
            if release and self._owner is not None:
                engine.owners.discard(self._owner)
                self._owner = None

    def _leave(self, token: Token[Deadline | None]) -> None:
        self._token = None
        if deadline.leave(token, self.expiry):
            self._span.leave()

    def _tell(self, error: BaseException | None) -> None:
        """End the span of the attempt, and record its duration."""
        semantics, span = self._call.semantics, self._span
        if span.recording:
            span.end(semantics.outcome(self.result, error))
        else:
            span.end()
        metrics = self._call.engine.telemetry.metrics
        if metrics.untimed:
            return
        labels = semantics.duration(self.result if error is None else error)
        if labels is not None:
            metrics.duration(semantics.metric, self.pick.elapsed, labels)
