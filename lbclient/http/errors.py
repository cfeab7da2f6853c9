"""Our errors in httpx's terms: each is also the httpx exception that a caller handles already."""

from __future__ import annotations

from lbclient import errors

from .flavour import httpx

__all__ = ["as_httpx"]


class LoadBalancingError(errors.LoadBalancingError, httpx.TransportError):
    """Also a transport error of httpx."""


class DiscoveryError(errors.DiscoveryError, httpx.ConnectError):
    """Also a connect error of httpx: nothing was sent."""


class ServiceAbsent(errors.ServiceAbsent, httpx.ConnectError):
    """Also a connect error of httpx: nothing was sent."""


class NoInstanceAvailable(errors.NoInstanceAvailable, httpx.ConnectError):
    """Also a connect error of httpx: nothing was sent."""

    def __init__(self, message: str, retry_in: float | None = None) -> None:
        httpx.ConnectError.__init__(self, message)
        self.retry_in = retry_in


class Throttled(errors.Throttled, NoInstanceAvailable):
    """Also a connect error of httpx: nothing was sent."""


class DeadlineExceeded(errors.DeadlineExceeded, httpx.TimeoutException):
    """Also a timeout of httpx."""


def as_httpx(error: errors.LoadBalancingError) -> errors.LoadBalancingError:
    """The same error, its cause and its notes, in its httpx form."""
    if isinstance(error, httpx.TransportError):
        return error
    bound = _bound(error)
    bound.__dict__.update(error.__dict__)
    bound.__cause__ = error.__cause__
    return bound


def _bound(error: errors.LoadBalancingError) -> errors.LoadBalancingError:
    message = str(error)
    match error:
        case errors.Throttled():
            return Throttled(message, error.retry_in)
        case errors.NoInstanceAvailable():
            return NoInstanceAvailable(message, error.retry_in)
        case errors.ServiceAbsent():
            return ServiceAbsent(message)
        case errors.DiscoveryError():
            return DiscoveryError(message)
        case errors.DeadlineExceeded():
            return DeadlineExceeded(message)
    return LoadBalancingError(message)
