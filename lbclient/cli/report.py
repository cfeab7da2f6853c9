"""Shows an answer of discovery as text, and the changes from one answer to the next."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized

from lbclient.core.pool import Pool
from lbclient.discovery.entries import short
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
_PYTHON_ONLY = re.compile(r", a list of the latter, .* and close\(\)")

_HEAD = ("instance", "weight", "share", "addresses")


def columns(rows: Iterable[Sequence[str]], shape: str, indent: str = "  ") -> str:
    """Return the rows as aligned lines. `shape` has `<` or `>` for each column, as in a format
    string."""
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
    """Return the reason why a record was refused. Where the text names an argument of Python, it
    names the command-line option instead."""
    text = re.sub(r"pass allow=\['([^']*)'\]", r"pass --allow \1", text)
    return re.sub(r"family='(\w+)'", r"--family \1", text)


def as_arguments(text: str) -> str:
    """Return the text of an error about an argument. The text names the argument as on the command
    line, and omits advice that applies only to Python code."""
    named = re.sub(r"^\w+", lambda name: _NAMES.get(name[0], name[0]), text)
    usable = _PYTHON_ONLY.sub(", or several of the latter", named)
    return re.sub(r"; pass (auth|params)= instead", "", usable)


def picture(name: str, answer: Answer, *, pushed: bool = False) -> Iterator[str]:
    """Yield the lines that show an answer that has just arrived, so that its age is 0 s. `pushed`
    is True if the source reports its changes itself."""
    known = shares(answer.instances)
    tiers = sorted({instance.priority for instance in known})
    good_for = "it never changes" if answer.ttl is None else f"TTL {answer.ttl:g} s, age 0 s"
    good_for = "watched, age 0 s" if pushed else good_for
    yield f"{name}: {count(known, 'instance')} in {count(tiers, 'tier')}, {good_for}"
    for place, priority in enumerate(tiers):
        when = "serves first" if place == 0 else "serves while no better tier can"
        yield f"\npriority {priority}, {when}"
        yield columns((_HEAD, *_rows(known, priority)), "<>><")
    if answer.refused:
        yield "\nrefused"
        yield columns(sorted(map(_record_and_reason, answer.refused)), "<<")


def shares(instances: Iterable[Instance]) -> dict[Instance, float]:
    """Return each instance's expected share of its tier, by the weights that balancing uses."""
    pool = Pool(BreakerPolicy())
    pool.update(instances)
    weights = {endpoint.instance: endpoint.weight for endpoint in pool.endpoints}
    totals: defaultdict[int, float] = defaultdict(float)
    for instance, weight in weights.items():
        totals[instance.priority] += weight
    return {instance: weight / totals[instance.priority] for instance, weight in weights.items()}


def addresses_of(instance: Instance) -> str:
    """Return the addresses that connections to an instance use."""
    return ", ".join(instance.addresses) or _own_address(instance.host)


def count(things: Sized, what: str) -> str:
    """Return the number of `things` followed by the noun, in singular or plural."""
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _rows(known: Mapping[Instance, float], priority: int) -> Iterator[tuple[str, ...]]:
    tier = [instance for instance in known if instance.priority == priority]
    for instance in sorted(tier, key=lambda instance: (-known[instance], str(instance))):
        yield (
            _named(instance),
            f"{instance.weight:g}",
            f"{known[instance]:.1%}",
            addresses_of(instance),
        )


def _named(instance: Instance) -> str:
    """Return an instance as text, with its own scheme, base path, TLS name and names of headers."""
    scheme = f"{instance.scheme}://" if instance.scheme else ""
    own = [f"TLS name {instance.tls_name}"] if instance.tls_name else []
    own += [f"headers {', '.join(instance.headers)}"] if instance.headers else []
    return f"{scheme}{instance}{instance.path}" + (f" ({'; '.join(own)})" if own else "")


def _own_address(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "looked up at connect"


def changes(before: Answer, now: Answer) -> Iterator[str]:
    """Yield one line per change. The order of records is ignored, since DNS servers return them in
    any order."""
    yield from _members(before.instances, now.instances)
    yield from _refusals(before.refused, now.refused)


def _members(before: Iterable[Instance], now: Iterable[Instance]) -> Iterator[str]:
    known, new = {instance: instance for instance in before}, shares(now)
    yield from (f"left {_named(instance)}" for instance in known if instance not in new)
    for instance, share in new.items():
        if instance not in known:
            yield (
                f"joined {_named(instance)}: priority {instance.priority}, "
                f"weight {instance.weight:g}, share {share:.1%}, addresses {addresses_of(instance)}"
            )
        elif differences := list(_differences(known[instance], instance)):
            yield f"changed {instance}: {', '.join(differences)}, share now {share:.1%}"


def _differences(old: Instance, new: Instance) -> Iterator[str]:
    if old.priority != new.priority:
        yield f"priority {old.priority} to {new.priority}"
    if old.weight != new.weight:
        yield f"weight {old.weight:g} to {new.weight:g}"
    if set(old.addresses) != set(new.addresses):
        yield f"addresses {addresses_of(old)} to {addresses_of(new)}"
    for key in sorted({*old.metadata, *new.metadata}, key=str):
        before, now = old.metadata.get(key), new.metadata.get(key)
        if before != now:
            yield f"{short(str(key))} {short(repr(before))} to {short(repr(now))}"


def _refusals(before: Iterable[RejectedRecord], now: Iterable[RejectedRecord]) -> Iterator[str]:
    """Return the changes of refused records. A record that is now refused for another reason is
    shown as new, and not as gone."""
    old, new = set(map(_record_and_reason, before)), set(map(_record_and_reason, now))
    yield from (f"refused {record}: {reason}" for record, reason in sorted(new - old))
    gone = {record for record, _ in old} - {record for record, _ in new}
    yield from (f"no longer refused {record}" for record in sorted(gone))


def _record_and_reason(rejected: RejectedRecord) -> tuple[str, str]:
    return rejected.record, as_options(rejected.reason)
