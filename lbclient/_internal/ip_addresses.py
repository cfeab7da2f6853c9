"""IP addresses: which this host has a route to, and how a URL has them."""

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
        errno.EADDRNOTAVAIL,  # no address of this family to send from; or, of a stream, no port
    }
)
"""The numbers of the errors with which a destination cannot be reached from here."""


def has_route(address: str) -> bool:
    """Whether the operating system knows how to send to this IP address; it takes microseconds.

    Connecting a UDP socket looks up the route and a source address, and sends nothing. An error
    that says nothing about routes, such as a lack of descriptors, counts as yes.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _DISCARD))
    except OSError as error:
        return error.errno not in NO_ROUTE
    return True


def bracketed(host: str) -> str:
    """As a URL has it."""
    return f"[{host}]" if ":" in host else host
