"""Builds the engine of a balancer from its policies and its runtime."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lbclient._internal import validation
from lbclient.balancer.health_monitor import CheckExecutor, Threads
from lbclient.balancer.options import BalancerOptions
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
from lbclient.resilience.retry import ONE_ATTEMPT, RetryPolicy, RetryRules
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy.protocol import Strategy
from lbclient.telemetry.events import Outbox
from lbclient.telemetry.metrics import MeterProvider
from lbclient.telemetry.spans import Telemetry, TracerProvider

__all__ = ["Runtime", "build_engine"]

_TYPES: dict[str, type] = {
    "retry": RetryPolicy,
    "breaker": BreakerPolicy,
    "throttle": ThrottlePolicy,
    "hedge": HedgePolicy,
    "outliers": OutlierPolicy,
    "slow_start": SlowStart,
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The environment of a balancer: its clock, its random number generator, the scheduler of its
    jobs, the executor of its health checks, and the providers of its telemetry.

    - `look_again`: seconds after which the first call in the queue looks for a slot again without
      being woken.
    - `least_level`: log messages below this level are dropped.

    Raises TypeError, naming the argument, for an argument of the wrong type.
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
    target: Target,
    strategy: Strategy,
    options: BalancerOptions,
    runtime: Runtime,
    outbox: Outbox,
) -> Engine:
    """Build the engine of a balancer for `target`. `options` has a value for each option.

    Raises ValueError or TypeError, naming the argument.
    """
    for name, kind in _TYPES.items():
        validation.kind(name, options.get(name), kind)
    policy = options["breaker"] or DISABLED
    limits = Limits(options["max_in_flight"], options["max_in_flight_total"], options["limit"])
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
        discovery_limits=DiscoveryLimits(
            options["max_stale"], options["min_refresh"], options["max_instances"]
        ),
        watched=target.watched,
    )
    picker = Picker(
        pool,
        strategy,
        policy,
        membership.name,
        outbox,
        telemetry.metrics,
        limits,
        options["slow_start"],
    )
    rules = (options["outliers"], options["limit"], options["throttle"])
    has_rules = any(rule is not None for rule in rules)
    return Engine(
        membership,
        picker=picker,
        retry_rules=RetryRules(options["retry"] or ONE_ATTEMPT, runtime.rng),
        # None if no opt-in rule is set, since the rules take time at each attempt.
        opt_in_rules=OptInRules(*rules, runtime.rng) if has_rules else None,
        hedging=None if options["hedge"] is None else Hedging(options["hedge"]),
        telemetry=telemetry,
        outbox=outbox,
        clock=runtime.clock,
        rng=runtime.rng,
        lock=lock,
        look_again=runtime.look_again,
    )
