"""The circuit breaker of one instance, as permits. The only room with pybreaker.

pybreaker keeps the states and counts; it never wraps the I/O, since its `call` holds a lock while
the function runs and cannot see a coroutine fail. So admission and outcome are apart:

- `admit` hands out a permit, or nothing. Half-open has one permit, the probe.
- `settle` tells pybreaker how it ended, at zero length. A permit from before the last change of
  state is stale: it moves nothing.

Rules learned from Nygard's "Release It!" (the states), Envoy (longer ejection each time, decaying
when healthy) and AWS ("equal jitter" of the open period).
"""

from __future__ import annotations

import contextlib
import random
import sys
from dataclasses import dataclass
from typing import Literal, NoReturn

import pybreaker

from lbclient import checks

__all__ = ["DISABLED", "Breaker", "BreakerPolicy", "Permit", "State"]

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When an instance leaves the rotation, and for how long.

    - `fail_max`: consecutive faults that open the breaker.
    - `reset_timeout`: seconds it stays open the first time (half of it is jitter); each failed
      probe, or new trip without a healthy time between, doubles that up to `reset_timeout_max`.
    - `success_threshold`: successful probes that close it.
    - `panic_threshold`: when less than this fraction of a tier's instances is admissible, their
      breakers are ignored (Envoy's panic mode); 0 never.
    """

    fail_max: int = 5
    reset_timeout: float = 1.0
    reset_timeout_max: float = 30.0
    success_threshold: int = 1
    panic_threshold: float = 0.0

    def __post_init__(self) -> None:
        checks.count("fail_max", self.fail_max)
        checks.seconds("reset_timeout", self.reset_timeout)
        checks.seconds("reset_timeout_max", self.reset_timeout_max)
        checks.count("success_threshold", self.success_threshold)
        checks.fraction("panic_threshold", self.panic_threshold)
        if self.reset_timeout > self.reset_timeout_max:
            raise ValueError(
                f"reset_timeout ({self.reset_timeout:g} s) must not be above "
                f"reset_timeout_max ({self.reset_timeout_max:g} s)"
            )


DISABLED = BreakerPolicy(fail_max=sys.maxsize)
_PROBE_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one attempt. `expires` (clock time) is set for a probe only."""

    generation: int
    expires: float | None = None

    @property
    def probe(self) -> bool:
        """True for the one attempt that a half-open breaker lets through."""
        return self.expires is not None


_FIRST = Permit(0)


class Breaker:
    """Permits for one instance. Told the time and handed the dice; not locked: its owner is."""

    __slots__ = ("_circuit", "_closed_at", "_period", "_policy", "_probe", "due", "name", "permit")

    def __init__(self, policy: BreakerPolicy, name: str) -> None:
        self._policy = policy
        self.name = name
        self._circuit: pybreaker.CircuitBreaker | None = None
        self._period = 0.0
        self._closed_at = 0.0
        self._probe: Permit | None = None
        self.due = 0.0
        """Clock time from which an open breaker may be probed."""
        self.permit = _FIRST
        """What a closed breaker hands to everybody; new with each change of state."""

    @property
    def state(self) -> State:
        """`"closed"`, `"open"` or `"half-open"`."""
        return "closed" if self._circuit is None else self._circuit.current_state  # type: ignore[return-value]  # pybreaker says str

    @property
    def closed(self) -> bool:
        """True while every call is let through."""
        return self._circuit is None or self._circuit.current_state == pybreaker.STATE_CLOSED

    @property
    def unmoved(self) -> bool:
        """True where one more success changes nothing."""
        circuit = self._circuit
        return circuit is None or (self.closed and not circuit.fail_counter)

    def probing(self, now: float) -> bool:
        """True while a probe is under way and has not outlived its time."""
        return self._probe is not None and now < (self._probe.expires or 0.0)

    def probe(self, now: float) -> Permit:
        """Half-open it for one attempt. A probe that never reports is given up after a time."""
        circuit = self._circuit or self._wake()
        if circuit.current_state == pybreaker.STATE_OPEN:
            circuit.half_open()
        patience = max(self._policy.reset_timeout_max, _PROBE_PATIENCE)
        self._probe = Permit(self.permit.generation, now + patience)
        return self._probe

    def settle(self, permit: Permit, *, fault: bool, now: float, rng: random.Random) -> bool:
        """Count one outcome. True if that changed the state; a stale permit changes nothing."""
        if permit.generation != self.permit.generation or (not fault and self.unmoved):
            return False
        self.cancel(permit)
        before = self.state
        with contextlib.suppress(_Fault, pybreaker.CircuitBreakerError):
            (self._circuit or self._wake()).call(_fail if fault else _succeed)
        if self.state == before:
            return False
        self._changed(before, now, rng)
        return True

    def cancel(self, permit: Permit) -> None:
        """Hand a permit back without an outcome."""
        if permit is self._probe:
            self._probe = None

    def sooner(self, now: float, rng: random.Random) -> None:
        """A peer has healed: wait no longer than after a first trip."""
        if self.state == "open":
            self._period = self._policy.reset_timeout
            self.due = min(self.due, now + _jittered(self._period, rng))

    def _wake(self) -> pybreaker.CircuitBreaker:
        """Made at the first fault: an instance that never fails costs no breaker."""
        self._circuit = pybreaker.CircuitBreaker(
            fail_max=self._policy.fail_max,
            success_threshold=self._policy.success_threshold,
            listeners=[_Generations(self)],
            name=self.name,
        )
        return self._circuit

    def _changed(self, before: State, now: float, rng: random.Random) -> None:
        if self.closed:
            self._closed_at = now
        else:
            self._period = self._next_period(before, now)
            self.due = now + _jittered(self._period, rng)

    def _next_period(self, before: State, now: float) -> float:
        policy = self._policy
        healthy = before == "closed" and now - self._closed_at >= policy.reset_timeout_max
        if not self._period or healthy:
            return policy.reset_timeout
        return min(2 * self._period, policy.reset_timeout_max)


class _Generations(pybreaker.CircuitBreakerListener):
    """Makes every permit stale at each change of state."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def state_change(self, *_: object) -> None:
        self._breaker.permit = Permit(self._breaker.permit.generation + 1)
        self._breaker._probe = None  # noqa: SLF001  # the breaker's own inner part


class _Fault(Exception):
    """Stands for the instance's failure inside pybreaker."""


def _succeed() -> None:
    return None


def _fail() -> NoReturn:
    raise _Fault


def _jittered(period: float, rng: random.Random) -> float:
    return period / 2 + rng.random() * period / 2
