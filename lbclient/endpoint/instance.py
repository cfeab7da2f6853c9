"""Instance and Answer: the plain values that discovery passes on to balancing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lbclient._internal import validation

__all__ = ["Answer", "Instance", "Refusal", "RejectedRecord"]

_NO_METADATA: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Instance:
    """One process that serves a service. Two with the same `host` and `port` are equal.

    - `weight`: its share relative to its peers. 0 counts as 0.1; if all are 0, all are equal.
    - `priority`: its tier. Lower ones serve first (RFC 2782).
    - `metadata`: data of the caller's own.
    - `addresses`: the IP addresses that discovery has checked, tried in order. If there are none,
      the operating system resolves `host` at each connect. `address` is the address to connect to.

    Raises ValueError or TypeError, naming the field, for a value that no instance can have.
    """

    host: str
    port: int
    weight: float = field(default=1, compare=False)
    priority: int = field(default=0, compare=False)
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    addresses: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "host", validation.host("host", self.host))
        validation.port("port", self.port)
        validation.number("weight", self.weight)
        validation.count("priority", self.priority, least=0)
        if not isinstance(self.metadata, Mapping):
            raise TypeError(f"metadata must be a dict, not {self.metadata!r}")
        given = MappingProxyType(dict(self.metadata)) if self.metadata else _NO_METADATA
        put(self, "metadata", given)
        addresses = validation.several("addresses", self.addresses, "IP addresses")
        put(self, "addresses", tuple(validation.address("addresses", one) for one in addresses))

    @property
    def address(self) -> str:
        """Where to connect: the first of `addresses`, or `host` if there are none.

        Connect to this and not to `host`: a name would be resolved again, and DNS may answer with
        an address that was never checked. IPv6 addresses have no brackets.
        """
        return self.addresses[0] if self.addresses else self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __reduce__(self) -> tuple[type[Instance], tuple[object, ...]]:
        fields = (self.host, self.port, self.weight, self.priority)
        return Instance, (*fields, dict(self.metadata), self.addresses)


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that discovery did not use, and why. `record` is escaped for logs and screens."""

    record: str
    reason: str


Refusal = RejectedRecord
"""An alias, by its name in 0.1.0."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a `Resolver` found: the full set of instances, valid for `ttl` seconds.

    `ttl=None` means that the set never changes. Of two entries for one instance, the one with the
    lower priority counts, then the one with the larger weight. `refused` lists the records that
    were left out.
    """

    instances: tuple[Instance, ...]
    ttl: float | None = None
    refused: tuple[RejectedRecord, ...] = ()

    def __init__(
        self,
        instances: Iterable[Instance],
        ttl: float | None = None,
        refused: Iterable[RejectedRecord] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "instances", _distinct(instances))
        put(self, "ttl", None if ttl is None else validation.number("ttl (seconds)", ttl))
        put(self, "refused", tuple(refused))


def _distinct(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    best: dict[Instance, Instance] = {}
    for instance in validation.several("instances", instances, "lbclient.Instance values"):
        if not isinstance(instance, Instance):
            raise TypeError(f"instances must contain lbclient.Instance values, not {instance!r}")
        known = best.setdefault(instance, instance)
        if (instance.priority, -instance.weight) < (known.priority, -known.weight):
            best[instance] = instance
    return tuple(best.values())
