"""The arguments that every entry point shares, typed once. Their meaning is told by `Balancer`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TypedDict

from lbclient.breaker import BreakerPolicy
from lbclient.discovery import Family
from lbclient.health import HealthCheck
from lbclient.listening import Listener
from lbclient.retry import RetryPolicy
from lbclient.rules import AdaptiveLimit, HedgePolicy, OutlierPolicy, SlowStart, ThrottlePolicy
from lbclient.strategy import Strategy
from lbclient.telemetry import MeterProvider, TracerProvider

__all__ = ["BalancerOptions"]


class BalancerOptions(TypedDict, total=False):
    """What `Balancer` takes after the service."""

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
