"""Permits for one instance: who may send to it, and what the outcomes change."""

from __future__ import annotations

import random
import sys
from collections import deque
from dataclasses import dataclass
from typing import Literal

from lbclient.breaker.circuit import CLOSED, OPEN, Circuit, new_circuit, tell
from lbclient.breaker.policy import BreakerPolicy
from lbclient.breaker.window import Window

__all__ = ["Breaker", "Permit", "State"]

State = Literal["closed", "open", "half-open"]

_PROBE_PATIENCE = 30.0
_SPREAD = 1.5
_LATENCIES = 1.5
"""A run of faults opens a breaker at once where no more than `_SPREAD` times as many attempts were
sent meanwhile, else when its first fault was sent so many mean latencies ago."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one attempt. `expires` (clock time) is set for a probe only."""

    generation: int
    expires: float | None = None

    @property
    def probe(self) -> bool:
        """True for the one attempt that a half-open breaker lets through."""
        return self.expires is not None

    @property
    def refused(self) -> bool:
        """True where the breaker would have refused, had it been heeded. It moves nothing."""
        return self.generation < 0


_FIRST = Permit(0)
_REFUSED = Permit(-1)


class Breaker:
    """Permits for one instance. Told the time and handed the dice; not locked: its owner is."""

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
        "pristine",
        "probe_permit",
        "why",
    )

    def __init__(self, policy: BreakerPolicy, name: str) -> None:
        self._policy = policy
        self.name = name
        self._circuit: Circuit | None = None
        self._window: Window | None = None
        self._rated = policy.failure_rate is not None or policy.slow_rate is not None
        self._run: deque[tuple[float, int]] | None = None
        """The latest faults that no success has answered: when each attempt was sent, and how many
        attempts the instance had been sent when it failed."""
        self.pristine = not self._rated
        """True where there never was a fault, and successes are not counted."""
        self._period = 0.0
        self._closed_at = 0.0
        self.probe_permit: Permit | None = None
        """The permit of the probe under way. Whoever sends that probe sets it, and owns it."""
        self.due = 0.0
        """Clock time from which an open breaker may be probed."""
        self.opened_at = 0.0
        """When it last left the closed state."""
        self.why = ""
        """What has opened it, in words."""
        self.permit = _FIRST
        """What a closed breaker hands to everybody; new with each change of state."""

    @property
    def state(self) -> State:
        """`"closed"`, `"open"` or `"half-open"`."""
        return "closed" if self._circuit is None else self._circuit.current_state  # type: ignore[return-value]  # pybreaker says str

    @property
    def closed(self) -> bool:
        """True while every call would be let through."""
        return self._circuit is None or self._circuit.current_state == CLOSED

    @property
    def refuses(self) -> bool:
        """True while calls are refused, the probe excepted; never where it merely observes."""
        return not (self.closed or self._policy.observe)

    @property
    def observes(self) -> bool:
        """True where it refuses nothing, whatever its state: a dry run."""
        return self._policy.observe

    @property
    def unmoved(self) -> bool:
        """True where one more success changes nothing."""
        return self.pristine or (self.closed and not (self._rated or self._run))

    def probing(self, now: float) -> bool:
        """True while a probe is under way and has not outlived its time."""
        return now < self.probed_until

    @property
    def probed_until(self) -> float:
        """When the probe that is under way is given up; 0 where there is none."""
        return 0.0 if self.probe_permit is None else self.probe_permit.expires or 0.0

    def probe(self, now: float) -> Permit:
        """Half-open it, for a permit that is given out as soon as it is `probe_permit`.

        A probe that never reports is given up after a time.
        """
        circuit = self._circuit or self._wake()
        if circuit.current_state == OPEN:
            circuit.half_open()
        patience = max(self._policy.reset_timeout_max, _PROBE_PATIENCE)
        return Permit(self.permit.generation, now + patience)

    def observed(self, now: float) -> Permit:
        """Leave for a call that goes whatever the state, as under `observe` or in panic.

        Closed, it is everybody's; else the probe's where one is due, or one that is `refused`.
        """
        if self.closed:
            return self.permit
        return _REFUSED if now < self.due or self.probing(now) else self.probe(now)

    def settle(
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
        """Count one outcome, after `elapsed` seconds. True if that changed the state.

        `started` is when the attempt was sent (None: after every other), `attempts` how many the
        instance has been sent by now, `latency` what its answers take, in seconds. A stale permit
        changes nothing; unless closed, only a probe's does.
        """
        if permit.generation != self.permit.generation or (not fault and self.unmoved):
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
        """Hand a permit back without an outcome."""
        if permit is self.probe_permit:
            self.probe_permit = None

    def sooner(self, now: float, rng: random.Random) -> None:
        """A peer has healed: wait no longer than after a first trip."""
        if self.state == "open":
            self._period = self._policy.reset_timeout
            self.due = min(self.due, now + _jittered(self._period, rng))

    def at_once(self, now: float) -> None:
        """There is a way to the instance again: an open breaker may be probed now."""
        if self.state == "open":
            self._period = self._policy.reset_timeout
            self.due = min(self.due, now)

    def after_fork(self, now: float, rng: random.Random) -> None:
        """In a child: the probe under way is the parent's, and the next is due at another time."""
        self.probe_permit = None
        if self.due > now:
            self.due = now + _jittered(self.due - now, rng)

    def _count_fault(self, started: float, now: float, attempts: int, latency: float) -> None:
        """Faults in a row, in the order in which attempts were sent.

        A success says that the instance worked when its attempt was sent: it ends the run for the
        faults that were sent before it, and says nothing of those sent after it. So the successes
        that are still under way at an outage do not hide it.

        Faults that come sooner than successes are known before the successes that were sent
        between them. So a run counts only if nearly all that was sent since its first fault has
        failed too, or if a success that was sent after that fault would be known by now.
        """
        self.pristine = False
        run, most = self._run, self._policy.fail_max
        if most == sys.maxsize:
            return  # disabled: a run that nobody looks at would only grow
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
        """Made when it first opens: an instance that serves costs no breaker."""
        self._circuit = new_circuit(self._policy, self.name, self._turned)
        self.pristine = False
        return self._circuit

    def _turned(self) -> None:
        """Every permit is stale now, and what was counted is of the past."""
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
