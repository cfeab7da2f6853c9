"""The checks that know no HTTP: a TCP connection, and a caller's own function."""

from __future__ import annotations

import socket
from collections.abc import Callable

from lbclient.deadline import Expiry
from lbclient.endpoint import Endpoint
from lbclient.errors import LoadBalancingError
from lbclient.health.policy import HealthCheck
from lbclient.instance import Instance

__all__ = ["Check", "CheckFailed", "connects", "plain_check"]

_LEAST = 0.001
"""A timeout of 0 would mean a socket that never waits."""

Check = Callable[[Endpoint, Expiry], None]
"""Checks one instance by the time given; it may block, and raises whatever speaks against it."""


class CheckFailed(LoadBalancingError):
    """The instance answered, and not as it should, or did not in time. Its text says what came."""


def plain_check(policy: HealthCheck) -> Check | None:
    """The check that `policy` asks for; None where that speaks HTTP."""
    if policy.check is not None:
        return _asked(policy.check)
    return connects if policy.path is None else None


def connects(endpoint: Endpoint, expiry: Expiry) -> None:
    """Connect to one of its addresses, as calls do. Raises OSError."""
    instance = endpoint.instance
    hosts = instance.addresses or (instance.host,)
    failure = OSError("no address")
    for place, host in enumerate(hosts):
        share = expiry.left() / (len(hosts) - place)
        try:
            socket.create_connection((host, instance.port), max(_LEAST, share)).close()
        except OSError as error:
            failure = error
        else:
            return
    raise failure


def _asked(function: Callable[[Instance], bool]) -> Check:
    def check(endpoint: Endpoint, _: Expiry) -> None:
        if (said := function(endpoint.instance)) is not True:
            shown = "False" if said is False else f"{type(said).__name__}, not True"
            raise CheckFailed(f"check returned {shown}")

    return check
