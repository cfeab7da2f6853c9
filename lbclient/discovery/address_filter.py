"""Decides which discovered addresses a client may connect to. Protects against SSRF through DNS.

DNS answers are not trusted. Addresses of the client's own machine, of its local link and of cloud
metadata services are refused, unless the caller allows that network explicitly.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["AddressFilter"]

Address = IPv4Address | IPv6Address

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google, and most other clouds
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
_MAPPED = IPv6Network("::ffff:0:0/96")
_WRAPPERS = tuple(
    map(
        IPv6Network,
        (
            "::ffff:0:0:0/96",  # IPv4-translated, RFC 2765
            "::/96",  # IPv4-compatible, RFC 4291
            "64:ff9b::/96",  # NAT64, RFC 6052
        ),
    )
)
"""Networks whose addresses end in an IPv4 address."""
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
"""The network of NAT64 with a local prefix (RFC 8215). The prefix may have any length of at least
48 bits."""
_ISATAP, _ANY_ISATAP = 0x00005EFE, 0xFCFFFFFF
"""The first half of an ISATAP interface identifier (RFC 5214), and a mask that ignores its bits u
and g.
"""
_THIS_HOST = IPv4Network("0.0.0.0/8")


class AddressFilter:
    """Checks addresses and, with `within`, the host names of instances.

    - `allow`: networks such as `"127.0.0.0/8"` that are allowed.
    - `within`: a domain that the targets of SRV records (MongoDB's rule for SRV), and the hosts
      that a registry reports, must belong to. Hosts that are addresses are not concerned.

    Raises ValueError or TypeError for a value that is not a network or a domain.
    """

    def __init__(self, allow: str | Iterable[str] = (), within: str | None = None) -> None:
        if not isinstance(allow, Iterable):
            raise TypeError(f"allow must contain networks such as '127.0.0.0/8', not {allow!r}")
        names = [allow] if isinstance(allow, str) else list(allow)
        self._allowed = [_network(name) for name in names]
        self.within = within

    def vet(self, addresses: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the addresses that are allowed, and the reasons why the other addresses are
        refused."""
        vetted, reasons = [], []
        for one in addresses:
            if (reason := self.refuses(one)) is None:
                vetted.append(one)
            else:
                reasons.append(reason)
        return vetted, reasons

    def refuses(self, address: str) -> str | None:
        """Return why this address is refused, and how to allow it. Returns None if the address is
        allowed.

        Of an IPv6 address, the address itself is checked, and also each IPv4 address that it may
        represent. A zone (`%eth0`) is ignored, since the operating system ignores it unless the
        address is link-local.
        """
        literal = ipaddress.ip_address(address.partition("%")[0])
        if self._allows(literal):
            return None
        for one in _forms(literal):
            if (reason := _reason(one)) is not None and not self._allows(one):
                return f"{address} is {reason}; pass allow=['{_around(one)}'] to permit it"
        return None

    def _allows(self, address: Address) -> bool:
        return any(address in network for network in self._allowed)

    def refuses_name(self, target: str) -> str | None:
        """Return why this host name is refused: the target of an SRV record, or a host that a
        registry reports. Returns None if the name is allowed."""
        if self.within is None or f".{target}".endswith(f".{self.within}"):
            return None
        return f"it is not within the domain {self.within}"


def _network(name: object) -> IPv4Network | IPv6Network:
    if not isinstance(name, str):
        raise TypeError(f"allow must contain networks such as '127.0.0.0/8', not {name!r}")
    try:
        return ipaddress.ip_network(name)
    except ValueError as error:
        raise ValueError(f"allow must contain networks such as '127.0.0.0/8': {error}") from None


def _forms(address: Address) -> list[Address]:
    """Return the address, and the IPv4 addresses that it may represent. `::` and `::1` represent
    none.

    For an IPv4-mapped address, only its IPv4 address is returned, since the operating system sends
    no IPv6 packets for it.
    """
    if isinstance(address, IPv4Address) or int(address) < 2:
        return [address]
    if address in _MAPPED:
        return [_bits(address, 96)]
    return [address, *_embedded(address)]


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    if any(address in network for network in _WRAPPERS):
        yield _bits(address, 96)
    if address in _LOCAL_NAT64:
        yield from _translated(address)
    if (int(address) >> 32) & _ANY_ISATAP == _ISATAP:
        yield _bits(address, 96)
    if address.sixtofour is not None:
        yield address.sixtofour
    yield from address.teredo or ()


def _translated(address: IPv6Address) -> Sequence[IPv4Address]:
    """The IPv4 addresses to which NAT64 may translate this address, one for each prefix length (RFC
    6052, 2.2).

    The prefix and the suffix contain many zeros, so most results are addresses that consist of
    zeros. Such results are returned only if there are no others.
    """
    without_u = (int(address) >> 64 << 56) | (int(address) & (1 << 56) - 1)
    lengths = [IPv4Address((without_u >> shift) & 0xFFFFFFFF) for shift in (40, 32, 24)]
    readings = [*lengths, _bits(address, 96)]
    return [one for one in readings if one not in _THIS_HOST] or readings[-1:]


def _bits(address: IPv6Address, start: int) -> IPv4Address:
    """The IPv4 address that begins at the bit with this number."""
    return IPv4Address((int(address) >> (96 - start)) & 0xFFFFFFFF)


def _reason(address: Address) -> str | None:
    checks = (
        (address in _METADATA, "a cloud metadata address"),
        (address.is_loopback, "loopback"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        (address.is_unspecified or address in _THIS_HOST, "unspecified"),
        (address == IPv4Address("255.255.255.255"), "broadcast"),
    )
    return next((name for holds, name in checks if holds), None)


def _around(address: Address) -> str:
    if address.is_loopback and address.version == 4:
        return "127.0.0.0/8"
    return f"{address}/{address.max_prefixlen}"
