"""The addresses of instances that a registry reports: filtered, and looked up if they are names."""

from __future__ import annotations

import random
import threading
import time

import pytest

from lbclient import Answer, Balancer, DiscoveryError, Instance, RejectedRecord
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import at_once
from lbclient.discovery.dns.client import Dns, dns_by
from lbclient.discovery.pushed.addresses import AddressChecker
from tests.support.dns import Liar, nxdomain, servfail
from tests.support.watchers import LIMIT, Scripted, until

GOOD = Instance("10.0.0.1", 80)
NAMED = Instance("a.test", 80)


def by_address(*names: str, **options) -> Answer:
    return Answer([Instance(name, 80, **options) for name in names])


@pytest.fixture
def liar():
    with Liar() as one:
        one.put("a.test", "A", "10.0.0.7")
        one.put("b.test", "A", "127.0.0.1", "10.0.0.8")
        yield one


class Checked:
    """A checker whose lookups run on the thread of the test, by a clock of the test."""

    def __init__(self, liar: Liar | None = None, *, within=None, start=at_once, **options) -> None:
        self.now = 0.0
        self.notified = threading.Semaphore(0)
        dns = Dns([]) if liar is None else dns_by([liar.address], time.monotonic)
        self.checker = AddressChecker(
            dns,
            AddressFilter(**options, within=within),
            lambda: self.now,
            start,
            self.notified.release,
        )
        self.check = self.checker.check


def reasons(answer: Answer) -> dict[str, str]:
    return {one.record: one.reason for one in answer.refused}


def test_literal_addresses_are_filtered():
    """A refused address is left out, with the way to allow it; others stay as they are."""
    checked = Checked().check(by_address("10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"))
    assert [one.host for one in checked.instances] == ["10.0.0.1"]
    assert reasons(checked) == {
        "127.0.0.1:80": "127.0.0.1 is loopback; pass allow=['127.0.0.0/8'] to permit it",
        "169.254.169.254:80": (
            "169.254.169.254 is a cloud metadata address; "
            "pass allow=['169.254.169.254/32'] to permit it"
        ),
        "[::1]:80": "::1 is loopback; pass allow=['::1/128'] to permit it",
    }


def test_addresses_of_instances_are_filtered():
    """Of several addresses of an instance, the refused ones are left out."""
    given = Answer(
        [
            Instance("a.test", 80, 3, metadata={"zone": "z"}, addresses=("10.0.0.1", "127.0.0.1")),
            Instance("b.test", 80, addresses=("::1",)),
        ]
    )
    checked = Checked().check(given)
    (one,) = checked.instances
    assert (one.host, one.addresses, one.weight) == ("a.test", ("10.0.0.1",), 3)
    assert one.metadata == {"zone": "z"}
    assert list(reasons(checked)) == ["a.test:80", "b.test:80"]


def test_nothing_changes_if_all_is_allowed():
    """An answer of which nothing is refused is passed on as it is, and so is the next one."""
    checker, answer = Checked(allow=["127.0.0.0/8"]), by_address("127.0.0.1", "10.0.0.1")
    for _ in range(2):
        checked = checker.check(answer).instances
        assert list(map(id, checked)) == list(map(id, answer.instances))
    assert checker.check(answer) is answer


def test_records_of_the_registry_stay_refused():
    """What the registry's own rules have left out is listed with what the filter refuses."""
    refused = RejectedRecord("key", "it is no JSON")
    checked = Checked().check(Answer([GOOD, Instance("::1", 1)], refused=[refused]))
    assert list(reasons(checked)) == ["key", "[::1]:1"]


def test_names_are_looked_up(liar):
    """A host that is a name gets its addresses from DNS; these are filtered, too."""
    checked = Checked(liar).check(
        by_address("a.test", "b.test", "10.0.0.1", metadata={"zone": "z"})
    )
    assert {one.host: one.addresses for one in checked.instances} == {
        "a.test": ("10.0.0.7",),
        "b.test": ("10.0.0.8",),
        "10.0.0.1": (),
    }
    assert {one.metadata["zone"] for one in checked.instances} == {"z"}
    assert list(reasons(checked)) == ["b.test:80"]


def test_names_are_looked_up_once_per_ttl(liar):
    """A name is looked up when it is new and when its TTL is over, and not at each update."""
    liar.put("a.test", "A", "10.0.0.7", ttl=30)
    checker = Checked(liar)
    assert checker.check(by_address("a.test")).ttl == 30
    for port in range(20):
        checker.now += 1
        checker.check(Answer([NAMED, Instance("10.0.0.1", port + 1)]))
    assert liar.asked("a.test", "A") == 1
    checker.now = 31
    liar.put("a.test", "A", "10.0.0.9", ttl=30)
    (one,) = checker.check(by_address("a.test")).instances
    assert one.addresses == ("10.0.0.9",)
    assert liar.asked("a.test", "A") == 2


def test_a_name_without_answer_stays(liar):
    """If DNS fails when a TTL is over, the addresses of the name stay in use; if DNS says that the
    name is gone, its instance is left out."""
    liar.put("a.test", "A", "10.0.0.7", ttl=30)
    checker = Checked(liar)
    checker.check(by_address("a.test"))
    liar.fault(servfail)
    checker.now = 31
    (one,) = checker.check(by_address("a.test")).instances
    assert one.addresses == ("10.0.0.7",)
    liar.heal()
    liar.fault(nxdomain)
    checker.now = 100
    checked = checker.check(by_address("a.test"))
    assert not checked.instances
    assert reasons(checked) == {"a.test:80": "its host has no address"}


def test_names_of_other_domains(liar):
    """With `within`, names of other domains are refused, and not looked up."""
    checked = Checked(liar, within="b.test").check(by_address("a.test", "b.test"))
    assert [one.host for one in checked.instances] == ["b.test"]
    assert reasons(checked)["a.test:80"] == "it is not within the domain b.test"
    assert not liar.asked("a.test")


def test_names_with_addresses_of_other_domains():
    """With `within`, a name of another domain is refused even if the registry also reports
    addresses, which another instance may have, too. Hosts that are addresses are not refused."""
    checker = Checked(within="example.com")
    shared = ("10.0.0.9",)
    given = Answer(
        [
            Instance("a.example.com", 80, addresses=shared),
            Instance("evil.test", 80, addresses=shared),
            Instance("10.0.0.9", 81, addresses=shared),
        ]
    )
    for _ in range(2):
        checked = checker.check(given)
        assert [one.host for one in checked.instances] == ["a.example.com", "10.0.0.9"]
        assert reasons(checked) == {"evil.test:80": "it is not within the domain example.com"}
    checked = checker.check(by_address("evil.test", addresses=("10.0.0.8",)))
    assert not checked.instances
    assert list(reasons(checked)) == ["evil.test:80"]


def test_an_update_does_not_wait_for_names(liar):
    """While a name is looked up, the other instances are used; a lookup that is over is told."""
    liar.fault(nxdomain)
    waiting = []
    in_lookup = False

    def start(run):
        nonlocal in_lookup
        if in_lookup:
            run()  # a question of the lookup
        else:
            waiting.append(run)

    checker = Checked(liar, start=start)
    answer = Answer([GOOD, NAMED])
    checked = checker.check(answer)
    assert checked.instances == (GOOD,)
    assert not checked.refused
    assert len(waiting) == 1
    checker.check(answer)
    assert len(waiting) == 1
    in_lookup = True
    waiting.pop()()
    assert checker.notified.acquire(blocking=False)
    checked = checker.check(answer)
    assert checked.instances == (GOOD,)
    assert list(reasons(checked)) == ["a.test:80"]


def test_forgets_what_is_gone():
    """A checker does not grow while instances come and go."""
    checker = Checked()
    for number in range(3_000):
        high, low = divmod(number, 250)
        checker.check(by_address(f"10.0.{high}.{low}", f"127.0.{high}.{low}"))
    assert len(checker.checker._fine) + len(checker.checker._checked) < 1100


def test_first_answer_with_names_alone(liar):
    """A first answer that has only names waits for their addresses, so that the first call
    succeeds."""
    scripted = Scripted(lambda update, _, __: update(by_address("a.test")))
    with Balancer(scripted, nameservers=[liar.address]) as balancer:
        assert balancer.call(lambda one: one.addresses) == ("10.0.0.7",)


def test_names_join_when_they_are_found(liar):
    """A new name joins the instances in use as soon as DNS has answered."""
    scripted = Scripted(lambda update, _, __: update(Answer([GOOD, NAMED])))
    with Balancer(scripted, nameservers=[liar.address]) as balancer:
        with liar.holding("a.test"):
            assert balancer.call(str) == "10.0.0.1:80"
            assert balancer.instances() == [GOOD]
        until(lambda: len(balancer.instances()) == 2)


def test_refused_alone_is_a_failure():
    """A registry whose instances are all refused has no usable answer, and the error says why."""
    scripted = Scripted(lambda update, _, __: update(by_address("127.0.0.1")))
    with Balancer(scripted) as balancer, pytest.raises(DiscoveryError, match="pass allow="):
        balancer.call(str)


def test_names_beside_updates(liar):
    """Many updates from several threads while names are looked up: no address is used that the
    filter refuses, and the last update wins."""
    rng = random.Random(1)
    pool = ["a.test", "b.test", "gone.test", "10.0.0.1", "127.0.0.1", "10.0.0.2", "::1"]
    scripted = Scripted(lambda update, _, __: update(Answer([GOOD])))
    with Balancer(scripted, nameservers=[liar.address]) as balancer:
        balancer.call(str)
        ((update, _, _),) = scripted.watches
        picks = [[rng.sample(pool, 4) for _ in range(50)] for _ in range(4)]
        threads = [
            threading.Thread(target=lambda mine=mine: [update(by_address(*one)) for one in mine])
            for mine in picks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        update(by_address("b.test", "10.0.0.2", "127.0.0.1"))
        until(lambda: sorted(map(str, balancer.instances())) == ["10.0.0.2:80", "b.test:80"])
        assert {one.addresses for one in balancer.instances()} == {(), ("10.0.0.8",)}
