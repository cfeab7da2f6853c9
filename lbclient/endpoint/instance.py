"""Instance and Answer: the plain values that discovery hands to balancing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lbclient._internal import validation

__all__ = ["Answer", "Instance", "RejectedRecord"]

_NO_METADATA: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Instance:
    """One place where a service answers. Two with the same `host` and `port` are the same one.

    `weight` is its share relative to its peers (0 counts as 0.1 beside others, all zero is
    uniform), `priority` its tier (lower serves first, RFC 2782), `metadata` the caller's own.
    `addresses` are the IP addresses that discovery has vetted for it, tried in order; without
    any, the operating system resolves `host` at connect. `address` is the one to dial.

    Raises ValueError or TypeError, naming the field, for what no instance can have.
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
        """Where to connect: the first of `addresses`, else `host`.

        Dial this and not `host`: a name would be resolved once more, and DNS may answer with an
        address that was never vetted. IPv6 addresses come without brackets.
        """
        return self.addresses[0] if self.addresses else self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __reduce__(self) -> tuple[type[Instance], tuple[object, ...]]:
        fields = (self.host, self.port, self.weight, self.priority)
        return Instance, (*fields, dict(self.metadata), self.addresses)


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that discovery did not take, and why; `record` is escaped for a log or a screen."""

    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a `Resolver` found: the full set of instances, good for `ttl` seconds.

    `ttl=None` means that the set never changes. Of duplicates the one with the lowest priority,
    then the largest weight, counts. `refused` tells which records were left out.
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
    for one in validation.several("instances", instances, "lbclient.Instance values"):
        if not isinstance(one, Instance):
            raise TypeError(f"instances must hold lbclient.Instance values, not {one!r}")
        rival = best.setdefault(one, one)
        if (one.priority, -one.weight) < (rival.priority, -rival.weight):
            best[one] = one
    return tuple(best.values())
