"""Client-side load balancing for services that call services.

with lbclient.Client("http+srv://orders.example.com") as client:
    order = client.get("/orders/42").json()

Each name is imported when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbclient._internal.deadline import time_left
    from lbclient._internal.version import __version__
    from lbclient.balancer.balancer import Balancer
    from lbclient.balancer.deadlines import deadline
    from lbclient.balancer.options import RECOMMENDED, recommended
    from lbclient.balancer.snapshot import InstanceSnapshot, ServiceSnapshot
    from lbclient.core.call_info import AttemptInfo, CallInfo, call_info
    from lbclient.discovery.composite import FirstOf, Service, Union
    from lbclient.discovery.file import FileResolver
    from lbclient.discovery.pushed.consul import Consul
    from lbclient.discovery.pushed.etcd import Etcd
    from lbclient.discovery.pushed.kubernetes import Kubernetes
    from lbclient.discovery.registration import Registration, RegistrationError
    from lbclient.discovery.resolver import Resolver, Watcher
    from lbclient.endpoint.breaker import BreakerPolicy
    from lbclient.endpoint.classifier import Verdict
    from lbclient.endpoint.endpoint import Endpoint
    from lbclient.endpoint.instance import Answer, Instance, Refusal, RejectedRecord
    from lbclient.errors import (
        BalancerClosed,
        DeadlineExceeded,
        DiscoveryError,
        LoadBalancingError,
        NoInstanceAvailable,
        ServiceAbsent,
        Throttled,
    )
    from lbclient.http.client import AsyncClient, Client
    from lbclient.http.transport import AsyncTransport, Transport
    from lbclient.resilience.concurrency_limit import AdaptiveLimit
    from lbclient.resilience.health_check import HealthCheck
    from lbclient.resilience.hedging import HedgePolicy
    from lbclient.resilience.outlier_detection import OutlierPolicy
    from lbclient.resilience.retry import RetryPolicy
    from lbclient.resilience.retry_budget import RetryBudget
    from lbclient.resilience.slow_start import SlowStart
    from lbclient.resilience.throttle import ThrottlePolicy
    from lbclient.strategy.consistent_hash import ConsistentHash
    from lbclient.strategy.least_busy import LeastBusy
    from lbclient.strategy.peak_ewma import PeakEwma
    from lbclient.strategy.prequal import Prequal
    from lbclient.strategy.protocol import LoadProbe, LoadReport, PickContext, Strategy
    from lbclient.strategy.random import Random
    from lbclient.strategy.registry import StrategyName
    from lbclient.strategy.round_robin import RoundRobin
    from lbclient.strategy.weighted import Weighted
    from lbclient.strategy.zone import Zone
    from lbclient.telemetry.events import (
        Admitted,
        AttemptPicked,
        BreakerChanged,
        DiscoveryFailed,
        Ejected,
        Event,
        HealthChanged,
        InstancesChanged,
        RetryDecided,
        RetryRefused,
    )
else:
    from importlib import import_module

    _NAMES = {
        "lbclient._internal.deadline": ["time_left"],
        "lbclient._internal.version": ["__version__"],
        "lbclient.balancer.balancer": ["Balancer"],
        "lbclient.balancer.deadlines": ["deadline"],
        "lbclient.balancer.options": ["RECOMMENDED", "recommended"],
        "lbclient.balancer.snapshot": ["InstanceSnapshot", "ServiceSnapshot"],
        "lbclient.core.call_info": ["AttemptInfo", "CallInfo", "call_info"],
        "lbclient.discovery.composite": ["FirstOf", "Service", "Union"],
        "lbclient.discovery.file": ["FileResolver"],
        "lbclient.discovery.pushed.consul": ["Consul"],
        "lbclient.discovery.pushed.etcd": ["Etcd"],
        "lbclient.discovery.pushed.kubernetes": ["Kubernetes"],
        "lbclient.discovery.registration": ["Registration", "RegistrationError"],
        "lbclient.discovery.resolver": ["Resolver", "Watcher"],
        "lbclient.endpoint.breaker": ["BreakerPolicy"],
        "lbclient.endpoint.classifier": ["Verdict"],
        "lbclient.endpoint.endpoint": ["Endpoint"],
        "lbclient.endpoint.instance": ["Answer", "Instance", "Refusal", "RejectedRecord"],
        "lbclient.errors": [
            "BalancerClosed",
            "DeadlineExceeded",
            "DiscoveryError",
            "LoadBalancingError",
            "NoInstanceAvailable",
            "ServiceAbsent",
            "Throttled",
        ],
        "lbclient.http.client": ["AsyncClient", "Client"],
        "lbclient.http.transport": ["AsyncTransport", "Transport"],
        "lbclient.resilience.concurrency_limit": ["AdaptiveLimit"],
        "lbclient.resilience.health_check": ["HealthCheck"],
        "lbclient.resilience.hedging": ["HedgePolicy"],
        "lbclient.resilience.outlier_detection": ["OutlierPolicy"],
        "lbclient.resilience.retry": ["RetryPolicy"],
        "lbclient.resilience.retry_budget": ["RetryBudget"],
        "lbclient.resilience.slow_start": ["SlowStart"],
        "lbclient.resilience.throttle": ["ThrottlePolicy"],
        "lbclient.strategy.consistent_hash": ["ConsistentHash"],
        "lbclient.strategy.least_busy": ["LeastBusy"],
        "lbclient.strategy.peak_ewma": ["PeakEwma"],
        "lbclient.strategy.prequal": ["Prequal"],
        "lbclient.strategy.protocol": ["LoadProbe", "LoadReport", "PickContext", "Strategy"],
        "lbclient.strategy.random": ["Random"],
        "lbclient.strategy.registry": ["StrategyName"],
        "lbclient.strategy.round_robin": ["RoundRobin"],
        "lbclient.strategy.weighted": ["Weighted"],
        "lbclient.strategy.zone": ["Zone"],
        "lbclient.telemetry.events": [
            "Admitted",
            "AttemptPicked",
            "BreakerChanged",
            "DiscoveryFailed",
            "Ejected",
            "Event",
            "HealthChanged",
            "InstancesChanged",
            "RetryDecided",
            "RetryRefused",
        ],
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names}
    _SUBMODULES = ("asgi", "errors", "grpc", "protocol", "simulation", "wsgi")

    def __getattr__(name: str) -> object:
        if name in _SUBMODULES:  # submodules can be used without a separate import
            return import_module(f"{__name__}.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "RECOMMENDED",
    "AdaptiveLimit",
    "Admitted",
    "Answer",
    "AsyncClient",
    "AsyncTransport",
    "AttemptInfo",
    "AttemptPicked",
    "Balancer",
    "BalancerClosed",
    "BreakerChanged",
    "BreakerPolicy",
    "CallInfo",
    "Client",
    "ConsistentHash",
    "Consul",
    "DeadlineExceeded",
    "DiscoveryError",
    "DiscoveryFailed",
    "Ejected",
    "Endpoint",
    "Etcd",
    "Event",
    "FileResolver",
    "FirstOf",
    "HealthChanged",
    "HealthCheck",
    "HedgePolicy",
    "Instance",
    "InstanceSnapshot",
    "InstancesChanged",
    "Kubernetes",
    "LeastBusy",
    "LoadBalancingError",
    "LoadProbe",
    "LoadReport",
    "NoInstanceAvailable",
    "OutlierPolicy",
    "PeakEwma",
    "PickContext",
    "Prequal",
    "Random",
    "Refusal",
    "Registration",
    "RegistrationError",
    "RejectedRecord",
    "Resolver",
    "RetryBudget",
    "RetryDecided",
    "RetryPolicy",
    "RetryRefused",
    "RoundRobin",
    "Service",
    "ServiceAbsent",
    "ServiceSnapshot",
    "SlowStart",
    "Strategy",
    "StrategyName",
    "ThrottlePolicy",
    "Throttled",
    "Transport",
    "Union",
    "Verdict",
    "Watcher",
    "Weighted",
    "Zone",
    "__version__",
    "call_info",
    "deadline",
    "recommended",
    "time_left",
]
