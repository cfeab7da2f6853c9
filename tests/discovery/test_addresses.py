"""A and AAAA records as a service's instances: `http+dns://name:port`."""

from __future__ import annotations

import pytest

from lbclient import Balancer, DiscoveryError
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import AddressResolver
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from tests.support.dns import Liar, empty, nxdomain, servfail, silence

NAME = "pods.test"


@pytest.fixture
def liar():
    with Liar() as one:
        yield one


def resolver(
    liar: Liar, address_filter: AddressFilter | None = None, lifetime: float = 5.0
) -> AddressResolver:
    asked = Dns(nameservers_of([liar.address]), lifetime)
    return AddressResolver(NAME, 8080, asked, address_filter or AddressFilter())


def addresses(answer) -> list[str]:
    return [one.host for one in answer.instances]


def test_every_address_is_an_instance(liar):
    """Each A and AAAA record is an instance on the given port, connected to at that address."""
    liar.put(NAME, "A", "192.0.2.2", "192.0.2.1")
    liar.put(NAME, "AAAA", "2001:db8::1")
    answer = resolver(liar).resolve()
    assert addresses(answer) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert all(one.addresses == (one.host,) and one.port == 8080 for one in answer.instances)


@pytest.mark.parametrize(("four", "six"), [(7, 60), (60, 7)])
def test_ttl_is_the_least_of_both_families(liar, four, six):
    """An answer is valid for the shorter TTL of its two record sets."""
    liar.put(NAME, "A", "192.0.2.1", ttl=four)
    liar.put(NAME, "AAAA", "2001:db8::1", ttl=six)
    assert resolver(liar).resolve().ttl == 7


def test_alias_is_followed(liar):
    """D14: a chain of aliases is followed, and its shortest TTL counts."""
    liar.put(NAME, "CNAME", "x.test.", ttl=5)
    liar.put("x.test", "CNAME", "y.test.", ttl=9)
    liar.put("y.test", "A", "192.0.2.1", ttl=60)
    answer = resolver(liar).resolve()
    assert (addresses(answer), answer.ttl) == (["192.0.2.1"], 5)


@pytest.mark.parametrize("fault", [servfail, silence, empty])
def test_one_family_is_enough(liar, fault):
    """D19: when one family fails or is empty, the other's addresses are the instances."""
    liar.put(NAME, "A", "192.0.2.1")
    liar.fault(fault, NAME, "AAAA")
    assert addresses(resolver(liar, lifetime=1.0).resolve()) == ["192.0.2.1"]


def test_family_that_fails_is_remembered(liar):
    """D2, D21: a family whose question fails keeps its instances; one that has no more records does
    not."""
    liar.put(NAME, "A", "192.0.2.1")
    liar.put(NAME, "AAAA", "2001:db8::1")
    asking = resolver(liar)
    asking.resolve()
    liar.fault(servfail, NAME, "AAAA")
    assert addresses(asking.resolve()) == ["192.0.2.1", "2001:db8::1"]
    liar.fault(empty, NAME, "AAAA")
    assert addresses(asking.resolve()) == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (nxdomain, "pods.test. does not exist (NXDOMAIN)"),
        (empty, "pods.test. has no A record"),
        (servfail, "asking for A of pods.test. failed: {}: SERVFAIL"),
    ],
)
def test_failures_tell_the_name_and_what_came(liar, fault, said):
    """D1, D3, D5: a lookup without any address fails with the name and the cause."""
    liar.fault(fault)
    with pytest.raises(DiscoveryError) as caught:
        resolver(liar).resolve()
    assert str(caught.value) == said.format(liar.address)


def test_silence_of_both_families_fails_in_time():
    """D4: the two questions of a round share its time, so that waiting calls learn the cause."""
    asked = []

    class Silent:
        def ask(self, _: str, kind: str, lifetime: float) -> None:
            asked.append((kind, lifetime))
            raise DiscoveryError("no answer")

    with pytest.raises(DiscoveryError):
        AddressResolver(NAME, 8080, Silent(), AddressFilter()).resolve()
    assert asked == [("A", 2.5), ("AAAA", 2.5)]


def test_not_knowing_is_not_the_same_as_none(liar):
    """D5: if one family has no records and the question for the other fails, the error is that of
    the latter."""
    liar.put(NAME, "A", "192.0.2.1")
    liar.fault(empty, NAME, "A")
    liar.fault(servfail, NAME, "AAAA")
    with pytest.raises(DiscoveryError, match=r"asking for AAAA of .* SERVFAIL"):
        resolver(liar).resolve()


def test_refused_addresses_are_left_out(liar):
    """S1, D18: a refused address is left out with the reason; the others are instances."""
    liar.put(NAME, "A", "192.0.2.1", "127.0.0.1", "169.254.169.254")
    answer = resolver(liar).resolve()
    assert addresses(answer) == ["192.0.2.1"]
    assert {one.record for one in answer.refused} == {NAME}
    assert sorted(one.reason.split(";")[0] for one in answer.refused) == [
        "127.0.0.1 is loopback",
        "169.254.169.254 is a cloud metadata address",
    ]


def test_only_refused_addresses_is_an_error(liar):
    """S1: if no address may be connected to, the call fails and says how to allow them."""
    liar.put(NAME, "A", "127.0.0.1")
    balancer = Balancer(f"http+dns://{NAME}:8080", nameservers=[liar.address])
    with pytest.raises(DiscoveryError, match=r"is loopback; pass allow=\['127\.0\.0\.0/8'\]"):
        balancer.call(str)
    balancer.close()


def test_balancer_over_addresses(liar):
    """`http+dns://name:port` balances over all addresses of the name."""
    liar.put(NAME, "A", "127.0.0.1", "127.0.0.2")
    balancer = Balancer(
        f"http+dns://{NAME}:8080", nameservers=[liar.address], allow=["127.0.0.0/8"]
    )
    assert {balancer.call(str) for _ in range(4)} == {"127.0.0.1:8080", "127.0.0.2:8080"}
    balancer.close()


@pytest.mark.parametrize("service", ["http+dns://192.0.2.1:80", "http+dns://[2001:db8::1]:80"])
def test_address_is_no_name(service):
    """K1: an address in place of the name is refused at construction, and the error says how to
    pass it."""
    with pytest.raises(ValueError, match="service must name a host that DNS can look up"):
        Balancer(service)
