"""Discovery against real DNS servers, and the scripted server itself."""

from __future__ import annotations

import dns.message
import dns.query
import dns.rcode
import pytest

from lbclient import Balancer, DiscoveryError
from tests.support.dns import Bind, Dnsmasq, Liar, servfail, silence

LOOPBACK = ["127.0.0.0/8"]


# Real servers


@pytest.fixture
def bind(tmp_path):
    records = "_http._tcp 5 SRV 0 1 80 a\n_http._tcp SRV 0 1 80 b\na A 127.0.0.1\nb AAAA ::1"
    with Bind(tmp_path, "shop.test.", "_http._tcp.shop.test.", records) as server:
        yield server


@pytest.fixture
def dnsmasq(tmp_path):
    options = (
        "--srv-host=_http._tcp.shop.test,a.shop.test,8080,1,10",
        "--srv-host=_http._tcp.shop.test,b.shop.test,8080,1,20",
        "--host-record=a.shop.test,127.0.0.1",
        "--host-record=b.shop.test,127.0.0.2",
        "--local-ttl=7",
    )
    with Dnsmasq(tmp_path, "_http._tcp.shop.test.", *options) as server:
        yield server


@pytest.fixture
def balancers():
    """Make balancers over http+srv://shop.test that are closed at the end."""
    made: list[Balancer] = []

    def make(server, **options) -> Balancer:
        options = {"allow": [*LOOPBACK, "::1/128"], **options}
        made.append(Balancer("http+srv://shop.test", nameservers=[server.address], **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def hosts(balancer: Balancer) -> set[str]:
    return {one.host for one in balancer.instances()}


def test_bind(bind, balancers):
    """A zone of BIND 9 is found, with the addresses of its targets."""
    balancer = balancers(bind)
    balancer.refresh()
    found = {one.host: one.addresses for one in balancer.instances()}
    assert found == {"a.shop.test": ("127.0.0.1",), "b.shop.test": ("::1",)}


def test_change_in_bind_is_seen(bind, balancers):
    """D21: after an update of the zone, refresh() finds what joined and left; other endpoints are
    kept."""
    balancer = balancers(bind)
    balancer.refresh()
    before = {one.instance.host: one for one in balancer._engine.pool.endpoints}
    bind.update(
        "update add c.shop.test. 60 A 127.0.0.3",
        "update add _http._tcp.shop.test. 5 SRV 0 1 80 c.shop.test.",
        "update delete _http._tcp.shop.test. SRV 0 1 80 b.shop.test.",
    )
    balancer.refresh()
    after = {one.instance.host: one for one in balancer._engine.pool.endpoints}
    assert set(after) == {"a.shop.test", "c.shop.test"}
    assert after["a.shop.test"] is before["a.shop.test"]


def test_service_vanishes_from_bind(bind, balancers):
    """D2: when the records are deleted, the last good set stays in use and the error is
    reported."""
    balancer = balancers(bind)
    balancer.refresh()
    bind.update("update delete _http._tcp.shop.test. SRV")
    with pytest.raises(DiscoveryError, match=r"_http\._tcp\.shop\.test\. does not exist"):
        balancer.refresh()
    assert hosts(balancer) == {"a.shop.test", "b.shop.test"}


def test_service_is_declared_absent_in_bind(bind, balancers):
    """D7: when the target becomes '.', the set is dropped."""
    balancer = balancers(bind)
    balancer.refresh()
    bind.update(
        "update delete _http._tcp.shop.test. SRV", "update add _http._tcp.shop.test. 5 SRV 0 0 0 ."
    )
    with pytest.raises(DiscoveryError, match="declares that the service is not offered"):
        balancer.refresh()
    assert hosts(balancer) == set()


def test_many_records_in_bind(bind, balancers):
    """D6: an answer of BIND that does not fit UDP is fetched over TCP."""
    bind.update(
        *(
            f"update add _http._tcp.shop.test. 5 SRV 0 1 {port} a.shop.test."
            for port in range(1, 61)
        )
    )
    balancer = balancers(bind)
    balancer.refresh()
    assert len(balancer.instances()) >= 60


def test_dnsmasq(dnsmasq, balancers):
    """The SRV records of dnsmasq's --srv-host are found, with priority and weight."""
    balancer = balancers(dnsmasq)
    balancer.refresh()
    found = {one.host: (one.port, one.priority, one.weight) for one in balancer.instances()}
    assert found == {"a.shop.test": (8080, 1, 10), "b.shop.test": (8080, 1, 20)}


def test_dead_server_beside_a_real_one(dnsmasq):
    """D3: if a nameserver refuses, the next one is asked."""
    with Liar() as bad:
        bad.fault(servfail)
        balancer = Balancer(
            "http+srv://shop.test", nameservers=[bad.address, dnsmasq.address], allow=LOOPBACK
        )
        balancer.refresh()
        assert hosts(balancer) == {"a.shop.test", "b.shop.test"}
        balancer.close()


# The scripted server


def ask(liar: Liar, name: str, kind: str, how=dns.query.udp) -> dns.message.Message:
    host, port = liar.address.split(":")
    return how(dns.message.make_query(name, kind), host, port=int(port), timeout=5)


@pytest.mark.parametrize("how", [dns.query.udp, dns.query.tcp])
def test_liar_tells_its_zone(how):
    """The scripted server answers from its zone, by UDP and TCP, until it is told otherwise."""
    with Liar() as liar:
        liar.put("a.test", "A", "192.0.2.1", ttl=7)
        (rrset,) = ask(liar, "a.test", "A", how).answer
        assert (rrset.ttl, rrset[0].address) == (7, "192.0.2.1")
        liar.drop("a.test", "A")
        assert ask(liar, "a.test", "A", how).rcode() == dns.rcode.NXDOMAIN
        liar.put("a.test", "AAAA", "::1")
        assert ask(liar, "a.test", "A", how).rcode() == dns.rcode.NOERROR


def test_liar_lies_on_demand():
    """A fault applies to a name and type, to one of them, or to all; the most specific one
    counts."""
    with Liar() as liar:
        liar.put("a.test", "A", "192.0.2.1")
        liar.put("b.test", "A", "192.0.2.2")
        liar.fault(servfail, "a.test")
        assert ask(liar, "a.test", "A").rcode() == dns.rcode.SERVFAIL
        assert ask(liar, "b.test", "A").rcode() == dns.rcode.NOERROR
        liar.fault(silence)
        assert ask(liar, "a.test", "A").rcode() == dns.rcode.SERVFAIL
        liar.heal()
        assert ask(liar, "a.test", "A").rcode() == dns.rcode.NOERROR


def test_liar_counts():
    """The server counts its questions by name and type, and a test can wait for one."""
    with Liar() as liar:
        ask(liar, "a.test", "A")
        ask(liar, "a.test", "AAAA")
        liar.wait(2)
        assert (liar.asked(), liar.asked("a.test", "A"), liar.asked("b.test")) == (2, 1, 0)
        with pytest.raises(TimeoutError, match=r"0 of 1 questions for b.test"):
            liar.wait(1, "b.test", timeout=0.01)
