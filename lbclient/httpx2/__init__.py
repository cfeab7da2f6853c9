"""Clients and transports for httpx2. They work like the clients and transports of `lbclient` for
httpx.

    with lbclient.httpx2.Client("http+srv://orders.example.com") as client:
        order = client.get("/orders/42").json()

The source is `lbclient/http`, loaded a second time. The files of that folder import each other by
relative imports, and import the HTTP library from `._compat`, the only file that differs. The
errors are the classes of `lbclient.errors`. An error that these clients and transports raise is
also the matching exception of httpx2.
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
