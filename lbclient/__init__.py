"""Client-side load balancing for services that call services.

with lbclient.Client("http+srv://orders.example.com") as client:
    order = client.get("/orders/42").json()
"""

from lbclient._version import __version__
from lbclient.balancer import Balancer
from lbclient.breaker import BreakerPolicy
from lbclient.budget import RetryBudget
from lbclient.deadline import time_left
from lbclient.discovery import FileResolver, FirstOf, Resolver, Service, Union
from lbclient.endpoint import Endpoint
from lbclient.errors import (
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
    ServiceAbsent,
)
from lbclient.http.client import AsyncClient, Client
from lbclient.http.transport import AsyncTransport, Transport
from lbclient.info import AttemptInfo, CallInfo, call_info
from lbclient.instance import Answer, Instance, Refusal
from lbclient.outcome import Verdict
from lbclient.registration import Registration, RegistrationError
from lbclient.retry import RetryPolicy
from lbclient.snapshot import InstanceSnapshot, ServiceSnapshot
from lbclient.strategy import LeastBusy, PickContext, Random, RoundRobin, Strategy, Weighted

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncTransport",
    "AttemptInfo",
    "Balancer",
    "BreakerPolicy",
    "CallInfo",
    "Client",
    "DeadlineExceeded",
    "DiscoveryError",
    "Endpoint",
    "FileResolver",
    "FirstOf",
    "Instance",
    "InstanceSnapshot",
    "LeastBusy",
    "LoadBalancingError",
    "NoInstanceAvailable",
    "PickContext",
    "Random",
    "Refusal",
    "Registration",
    "RegistrationError",
    "Resolver",
    "RetryBudget",
    "RetryPolicy",
    "RoundRobin",
    "Service",
    "ServiceAbsent",
    "ServiceSnapshot",
    "Strategy",
    "Transport",
    "Union",
    "Verdict",
    "Weighted",
    "__version__",
    "call_info",
    "time_left",
]
