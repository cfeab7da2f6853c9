"""Client-side load balancing for services that call services.

with lbclient.Client("http+srv://orders.example.com") as client:
    order = client.get("/orders/42").json()

What needs httpx or DNS updates is loaded when it is first asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lbclient._internal.deadline import time_left
from lbclient._internal.version import __version__
from lbclient.balancer import Balancer
from lbclient.balancer.options import RECOMMENDED, recommended
from lbclient.balancer.snapshot import InstanceSnapshot, ServiceSnapshot
from lbclient.core.call_info import AttemptInfo, CallInfo, call_info
from lbclient.discovery import FileResolver, FirstOf, Resolver, Service, Union
from lbclient.endpoint import Endpoint
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import (
    BalancerClosed,
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
    ServiceAbsent,
    Throttled,
)
from lbclient.resilience.concurrency_limit import AdaptiveLimit
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.hedging import HedgePolicy
from lbclient.resilience.outlier_detection import OutlierPolicy
from lbclient.resilience.retry import RetryPolicy
from lbclient.resilience.retry_budget import RetryBudget
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy import (
    ConsistentHash,
    LeastBusy,
    LoadProbe,
    LoadReport,
    PeakEwma,
    PickContext,
    Prequal,
    Random,
    RoundRobin,
    Strategy,
    Weighted,
    Zone,
)
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

if TYPE_CHECKING:
    from lbclient.discovery.registration import Registration, RegistrationError
    from lbclient.http.client import AsyncClient, Client
    from lbclient.http.transport import AsyncTransport, Transport
else:
    _MODULES = {
        "AsyncClient": "lbclient.http.client",
        "AsyncTransport": "lbclient.http.transport",
        "Client": "lbclient.http.client",
        "Registration": "lbclient.discovery.registration",
        "RegistrationError": "lbclient.discovery.registration",
        "Transport": "lbclient.http.transport",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


Refusal = RejectedRecord
"""An alias, by its name in 0.1.0."""

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
    "DeadlineExceeded",
    "DiscoveryError",
    "DiscoveryFailed",
    "Ejected",
    "Endpoint",
    "Event",
    "FileResolver",
    "FirstOf",
    "HealthChanged",
    "HealthCheck",
    "HedgePolicy",
    "Instance",
    "InstanceSnapshot",
    "InstancesChanged",
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
    "ThrottlePolicy",
    "Throttled",
    "Transport",
    "Union",
    "Verdict",
    "Weighted",
    "Zone",
    "__version__",
    "call_info",
    "recommended",
    "time_left",
]
