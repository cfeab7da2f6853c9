"""Builds the engine of a balancer from its policies and its runtime."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lbclient._internal import validation
from lbclient.balancer.health_monitor import CheckExecutor, Threads
from lbclient.core.engine import Engine
from lbclient.core.membership import DiscoveryLimits, Membership
from lbclient.core.opt_in_rules import OptInRules
from lbclient.core.picker import Picker
from lbclient.core.pool import Pool
from lbclient.discovery.registry import Target
from lbclient.discovery.scheduler import THREAD_SCHEDULER, Scheduler
from lbclient.endpoint.breaker import DISABLED, BreakerPolicy
from lbclient.resilience.concurrency_limit import Limits
from lbclient.resilience.hedging import HedgePolicy, Hedging
from lbclient.resilience.outlier_detection import OutlierPolicy
from lbclient.resilience.retry import RetryPolicy, RetryRules
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy.protocol import Strategy
from lbclient.telemetry.metrics import MeterProvider
from lbclient.telemetry.outbox import Outbox
from lbclient.telemetry.spans import Telemetry, TracerProvider

__all__ = ["Policies", "Runtime", "build_engine"]

_ONE_ATTEMPT = RetryPolicy(attempts=1)


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of a balancer; None turns one off.

    Raises TypeError, naming the argument.
    """

    retry: RetryPolicy | None
    breaker: BreakerPolicy | None
    limits: Limits
    throttle: ThrottlePolicy | None
    hedge: HedgePolicy | None
    outliers: OutlierPolicy | None
    slow_start: SlowStart | None
    discovery_limits: DiscoveryLimits

    def __post_init__(self) -> None:
        validation.kind("retry", self.retry, RetryPolicy)
        validation.kind("breaker", self.breaker, BreakerPolicy)
        validation.kind("throttle", self.throttle, ThrottlePolicy)
        validation.kind("hedge", self.hedge, HedgePolicy)
        validation.kind("outliers", self.outliers, OutlierPolicy)
        validation.kind("slow_start", self.slow_start, SlowStart)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a balancer runs on: its clock and random numbers, what runs its jobs and health checks,
    and where its telemetry goes.

    - `look_again`: seconds after which the first in the queue looks again without being woken.
    - `least_level`: log messages below this level are dropped.

    Raises TypeError, naming the argument.
    """

    clock: Callable[[], float]
    rng: random.Random
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    scheduler: Scheduler = THREAD_SCHEDULER
    executor: CheckExecutor = field(default_factory=Threads)
    look_again: float = 0.25
    least_level: int = 0

    def __post_init__(self) -> None:
        validation.function("clock", self.clock)
        validation.of("tracer_provider", self.tracer_provider, TracerProvider, "a TracerProvider")
        validation.of("meter_provider", self.meter_provider, MeterProvider, "a MeterProvider")


def build_engine(
    target: Target, strategy: Strategy, policies: Policies, runtime: Runtime, outbox: Outbox
) -> Engine:
    """The engine of a balancer over `target`."""
    policy = policies.breaker or DISABLED
    pool, lock = Pool(policy), threading.RLock()
    telemetry = Telemetry(target.name, runtime.tracer_provider, runtime.meter_provider)
    membership = Membership(
        target.name,
        target.resolver,
        pool=pool,
        metrics=telemetry.metrics,
        outbox=outbox,
        scheduler=runtime.scheduler,
        clock=runtime.clock,
        rng=runtime.rng,
        lock=lock,
        discovery_limits=policies.discovery_limits,
    )
    picker = Picker(
        pool,
        strategy,
        policy,
        membership.name,
        outbox,
        telemetry.metrics,
        policies.limits,
        policies.slow_start,
    )
    return Engine(
        membership,
        picker=picker,
        retry_rules=RetryRules(policies.retry or _ONE_ATTEMPT, runtime.rng),
        opt_in_rules=_opt_in_rules(policies, runtime.rng),
        hedging=None if policies.hedge is None else Hedging(policies.hedge),
        telemetry=telemetry,
        outbox=outbox,
        clock=runtime.clock,
        rng=runtime.rng,
        lock=lock,
        look_again=runtime.look_again,
    )


def _opt_in_rules(policies: Policies, rng: random.Random) -> OptInRules | None:
    """None without a rule, since rules cost time at each attempt."""
    asked = (policies.outliers, policies.limits.adaptive, policies.throttle)
    return OptInRules(*asked, rng) if any(one is not None for one in asked) else None
