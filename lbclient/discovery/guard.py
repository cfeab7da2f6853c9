"""Which discovered addresses may be connected to: the guard against SSRF by DNS.

A DNS answer is a stranger's word. One that points a client to its own machine, to its link, or to
the cloud's metadata service is refused unless the caller allows that network by name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["Guard"]

Address = IPv4Address | IPv6Address

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google, and most others
            "fd00:ec2::254",  # AWS
            "fd00:ec2::23",  # AWS, the credentials of EKS pods
            "fd20:ce::254",  # Google
            "fd00:c1::a9fe:a9fe",  # Oracle
            "192.0.0.192",  # Oracle Classic
            "168.63.129.16",  # Azure's wire server
            "100.100.100.200",  # Alibaba
            "fd00:42::42",  # Scaleway
        ),
    )
)
_WRAPPERS = tuple(
    map(
        IPv6Network,
        (
            "::ffff:0:0/96",  # IPv4-mapped
            "::ffff:0:0:0/96",  # IPv4-translated, RFC 2765
            "::/96",  # IPv4-compatible, RFC 4291
            "64:ff9b::/96",  # NAT64
            "64:ff9b:1::/48",  # NAT64 by one's own prefix, RFC 8215
        ),
    )
)
"""Networks whose addresses end in an IPv4 address."""


class Guard:
    """Vets addresses and, with `within`, the names of SRV targets.

    `allow` names networks such as `"127.0.0.0/8"`; `within` a domain that targets must belong to
    (MongoDB's rule for SRV). Raises ValueError or TypeError for what is no network or no domain.
    """

    def __init__(self, allow: str | Iterable[str] = (), within: str | None = None) -> None:
        if not isinstance(allow, Iterable):
            raise TypeError(f"allow must hold networks such as '127.0.0.0/8', not {allow!r}")
        names = [allow] if isinstance(allow, str) else list(allow)
        self._allowed = [_network(name) for name in names]
        self._within = within

    def vet(self, addresses: Iterable[str]) -> tuple[list[str], list[str]]:
        """Those that may be connected to, and why the others may not."""
        vetted, reasons = [], []
        for one in addresses:
            if (reason := self.refuses(one)) is None:
                vetted.append(one)
            else:
                reasons.append(reason)
        return vetted, reasons

    def refuses(self, address: str) -> str | None:
        """Why this address may not be connected to, and how to allow it; None if it may."""
        literal = ipaddress.ip_address(address)
        forms = [one for one in (_inner(literal), literal) if one is not None]
        if any(one in network for network in self._allowed for one in forms):
            return None
        for one in forms:
            if (reason := _reason(one)) is not None:
                return f"{address} is {reason}; pass allow=['{_around(one)}'] to permit it"
        return None

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


def _inner(address: Address) -> IPv4Address | None:
    """The IPv4 address inside an IPv6 one; `::` and `::1` hold none."""
    if isinstance(address, IPv4Address) or int(address) < 2:
        return None
    if any(address in network for network in _WRAPPERS):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def _reason(address: Address) -> str | None:
    checks = (
        (address in _METADATA, "a cloud metadata address"),
        (address.is_loopback, "loopback"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        (
            address.is_unspecified or (int(address) >> 24 == 0 and address.version == 4),
            "unspecified",
        ),
        (address == IPv4Address("255.255.255.255"), "broadcast"),
    )
    return next((name for holds, name in checks if holds), None)


def _around(address: Address) -> str:
    if address.is_loopback and address.version == 4:
        return "127.0.0.0/8"
    return f"{address}/{address.max_prefixlen}"
