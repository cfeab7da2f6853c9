"""The options that all entry points share, typed once, and recommended values.

`Balancer` documents what they mean.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypedDict, Unpack

from lbclient._internal import validation
from lbclient.balancer.listener import Listener
from lbclient.discovery.dns.service import Family
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.resilience.concurrency_limit import AdaptiveLimit
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.hedging import HedgePolicy
from lbclient.resilience.outlier_detection import OutlierPolicy
from lbclient.resilience.retry import RetryPolicy
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy.protocol import Strategy
from lbclient.telemetry.metrics import MeterProvider
from lbclient.telemetry.spans import TracerProvider

__all__ = ["RECOMMENDED", "BalancerOptions", "recommended"]


class BalancerOptions(TypedDict, total=False):
    """The options of `Balancer`."""

    strategy: str | Strategy
    retry: RetryPolicy | None
    breaker: BreakerPolicy | None
    name: str | None
    scheme: str
    max_in_flight: int | None
    max_in_flight_total: int | None
    limit: AdaptiveLimit | None
    throttle: ThrottlePolicy | None
    hedge: HedgePolicy | None
    outliers: OutlierPolicy | None
    slow_start: SlowStart | None
    health: HealthCheck | None
    listener: Listener | None
    nameservers: Iterable[str] | None
    allow: Iterable[str]
    within: str | None
    family: Family
    sticky: float | None
    max_stale: float | None
    min_refresh: float
    max_instances: int | None
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    clock: Callable[[], float]
    rng: random.Random | None


def recommended(
    deadline: float | None = None, **changes: Unpack[BalancerOptions]
) -> BalancerOptions:
    """Options for any entry point, to start with if nothing more is known about a service.

        Client(service, **recommended(deadline=2.0))

    `deadline` is the time of a whole call in seconds: attempts, delays, waits and the body. It is
    set in the `RetryPolicy`, also in one among the `changes` (`retry=None` is one attempt).
    `changes` are options of `Balancer` by name; each replaces the recommended one, or is added.

    They differ from the defaults where that helps a service that is overloaded or partly slow, and
    cost a healthy service nothing: see docs/scoreboard.md and benchmarks/healthy.py. Only a first
    burst of more than twenty calls for each instance waits a few round trips, while its limit grows
    (another `initial=` changes that, and how an overload begins).

    The defaults use instances in turn, so that shares and weights are exact and every call is sent
    at once. These options send calls to instances with few attempts in flight, and let calls wait
    in a queue while the service is busy: as long as their deadline allows, or without a deadline
    for httpx's pool timeout.

    Raises TypeError for a change that is not an option (the error names the options), ValueError or
    TypeError for a `deadline` that is not a time above zero.
    """
    for name in changes:
        if name not in BalancerOptions.__annotations__:
            known = ", ".join(sorted(BalancerOptions.__annotations__))
            raise TypeError(f"recommended() has no option {name!r}; its options are: {known}")
    options: BalancerOptions = {
        "strategy": "least-busy",
        "limit": AdaptiveLimit(backoff=0.5, tolerance=2.0),
        "breaker": BreakerPolicy(panic_threshold=0.5),
        "retry": RetryPolicy(attempts=5),
    }
    options.update(changes)
    if deadline is not None:
        retry = options["retry"]
        validation.kind("retry", retry, RetryPolicy)
        options["retry"] = replace(retry or RetryPolicy(attempts=1), deadline=deadline)
    return options


RECOMMENDED: BalancerOptions = recommended()
"""`recommended()` as a value: `Client(service, **RECOMMENDED)`."""
