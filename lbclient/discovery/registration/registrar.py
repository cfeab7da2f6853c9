"""The protocol of a registrar, which registers one instance in DNS, Consul or etcd.

To support another registry (`via=`), add one file with a registrar, and one entry in `REGISTRARS`
(see `registration.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lbclient._internal import validation
from lbclient.endpoint.instance import Instance
from lbclient.errors import LoadBalancingError

__all__ = ["Registrar", "RegistrarOptions", "UpdateError", "addresses_of", "normal"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UpdateError(LoadBalancingError):
    """The registry has not carried out a request. The text says why.

    `undecided` is True if the request may have been carried out anyway, since its answer was lost.
    """

    def __init__(self, message: str, *, undecided: bool = False) -> None:
        super().__init__(message)
        self.undecided = undecided


class Registrar(Protocol):
    """Registers one instance, keeps it registered, and removes it, during one block.

    Its methods may block for the `seconds` that are passed, and raise UpdateError. They are called
    on different threads, but never at the same time.
    """

    @property
    def interval(self) -> float:
        """Seconds between two calls of `put`; a tenth more or less is chosen at random."""
        ...

    def put(self, seconds: float) -> None:
        """Register the instance, or renew its registration. If the registry has lost the
        registration, it is made again."""
        ...

    def remove(self, seconds: float) -> None:
        """Remove exactly what this registrar has registered, and nothing that belongs to others."""
        ...


@dataclass(frozen=True, slots=True)
class RegistrarOptions:
    """The arguments of a `Registration` that apply to every registry.

    `ttl` is in seconds; `clock` returns monotonic seconds. A registrar checks the instance. It
    raises ValueError or TypeError, naming the argument, for a value that its registry does not
    allow.
    """

    instance: Instance
    ttl: int
    identity: str | None
    clock: Callable[[], float]


def normal(text: str) -> Address:
    """Parse an IP address. An IPv4-mapped IPv6 address becomes its IPv4 address."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def addresses_of(instance: Instance) -> list[Address]:
    """The addresses of an instance, without duplicates.

    Raises ValueError for an address that no client can reach.
    """
    literal = (instance.host,) if validation.is_address(instance.host) else ()
    for text in (texts := (*literal, *instance.addresses)):
        if normal(text).is_unspecified or "%" in text:
            raise ValueError(
                f"instance must have addresses that clients can reach, not {text}, "
                "which is for listening, or known to this machine alone"
            )
    return list(dict.fromkeys(map(normal, texts)))
