"""The circuit breaker of one instance, based on permits. The only file that uses pybreaker.

The breaker is asked before an attempt, and told its outcome afterwards. So no lock is held while
the I/O runs:

- A closed breaker gives its `permit` to every attempt. A half-open breaker has a single permit, for
  the probe.
- `record_outcome` records how an attempt ended. If the state has changed since the permit was
  given, the permit is stale and the outcome is ignored. `cancel` returns a permit without an
  outcome.

pybreaker keeps the states and counts good probes. The I/O does not run inside pybreaker's `call`:
this method holds a lock while its function runs, and does not notice that a coroutine fails.
Instead, each outcome is passed to pybreaker as a `call` of a function that returns or raises at
once. pybreaker's own timeout has no effect, since this module decides when an open circuit becomes
half-open. Rates are computed from counts of the last ten time slices. Their totals are updated at
each call, so the cost of a call does not depend on the number of calls.

The rules come from Nygard's "Release It!" (the states), Envoy (each ejection is longer, and the
length decays while the instance is healthy), AWS ("equal jitter" of the open period), resilience4j
(rates of faults and of slow calls, in a sliding time window) and Hystrix (a window of ten slices).
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

import pybreaker

from lbclient._internal import validation
from lbclient._internal.statistics import SlidingWindow

__all__ = ["DISABLED", "Breaker", "BreakerPolicy", "Permit", "State", "Window"]

_SLICES = 10
_STANDSTILL = 60.0

Circuit = pybreaker.CircuitBreaker
CLOSED = pybreaker.STATE_CLOSED
OPEN = pybreaker.STATE_OPEN

State = Literal["closed", "open", "half-open"]

_PROBE_PATIENCE = 30.0
_SPREAD = 1.5
_LATENCIES = 1.5
"""The rule by which a run of faults opens a breaker.

The breaker opens at once if the number of attempts that were sent during the run is at most
`_SPREAD` times the number of faults. Otherwise it opens once the attempt of the first fault was
sent at least `_LATENCIES` times the mean latency ago.
"""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Defines when an instance is out of rotation because of its faults, and for how long.

    - `fail_max`: the number of consecutive faults that opens the breaker, in the order in which the
      attempts were sent. A success resets only the count of faults whose attempts were sent before
      the attempt that succeeded.
    - `reset_timeout`: the seconds for which the breaker stays open the first time. (The actual time
      is random, between half of this value and all of it.) The time doubles after each failed
      probe. It also doubles if the breaker opens again less than `reset_timeout_max` seconds after
      it has closed. It never exceeds `reset_timeout_max`.
    - `success_threshold`: the number of successful probes that closes the breaker.
    - `panic_threshold`: when the breakers of a tier admit less than this fraction of its instances,
      the breakers are ignored (Envoy's panic mode). With 0, breakers are never ignored.
    - `failure_rate`: the breaker also opens at this share of faults, above 0 and at most 1. With
      None, the share is not checked.
    - `slow_rate`, `slow_after`: the breaker also opens if this share of the calls, failed or not,
      takes longer than `slow_after` seconds. Set both or neither. A probe that takes longer than
      `slow_after` has failed.
    - `window`, `minimum_calls`: rates are computed over a sliding `window` of seconds (with a
      precision of a tenth of the window), once the window contains this many calls. The window
      starts empty when the breaker closes.
    - `observe`: a dry run. The states change and are reported, but no call is refused.

    Raises ValueError or TypeError for a value that cannot be used. Rates work as in resilience4j:
    the breaker opens when the rate is reached, even if the last call was good. The slices of the
    window come from Hystrix.
    """

    fail_max: int = 5
    reset_timeout: float = 1.0
    reset_timeout_max: float = 30.0
    success_threshold: int = 1
    panic_threshold: float = 0.0
    failure_rate: float | None = None
    slow_rate: float | None = None
    slow_after: float | None = None
    window: float = 10.0
    minimum_calls: int = 20
    observe: bool = False

    def __post_init__(self) -> None:
        validation.count("fail_max", self.fail_max)
        validation.seconds("reset_timeout", self.reset_timeout)
        validation.seconds("reset_timeout_max", self.reset_timeout_max)
        validation.count("success_threshold", self.success_threshold)
        validation.fraction("panic_threshold", self.panic_threshold)
        if self.reset_timeout > self.reset_timeout_max:
            raise ValueError(
                f"reset_timeout ({self.reset_timeout:g} s) must not be above "
                f"reset_timeout_max ({self.reset_timeout_max:g} s)"
            )
        _check_rates(self)
        if not isinstance(self.observe, bool):
            raise TypeError(f"observe must be True or False, not {self.observe!r}")


def _check_rates(policy: BreakerPolicy) -> None:
    _check_share("failure_rate", policy.failure_rate)
    _check_share("slow_rate", policy.slow_rate)
    if policy.slow_after is not None:
        validation.seconds("slow_after", policy.slow_after)
    if policy.slow_rate is not None and policy.slow_after is None:
        raise ValueError("slow_rate needs slow_after too: the seconds after which a call is slow")
    if policy.slow_after is not None and policy.slow_rate is None:
        raise ValueError("slow_after needs slow_rate too: the share of slow calls that opens it")
    validation.seconds("window", policy.window)
    validation.count("minimum_calls", policy.minimum_calls)


def _check_share(name: str, value: object) -> None:
    if value is not None and validation.number(name, value, above=True) > 1:
        raise ValueError(f"{name} must be at most 1, which is every call, not {value!r}")


DISABLED = BreakerPolicy(fail_max=sys.maxsize)


class Window:
    """Counts over the last `policy.window` seconds, with a precision of a tenth of the window.

    The caller passes in the time. `calls`, `faults` and `slow` are the totals as of the last `add`.
    If the clock jumps forward past the window, or back by more than a slice, the window is emptied.
    """

    __slots__ = ("_heard", "_policy", "_resumed", "_window", "calls", "faults", "slow")

    def __init__(self, policy: BreakerPolicy, now: float) -> None:
        self._policy = policy
        self._heard = now
        self._resumed = now
        self._window = SlidingWindow(policy.window, _SLICES, kinds=4, start=now)
        self.calls: int = 0
        self.faults: int = 0
        self.slow: int = 0

    @property
    def tripped(self) -> bool:
        """True if a rate of the policy is reached, with enough calls."""
        policy, calls = self._policy, self.calls
        return calls >= policy.minimum_calls and (
            _reached(policy.failure_rate, self.faults / calls)
            or _reached(policy.slow_rate, self.slow / calls)
        )

    @property
    def why(self) -> str:
        """Say which rate is reached."""
        if _reached(self._policy.failure_rate, self.faults / self.calls):
            return f"{self.faults} of {self.calls} calls failed"
        return f"{self.slow} of {self.calls} calls were slow"

    def outslept(self, now: float, elapsed: float) -> bool:
        """True if a call that ends `now` must not be counted, because the process was stopped
        during the call.

        When a process was stopped for minutes, all its attempts in flight seem to have taken
        minutes. This is detected as follows: for a minute no call ended, and then calls end that
        took longer than a minute. A shorter stop cannot be distinguished from a slow instance. Call
        this method once for each call.
        """
        if now - self._heard >= _STANDSTILL:
            self._resumed = now
        self._heard = now
        return elapsed >= _STANDSTILL and now - elapsed < self._resumed

    def add(self, now: float, *, fault: bool, slow: bool) -> None:
        """Count a call that has ended."""
        window = self._window
        window.add(now, fault + 2 * slow)
        good, faults, slow_ones, both = window.totals
        self.calls = good + faults + slow_ones + both
        self.faults = faults + both
        self.slow = slow_ones + both


def _reached(rate: float | None, share: float) -> bool:
    return rate is not None and share >= rate


def new_circuit(policy: BreakerPolicy, name: str, turned: Callable[[], None]) -> Circuit:
    """Make a closed circuit. `turned` is called at each change of state."""
    return Circuit(
        fail_max=policy.fail_max,
        success_threshold=policy.success_threshold,
        listeners=[_Turns(turned)],
        name=name,
    )


def tell(circuit: Circuit, *, fault: bool) -> None:
    """Pass an outcome to pybreaker, as a call of a function that returns or raises at once."""
    try:
        circuit.call(_fail if fault else _succeed)
    except (_Fault, pybreaker.CircuitBreakerError) as error:
        cause = error.__context__
        _forget(error)
        if isinstance(error, pybreaker.CircuitBreakerError) and not isinstance(cause, _Fault):
            raise cause or error from None  # an interruption, which pybreaker counted as a failure


def _forget(error: BaseException | None) -> None:
    """Remove the tracebacks of an error and of the errors in its context.

    pybreaker's frames refer to the exceptions that they raise, and each traceback refers to frames.
    This reference cycle would keep all frames of the stack alive, those of the caller too, until
    the garbage collector runs.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class _Turns(pybreaker.CircuitBreakerListener):
    def __init__(self, turned: Callable[[], None]) -> None:
        self._turned = turned

    def state_change(self, *_: object, **__: object) -> None:
        self._turned()


class _Fault(Exception):
    """Raised inside pybreaker's `call`, so that pybreaker counts a failure."""


def _succeed() -> None:
    return None


def _fail() -> NoReturn:
    raise _Fault


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission to send one attempt. `expires` is the clock time when a probe times out; None if
    the attempt is not a probe."""

    generation: int
    expires: float | None = None

    @property
    def probe(self) -> bool:
        """True for the one attempt that a half-open breaker lets through."""
        return self.expires is not None

    @property
    def refused(self) -> bool:
        """True if the breaker would have refused the attempt, but was ignored. The outcome of such
        an attempt does not change the breaker."""
        return self.generation < 0


_FIRST = Permit(0)
_REFUSED = Permit(-1)


class Breaker:
    """The circuit breaker of one instance: it gives out permits and records outcomes.

    Callers hold a lock, and pass in the time and the random number generator.
    """

    __slots__ = (
        "_circuit",
        "_closed_at",
        "_period",
        "_policy",
        "_rated",
        "_run",
        "_window",
        "due",
        "name",
        "opened_at",
        "permit",
        "probe_permit",
        "untouched",
        "why",
    )

    def __init__(self, policy: BreakerPolicy, name: str) -> None:
        self._policy = policy
        self.name: str = name
        self._circuit: Circuit | None = None
        self._window: Window | None = None
        self._rated = policy.failure_rate is not None or policy.slow_rate is not None
        self._run: deque[tuple[float, int]] | None = None
        """The latest faults that were not followed by a success.

        For each fault: the time when the attempt was sent, and the number of attempts that had been
        sent to the instance when it failed.
        """
        self.untouched: bool = not self._rated
        """True until the first fault. While it is True, successes need not be recorded. Always
        False if the policy has rates."""
        self._period = 0.0
        self._closed_at = 0.0
        self.probe_permit: Permit | None = None
        """The permit of the probe that is under way. The call that sends the probe sets this
        attribute, and owns the permit."""
        self.due: float = 0.0
        """The clock time from which an open breaker may be probed."""
        self.opened_at: float = 0.0
        """The time when the breaker last left the closed state."""
        self.why: str = ""
        """The reason why the breaker opened, in words."""
        self.permit: Permit = _FIRST
        """The permit that a closed breaker gives to every attempt. Each change of state creates a
        new permit.
        """

    @property
    def state(self) -> State:
        """`"closed"`, `"open"` or `"half-open"`."""
        return "closed" if self._circuit is None else self._circuit.current_state  # type: ignore[return-value]  # pybreaker says str

    @property
    def closed(self) -> bool:
        """True while the breaker admits every call."""
        return self._circuit is None or self._circuit.current_state == CLOSED

    @property
    def refuses(self) -> bool:
        """True while calls are refused, except for the probe. Always False if the breaker only
        observes."""
        return not (self.closed or self._policy.observe)

    @property
    def observes(self) -> bool:
        """True if the breaker refuses no call in any state: a dry run."""
        return self._policy.observe

    @property
    def success_is_noop(self) -> bool:
        """True if one more success changes nothing."""
        return self.untouched or (self.closed and not (self._rated or self._run))

    def probing(self, now: float) -> bool:
        """True while a probe is under way and has not timed out."""
        return now < self.probed_until

    @property
    def probed_until(self) -> float:
        """The time when the probe under way times out; 0 if there is none."""
        return 0.0 if self.probe_permit is None else self.probe_permit.expires or 0.0

    def probe(self, now: float) -> Permit:
        """Make the breaker half-open and return a permit, which the caller stores in
        `probe_permit`.

        The probe is under way once the permit is stored there. A probe without an outcome times
        out.
        """
        circuit = self._circuit or self._wake()
        if circuit.current_state == OPEN:
            circuit.half_open()
        patience = max(self._policy.reset_timeout_max, _PROBE_PATIENCE)
        return Permit(self.permit.generation, now + patience)

    def observed(self, now: float) -> Permit:
        """Return a permit for an attempt that is sent whatever the state of the breaker is, as in a
        dry run (`observe`).

        If the breaker is closed, this is the usual permit. If it is not closed and a probe is due,
        this is the permit of the probe. Otherwise it is a permit that is `refused`.
        """
        if self.closed:
            return self.permit
        return _REFUSED if now < self.due or self.probing(now) else self.probe(now)

    def record_outcome(
        self,
        permit: Permit,
        *,
        fault: bool,
        now: float,
        rng: random.Random,
        elapsed: float = 0.0,
        started: float | None = None,
        attempts: int = 0,
        latency: float | None = None,
    ) -> bool:
        """Record an outcome after `elapsed` seconds. Returns True if the outcome changed the state.

        `started` is the time when the attempt was sent; None means after all other attempts.
        `attempts` is the number of attempts sent to the instance so far. `latency` is the mean time
        of its answers in seconds. With a stale permit, the outcome is ignored. While the breaker is
        open or half-open, only the outcome of a probe changes its state.
        """
        if permit.generation != self.permit.generation or (not fault and self.success_is_noop):
            return False
        self.cancel(permit)
        before = self.state
        if before == "closed":
            started = now if started is None else started
            if fault:
                self._count_fault(started, now, attempts, latency or 0.0)
            elif self._run:
                self._run = deque((one for one in self._run if one[0] > started), self._run.maxlen)
            self._count_rates(now, elapsed, fault=fault)
        elif permit.probe:
            slow = self._slow(elapsed)
            self.why = "its probe failed" if fault or not slow else "its probe was slow"
            tell(self._circuit or self._wake(), fault=fault or slow)
        if self.state == before:
            return False
        self._changed(before, now, rng)
        return True

    def cancel(self, permit: Permit) -> None:
        """Return a permit without an outcome."""
        if permit is self.probe_permit:
            self.probe_permit = None

    def expedite_probe(self, now: float, rng: random.Random) -> None:
        """Shorten the wait for the next probe to at most `reset_timeout`, since another instance
        has recovered."""
        if self.state == "open":
            self._period = self._policy.reset_timeout
            self.due = min(self.due, now + _jittered(self._period, rng))

    def at_once(self, now: float) -> None:
        """Allow a probe of an open breaker now, since there is a route to the instance again."""
        if self.state == "open":
            self._period = self._policy.reset_timeout
            self.due = min(self.due, now)

    def after_fork(self, now: float, rng: random.Random) -> None:
        """In a forked child: drop the parent's probe, and move the next probe to another time."""
        self.probe_permit = None
        if self.due > now:
            self.due = now + _jittered(self.due - now, rng)

    def _count_fault(self, started: float, now: float, attempts: int, latency: float) -> None:
        """Count consecutive faults, in the order in which the attempts were sent.

        A success shows that the instance worked when the attempt was sent. So it resets the count
        of faults whose attempts were sent before, but not the count of faults whose attempts were
        sent later. Attempts that began before an outage and succeed during the outage do not hide
        it.

        Attempts that fail may end sooner than attempts that succeed. So there may be `fail_max`
        faults while other attempts, sent between them, are still in flight and will succeed. For
        this reason the breaker opens only in two cases: nearly all attempts sent since the first
        fault have failed, or the first fault is so long ago that a later success would be known by
        now.
        """
        self.untouched = False
        run, most = self._run, self._policy.fail_max
        if most == sys.maxsize:
            return  # the breaker is disabled, so the faults are not needed
        if run is None:
            run = self._run = deque(maxlen=most)
        run.append((started, attempts))
        if len(run) < most:
            return
        first, sent_by_then = run[0]
        if attempts - sent_by_then <= _SPREAD * most or now - first >= _LATENCIES * latency:
            self.why = f"{most} faults in a row"
            (self._circuit or self._wake()).open()

    def _count_rates(self, now: float, elapsed: float, *, fault: bool) -> None:
        if not self._rated or not self.closed:
            return
        window = self._window = self._window or Window(self._policy, now)
        if window.outslept(now, elapsed):
            return
        window.add(now, fault=fault, slow=self._slow(elapsed))
        if window.tripped:
            self.why = window.why
            (self._circuit or self._wake()).open()

    def _slow(self, elapsed: float) -> bool:
        after = self._policy.slow_after
        return after is not None and elapsed > after

    def _wake(self) -> Circuit:
        """Create the circuit if it does not exist yet. An instance without faults has no
        circuit."""
        self._circuit = new_circuit(self._policy, self.name, self._turned)
        self.untouched = False
        return self._circuit

    def _turned(self) -> None:
        """After a change of state, make all permits stale and start the counts again."""
        self.permit = Permit(self.permit.generation + 1)
        self.probe_permit = None
        self._window = None
        self._run = None

    def _changed(self, before: State, now: float, rng: random.Random) -> None:
        if self.closed:
            self._closed_at = now
        else:
            if before == "closed":
                self.opened_at = now
            self._period = self._next_period(before, now)
            self.due = now + _jittered(self._period, rng)

    def _next_period(self, before: State, now: float) -> float:
        policy = self._policy
        healthy = before == "closed" and now - self._closed_at >= policy.reset_timeout_max
        if not self._period or healthy:
            return policy.reset_timeout
        return min(2 * self._period, policy.reset_timeout_max)


def _jittered(period: float, rng: random.Random) -> float:
    return period / 2 + rng.random() * period / 2
