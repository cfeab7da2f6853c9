"""What is new from one answer to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lbclient.cli.picture import addresses_of, shares
from lbclient.cli.wording import as_options
from lbclient.instance import Answer, Instance, Refusal

__all__ = ["changes"]


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


def _refusals(before: Iterable[Refusal], now: Iterable[Refusal]) -> Iterator[str]:
    """A record that is refused for another reason than before is new, but not gone."""
    told, new = {_said(one) for one in before}, {_said(one) for one in now}
    yield from (f"refused {record}: {reason}" for record, reason in sorted(new - told))
    gone = {record for record, _ in told} - {record for record, _ in new}
    yield from (f"no longer refused {record}" for record in sorted(gone))


def _said(one: Refusal) -> tuple[str, str]:
    return one.record, as_options(one.reason)
