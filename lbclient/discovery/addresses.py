"""A and AAAA records: of SRV targets, and as a way of discovery of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from lbclient import checks
from lbclient.discovery.dns import Dns, NoRecords
from lbclient.discovery.guard import Guard
from lbclient.errors import DiscoveryError
from lbclient.instance import Answer, Instance, Refusal

__all__ = ["AddressBook", "AddressResolver"]

_LEAST_PATIENCE = 0.5


class AddressBook:
    """Looks addresses up, and remembers them for when DNS does not answer.

    A name that DNS says has none is forgotten; a question that merely fails is answered from
    memory, so that one lost packet does not take an instance away.
    """

    def __init__(self, dns: Dns) -> None:
        self._dns = dns
        self._known: dict[tuple[str, str], tuple[list[str], float]] = {}

    def lookup(self, name: str, patience: float | None = None) -> tuple[list[str], float]:
        """The addresses of `name`, both families by turns, IPv4 first; and their TTL in seconds.

        Raises NoRecords where there are none, DiscoveryError where that is not known.
        """
        found, failures = [], []
        for kind in ("A", "AAAA"):
            try:
                found.append(self._ask(name, kind, patience))
            except DiscoveryError as error:
                failures.append(error)
        if not found:
            raise next((one for one in failures if not isinstance(one, NoRecords)), failures[0])
        pairs = itertools.zip_longest(*(addresses for addresses, _ in found))
        return [one for pair in pairs for one in pair if one], min(ttl for _, ttl in found)

    def _ask(self, name: str, kind: str, patience: float | None) -> tuple[list[str], float]:
        try:
            found = self._dns.ask(name, kind, patience)
        except NoRecords:
            self._known.pop((name, kind), None)
            raise
        except DiscoveryError:
            if (known := self._known.get((name, kind))) is not None:
                return known
            raise
        self._known[name, kind] = ([str(one) for one in found.records], found.ttl)
        return self._known[name, kind]

    def keep(self, names: set[str]) -> None:
        """Forget all but these names."""
        self._known = {key: value for key, value in self._known.items() if key[0] in names}


class AddressResolver:
    """Every address of a name, on one port: a Kubernetes headless service, for one."""

    def __init__(self, name: str, port: int, dns: Dns, guard: Guard) -> None:
        self._name = checks.host("host", name)
        self._port = port
        self._book = AddressBook(dns)
        self._guard = guard

    def resolve(self) -> Answer:
        """One instance an address."""
        addresses, ttl = self._book.lookup(self._name + ".")
        instances, refused = [], []
        for address in addresses:
            if (reason := self._guard.refuses(address)) is not None:
                refused.append(Refusal(f"{self._name} {address}", reason))
            else:
                instances.append(Instance(address, self._port, addresses=(address,)))
        return Answer(instances, ttl, refused)


class Patience:
    """Shares a time, in seconds, among the questions of one round."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._until = clock() + seconds
        self._clock = clock

    def left(self) -> float:
        """What is left, but never less than one quick question needs."""
        return max(_LEAST_PATIENCE, self._until - self._clock())
