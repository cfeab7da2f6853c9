"""When a breaker opens, and for how long: the user's word, checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from lbclient import checks

__all__ = ["DISABLED", "BreakerPolicy"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When an instance leaves the rotation, and for how long.

    - `fail_max`: consecutive faults that open the breaker, in the order in which the attempts were
      sent: a success that was sent before a fault says nothing of what came after it.
    - `reset_timeout`: seconds it stays open the first time (half of it is jitter); each failed
      probe, or new trip without a healthy time between, doubles that up to `reset_timeout_max`.
    - `success_threshold`: successful probes that close it.
    - `panic_threshold`: when less than this fraction of a tier's instances is admissible, their
      breakers are ignored (Envoy's panic mode); 0 never.
    - `failure_rate`: the share of faults, above 0 and at most 1, that opens it too; None: no share
      does.
    - `slow_rate`, `slow_after`: the share of calls that took longer than `slow_after` seconds, be
      they faults or not, that opens it too. Both or neither. A probe that slow has failed.
    - `window`, `minimum_calls`: rates are taken over a sliding `window` of seconds, to a tenth of
      it, once it holds so many calls. It begins anew when the breaker closes.
    - `observe`: a dry run. Its states move, and are told, but no call is refused.

    Raises ValueError or TypeError for what none of these can be. Rates are resilience4j's: one that
    is reached opens, and the call that does it may itself have been fine. The window's slices are
    Hystrix's.
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
        _check_rates(self)
        if not isinstance(self.observe, bool):
            raise TypeError(f"observe must be True or False, not {self.observe!r}")


def _check_rates(policy: BreakerPolicy) -> None:
    _check_share("failure_rate", policy.failure_rate)
    _check_share("slow_rate", policy.slow_rate)
    if policy.slow_after is not None:
        checks.seconds("slow_after", policy.slow_after)
    if policy.slow_rate is not None and policy.slow_after is None:
        raise ValueError("slow_rate needs slow_after beside it: the seconds that make a call slow")
    if policy.slow_after is not None and policy.slow_rate is None:
        raise ValueError("slow_after needs slow_rate beside it: the share of slow calls that opens")
    checks.seconds("window", policy.window)
    checks.count("minimum_calls", policy.minimum_calls)


def _check_share(name: str, value: object) -> None:
    if value is not None and checks.number(name, value, above=True) > 1:
        raise ValueError(f"{name} must be at most 1, which is every call, not {value!r}")


DISABLED = BreakerPolicy(fail_max=sys.maxsize)
