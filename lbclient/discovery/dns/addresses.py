"""A and AAAA records: of SRV targets, and as a way of discovery of their own."""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from lbclient._internal import fork, validation
from lbclient._internal.fork import Lazy
from lbclient._internal.ip_addresses import has_route
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import KINDS, Addresses, Dns, Glue, NoRecords, load
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError

__all__ = ["SOON", "AddressCache", "AddressResolver", "LookupDeadline", "Start", "at_once"]

SOON = 1.0
"""So many seconds after an answer that is not complete DNS is asked again."""

_ROUND = 5.0
_LEAST_PATIENCE = 0.5
_GRACE = 3.0
_DELAY = 0.05
"""RFC 8305, section 3: the resolution delay."""
_STRAGGLERS_LEAST, _STRAGGLERS_MOST = 0.25, 1.0
_AT_ONCE, _AT_MOST = 16, 64
_NO_GLUE = Glue()

Start: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs a function, on a thread or at once."""

_Told: TypeAlias = Addresses | Exception


def at_once(run: Callable[[], None]) -> None:
    """A `Start` without threads: one question after another."""
    run()


class LookupDeadline:
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


class Question(NamedTuple):
    """A name, absolute, and the kind of address asked for."""

    name: str
    kind: str


class Lookup(NamedTuple):
    """What is known of each name: its addresses, or why there are none.

    `complete` is False where a question is still under way whose answer may add to that: look the
    names up again in `SOON` seconds.
    """

    found: Mapping[str, Addresses | DiscoveryError]
    complete: bool


class AddressCache:
    """Looks addresses up, and remembers them for when DNS does not answer.

    A name that DNS says has none is forgotten; a question that merely fails is answered from
    memory, so that one lost packet does not take an instance away.

    Questions are asked concurrently: `start` runs each, on a thread if it can. Of each family at
    most 16 are under way (64 while nothing is answered), so that a family or a name of which DNS
    says nothing keeps nobody else waiting, however many names there are. All else happens on the
    thread of whoever calls `lookup`, which one at a time does; a late answer is left in a queue and
    taken by the next look-up.

    `kinds` are the families to ask for. `clock` tells monotonic seconds.
    """

    def __init__(
        self,
        dns: Dns,
        address_filter: AddressFilter,
        clock: Callable[[], float],
        *,
        kinds: Sequence[str] = KINDS,
        start: Start = at_once,
    ) -> None:
        self._dns = dns
        self._address_filter = address_filter
        self._clock = clock
        self._kinds = kinds
        self._start = start
        self._known: dict[Question, Addresses] = {}
        self._failed: set[Question] = set()
        """Questions that were not answered the last time."""
        self._silent: set[str] = set()
        """Families of which the last question was not answered."""
        self._asked: dict[str, int] = {}
        self._turns = itertools.count(1)
        self._under_way: set[Question] = set()
        self._answers: deque[tuple[Question, _Told]] = deque()
        self._asleep = False
        """True while a look-up waits for an answer."""
        fork.track(self)
        load()  # here, and not at the first question: a call's deadline may be short

    @Lazy
    def _wake(self) -> queue.SimpleQueue[None]:
        return queue.SimpleQueue()

    def after_fork(self) -> None:
        """Forget the questions under way: in a child the threads that asked them are gone."""
        self._under_way.clear()
        vars(self).pop("_wake", None)

    def lookup(
        self, names: Iterable[str], patience: Callable[[], float], glue: Glue = _NO_GLUE
    ) -> Lookup:
        """The addresses of each name, both families by turns, IPv4 first; and their TTL in seconds.

        It waits until each question was answered or has failed. But once a name has a usable
        address, another family of it that the last answer lacked is waited for no longer than
        50 ms (the resolution delay of RFC 8305); and names of which nothing is known are waited
        for no longer than it took to find the others, within 250 ms and 1 s.

        `patience` tells how many seconds the next question may take. The error of a name is
        NoRecords where DNS says that it has no address, DiscoveryError where that is not known.
        """
        self._take_late_answers()
        questions = {name: self._questions(name, glue) for name in names}
        told: dict[Question, _Told] = {}
        lanes: dict[str, deque[Question]] = {kind: deque() for kind in self._kinds}
        for question in itertools.chain.from_iterable(questions.values()):
            if (came_along := glue.get(*question)) is not None:
                told[question] = self._known[question] = came_along
            else:
                lanes[question.kind].append(question)
        if any(lanes.values()):
            self._ask_all(lanes, told, patience)
        return Lookup(
            {name: self._result(asked, told) for name, asked in questions.items()},
            not any(self._may_come(one, told) for asked in questions.values() for one in asked),
        )

    def asked(self, name: str) -> int:
        """When it was last asked for: a number that grows, 0 for never."""
        return self._asked.get(name, 0)

    def keep(self, names: set[str]) -> None:
        """Forget all but these names."""
        self._known = {key: value for key, value in self._known.items() if key.name in names}
        self._failed = {one for one in self._failed if one.name in names}
        self._asked = {name: turn for name, turn in self._asked.items() if name in names}

    def _questions(self, name: str, glue: Glue) -> Sequence[Question]:
        kinds = [kind for kind in glue.kinds(name) if kind in self._kinds] or self._kinds
        return [Question(name, kind) for kind in kinds]

    def _ask_all(
        self,
        lanes: Mapping[str, deque[Question]],
        told: dict[Question, _Told],
        patience: Callable[[], float],
    ) -> None:
        """Ask, and add to `told` what is answered in time."""
        waiting = _Waiting(itertools.chain(*lanes.values()), self._known.keys() - self._failed)
        for question, got in told.items():
            waiting.take(question, usable=self._has_usable(got))
        began = changed = self._clock()
        limit = _AT_ONCE
        while waiting.questions:
            self._begin(lanes, limit, patience)
            may_grow = limit < _AT_MOST and any(lanes.values())
            pause = _DELAY
            if waiting.enough and not (waiting.unknown and may_grow):
                more = _DELAY
                if waiting.unknown:
                    more = min(max(_STRAGGLERS_LEAST, changed - began), _STRAGGLERS_MOST)
                pause = min(pause, changed + more - self._clock())
                if pause <= 0:
                    return
            if (answer := self._next(pause)) is None:
                if may_grow and waiting.unknown:
                    limit += _AT_ONCE
                    changed = self._clock()
                continue
            question, got = answer
            self._note(question, got)
            if question in waiting.questions:
                told[question] = got
                if waiting.take(question, usable=self._has_usable(got)):
                    changed = self._clock()

    def _has_usable(self, got: _Told) -> bool:
        """Whether an address is among it that calls can go to, if the rest never comes."""
        return not isinstance(got, Exception) and any(
            self._address_filter.refuses(one) is None and has_route(one) for one in got[0]
        )

    def _begin(
        self, lanes: Mapping[str, deque[Question]], limit: int, patience: Callable[[], float]
    ) -> None:
        """Ask as many questions of each family as may be under way at once."""
        busy = Counter(one.kind for one in self._under_way)
        for kind, lane in lanes.items():
            while lane and busy[kind] < limit:
                question = lane.popleft()
                if question in self._under_way:
                    continue  # an earlier look-up has asked, and did not wait for it
                try:
                    seconds = patience()
                except DiscoveryError as error:
                    self._answers.append((question, error))
                    continue
                self._start(partial(self._ask, question, seconds))
                self._under_way.add(question)  # not before: it would never be asked, if that raised
                self._asked[question.name] = next(self._turns)
                busy[kind] += 1

    def _ask(self, question: Question, seconds: float) -> None:
        """On a thread of its own, where there is one."""
        got: _Told = DiscoveryError("the question was interrupted")
        try:
            found = self._dns.ask(question.name, question.kind, seconds)
            got = [str(one) for one in found.records], found.ttl
        except Exception as error:  # noqa: BLE001  # raised by `lookup`, which waits for it
            got = error
        finally:
            self._answers.append((question, got))
            if self._asleep:
                self._wake.put(None)

    def _next(self, seconds: float) -> tuple[Question, _Told] | None:
        """The next answer; None where none comes in so many seconds."""
        self._asleep = True
        with contextlib.suppress(queue.Empty):
            while not self._answers:  # a wake-up may be left from an earlier wait
                self._wake.get(timeout=seconds)
        self._asleep = False
        return self._answers.popleft() if self._answers else None

    def _take_late_answers(self) -> None:
        while self._answers:
            self._note(*self._answers.popleft())

    def _note(self, question: Question, got: _Told) -> None:
        """Remember what a question brought."""
        self._under_way.discard(question)
        failed = isinstance(got, Exception) and not isinstance(got, NoRecords)
        (self._failed.add if failed else self._failed.discard)(question)
        (self._silent.add if failed else self._silent.discard)(question.kind)
        if isinstance(got, NoRecords):
            self._known.pop(question, None)
        elif not isinstance(got, Exception):
            self._known[question] = got

    def _may_come(self, question: Question, told: Mapping[Question, _Told]) -> bool:
        """Whether a later answer to this question may soon add to what is known."""
        known = question in told or question in self._known or question in self._failed
        return not known and question.kind not in self._silent

    def _result(
        self, asked: Sequence[Question], told: Mapping[Question, _Told]
    ) -> Addresses | DiscoveryError:
        found: list[Addresses] = []
        failures: list[DiscoveryError] = []
        for question in asked:
            got = told.get(question) or DiscoveryError(
                f"asking for {question.kind} of {question.name} takes long"
            )
            if isinstance(got, Exception) and not isinstance(got, DiscoveryError):
                raise got
            if isinstance(got, DiscoveryError) and not isinstance(got, NoRecords):
                got = self._known.get(question, got)
            if isinstance(got, DiscoveryError):
                failures.append(got)
            else:
                found.append(got)
        if not found:
            return next((one for one in failures if not isinstance(one, NoRecords)), failures[0])
        return _by_turns(addresses for addresses, _ in found), min(ttl for _, ttl in found)


class _Waiting:
    """The questions of a look-up that are not answered yet, and what is still hoped for."""

    def __init__(self, questions: Iterable[Question], expected: set[Question]) -> None:
        self.questions = set(questions)
        self.unknown = Counter(one.name for one in self.questions)
        """The names that have no usable address yet, each with its number of questions."""
        self._expected = self.questions & expected
        self._found = False

    @property
    def enough(self) -> bool:
        """Whether what was told can be used without the rest.

        What the last look-up was told of is expected again, and waited for: no call waits for a
        refresh, and the addresses known before would stay in use until the look-up after this.
        """
        return self._found and not self._expected

    def take(self, question: Question, *, usable: bool) -> bool:
        """A question was answered; True where its name is unknown no more, or for good."""
        self._found = self._found or usable
        self._expected.discard(question)
        waited = question in self.questions
        self.questions.discard(question)
        if question.name not in self.unknown:
            return False
        self.unknown[question.name] -= waited
        if usable or not self.unknown[question.name]:
            del self.unknown[question.name]
            return True
        return False


class AddressResolver:
    """Every address of a name, on one port: a Kubernetes headless service, for one.

    `kinds` are the families to ask for; `clock` and `start` are those of `AddressCache`.
    Raises ValueError for what is no name.
    """

    def __init__(
        self,
        name: str,
        port: int,
        dns: Dns,
        address_filter: AddressFilter,
        clock: Callable[[], float] = lambda: 0.0,
        *,
        kinds: Sequence[str] = KINDS,
        start: Start = at_once,
    ) -> None:
        self._name = validation.host("service (its host)", name)
        if validation.is_address(self._name):
            raise ValueError(
                f"service must name a host for DNS to look up, not the address {self._name}; "
                "pass it as http://address:port, or a list of such"
            )
        self.complete = True
        """Whether nothing that the last answer lacked was to be expected soon."""
        self._port = port
        self._book = AddressCache(dns, address_filter, clock, kinds=kinds, start=start)
        self._address_filter = address_filter

    def resolve(self) -> Answer:
        """One instance an address."""
        name = self._name + "."
        lookup = self._book.lookup([name], lambda: _ROUND / len(KINDS))
        self.complete = lookup.complete
        if isinstance(found := lookup.found[name], Exception):
            raise found
        addresses, ttl = found
        vetted, reasons = self._address_filter.vet(addresses)
        return Answer(
            (Instance(one, self._port, addresses=(one,)) for one in sorted(vetted)),
            ttl if self.complete else min(ttl, SOON),
            (RejectedRecord(self._name, reason) for reason in reasons),
        )


def _by_turns(families: Iterable[list[str]]) -> list[str]:
    return [one for pair in itertools.zip_longest(*families) for one in pair if one]
