"""What discovery says of a service, as text, and what is new from one answer to the next."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized

from lbclient.core.pool import Pool
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord

__all__ = ["as_arguments", "as_options", "changes", "columns", "count", "picture", "shares"]

_NAMES = {
    "service": "SERVICE",
    "nameservers": "--nameserver",
    "allow": "--allow",
    "within": "--within",
    "family": "--family",
    "sticky": "--sticky",
}
_PYTHON_ONLY = re.compile(r", a list of the latter, .* -> Answer")

_HEAD = ("instance", "weight", "share", "addresses")


def columns(rows: Iterable[Sequence[str]], shape: str, indent: str = "  ") -> str:
    """The rows as aligned lines; `shape` has `<` or `>` for each column, as in a format string."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        (
            indent
            + "  ".join(
                f"{cell:{side}{width}}"
                for cell, side, width in zip(row, shape, widths, strict=True)
            )
        ).rstrip()
        for row in table
    )


def as_options(text: str) -> str:
    """Why a record was refused, with the advice as an option."""
    text = re.sub(r"pass allow=\['([^']*)'\]", r"pass --allow \1", text)
    return re.sub(r"family='(\w+)'", r"--family \1", text)


def as_arguments(text: str) -> str:
    """Why an argument cannot be used: by the name it has here, without what only Python can do."""
    named = re.sub(r"^\w+", lambda name: _NAMES.get(name[0], name[0]), text)
    usable = _PYTHON_ONLY.sub(", or several of the latter", named)
    return re.sub(r"; pass (auth|params)= instead", "", usable)


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


def changes(before: Answer, now: Answer) -> Iterator[str]:
    """One line a change. The order of records is none: servers give them in any."""
    yield from _members(before.instances, now.instances)
    yield from _refusals(before.refused, now.refused)


def _members(before: Iterable[Instance], now: Iterable[Instance]) -> Iterator[str]:
    known, new = {one: one for one in before}, shares(now)
    yield from (f"left {one}" for one in known if one not in new)
    for one, share in new.items():
        if one not in known:
            yield (
                f"joined {one}: priority {one.priority}, weight {one.weight:g}, "
                f"share {share:.1%}, addresses {addresses_of(one)}"
            )
        elif differences := list(_differences(known[one], one)):
            yield f"changed {one}: {', '.join(differences)}, share now {share:.1%}"


def _differences(old: Instance, new: Instance) -> Iterator[str]:
    if old.priority != new.priority:
        yield f"priority {old.priority} to {new.priority}"
    if old.weight != new.weight:
        yield f"weight {old.weight:g} to {new.weight:g}"
    if set(old.addresses) != set(new.addresses):
        yield f"addresses {addresses_of(old)} to {addresses_of(new)}"


def _refusals(before: Iterable[RejectedRecord], now: Iterable[RejectedRecord]) -> Iterator[str]:
    """A record that is refused for another reason than before is new, but not gone."""
    told, new = {_said(one) for one in before}, {_said(one) for one in now}
    yield from (f"refused {record}: {reason}" for record, reason in sorted(new - told))
    gone = {record for record, _ in told} - {record for record, _ in new}
    yield from (f"no longer refused {record}" for record in sorted(gone))


def _said(one: RejectedRecord) -> tuple[str, str]:
    return one.record, as_options(one.reason)
