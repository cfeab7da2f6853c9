"""Looks up A and AAAA records: for the targets of SRV records, or for services whose instances are
the addresses of a name."""

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
"""Seconds until DNS is asked again after an incomplete answer."""

_ROUND = 5.0
_LEAST_PATIENCE = 0.5
_GRACE = 3.0
_DELAY = 0.05
"""The resolution delay of RFC 8305, section 3, in seconds."""
_STRAGGLERS_LEAST, _STRAGGLERS_MOST = 0.25, 1.0
_AT_ONCE, _AT_MOST = 16, 64
_NO_GLUE = Glue()

Start: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs a function, on another thread or at once."""

_Told: TypeAlias = Addresses | Exception


def at_once(run: Callable[[], None]) -> None:
    """A `Start` without threads: it runs the questions one after another."""
    run()


class LookupDeadline:
    """Divides the time of one round, in seconds, among its questions.

    A name without an answer must not use up the time of the whole round. So even if the time is
    used up, further questions are asked, each with enough time for a quick answer. This ends when
    these further questions together have taken too long.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._until = clock() + seconds
        self._clock = clock

    def left(self) -> float:
        """Return the seconds for the next question. Raises DiscoveryError if no more questions
        should be asked."""
        left = self._until - self._clock()
        if left <= -_GRACE:
            raise DiscoveryError("the time for this round is over")
        return max(_LEAST_PATIENCE, left)


class Question(NamedTuple):
    """An absolute name, and the kind of address to ask for."""

    name: str
    kind: str


class Lookup(NamedTuple):
    """The addresses of each name, or the reason why there are none.

    `complete` is False if a question whose answer may add addresses is still under way. Then the
    names must be looked up again after `SOON` seconds.
    """

    found: Mapping[str, Addresses | DiscoveryError]
    complete: bool


class AddressCache:
    """Looks up addresses, and stores them for use while DNS does not answer.

    If DNS says that a name has no addresses, its stored addresses are dropped. If a question fails
    without an answer, the stored addresses are used. So one lost packet does not remove an
    instance.

    Questions are asked in parallel: `start` runs each question, on a thread if possible. For each
    family, at most 16 questions are under way (64 while no question of the family is answered). So
    a family or a name without answers does not delay others, even with many names. All other code
    runs on the thread that calls `lookup`, one call at a time. If an answer arrives late, it waits
    in a queue for the next lookup.

    `kinds` are the families to ask for. `clock` returns monotonic seconds.
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
        """Questions that were not answered when they were last asked."""
        self._silent: set[str] = set()
        """Families whose last question was not answered."""
        self._asked: dict[str, int] = {}
        self._turns = itertools.count(1)
        self._under_way: set[Question] = set()
        self._answers: deque[tuple[Question, _Told]] = deque()
        self._asleep = False
        """True while `lookup` waits for an answer."""
        fork.track(self)
        load()  # loaded now: the deadline of a call may be short

    @Lazy
    def _wake(self) -> queue.SimpleQueue[None]:
        return queue.SimpleQueue()

    def after_fork(self) -> None:
        """Forget the questions under way, since a forked child does not have the threads that ask
        them."""
        self._under_way.clear()
        vars(self).pop("_wake", None)

    def lookup(
        self, names: Iterable[str], seconds_left: Callable[[], float], glue: Glue = _NO_GLUE
    ) -> Lookup:
        """Return the addresses of each name, and their TTL in seconds. IPv4 and IPv6 addresses
        alternate.

        This method waits until each question was answered or has failed, with two exceptions.
        First, if a name has a usable address of one family, and the last answer for this name had
        none of the other family, it waits at most 50 ms more for the other family (the resolution
        delay of RFC 8305). Second, for names without known addresses it waits only as long as the
        lookup of the other names has taken, but at least 250 ms and at most 1 s.

        `seconds_left` returns the seconds that the next question may take. The error of a name is
        NoRecords if DNS says that the name has no address, and DiscoveryError if DNS does not
        answer.
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
            self._ask_all(lanes, told, seconds_left)
        return Lookup(
            {name: self._result(asked, told) for name, asked in questions.items()},
            not any(self._may_come(one, told) for asked in questions.values() for one in asked),
        )

    def asked(self, name: str) -> int:
        """Return a number that is larger the more recently the name was asked for. Returns 0 if it
        was never asked for."""
        return self._asked.get(name, 0)

    def keep(self, names: set[str]) -> None:
        """Forget all names but these."""
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
        seconds_left: Callable[[], float],
    ) -> None:
        """Ask the questions, and add the answers that arrive in time to `told`."""
        waiting = _Waiting(itertools.chain(*lanes.values()), self._known.keys() - self._failed)
        for question, got in told.items():
            waiting.take(question, usable=self._has_usable(got))
        began = changed = self._clock()
        limit = _AT_ONCE
        while waiting.questions:
            self._begin(lanes, limit, seconds_left)
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
        """True if the answer contains an address that calls can use, even if no other answer
        arrives."""
        return not isinstance(got, Exception) and any(
            self._address_filter.refuses(one) is None and has_route(one) for one in got[0]
        )

    def _begin(
        self, lanes: Mapping[str, deque[Question]], limit: int, seconds_left: Callable[[], float]
    ) -> None:
        """Ask questions until the limit of questions under way is reached for each family."""
        busy = Counter(one.kind for one in self._under_way)
        for kind, lane in lanes.items():
            while lane and busy[kind] < limit:
                question = lane.popleft()
                if question in self._under_way:
                    continue  # an earlier lookup has asked it and did not wait
                try:
                    seconds = seconds_left()
                except DiscoveryError as error:
                    self._answers.append((question, error))
                    continue
                self._start(partial(self._ask, question, seconds))
                self._under_way.add(question)  # after `_start`: if that raises, it is asked again
                self._asked[question.name] = next(self._turns)
                busy[kind] += 1

    def _ask(self, question: Question, seconds: float) -> None:
        """Ask one question, on a thread of its own if possible."""
        got: _Told = DiscoveryError("the question was interrupted")
        try:
            found = self._dns.ask(question.name, question.kind, seconds)
            got = [str(one) for one in found.records], found.ttl
        except Exception as error:  # noqa: BLE001  # `lookup` raises it
            got = error
        finally:
            self._answers.append((question, got))
            if self._asleep:
                self._wake.put(None)

    def _next(self, seconds: float) -> tuple[Question, _Told] | None:
        """Return the next answer; None if no answer arrives within this many seconds."""
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
        """Store the answer to a question."""
        self._under_way.discard(question)
        failed = isinstance(got, Exception) and not isinstance(got, NoRecords)
        (self._failed.add if failed else self._failed.discard)(question)
        (self._silent.add if failed else self._silent.discard)(question.kind)
        if isinstance(got, NoRecords):
            self._known.pop(question, None)
        elif not isinstance(got, Exception):
            self._known[question] = got

    def _may_come(self, question: Question, told: Mapping[Question, _Told]) -> bool:
        """True if a later answer to this question may soon add addresses."""
        known = question in told or question in self._known or question in self._failed
        return not known and question.kind not in self._silent

    def _result(
        self, asked: Sequence[Question], told: Mapping[Question, _Told]
    ) -> Addresses | DiscoveryError:
        found: list[Addresses] = []
        failures: list[DiscoveryError] = []
        for question in asked:
            got = told.get(question) or DiscoveryError(
                f"asking for {question.kind} of {question.name} is taking a long time"
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
    """The questions of a lookup that have no answer yet, and which of them to wait for."""

    def __init__(self, questions: Iterable[Question], expected: set[Question]) -> None:
        self.questions = set(questions)
        self.unknown = Counter(one.name for one in self.questions)
        """For each name that has no usable address yet: the number of its questions that are still
        unanswered."""
        self._expected = self.questions & expected
        self._found = False

    @property
    def enough(self) -> bool:
        """True if the answers so far can be used without the missing answers.

        A lookup waits for the names and families for which the last lookup has found addresses.
        Otherwise the old addresses would stay in use until the next lookup. This wait is harmless,
        since no call waits for a refresh.
        """
        return self._found and not self._expected

    def take(self, question: Question, *, usable: bool) -> bool:
        """Record an answer. Returns True if its name now has an address, or can get none."""
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
    """A resolver for which every address of a name is an instance, on one port.

    Use it for a Kubernetes headless service, for example. `kinds` are the families to ask for;
    `clock` and `start` are those of `AddressCache`. Raises ValueError for an invalid name.
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
                f"service must name a host that DNS can look up, not the address {self._name}; "
                "pass it as http://address:port, or a list of such URLs"
            )
        self.complete: bool = True
        """False if the last answer is incomplete and more addresses are expected soon."""
        self._port = port
        self._addresses = AddressCache(dns, address_filter, clock, kinds=kinds, start=start)
        self._address_filter = address_filter

    def __repr__(self) -> str:
        return f"<AddressResolver {self._name}:{self._port}>"

    def resolve(self) -> Answer:
        """Look up the addresses, and return an instance for each."""
        name = self._name + "."
        lookup = self._addresses.lookup([name], lambda: _ROUND / len(KINDS))
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
