"""Our errors in httpx's terms: each is also the httpx exception that a caller handles already."""

from __future__ import annotations

from typing import cast

from lbclient import errors

from ._compat import httpx

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


class BalancerClosed(errors.BalancerClosed, httpx.TransportError):
    """Also a transport error of httpx: nothing was sent."""

    def __init__(self, message: str) -> None:
        httpx.TransportError.__init__(self, message)


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
    bound = next(bound for one, bound in _BOUND.items() if isinstance(error, one))
    return cast("errors.LoadBalancingError", bound(message))
