"""Which discovered addresses may be connected to: the guard against SSRF by DNS.

A DNS answer is a stranger's word. One that points a client to its own machine, to its link, or to
the cloud's metadata service is refused unless the caller allows that network by name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["Guard"]

_METADATA = {
    ipaddress.ip_address("169.254.169.254"): "a cloud metadata address",
    ipaddress.ip_address("fd00:ec2::254"): "a cloud metadata address",
    ipaddress.ip_address("100.100.100.200"): "a cloud metadata address",
}
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Guard:
    """Vets addresses and, with `within`, the names of SRV targets.

    `allow` names networks such as `"127.0.0.0/8"`; `within` a domain that targets must belong to
    (MongoDB's rule for SRV). Raises ValueError or TypeError for what is no network or no domain.
    """

    def __init__(self, allow: str | Iterable[str] = (), within: str | None = None) -> None:
        names = [allow] if isinstance(allow, str) else list(allow)
        self._allowed = [_network(name) for name in names]
        self._within = within

    def refuses(self, address: str) -> str | None:
        """Why this address may not be connected to, and how to allow it; None if it may."""
        literal = ipaddress.ip_address(address)
        real = _unwrapped(literal)
        if any(one in network for network in self._allowed for one in (literal, real)):
            return None
        reason = _METADATA.get(real) or _reason(real)
        if reason is None:
            return None
        return f"{address} is {reason}; pass allow=['{_around(real)}'] to permit it"

    def refuses_name(self, target: str) -> str | None:
        """Why this SRV target may not be used; None if it may."""
        if self._within is None or f".{target}".endswith(f".{self._within}"):
            return None
        return f"it is not within {self._within}"


def _network(name: object) -> IPv4Network | IPv6Network:
    if not isinstance(name, str):
        raise TypeError(f"allow must hold networks such as '127.0.0.0/8', not {name!r}")
    try:
        return ipaddress.ip_network(name)
    except ValueError as error:
        raise ValueError(f"allow must hold networks such as '127.0.0.0/8': {error}") from None


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside an IPv4-mapped or NAT64 one."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _reason(address: IPv4Address | IPv6Address) -> str | None:
    checks = (
        (address.is_loopback, "loopback"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        (address.is_unspecified or address in _THIS_NETWORK, "unspecified"),
        (address == IPv4Address("255.255.255.255"), "broadcast"),
    )
    return next((name for holds, name in checks if holds), None)


def _around(address: IPv4Address | IPv6Address) -> str:
    if address.is_loopback and address.version == 4:
        return "127.0.0.0/8"
    return f"{address}/{address.max_prefixlen}"
