"""IP addresses: whether this host has a route to one, and how a URL writes one."""

from __future__ import annotations

import errno
import socket

__all__ = ["NO_ROUTE", "bracketed", "has_route"]

_DISCARD = 9
NO_ROUTE = frozenset(
    {
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.EACCES,  # a route of type "prohibit"
        errno.EAFNOSUPPORT,
        errno.EADDRNOTAVAIL,  # no source address of this family; for TCP, also no free port
    }
)
"""The errno values that mean that this host cannot reach a destination."""


def has_route(address: str) -> bool:
    """Return True if the operating system has a route to this IP address. It takes microseconds.

    Connecting a UDP socket looks up the route and a source address, and sends nothing. After an
    error that says nothing about routes, such as a lack of file descriptors, the result is True.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _DISCARD))
    except OSError as error:
        return error.errno not in NO_ROUTE
    return True


def bracketed(host: str) -> str:
    """Return the host as it is written in a URL: an IPv6 address has brackets."""
    return f"[{host}]" if ":" in host else host
