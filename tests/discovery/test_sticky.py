"""`sticky=`: addresses and instances that stay known after DNS stopped returning them."""

from __future__ import annotations

import contextlib

import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, DiscoveryError, Instance, RetryPolicy, Union
from tests.support.dns import Liar, nxdomain
from tests.support.http import says

NAME = "_http._tcp.shop.test"
SRV, ADDRESSES = "http+srv://shop.test", "http+dns://shop.test:80"


@pytest.fixture
def liar():
    with Liar() as one:
        one.put("shop.test", "A", "127.0.0.1", ttl=5)
        yield one


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def balancers(liar, clock):
    """Make balancers that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(service=ADDRESSES, **options) -> Balancer:
            options = {"sticky": 60.0, "clock": clock, "allow": ["127.0.0.0/8"], **options}
            made = Balancer(service, nameservers=[liar.address], **options)
            return stack.enter_context(contextlib.closing(made))

        yield make


def hosts(balancer: Balancer) -> list[str]:
    balancer.refresh()
    return sorted(one.host for one in balancer.instances())


def test_without_it_an_address_goes_at_once(liar, balancers):
    """By default only the addresses of the last answer are known."""
    balancer = balancers(sticky=None)
    balancer.refresh()
    liar.put("shop.test", "A", "127.0.0.2")
    assert hosts(balancer) == ["127.0.0.2"]


def test_address_stays_for_so_long(liar, balancers, clock):
    """An address stays known for `sticky` seconds from the first answer without it."""
    balancer = balancers()
    balancer.refresh()
    liar.put("shop.test", "A", "127.0.0.2")
    clock.now += 3600  # however long ago it was told last
    assert hosts(balancer) == ["127.0.0.1", "127.0.0.2"]
    clock.now += 59
    assert hosts(balancer) == ["127.0.0.1", "127.0.0.2"]
    clock.now += 1
    assert hosts(balancer) == ["127.0.0.2"]


def test_address_that_is_told_again_stays_anew(liar, balancers, clock):
    """Each answer with the address restarts its time."""
    balancer = balancers()
    for turn in range(12):
        liar.put("shop.test", "A", f"127.0.0.{1 + turn % 3}")
        found = hosts(balancer)
        assert len(found) == min(turn + 1, 3)
        clock.now += 25


def test_answer_is_good_until_the_first_is_to_go(liar, balancers, clock):
    """DNS is asked again when the time of an address is over, even if the TTL is longer."""
    liar.put("shop.test", "A", "127.0.0.1", ttl=3600)
    resolver = balancers().target.resolver
    assert resolver.resolve().ttl == 3600
    liar.put("shop.test", "A", "127.0.0.2", ttl=3600)
    assert resolver.resolve().ttl == 60
    clock.now += 45
    assert resolver.resolve().ttl == 15
    clock.now += 15
    assert resolver.resolve().ttl == 3600


def test_breaker_is_kept(liar, balancers, clock):
    """An instance that is missing for a while keeps its breaker, so that a dead one is not tried
    again each time DNS returns it."""
    breaker = BreakerPolicy(fail_max=1, reset_timeout=1000.0, reset_timeout_max=1000.0)
    balancer = balancers(breaker=breaker)
    attempts: list[str] = []

    def call(instance: Instance) -> None:
        attempts.append(instance.host)
        if instance.host == "127.0.0.2":
            raise ConnectionRefusedError

    for turn in range(20):
        liar.put("shop.test", "A", f"127.0.0.{1 + turn % 2}")
        balancer.refresh()
        for _ in range(5):
            balancer.call(call)
        clock.now += 5
    assert attempts.count("127.0.0.2") == 1


def test_record_stays_with_its_weight(liar, balancers, clock):
    """A missing SRV record stays as it was; its target is not asked for."""
    liar.put(NAME, "SRV", "0 5 80 shop.test.", "3 7 81 shop.test.")
    balancer = balancers(SRV)
    balancer.refresh()
    liar.put(NAME, "SRV", "0 6 80 shop.test.")
    balancer.refresh()
    found = {one.port: (one.priority, one.weight) for one in balancer.instances()}
    assert found == {80: (0, 6), 81: (3, 7)}
    clock.now += 60
    assert hosts(balancer) == ["shop.test"]
    assert len(balancer.instances()) == 1


def test_addresses_of_a_target_stay(liar, balancers, clock):
    """The addresses of an SRV target stay known too, after those that DNS returns now; a target
    whose addresses rotate keeps its breaker once all are known."""
    liar.put(NAME, "SRV", "0 0 80 shop.test.")
    balancer = balancers(SRV, breaker=BreakerPolicy(fail_max=1), retry=RetryPolicy(attempts=1))
    balancer.refresh()
    liar.put("shop.test", "A", "127.0.0.2")
    balancer.refresh()
    assert balancer.instances()[0].addresses == ("127.0.0.2", "127.0.0.1")

    def fail(_):
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        balancer.call(fail)
    liar.put("shop.test", "A", "127.0.0.1")
    balancer.refresh()
    assert balancer.instances()[0].addresses == ("127.0.0.1", "127.0.0.2")
    assert balancer.snapshot().instances[0].breaker == "open"
    clock.now += 60
    balancer.refresh()
    assert balancer.instances()[0].addresses == ("127.0.0.1",)


def test_absence_ends_it(liar, balancers):
    """A service that is declared absent has no instances, and none of the earlier ones when it is
    back."""
    liar.put(NAME, "SRV", "0 0 80 shop.test.", "0 0 81 shop.test.")
    balancer = balancers(SRV)
    balancer.refresh()
    liar.put(NAME, "SRV", "0 0 0 .")
    with pytest.raises(lbclient.ServiceAbsent):
        balancer.refresh()
    assert balancer.instances() == []
    liar.put(NAME, "SRV", "0 0 80 shop.test.")
    balancer.refresh()
    assert [one.port for one in balancer.instances()] == [80]


def test_outage_of_dns_takes_nothing(liar, balancers, clock):
    """While DNS fails nothing is removed, and the time of an address begins with the next good
    answer."""
    balancer = balancers()
    balancer.refresh()
    liar.put("shop.test", "A", "127.0.0.2")
    liar.fault(nxdomain)
    clock.now += 600
    with pytest.raises(DiscoveryError):
        balancer.refresh()
    liar.heal()
    assert hosts(balancer) == ["127.0.0.1", "127.0.0.2"]
    clock.now += 60
    assert hosts(balancer) == ["127.0.0.2"]


def test_with_a_subset(liar, balancers):
    """`max_instances` counts missing instances too, and keeps them in its subset."""
    balancer = balancers(max_instances=3)
    before: set[str] = set()
    for turn in range(1, 13):
        liar.put("shop.test", "A", f"127.0.0.{turn}")
        found = set(hosts(balancer))
        assert len(found) == min(turn, 3)
        assert len(before - found) <= 1
        before = found


def test_in_a_union(liar, balancers):
    """Each part of a composite service that is in DNS has its own sticky addresses."""
    liar.put("other.test", "A", "127.0.1.1")
    service = Union(ADDRESSES, "http+dns://other.test:80", [Instance("127.0.2.1", 80)])
    balancer = balancers(service)
    balancer.refresh()
    liar.put("shop.test", "A", "127.0.0.2")
    liar.put("other.test", "A", "127.0.1.2")
    expected = ["127.0.0.1", "127.0.0.2", "127.0.1.1", "127.0.1.2", "127.0.2.1"]
    assert hosts(balancer) == expected


def test_over_http(liar, servers):
    """If the addresses of a name rotate, a client keeps its connections, and calls all addresses
    that it has seen."""
    given = servers(says(200))
    (server,) = given
    liar.put("shop.test", "A", "127.0.0.1", "127.0.0.2", ttl=3600)
    options = {"nameservers": [liar.address], "allow": ["127.0.0.0/8"], "sticky": 60.0}
    with lbclient.Client(f"http+dns://shop.test:{server.port}", **options) as client:
        assert client.get("/").status_code == 200
        liar.put("shop.test", "A", "127.0.0.2", ttl=3600)  # nobody listens there
        client.balancer.refresh()
        assert [client.get("/").status_code for _ in range(10)] == [200] * 10


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("60", TypeError),
        (True, TypeError),
    ],
)
def test_sticky_is_checked(wrong, kind):
    """A value that is not a number of seconds is an error that names the argument."""
    with pytest.raises(kind, match=r"^sticky \(seconds\) must be"):
        Balancer(ADDRESSES, sticky=wrong)


@pytest.mark.parametrize("wrong", ["ipv5", "IPv4", 4, None, ["ipv4"]])
def test_family_is_checked(wrong):
    """An unknown family is an error that names the argument and the choices."""
    with pytest.raises(ValueError, match=r"^family must be one of 'any', 'ipv4', 'ipv6', not"):
        Balancer(ADDRESSES, family=wrong)
