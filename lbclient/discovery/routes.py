"""Which addresses this host has a route to."""

from __future__ import annotations

import errno
import socket

__all__ = ["has_route"]

_DISCARD = 9
_NO_ROUTE = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EACCES,  # a route of type "prohibit"
        errno.EADDRNOTAVAIL,  # no address of this family to send from
        errno.EAFNOSUPPORT,
    }
)


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
        return error.errno not in _NO_ROUTE
    return True
