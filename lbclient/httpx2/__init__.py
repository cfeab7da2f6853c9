"""Clients and transports for httpx2, as `lbclient` has them for httpx.

with lbclient.httpx2.Client("http+srv://orders.example.com") as client:
    order = client.get("/orders/42").json()

The source is that of `lbclient/http`, loaded a second time: its files import each other relatively,
and have the HTTP library from `._compat`, which is the only file of our own. The errors are
lbclient's own; out of these clients and transports each is also the exception of httpx2 that fits.
"""

from lbclient import http
from lbclient.errors import (
    BalancerClosed,
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
    ServiceAbsent,
    Throttled,
)

__path__ += http.__path__

try:
    from .client import AsyncClient, Client
    from .transport import AsyncTransport, Transport
except ModuleNotFoundError as error:
    if error.name != "httpx2":
        raise
    raise ImportError("lbclient.httpx2 needs httpx2: pip install 'lbclient[httpx2]'") from error

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "BalancerClosed",
    "Client",
    "DeadlineExceeded",
    "DiscoveryError",
    "LoadBalancingError",
    "NoInstanceAvailable",
    "ServiceAbsent",
    "Throttled",
    "Transport",
]
