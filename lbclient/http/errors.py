"""The errors of lbclient as subclasses of the httpx exceptions that callers may already handle."""

from __future__ import annotations

from typing import cast

from lbclient import errors

from ._compat import httpx

__all__ = ["as_httpx"]


class LoadBalancingError(errors.LoadBalancingError, httpx.TransportError):
    """The lbclient error, which is also an `httpx.TransportError`."""


class DiscoveryError(errors.DiscoveryError, httpx.ConnectError):
    """The lbclient error, which is also an `httpx.ConnectError`: nothing was sent."""


class ServiceAbsent(errors.ServiceAbsent, httpx.ConnectError):
    """The lbclient error, which is also an `httpx.ConnectError`: nothing was sent."""


class NoInstanceAvailable(errors.NoInstanceAvailable, httpx.ConnectError):
    """The lbclient error, which is also an `httpx.ConnectError`: nothing was sent."""

    def __init__(self, message: str, retry_in: float | None = None) -> None:
        httpx.ConnectError.__init__(self, message)
        self.retry_in = retry_in


class Throttled(errors.Throttled, NoInstanceAvailable):
    """The lbclient error, which is also an `httpx.ConnectError`: nothing was sent."""


class BalancerClosed(errors.BalancerClosed, httpx.TransportError):
    """The lbclient error, which is also an `httpx.TransportError`: nothing was sent."""

    def __init__(self, message: str) -> None:
        httpx.TransportError.__init__(self, message)


class DeadlineExceeded(errors.DeadlineExceeded, httpx.TimeoutException):
    """The lbclient error, which is also an `httpx.TimeoutException`."""


def as_httpx(error: errors.LoadBalancingError) -> errors.LoadBalancingError:
    """Return an error that is also an httpx exception, with the same text, cause and notes."""
    if isinstance(error, httpx.TransportError):
        return error
    bound = _bound(error)
    bound.__dict__.update(error.__dict__)
    bound.__cause__ = error.__cause__
    return bound


_BOUND = {
    errors.ServiceAbsent: ServiceAbsent,
    errors.DiscoveryError: DiscoveryError,
    errors.DeadlineExceeded: DeadlineExceeded,
    errors.BalancerClosed: BalancerClosed,
    errors.LoadBalancingError: LoadBalancingError,
}


def _bound(error: errors.LoadBalancingError) -> errors.LoadBalancingError:
    message = str(error)
    if isinstance(error, errors.NoInstanceAvailable):
        kind = Throttled if isinstance(error, errors.Throttled) else NoInstanceAvailable
        return kind(message, error.retry_in)
    bound = next(bound for kind, bound in _BOUND.items() if isinstance(error, kind))
    return cast("errors.LoadBalancingError", bound(message))
