"""What can go wrong when a service registers."""

from __future__ import annotations

from lbclient.errors import LoadBalancingError

__all__ = ["RegistrationError"]


class RegistrationError(LoadBalancingError):
    """The service could not be registered: which server and zone, and the reason in words."""
