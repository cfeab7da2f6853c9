"""One call: its attempts, one after another, until one outcome stands.

    with call:
        for step in call:
            if isinstance(step, Pause):
                ...                         wait, as your world waits
            else:
                with step:
                    step.result = ...       send to step.instance
    return call.result()

Threads, event loops and virtual time drive this same loop; none adds to what it decides.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from lbclient.attempt import Attempt
from lbclient.core import Core
from lbclient.deadline import Expiry
from lbclient.endpoint import Endpoint
from lbclient.errors import (
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
)
from lbclient.info import AttemptInfo, CallInfo, concluded, record
from lbclient.outcome import FINE, Judge, Verdict
from lbclient.retry import Turn, Turns
from lbclient.selection import Pick
from lbclient.telemetry import CallSpan, Semantics
from lbclient.terms import Terms
from lbclient.waiting import Pause, Signal

__all__ = ["Call"]

R = TypeVar("R")
logger = logging.getLogger(__name__)

_FIRST_ANSWER = 10.0
_LOOK_AGAIN = 0.25
"""A response that was dropped unclosed gives its place back without telling anybody."""


class Call(Generic[R]):
    """One call of one balancer, used once."""

    __slots__ = (
        "_judge",
        "_last",
        "_records",
        "_signal",
        "_terms",
        "_turns",
        "core",
        "deadline",
        "idempotent",
        "key",
        "now",
        "rng",
        "semantics",
        "span",
        "started",
        "timed",
        "tried",
    )

    def __init__(self, core: Core, judge: Judge, terms: Terms, semantics: Semantics) -> None:
        policy = core.retries.policy
        self.core = core
        self.semantics = semantics
        self.rng = core.rng
        self.now = self.started = core.clock()
        self.key = terms.key
        self.idempotent = terms.idempotent
        limit = policy.deadline if terms.deadline is None else terms.deadline
        self.deadline = None if limit is None else self.started + limit
        self.timed = limit is not None or policy.attempt_timeout is not None
        """True where its attempts must end at some time."""
        self.span: CallSpan
        self.tried: list[Endpoint] = []
        self._judge = judge
        self._terms = terms
        self._turns: Turns | None = None
        self._last: Attempt[R] | None = None
        self._records: list[AttemptInfo] = []
        self._signal: Signal | None = None

    def __enter__(self) -> Call[R]:
        self.span = self.core.telemetry.call(self.semantics)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._signal is not None:
            self._leave_line(self._signal)
        if self._last is not None and error is None:
            error = DeadlineExceeded() if self._last.cut else self._last.error
        elif self._last is not None:
            self._last.abandon()
            self._last = None
        if not self.span.silent:
            self.span.end(error, len(self.tried))

    def __iter__(self) -> Iterator[Pause | Attempt[R]]:
        delay: float | None = 0.0
        while delay is not None:
            if delay > 0:
                yield Pause(delay)
            last = self._last
            holding = last.endpoint if last is not None and last.open else None
            pick = self.core.admit(self, None, holding)
            if not isinstance(pick, Pick):
                pick = yield from self._admission(pick, holding)
                if pick is None:
                    return
            attempt = self._attempt(pick)
            yield attempt
            self._records.append(record(attempt))
            verdict = attempt.verdict
            if verdict is None or verdict.again == "never":
                return
            delay = self._delay_after(verdict)

    def result(self) -> R:
        """The outcome that stands: the last result, or the last error, raised. Ask once.

        Nothing of it stays here: a call and its attempts know each other, and what such a cycle
        holds (a response, its body) would live until the garbage collector comes.
        """
        last, self._last = self._last, None
        if last is None:
            raise RuntimeError("the outcome of a call can be asked for once")
        error, last.error = last.error, None
        if error is not None:
            took = self.core.clock() - self.started
            raise concluded(error, tuple(self._records), took if last.cut else None)
        return last.take()

    def info(self) -> CallInfo:
        """Its attempts so far."""
        return CallInfo(tuple(self._records))

    def expiry(self) -> Expiry:
        """When an attempt that starts now must end, where the call is `timed`."""
        timeout = self.core.retries.policy.attempt_timeout
        ends = [] if self.deadline is None else [self.deadline]
        if timeout is not None:
            ends.append(self.now + timeout)
        return Expiry(min(ends), self.core.clock)

    def verdict(self, attempt: Attempt[R], error: Exception | None) -> Verdict:
        """What the outcome of an attempt means."""
        try:
            verdict = self._judge(attempt.result if error is None else error)
        except Exception:
            logger.exception("the judge failed; the outcome counts as neutral")
            return FINE
        if error is not None and verdict.fault and self._over():
            return self._cut(attempt)
        return verdict

    def _attempt(self, pick: Pick) -> Attempt[R]:
        before = self._last
        replaces = before.take() if before is not None and before.error is None else None
        if before is not None and before.open:
            before.passed_on()
        self._last = Attempt(self, pick, replaces, len(self.tried))
        self.tried.append(pick.endpoint)
        return self._last

    def _admission(
        self, got: Pick | Signal | None, holding: Endpoint | None
    ) -> Generator[Pause, None, Pick | None]:
        """Wait for an instance. None: there is none for a retry, so the last outcome stands."""
        last = self._last
        until: float | None = None
        while isinstance(got, Signal):
            self._signal = got
            if last is not None and last.error is None:
                return None
            until = self._patience() if until is None else until
            if self.now >= until:
                if last is not None:
                    return None
                raise self._tired()
            yield Pause(min(until - self.now, _LOOK_AGAIN), got)
            got = self.core.admit(self, got, holding)
        if self._signal is not None:
            self._leave_line(self._signal)
        if got is None and last is None:
            raise self.core.refusal()
        return got

    def _leave_line(self, signal: Signal) -> None:
        self.core.leave(signal)
        self._signal = None

    def _patience(self) -> float:
        patience = self._terms.patience if self.core.watch.known else _FIRST_ANSWER
        until = self.now + patience
        return until if self.deadline is None else min(until, self.deadline)

    def _tired(self) -> LoadBalancingError:
        service, waited = self.core.service, f"after {self.now - self.started:.2f} s"
        reason = f"every instance of {service} is still at its limit of attempts in flight"
        if not (known := self.core.watch.known):
            reason = f"nothing is known of {service}: discovery has not answered"
        if self._over():
            return DeadlineExceeded(f"{waited} the deadline is over; no attempt was made: {reason}")
        kind = NoInstanceAvailable if known else DiscoveryError
        return kind(f"{reason} {waited}")

    def _delay_after(self, verdict: Verdict) -> float | None:
        turn = Turn(
            verdict=verdict,
            now=self.core.clock(),
            repeatable=self.idempotent,
            replayable=self._terms.replayable is None or self._terms.replayable(),
            deadline=self.deadline,
            pause=self.core.rest_of_all(),
        )
        with self.core.lock:
            self._turns = self._turns or Turns(self.core.retries)
            delay = self._turns.delay(turn)
        if delay is not None:
            self.core.telemetry.counts.retry()
        elif turn.refused:
            self.core.telemetry.counts.refusal()
        return delay

    def _over(self) -> bool:
        return self.deadline is not None and self.core.clock() >= self.deadline

    def _cut(self, attempt: Attempt[R]) -> Verdict:
        """Our own deadline ended it: its fault only if it had at least half of the time."""
        attempt.cut = True
        half = ((self.deadline or 0.0) - self.started) / 2
        return Verdict(fault=attempt.started - self.started <= half)
