"""`lbclient resolve`: what discovery says of a service, and what it refused."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import lbclient
from lbclient.breaker import BreakerPolicy
from lbclient.cli.text import columns
from lbclient.endpoint import Endpoint
from lbclient.pool import Pool

__all__ = ["resolve"]

_HEAD = ("instance", "weight", "share", "addresses")


def resolve(arguments: argparse.Namespace) -> int:
    """Ask once and print the answer. The exit status is 1 without a usable instance, 2 for
    arguments that cannot be used."""
    try:
        balancer = _balancer(arguments)
    except ValueError as error:
        print(f"lbclient resolve: {_as_options(str(error))}", file=sys.stderr)
        return 2
    with contextlib.closing(balancer):
        answer = balancer.target.resolver.resolve()
    print("\n".join(_lines(balancer.target.name, answer)))
    if not answer.instances:
        print("lbclient resolve: there is no usable instance", file=sys.stderr)
        return 1
    return 0


def _balancer(arguments: argparse.Namespace) -> lbclient.Balancer:
    service: list[str] = arguments.service
    return lbclient.Balancer(
        service[0] if len(service) == 1 else service,
        nameservers=arguments.nameserver,
        allow=arguments.allow,
        within=arguments.within,
    )


def _lines(name: str, answer: lbclient.Answer) -> Iterator[str]:
    tiers = _tiers(answer.instances)
    ttl = "it never changes" if answer.ttl is None else f"TTL {answer.ttl:g} s"
    yield f"{name}: {_count(answer.instances, 'instance')} in {_count(tiers, 'tier')}, {ttl}"
    for place, tier in enumerate(tiers):
        when = "serves first" if place == 0 else "serves while no better tier can"
        yield f"\npriority {tier[0].instance.priority}, {when}"
        yield columns((_HEAD, *_rows(tier)), "<>><")
    if answer.refused:
        yield "\nrefused"
        yield columns(sorted((one.record, _as_options(one.reason)) for one in answer.refused), "<<")


def _tiers(instances: Iterable[lbclient.Instance]) -> list[list[Endpoint]]:
    """Best first, with the weights that balancing counts with."""
    pool = Pool(BreakerPolicy())
    pool.update(instances)
    tiers: dict[int, list[Endpoint]] = {}
    for one in pool.endpoints:
        tiers.setdefault(one.instance.priority, []).append(one)
    return [tiers[priority] for priority in sorted(tiers)]


def _rows(tier: Sequence[Endpoint]) -> Iterator[tuple[str, ...]]:
    total = sum(one.weight for one in tier)
    for one in sorted(tier, key=lambda one: (-one.weight, str(one.instance))):
        yield (
            str(one.instance),
            f"{one.instance.weight:g}",
            f"{one.weight / total:.1%}",
            ", ".join(one.instance.addresses) or _own_address(one.instance.host),
        )


def _own_address(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "looked up at connect"


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _as_options(text: str) -> str:
    """The library's advice in the words of the command line."""
    return re.sub(r"pass allow=\['([^']*)'\]", r"pass --allow \1", text)
