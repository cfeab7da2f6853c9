"""How the decisions of one balancer are put together: rules, and the means to follow them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from lbclient._internal import validation
from lbclient.core.engine import Core
from lbclient.core.membership import Bounds, Membership
from lbclient.core.outcomes import Guards
from lbclient.core.picker import Selection
from lbclient.core.pool import Pool
from lbclient.discovery.scheduler import Scheduler
from lbclient.discovery.service_url import Target
from lbclient.endpoint.breaker import DISABLED, BreakerPolicy
from lbclient.resilience.concurrency_limit import Limits
from lbclient.resilience.hedging import HedgePolicy, Hedging
from lbclient.resilience.outlier_detection import OutlierPolicy
from lbclient.resilience.retry import Retries, RetryPolicy
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy import Strategy
from lbclient.telemetry import MeterProvider, Telemetry, TracerProvider
from lbclient.telemetry.outbox import News

__all__ = ["Means", "Rules", "assembled"]

_ONE_ATTEMPT = RetryPolicy(attempts=1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a caller has asked for, checked; None is without.

    Raises TypeError, naming the argument.
    """

    retry: RetryPolicy | None
    breaker: BreakerPolicy | None
    limits: Limits
    throttle: ThrottlePolicy | None
    hedge: HedgePolicy | None
    outliers: OutlierPolicy | None
    slow_start: SlowStart | None
    bounds: Bounds

    def __post_init__(self) -> None:
        validation.kind("retry", self.retry, RetryPolicy)
        validation.kind("breaker", self.breaker, BreakerPolicy)
        validation.kind("throttle", self.throttle, ThrottlePolicy)
        validation.kind("hedge", self.hedge, HedgePolicy)
        validation.kind("outliers", self.outliers, OutlierPolicy)
        validation.kind("slow_start", self.slow_start, SlowStart)


@dataclass(frozen=True, slots=True)
class Means:
    """The clock and the dice, who runs what is due, and who is told; checked.

    Raises TypeError, naming the argument.
    """

    clock: Callable[[], float]
    rng: random.Random
    scheduler: Scheduler
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None

    def __post_init__(self) -> None:
        validation.function("clock", self.clock)
        validation.of("tracer_provider", self.tracer_provider, TracerProvider, "a TracerProvider")
        validation.of("meter_provider", self.meter_provider, MeterProvider, "a MeterProvider")


def assembled(target: Target, strategy: Strategy, rules: Rules, means: Means, news: News) -> Core:
    """The core of a balancer over `target`."""
    policy = rules.breaker or DISABLED
    pool, lock = Pool(policy), threading.RLock()
    telemetry = Telemetry(target.name, means.tracer_provider, means.meter_provider)
    membership = Membership(
        target.name,
        target.resolver,
        pool=pool,
        counts=telemetry.counts,
        news=news,
        scheduler=means.scheduler,
        clock=means.clock,
        rng=means.rng,
        lock=lock,
        bounds=rules.bounds,
    )
    selection = Selection(
        pool,
        strategy,
        policy,
        membership.name,
        news,
        telemetry.counts,
        rules.limits,
        rules.slow_start,
    )
    return Core(
        membership,
        selection=selection,
        retries=Retries(rules.retry or _ONE_ATTEMPT, means.rng),
        guards=_guards(rules, means.rng),
        hedging=None if rules.hedge is None else Hedging(rules.hedge),
        telemetry=telemetry,
        news=news,
        clock=means.clock,
        rng=means.rng,
        lock=lock,
    )


def _guards(rules: Rules, rng: random.Random) -> Guards | None:
    """None where there is nothing to guard: it would be asked at each attempt."""
    asked = (rules.outliers, rules.limits.adaptive, rules.throttle)
    return Guards(*asked, rng) if any(one is not None for one in asked) else None
