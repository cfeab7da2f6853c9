"""One call: its attempts, one after another, until one outcome is final.

    with call:
        for step in call:
            if isinstance(step, Pause):
                ...                         wait, as your program waits
            else:
                with step:
                    step.result = ...       send to step.instance
    return call.result()

The drivers for threads, event loops and virtual time run this same loop, and decide nothing
themselves. A hedged call may have a second attempt at the same time: see `core/hedge.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lbclient._internal import validation
from lbclient._internal.deadline import CURRENT, Deadline, Expiry, applicable
from lbclient._internal.signals import Pause, Signal
from lbclient.core.attempt import Attempt, CallState
from lbclient.core.call_info import AttemptInfo, CallInfo, concluded
from lbclient.core.engine import Engine
from lbclient.core.picker import Pick
from lbclient.core.waiting import Wait
from lbclient.endpoint.classifier import Classifier, Verdict
from lbclient.endpoint.endpoint import Endpoint
from lbclient.errors import DeadlineExceeded
from lbclient.resilience.retry import RetryController, RetryState, Stopped
from lbclient.telemetry.events import Event, RetryDecided, RetryRefused
from lbclient.telemetry.semantics import Semantics
from lbclient.telemetry.spans import CallSpan

if TYPE_CHECKING:
    from lbclient.core.hedge import HedgeRace

__all__ = ["NO_OPTIONS", "Call", "CallOptions", "call_options", "caller_of"]

R = TypeVar("R")


class CallOptions(NamedTuple):
    """Options of one call.

    - `idempotent`: the call may be repeated even if an attempt may have been carried out.
    - `key`: for strategies that pick by a key.
    - `caller`: a hash that identifies the caller, or None. Callers whose calls wait in the queue
      take turns.
    - `deadline`: seconds for the whole call; None for the deadline of the retry policy.
    - `since`: when the deadline began to run, by the balancer's clock; None for now.
    - `patience`: seconds to wait in the queue while every instance is at its limit.
    - `replayable`: a function that says, after a failure, whether the body can be sent again. None
      if it always can.
    """

    idempotent: bool = False
    key: object = None
    deadline: float | None = None
    patience: float = 5.0
    replayable: Callable[[], bool] | None = None
    since: float | None = None
    caller: int | None = None


def caller_of(name: str, caller: object) -> int | None:
    """Return the hash by which the queue identifies a caller; None for no caller.

    Raises TypeError, naming the argument, if the value is not hashable.
    """
    if caller is None:
        return None
    try:
        return hash(caller)
    except TypeError as error:
        kind = type(caller).__name__  # the value may be a secret
        raise TypeError(f"{name} must be hashable, not {kind}") from error


def call_options(
    *, idempotent: bool, key: object, deadline: float | None, caller: object = None
) -> CallOptions:
    """Check the options of a call, and return them. Raises ValueError or TypeError, naming the
    argument."""
    if not isinstance(idempotent, bool):
        raise TypeError(f"idempotent must be True or False, not {idempotent!r}")
    if deadline is not None:
        validation.seconds("deadline", deadline)
    return CallOptions(idempotent, key, deadline, caller=caller_of("caller", caller))


NO_OPTIONS = CallOptions()


class Call(CallState[R]):
    """One call of one balancer. Each object is used once."""

    __slots__ = ("_options", "_records", "_retry_controller", "_stopped", "last", "started")

    # Repeated: a type checker may otherwise infer other types from the assignments below.
    caller: int | None
    context: Deadline | None
    deadline: float | None
    idempotent: bool
    inherited: bool
    key: object
    now: float
    rng: random.Random
    since: float
    span: CallSpan
    started: float
    timed: bool

    def __init__(
        self, engine: Engine, classify: Classifier, options: CallOptions, semantics: Semantics
    ) -> None:
        policy, clock = engine.retry_rules.policy, engine.clock
        self.engine = engine
        self._options = options
        self.semantics = semantics
        self.rng = engine.rng
        self.now = self.started = self.since = clock()
        # All options in one assignment: reading a single option by its name would take as long.
        self.idempotent, self.key, limit, _, _, since, self.caller = options
        self.accepts_tried = self.inherited = False
        if limit is None:
            limit = policy.deadline
        if since is not None:
            self.since = since
        self.deadline = None if limit is None else self.since + limit
        context = CURRENT.get()
        while context is not None and isinstance(context, Expiry):
            context = context.outer  # attempts do not limit the calls that are made within them
        self.context = context
        if context is not None:
            self._inherit(context)
        self.timed = self.deadline is not None or policy.attempt_timeout is not None
        self.race: HedgeRace[R] | None = None
        self.tried: list[Endpoint] = []
        self.classify = classify
        self._retry_controller: RetryController | None = None
        self.last: Attempt[R] | None = None
        self._records: list[AttemptInfo] = []
        self._stopped: Stopped | None = None
        self.pick: Pick | None = None
        self.waiting: Signal | None = None

    def _inherit(self, context: Deadline) -> None:
        """Limit the call by the deadlines of its context.

        Raises DeadlineExceeded if one of them is over.
        """
        for one in sorted(applicable(context, self.engine), key=lambda one: one.scope is None):
            since, end = one.by(self.engine.clock, self.now)
            if one.scope is not None:
                one.requests += 1
                if self._options.deadline is None:  # the request's deadline replaces the policy's
                    self.deadline = None
            if self.now >= end:
                ended = "was ended" if end == -math.inf else "is over"
                raise DeadlineExceeded(
                    f"the deadline {ended} after {self.now - since:.2f} s; "
                    "this request was not sent"
                )
            if end < (math.inf if self.deadline is None else self.deadline):
                self.deadline, self.since, self.inherited = end, since, one.scope is None

    def __enter__(self) -> Call[R]:
        opened = self.engine.telemetry.call
        self.span = opened(self.semantics)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        engine = self.engine
        engine.calls.pop(self, None)
        if self.waiting is not None and self.race is None:  # otherwise its lane leaves the queue
            self._leave()
        if error is not None and self.race is None:
            self.abandon()
        if not self.span.silent:
            if error is None and (last := self.last) is not None:
                error = DeadlineExceeded() if last.deadline_expired else last.error
            self.span.end(error, len(self.tried))
        if engine.outbox.pending:
            engine.outbox.publish()
        if engine.closing:
            engine.over()

    def __iter__(self) -> Iterator[Pause | Attempt[R]]:
        engine = self.engine
        if self.race is None:
            engine.calls[self] = None
        delay: float | None = 0.0
        while delay is not None:
            if delay > 0:
                yield self._back_off(delay)
            last = self.last
            if (last is not None or self.race is not None) and self._stops():
                return
            holding = last.pick if last is not None and last.open else None
            got = engine.admit(self, holding)
            pick = self.pick
            if pick is None:
                pick = yield from self._wait(got, holding, last)
                if pick is None:
                    return
            replaces = None if last is None else self._replaced(last)
            attempt = Attempt(self, pick, replaces, len(self.tried))
            self.last, self.pick = attempt, None
            self.tried.append(pick.endpoint)
            yield attempt
            verdict = attempt.verdict
            if verdict is None or verdict.good:
                return
            if verdict.again == "never":
                self._stopped = "verdict"
                return
            delay = self._delay_after(verdict, attempt.error)

    def _wait(
        self, got: Pick | Signal | None, holding: Pick | None, last: Attempt[R] | None
    ) -> Generator[Pause, None, Pick | None]:
        """Wait for a slot, or for the first answer of discovery. Returns a pick, or None if the
        last outcome is final."""
        try:
            pick = yield from Wait(self, self._options.patience, last).steps(got, holding)
        finally:
            self._leave()
        if pick is None and not self._ended():
            self._stopped = "instances"
        return pick

    def _stops(self) -> bool:
        """True if another attempt is no longer needed, or is not allowed."""
        return self.over or (self.last is not None and self._ended())

    def _ended(self) -> bool:
        """True if no other attempt may begin, since the balancer is closed or the outcome is no
        longer needed."""
        if self.engine.membership.ended:
            self._stopped = "closed"
        elif self.unwanted():
            self._stopped = "deadline"
        else:
            return False
        return True

    def _back_off(self, delay: float) -> Pause:
        """Return the pause before a retry. The pause ends early if a hedge has decided the outcome,
        or the balancer is closed."""
        if self.race is None:
            signal = self.engine.calls[self] = Signal()
        else:
            signal = self.race.ended
        # First store the signal, then check: `Engine.end` does these two steps in the other order.
        return Pause(0.0 if self.engine.membership.ended else delay, signal)

    def result(self) -> R:
        """Return the final result, or raise the final error. May be called once.

        The call keeps no reference to the result. A raised error refers to frames, and these refer
        to the call. If the call referred to a response, the response would be part of this
        reference cycle, and stay in memory until the garbage collector runs.
        """
        if (race := self.race) is None:
            last, self.last = self.last, None
        else:
            if race.winner is not None:
                self._stopped = None
            last, self._records = race.outcome(self.last)
            if last is self.last:  # otherwise a lane may still carry the other attempt out
                self.last = None
        if last is None:
            raise RuntimeError("the result of a call can be taken only once")
        error = last.error
        if race is None and (error is not None or not self.semantics.minimal):
            self._records.append(last.info())
        if error is None:
            result, last.result = last.result, None
            return result  # type: ignore[return-value]  # it was set
        last.error = None
        records, self._records = tuple(self._records), []
        took = self.engine.clock() - self.since if last.deadline_expired else None
        stopped: Stopped | None = "deadline" if last.deadline_expired else self._stopped
        try:
            raise concluded(error, records, stopped, took)
        finally:
            del error, records  # the error's traceback holds this frame

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.engine.clock() - self.started

    def hedge_after(self) -> float | None:
        """Seconds after which a second attempt may be sent while the first is in flight.

        None for a call that may not be repeated, or whose body cannot be sent twice at once.
        """
        hedging = self.engine.hedging
        if hedging is None or not self.idempotent or self._options.replayable is not None:
            return None
        with self.engine.lock:
            return hedging.after()

    def info(self) -> CallInfo:
        """The public records of the attempts so far."""
        return CallInfo(tuple(self._records), self._stopped)

    def _replaced(self, last: Attempt[R]) -> R | None:
        """Take the answer of `last`, since another attempt replaces it."""
        if self.race is None:
            self._records.append(last.info())
        return last.take() if last.error is None else None

    def drop(self) -> None:
        """Give back all slots and permits of the call, whose lease was garbage collected. Call this
        method with the lock held. The spans are ended after the lock is released, since
        OpenTelemetry's SDK may run code of the user."""
        if not self.span.silent:
            if self.last is not None:
                self.last.end_span_later()
            self.engine.outbox.pending.append(partial(self.span.end, None, len(self.tried)))
        self.abandon()

    def abandon(self) -> None:
        """Give back all slots and permits of the call, which was interrupted."""
        if self.race is None:  # otherwise the call itself goes on, and only its lane has ended
            self.engine.calls.pop(self, None)
        if self.waiting is not None:
            self._leave()
        if self.pick is not None:
            self.engine.give_back(self.pick)
        if self.last is not None:
            self.last.abandon()
            if self.race is None:  # otherwise its lane gives them back
                self.last = None

    def _leave(self) -> None:
        """Leave the queue."""
        if self.waiting is not None:
            self.engine.leave(self.waiting)
            self.waiting = None

    def _delay_after(self, verdict: Verdict, error: Exception | None) -> float | None:
        retry_state = RetryState(
            verdict=verdict,
            now=self.engine.clock(),
            repeatable=self.idempotent,
            replayable=self._options.replayable is None or self._options.replayable(),
            deadline=self.deadline,
            pause=self.engine.back_off_of_all(),
            unsent=verdict.never_sent(error),
            alone=self.engine.size == 1,
        )
        with self.engine.lock:
            self._retry_controller = self._retry_controller or RetryController(
                self.engine.retry_rules
            )
            delay = self._retry_controller.delay(retry_state)
        if delay is not None:
            self.engine.telemetry.metrics.retry()
            self._emit(RetryDecided, delay)
            return delay
        self._stopped = retry_state.stopped
        if retry_state.stopped == "budget":
            self.engine.telemetry.metrics.refusal()
            self._emit(RetryRefused)
        return delay

    def _emit(self, kind: Callable[..., Event], *details: object) -> None:
        if self.last is not None and self.engine.outbox.has_listener:
            self.engine.rotation.emit(kind, self.last.endpoint, *details)
