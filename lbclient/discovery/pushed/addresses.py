"""Checks the addresses of the instances that a registry reports.

The answers of a registry are not trusted, just as those of DNS, since any service may register
itself. Host names are looked up in this module, not when a connection is opened. So calls connect
only to addresses that were checked.
"""

from __future__ import annotations

import contextlib
import math
import queue
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias

from lbclient._internal import fork, validation
from lbclient._internal.ip_addresses import has_route
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import SOON, AddressCache, LookupDeadline, Start
from lbclient.discovery.dns.client import Dns, NoRecords
from lbclient.discovery.resolver import text_of
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError

__all__ = ["AddressChecker"]

_ROUND = 5.0
"""Seconds for one lookup of names."""
_AGAIN = 5.0
"""Seconds until a name without an address is looked up again."""
_ROOM = 1024

_Key: TypeAlias = str | tuple[str, ...]
"""The checked part of an instance: its addresses, or its host if it has no addresses."""


class _Checked(NamedTuple):
    """The result of a check: the allowed addresses, the reasons why the others are refused, and the
    time at which this result expires."""

    addresses: tuple[str, ...]
    reasons: tuple[str, ...]
    until: float = math.inf


class AddressChecker:
    """Removes the addresses that the filter refuses, and looks up the hosts that are names.

    An update does not wait for DNS. An instance with a new name joins as soon as its name has an
    address; then `notify` is called. Only if no instance of an answer can be used yet, `check`
    waits for names, up to 5 s. When the TTL of a name has expired, the name is looked up again.
    Meanwhile its addresses stay in use.

    `start` runs a lookup on another thread. All other code runs on the thread that calls `check`,
    one call at a time.
    """

    def __init__(
        self,
        dns: Dns,
        address_filter: AddressFilter,
        clock: Callable[[], float],
        start: Start,
        notify: Callable[[], None],
    ) -> None:
        self._address_filter = address_filter
        self._clock = clock
        self._start = start
        self._notify = notify
        self._make_cache = partial(AddressCache, dns, address_filter, clock, start=start)
        self._cache: AddressCache | None = None
        self._fine: set[_Key] = set()
        """Addresses of instances of which no address is refused. For most services, these are all
        addresses."""
        self._checked: dict[_Key, _Checked] = {}
        """The results for all other addresses, and for names."""
        self._replaced: dict[int, tuple[Instance, _Checked, Instance]] = {}
        self._results: deque[dict[_Key, _Checked]] = deque()
        self.under_way: bool = False
        """True while a lookup of names is under way."""
        self._waiting: queue.SimpleQueue[None] | None = None
        fork.track(self)

    def after_fork(self) -> None:
        """In a forked child: forget the lookup under way, whose thread does not exist in the
        child."""
        self.under_way, self._waiting = False, None

    def check(self, answer: Answer) -> Answer:
        """Return an answer with the instances that may be called. Returns `answer` itself if all of
        them may be called unchanged."""
        answer = self._within(answer)
        fine = self._fine
        doubtful = [one for one in answer.instances if (one.addresses or one.host) not in fine]
        if not doubtful:
            return answer
        names = {one.host for one in doubtful if _is_name(one)}
        self._vet(one for one in doubtful if one.host not in names or one.addresses)
        self._look_up(names, answer)
        self._forget_others(answer)
        return self._usable(answer, names)

    def _within(self, answer: Answer) -> Answer:
        """Return the answer without the hosts that are names outside of the domain `within`, even
        if they have addresses."""
        if self._address_filter.within is None:
            return answer
        reasons = {
            one: reason
            for one in answer.instances
            if (one.addresses or one.host not in self._fine)  # otherwise it is an allowed address
            and (reason := self._address_filter.refuses_name(one.host)) is not None
            and not validation.is_address(one.host)
        }
        if not reasons:
            return answer
        instances = [one for one in answer.instances if one not in reasons]
        refused = [RejectedRecord(str(one), reason) for one, reason in reasons.items()]
        return Answer(instances, answer.ttl, [*answer.refused, *refused])

    def _vet(self, instances: Iterable[Instance]) -> None:
        for one in instances:
            key = one.addresses or one.host
            if key in self._checked:
                continue
            allowed, reasons = self._address_filter.vet(one.addresses or (one.host,))
            if reasons:
                self._checked[key] = _Checked(tuple(allowed), tuple(reasons))
            else:
                self._fine.add(key)

    def _usable(self, answer: Answer, names: Collection[str]) -> Answer:
        fine, checked, before = self._fine, self._checked, self._replaced
        self._replaced = {}
        instances: list[Instance] = []
        refused = [*answer.refused]
        for one in answer.instances:
            key = one.addresses or one.host
            if key in fine:
                instances.append(one)
            elif (found := checked.get(key)) is not None:  # otherwise the name is still looked up
                refused += [RejectedRecord(str(one), reason) for reason in found.reasons]
                if found.addresses:
                    known = before.get(id(one))
                    if known is None or known[0] is not one or known[1] is not found:
                        known = one, found, replace(one, addresses=found.addresses)
                    self._replaced[id(one)] = known
                    instances.append(known[2])
        now = self._clock()
        until = min((checked[name].until for name in names if name in checked), default=math.inf)
        return Answer(instances, None if until == math.inf else max(0.0, until - now), refused)

    def _forget_others(self, answer: Answer) -> None:
        """Forget the addresses that are no longer in use, if there may be many."""
        if len(self._fine) + len(self._checked) > 2 * len(answer.instances) + _ROOM:
            keys = {one.addresses or one.host for one in answer.instances}
            self._fine &= keys
            self._checked = {key: one for key, one in self._checked.items() if key in keys}

    def _look_up(self, names: Collection[str], answer: Answer) -> None:
        """Look up the names that are new, or whose TTL has expired. Wait for the answers only if no
        instance can be used yet."""
        give_up = self._clock() + _ROUND
        self._take_results()
        while self._begin(names) and not any(map(self._has_address, answer.instances)):
            if (left := give_up - self._clock()) <= 0:
                return
            self._wait(left)
            self._take_results()

    def _has_address(self, one: Instance) -> bool:
        key = one.addresses or one.host
        return key in self._fine or (key in self._checked and bool(self._checked[key].addresses))

    def _wait(self, seconds: float) -> None:
        waiting: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting = waiting
        if self.under_way:
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=seconds)
        self._waiting = None

    def _take_results(self) -> None:
        while self._results:
            self._checked.update(self._results.popleft())

    def _begin(self, names: Collection[str]) -> bool:
        """Start a lookup if one is needed. Returns True if a lookup is under way."""
        now, due = self._clock(), []
        for name in names:
            known = self._checked.get(name)
            if known is None or known.until <= now:
                due.append(name)
        if due and not self.under_way:
            self.under_way = True
            self._start(partial(self._ask, due, {f"{name}." for name in names}))
            self._take_results()  # the lookup may have run on this thread
        return self.under_way

    def _ask(self, due: Collection[str], names: set[str]) -> None:
        """Look up the names that are `due`, on a thread of its own if possible."""
        results: dict[_Key, _Checked] = {}
        try:
            results.update(self._results_of(due, names))
        except Exception as error:  # noqa: BLE001  # the instances are refused for this reason
            failed = _Checked((), (f"its host could not be looked up: {text_of(error)}",))
            results.update(dict.fromkeys(due, failed._replace(until=self._clock() + _AGAIN)))
        finally:
            self._results.append(results)
            self.under_way = False
            if (waiting := self._waiting) is not None:
                waiting.put(None)
            self._notify()

    def _results_of(self, due: Iterable[str], names: set[str]) -> Iterator[tuple[str, _Checked]]:
        cache = self._cache = self._cache or self._make_cache()
        longest_unasked_first = sorted((f"{name}." for name in due), key=cache.asked)
        lookup = cache.lookup(longest_unasked_first, LookupDeadline(_ROUND, self._clock).left)
        cache.keep(names)
        now = self._clock()
        for name, found in lookup.found.items():
            if isinstance(found, Exception):
                seconds, checked = _AGAIN, _Checked((), (_reason(found),))
            else:
                addresses, seconds = found
                allowed, reasons = self._address_filter.vet(addresses)
                checked = _Checked(_reachable(allowed), tuple(reasons))
            until = now + (max(SOON, seconds) if lookup.complete else SOON)
            yield name[:-1], checked._replace(until=until)


def _is_name(one: Instance) -> bool:
    return not one.addresses and not validation.is_address(one.host)


def _reason(error: DiscoveryError) -> str:
    if isinstance(error, NoRecords):
        return "its host has no address"
    return f"no address is known for its host: {error}"


def _reachable(addresses: list[str]) -> tuple[str, ...]:
    """Return the addresses to which this host has a route. If there are none, return all
    addresses."""
    if len({":" in one for one in addresses}) > 1:
        addresses = list(filter(has_route, addresses)) or addresses
    return tuple(addresses)
