"""Every exception that this package raises for its users.

An exception that `Client` or `Transport` raises is also the httpx exception that a caller already
handles; see `lbclient.http.errors`.
"""

from __future__ import annotations

__all__ = [
    "BalancerClosed",
    "DeadlineExceeded",
    "DiscoveryError",
    "LoadBalancingError",
    "NoInstanceAvailable",
    "RegistrationError",
    "ServiceAbsent",
    "Throttled",
]


class LoadBalancingError(Exception):
    """The base class of all errors that balancing itself raises."""


class DiscoveryError(LoadBalancingError):
    """No usable answer about the service has arrived yet, or the last one is too old."""


class ServiceAbsent(DiscoveryError):
    """The service declares that it is not offered: an SRV record whose target is `.` (RFC 2782)."""


class NoInstanceAvailable(LoadBalancingError):
    """Instances are known, but none may be used now.

    `retry_in` is the time in seconds until an instance may be tried again, or None if this time is
    not known (every instance is at its limit, or a probe is under way).
    """

    def __init__(self, message: str, retry_in: float | None = None) -> None:
        super().__init__(message)
        self.retry_in = retry_in


class Throttled(NoInstanceAvailable):
    """The service refuses most calls, so this one was not sent (`throttle=`)."""


class DeadlineExceeded(LoadBalancingError):
    """The total time of the call is up: attempts, delays and the body together."""


class BalancerClosed(LoadBalancingError, RuntimeError):
    """The balancer, client or transport was closed while the call waited; nothing was sent for it.

    A call that begins after `close` raises a plain RuntimeError, since it is a mistake in the
    program.
    """


class RegistrationError(LoadBalancingError):
    """The service could not be registered. The text names the server, the zone and the reason."""
