"""Every exception that this package raises for its users.

An exception that `Client` or `Transport` raises is also an exception of httpx, so that existing
`except` clauses work; see `lbclient.http.errors`.
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
    """The base class of all errors of lbclient."""


class DiscoveryError(LoadBalancingError):
    """Discovery has not yet returned a usable answer about the service, or its last good answer is
    too old."""


class ServiceAbsent(DiscoveryError):
    """DNS says that the service is not available: its SRV record has the target `.` (RFC 2782)."""


class NoInstanceAvailable(LoadBalancingError):
    """Instances are known, but none may be used now.

    `retry_in` is the time in seconds until an instance may be tried again, or None if this time is
    not known, since every instance is at its limit or a probe is under way.
    """

    def __init__(self, message: str, retry_in: float | None = None) -> None:
        super().__init__(message)
        self.retry_in = retry_in


class Throttled(NoInstanceAvailable):
    """The call was not sent, since the service refuses most calls (`throttle=`)."""


class DeadlineExceeded(LoadBalancingError):
    """The time of the whole call is up. This time includes all attempts, delays, waits and the
    body."""


class BalancerClosed(LoadBalancingError, RuntimeError):
    """The balancer, client or transport was closed while the call waited. Nothing was sent for this
    call.

    A call that begins after `close` raises a plain RuntimeError, since it is a mistake in the
    program.
    """


class RegistrationError(LoadBalancingError):
    """The service could not be registered. The text names the server, the zone and the reason."""
