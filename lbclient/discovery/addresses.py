"""A and AAAA records: of SRV targets, and as a way of discovery of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from lbclient import checks
from lbclient.discovery.dns import KINDS, Addresses, Dns, Glue, NoRecords
from lbclient.discovery.guard import Guard
from lbclient.errors import DiscoveryError
from lbclient.instance import Answer, Instance, Refusal

__all__ = ["AddressBook", "AddressResolver", "Patience"]

_ROUND = 5.0
_LEAST_PATIENCE = 0.5
_GRACE = 3.0
_NO_GLUE = Glue()


class Patience:
    """Shares a time, in seconds, among the questions of one round.

    A silent name must not use up all of it: who comes later is still asked, if only for as long
    as one quick question needs; until that too has lasted too long.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._until = clock() + seconds
        self._clock = clock

    def left(self) -> float:
        """For the next question. Raises DiscoveryError once no more should be asked."""
        left = self._until - self._clock()
        if left <= -_GRACE:
            raise DiscoveryError("the time for this round is over")
        return max(_LEAST_PATIENCE, left)


class AddressBook:
    """Looks addresses up, and remembers them for when DNS does not answer.

    A name that DNS says has none is forgotten; a question that merely fails is answered from
    memory, so that one lost packet does not take an instance away.
    """

    def __init__(self, dns: Dns) -> None:
        self._dns = dns
        self._known: dict[tuple[str, str], Addresses] = {}
        self._asked: dict[str, int] = {}
        self._turns = itertools.count(1)

    def lookup(self, name: str, patience: Callable[[], float], glue: Glue = _NO_GLUE) -> Addresses:
        """The addresses of `name`, both families by turns, IPv4 first; and their TTL in seconds.

        `patience` tells how many seconds the next question may take.
        Raises NoRecords where there are none, DiscoveryError where that is not known.
        """
        found, failures = [], []
        for kind in glue.kinds(name):
            try:
                addresses = glue.get(name, kind) or self._ask(name, kind, patience)
            except DiscoveryError as error:
                failures.append(error)
            else:
                self._known[name, kind] = addresses
                found.append(addresses)
        if not found:
            raise next((one for one in failures if not isinstance(one, NoRecords)), failures[0])
        return _by_turns(addresses for addresses, _ in found), min(ttl for _, ttl in found)

    def _ask(self, name: str, kind: str, patience: Callable[[], float]) -> Addresses:
        try:
            seconds = patience()
            self._asked[name] = next(self._turns)
            found = self._dns.ask(name, kind, seconds)
        except NoRecords:
            self._known.pop((name, kind), None)
            raise
        except DiscoveryError:
            if (known := self._known.get((name, kind))) is not None:
                return known
            raise
        return [str(one) for one in found.records], found.ttl

    def asked(self, name: str) -> int:
        """When it was last asked for: a number that grows, 0 for never."""
        return self._asked.get(name, 0)

    def keep(self, names: set[str]) -> None:
        """Forget all but these names."""
        self._known = {key: value for key, value in self._known.items() if key[0] in names}
        self._asked = {name: turn for name, turn in self._asked.items() if name in names}


class AddressResolver:
    """Every address of a name, on one port: a Kubernetes headless service, for one.

    Raises ValueError for what is no name.
    """

    def __init__(self, name: str, port: int, dns: Dns, guard: Guard) -> None:
        self._name = checks.host("service (its host)", name)
        if checks.is_address(self._name):
            raise ValueError(
                f"service must name a host for DNS to look up, not the address {self._name}; "
                "pass it as http://address:port, or a list of such"
            )
        self._port = port
        self._book = AddressBook(dns)
        self._guard = guard

    def resolve(self) -> Answer:
        """One instance an address."""
        addresses, ttl = self._book.lookup(self._name + ".", lambda: _ROUND / len(KINDS))
        vetted, reasons = self._guard.vet(addresses)
        return Answer(
            (Instance(one, self._port, addresses=(one,)) for one in sorted(vetted)),
            ttl,
            (Refusal(self._name, reason) for reason in reasons),
        )


def _by_turns(families: Iterable[list[str]]) -> list[str]:
    return [one for pair in itertools.zip_longest(*families) for one in pair if one]
