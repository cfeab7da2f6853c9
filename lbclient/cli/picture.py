"""What discovery says of a service, as text."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sized

from lbclient.breaker import BreakerPolicy
from lbclient.cli.text import columns
from lbclient.cli.wording import as_options
from lbclient.instance import Answer, Instance
from lbclient.pool import Pool

__all__ = ["addresses_of", "count", "picture", "shares"]

_HEAD = ("instance", "weight", "share", "addresses")


def picture(name: str, answer: Answer) -> Iterator[str]:
    """The lines that show an answer which has just come: hence its age."""
    known = shares(answer.instances)
    tiers = sorted({one.priority for one in known})
    good_for = "it never changes" if answer.ttl is None else f"TTL {answer.ttl:g} s, age 0 s"
    yield f"{name}: {count(known, 'instance')} in {count(tiers, 'tier')}, {good_for}"
    for place, priority in enumerate(tiers):
        when = "serves first" if place == 0 else "serves while no better tier can"
        yield f"\npriority {priority}, {when}"
        yield columns((_HEAD, *_rows(known, priority)), "<>><")
    if answer.refused:
        yield "\nrefused"
        yield columns(sorted((one.record, as_options(one.reason)) for one in answer.refused), "<<")


def shares(instances: Iterable[Instance]) -> dict[Instance, float]:
    """The share of its tier that each is due, by the weights that balancing counts with."""
    pool = Pool(BreakerPolicy())
    pool.update(instances)
    weights = {one.instance: one.weight for one in pool.endpoints}
    totals: defaultdict[int, float] = defaultdict(float)
    for one, weight in weights.items():
        totals[one.priority] += weight
    return {one: weight / totals[one.priority] for one, weight in weights.items()}


def addresses_of(instance: Instance) -> str:
    """Where its connections go."""
    return ", ".join(instance.addresses) or _own_address(instance.host)


def count(things: Sized, what: str) -> str:
    """How many they are, with the right form of the noun."""
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _rows(known: Mapping[Instance, float], priority: int) -> Iterator[tuple[str, ...]]:
    tier = [one for one in known if one.priority == priority]
    for one in sorted(tier, key=lambda one: (-known[one], str(one))):
        yield str(one), f"{one.weight:g}", f"{known[one]:.1%}", addresses_of(one)


def _own_address(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "looked up at connect"
