"""SRV records: the instances of an answer, and the records that are left out."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter

import dns.message
import dns.nameserver
import dns.query
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest

from lbclient import Balancer, BreakerPolicy, DiscoveryError, Instance
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import Dns, DnsAnswer, Glue, NoRecords
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.errors import ServiceAbsent
from tests.support.dns import (
    Asked,
    Liar,
    closed,
    empty,
    formerr,
    garbage,
    nxdomain,
    refused,
    servfail,
    silence,
    truncated,
    wrong_id,
    wrong_question,
)

NAME = "_http._tcp.shop.test"
SERVICE = "http+srv://shop.test"
QUICK = 0.2
"""Seconds for a question that gets no answer; where others must get one, it has `SLOW` ones."""
SLOW = 1.0


@pytest.fixture
def liar():
    with Liar() as one:
        one.put("a.test", "A", "192.0.2.1")
        one.put("b.test", "A", "192.0.2.2")
        yield one


@pytest.fixture
def balancers():
    """Make balancers that are closed at the end."""
    made: list[Balancer] = []

    def make(liar: Liar, **options) -> Balancer:
        made.append(Balancer(SERVICE, nameservers=[liar.address], **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def resolver(
    *liars: Liar,
    address_filter: AddressFilter | None = None,
    lifetime: float = 5.0,
    name: str = NAME,
):
    asked = Dns(nameservers_of([one.address for one in liars]), lifetime)
    return SrvResolver(name, asked, address_filter or AddressFilter(), time.monotonic)


def reasons(answer) -> list[str]:
    return [one.reason for one in answer.refused]


# What an answer means


def test_records_become_instances(liar):
    """Host, port, priority and weight are those of the record; the addresses are those of its
    target."""
    liar.put(NAME, "SRV", "0 5 80 a.test.", "1 7 8080 b.test.")
    first, second = resolver(liar).resolve().instances
    assert (first.host, first.port, first.priority, first.weight) == ("a.test", 80, 0, 5)
    assert (second.host, second.port, second.priority, second.weight) == ("b.test", 8080, 1, 7)
    assert (first.addresses, second.addresses) == (("192.0.2.1",), ("192.0.2.2",))


def test_both_families_by_turns(liar):
    """D19: all addresses of a target are used, IPv4 and IPv6 alternating."""
    liar.put(NAME, "SRV", "0 0 80 c.test.")
    liar.put("c.test", "A", "192.0.2.3", "192.0.2.4")
    liar.put("c.test", "AAAA", "2001:db8::3")
    (one,) = resolver(liar).resolve().instances
    assert set(one.addresses) == {"192.0.2.3", "192.0.2.4", "2001:db8::3"}
    assert [":" in address for address in one.addresses] == [False, True, False]


def test_ipv6_only_target(liar):
    """D19: a target with AAAA records alone is an instance."""
    liar.put(NAME, "SRV", "0 0 80 c.test.")
    liar.put("c.test", "AAAA", "2001:db8::3")
    (one,) = resolver(liar).resolve().instances
    assert one.addresses == ("2001:db8::3",)


@pytest.mark.parametrize("kind", ["A", "AAAA"])
@pytest.mark.parametrize("fault", [servfail, silence])
def test_one_dead_family_leaves_the_other(liar, kind, fault):
    """D19: when the question for one family fails, the other's addresses are used."""
    liar.put(NAME, "SRV", "0 0 80 c.test.")
    liar.put("c.test", "A", "192.0.2.3")
    liar.put("c.test", "AAAA", "2001:db8::3")
    liar.fault(fault, "c.test", kind)
    (one,) = resolver(liar, lifetime=SLOW).resolve().instances
    assert one.addresses == ("2001:db8::3" if kind == "A" else "192.0.2.3",)


@pytest.mark.parametrize(("srv", "address"), [(7, 60), (60, 7)])
def test_ttl_is_the_least(liar, srv, address):
    """The TTL of an answer is the shortest of its SRV and address records."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", ttl=srv)
    liar.put("a.test", "A", "192.0.2.1", ttl=address)
    assert resolver(liar).resolve().ttl == 7


@pytest.mark.parametrize(("wire", "ttl"), [(0, 0), (2**31 - 1, 2**31 - 1), (2**31 + 5, 0)])
def test_odd_ttls(liar, wire, ttl):
    """D11, D12: a TTL of 0 and a huge one are used as they are; one with the high bit set is 0."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", ttl=wire)
    liar.put("a.test", "A", "192.0.2.1", ttl=2**31 - 1)
    assert resolver(liar).resolve().ttl == ttl


def test_duplicates_are_one_instance(liar):
    """D13, I33: of records with the same target and port the lowest priority counts, then the
    largest weight; case and order of the records do not matter."""
    liar.put(NAME, "SRV", "1 9 80 a.test.", "0 3 80 A.TEST.", "0 5 80 a.test.", "0 1 81 a.test.")
    found = {one.port: one for one in resolver(liar).resolve().instances}
    assert sorted(found) == [80, 81]
    assert (found[80].priority, found[80].weight) == (0, 5)


def test_a_target_is_looked_up_once(liar):
    """Several ports of one host need one lookup of its addresses."""
    liar.put(NAME, "SRV", *(f"0 0 {port} a.test." for port in range(80, 90)))
    assert len(resolver(liar).resolve().instances) == 10
    assert (liar.asked("a.test", "A"), liar.asked("a.test", "AAAA")) == (1, 1)


def test_names_are_asked_absolutely(liar):
    """D26: no search list is used: each question is for exactly the given name."""
    liar.put(NAME, "SRV", "0 0 80 gone.test.")
    with pytest.raises(DiscoveryError):
        Balancer(resolver(liar)).call(Instance.__str__)
    assert liar.asked() == liar.asked(NAME) + liar.asked("gone.test") == 3


# Weights and tiers


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1, 1], [0.5, 0.5]),
        ([10, 1], [0.909, 0.091]),
        ([60, 20, 20], [0.6, 0.2, 0.2]),
        ([0, 0, 0], [1 / 3, 1 / 3, 1 / 3]),
        ([1, 0], [0.909, 0.091]),
    ],
)
def test_weights_are_shares(liar, balancers, weights, shares):
    """D9: an instance's share is its weight; 0 among others counts as 0.1; if all are 0, all are
    equal."""
    records = (f"0 {weight} {80 + place} a.test." for place, weight in enumerate(weights))
    liar.put(NAME, "SRV", *records)
    balancer = balancers(liar, rng=random.Random(1))
    count = Counter(balancer.call(lambda one: one.port) for _ in range(1100))
    assert [count[80 + place] / 1100 for place in range(len(weights))] == pytest.approx(
        shares, abs=0.01
    )


def test_tiers_fail_over_and_back(liar, balancers):
    """D10: the lowest priority value serves; the next one while no instance of it is admissible."""
    liar.put(NAME, "SRV", "1 0 80 a.test.", "2 9 81 b.test.")
    now, dead = [0.0], {80}
    breaker = BreakerPolicy(fail_max=1, reset_timeout=1.0, reset_timeout_max=1.0)
    balancer = balancers(liar, clock=lambda: now[0], breaker=breaker)

    def serve(one: Instance) -> int:
        if one.port in dead:
            raise ConnectionRefusedError
        return one.port

    def ports(calls: int) -> set[int]:
        return {balancer.call(serve, idempotent=True) for _ in range(calls)}

    assert ports(5) == {81}
    dead.clear()
    now[0] += 2.0
    assert ports(1) | ports(5) == {80}


# The service declares itself absent


def test_target_dot_is_absence(liar):
    """D7: the target '.' declares that there is no such service."""
    liar.put(NAME, "SRV", "0 0 0 .")
    with pytest.raises(ServiceAbsent, match=rf"{NAME}\. declares that the service is not offered"):
        resolver(liar).resolve()


def test_target_dot_beside_others_is_left_out(liar):
    """D7: a '.' among real targets is a mistake, and only that record is left out."""
    liar.put(NAME, "SRV", "0 0 0 .", "0 0 80 a.test.")
    answer = resolver(liar).resolve()
    assert [one.host for one in answer.instances] == ["a.test"]
    assert reasons(answer) == ["its target is '.', which is only allowed alone"]


# Records that are left out


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("0 0 0 b.test.", "its port is 0"),
        ("0 0 80 192.0.2.7.", "its target is an IP address"),
        (r"0 0 80 2001:db8::7.", "its target is an IP address"),
        (r"0 0 80 with\032space.test.", "its target is not a valid host name"),
        (r"0 0 80 line\013\010break.test.", "its target is not a valid host name"),
        ("0 0 80 *.b.test.", "its target is not a valid host name"),
        ("0 0 80 -b.test.", "its target is not a valid host name"),
        (r"0 0 80 a\.b.test.", "its target is not a valid host name"),
        (r"0 0 80 b\195\182se.test.", "its target is not a valid host name"),
        ("0 0 80 " + "x" * 63 + "." + "y" * 63 + "." + "z" * 63 + "." + "w" * 61 + ".",
         "its target has no address"),
        ("0 0 80 gone.test.", "its target has no address"),
    ],
)  # fmt: skip
def test_one_bad_record_leaves_the_rest(liar, record, reason):
    """D8, D17, D18, D20: a record that cannot be used is left out with the reason."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", record)
    answer = resolver(liar).resolve()
    assert [one.host for one in answer.instances] == ["a.test"]
    (refusal,) = answer.refused
    assert refusal.reason.startswith(reason)
    assert refusal.record.isprintable()


@pytest.mark.parametrize("fault", [servfail, silence])
def test_target_whose_address_is_not_told(liar, fault):
    """D20: a target for which DNS has no answer is left out, with a reason other than that of a
    target without addresses."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.")
    liar.fault(fault, "b.test")
    answer = resolver(liar, lifetime=SLOW).resolve()
    assert [one.host for one in answer.instances] == ["a.test"]
    assert reasons(answer)[0].startswith("no address is known for its target: asking for A of b.t")


def test_address_is_remembered_while_its_lookup_fails(liar):
    """D20: a known address is used while the question for it fails, but not after DNS has said that
    it is gone."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.")
    asking = resolver(liar)
    asking.resolve()
    liar.fault(servfail, "b.test")
    assert [one.addresses for one in asking.resolve().instances] == [("192.0.2.1",), ("192.0.2.2",)]
    liar.fault(nxdomain, "b.test")
    assert [one.host for one in asking.resolve().instances] == ["a.test"]
    liar.fault(servfail, "b.test")
    assert [one.host for one in asking.resolve().instances] == ["a.test"]


def test_all_bad_is_an_error_that_tells_the_reasons(liar, balancers):
    """D8, D18: an answer without any usable record fails, with the name and some of the reasons."""
    liar.put(NAME, "SRV", *(f"0 0 0 n{place}.test." for place in range(300)))
    with pytest.raises(DiscoveryError) as caught:
        balancers(liar).call(str)
    assert "the answer about shop.test holds no usable instance" in str(caught.value)
    assert "refused 0 0 0 n0.test.: its port is 0;" in str(caught.value)
    assert str(caught.value).endswith("; and 295 more")
    assert len(str(caught.value)) < 500


def test_left_out_records_are_logged_once(liar, balancers, caplog):
    """D8, D17: refused records are logged once, escaped, in whatever order they arrive."""
    records = ["0 0 80 a.test.", "0 0 0 b.test.", r"0 0 80 line\010break.test."]
    liar.put(NAME, "SRV", *records)
    balancer = balancers(liar)
    with caplog.at_level(logging.WARNING, "lbclient"):
        balancer.refresh()
        liar.put(NAME, "SRV", *reversed(records))
        balancer.refresh()
        assert len(caplog.messages) == 1
        assert (
            r"0 0 80 line\010break.test.: its target is not a valid host name" in caplog.messages[0]
        )
        liar.put(NAME, "SRV", *records, "0 0 0 c.test.")
        balancer.refresh()
    assert caplog.messages[1:] == ["shop.test: refused 0 0 0 c.test.: its port is 0"]


# The guard


def test_loopback_target_is_refused(liar, balancers):
    """D18, S1: a target on the loopback is refused; the error says which one and how to allow
    it."""
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    liar.put("a.test", "A", "127.0.0.1")
    with pytest.raises(DiscoveryError) as caught:
        balancers(liar).call(str)
    assert "refused 0 0 80 a.test.: 127.0.0.1 is loopback;" in str(caught.value)
    assert "pass allow=['127.0.0.0/8'] to permit it" in str(caught.value)


def test_allowed_loopback_target(liar, balancers):
    """D18: `allow=` permits the network it names."""
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    liar.put("a.test", "A", "127.0.0.1")
    balancer = balancers(liar, allow=["127.0.0.0/8"])
    assert balancer.call(lambda one: one.addresses) == ("127.0.0.1",)


@pytest.mark.parametrize("glue", [False, True])
def test_only_vetted_addresses_of_a_target_are_kept(liar, glue):
    """S1: the refused addresses of a target are removed and reported."""
    liar.glue = glue
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    liar.put("a.test", "A", "192.0.2.1", "169.254.169.254")
    liar.put("a.test", "AAAA", "::ffff:127.0.0.1")
    answer = resolver(liar).resolve()
    assert answer.instances[0].addresses == ("192.0.2.1",)
    assert sorted(one.split(" is ")[0] for one in reasons(answer)) == [
        "169.254.169.254",
        "::ffff:127.0.0.1",
    ]


def test_within_holds_targets_to_a_domain(liar, balancers):
    """S12: with `within=`, targets outside that domain are left out."""
    liar.put("a.shop.test", "A", "192.0.2.9")
    liar.put(NAME, "SRV", "0 0 80 a.shop.test.", "0 0 80 a.test.", "0 0 80 nota.shop.test.evil.")
    balancer = balancers(liar, within="Shop.test.")
    balancer.refresh()
    assert [one.host for one in balancer.instances()] == ["a.shop.test"]
    assert liar.asked("a.test") == 0


# Aliases


def test_cname_of_the_service(liar):
    """D14: an alias of the SRV name is followed; its TTL counts."""
    liar.put(NAME, "CNAME", "x.test.", ttl=50)
    liar.put("x.test", "CNAME", "y.test.", ttl=5)
    liar.put("y.test", "SRV", "0 0 80 a.test.", ttl=60)
    answer = resolver(liar).resolve()
    assert [one.host for one in answer.instances] == ["a.test"]
    assert answer.ttl == 5


def test_cname_of_a_target(liar):
    """D14: an alias of a target is followed for its addresses; the instance keeps its name."""
    liar.put(NAME, "SRV", "0 0 80 x.test.")
    liar.put("x.test", "CNAME", "a.test.", ttl=4)
    answer = resolver(liar).resolve()
    assert [(one.host, one.addresses) for one in answer.instances] == [("x.test", ("192.0.2.1",))]
    assert answer.ttl == 4


def test_cname_loop_is_a_failure(liar):
    """D14: a loop of aliases is a failure of the server, like SERVFAIL."""
    liar.put(NAME, "CNAME", "x.test.")
    liar.put("x.test", "CNAME", f"{NAME}.")
    with pytest.raises(DiscoveryError, match=f"asking for SRV of {NAME}. failed"):
        resolver(liar).resolve()


# Size


def test_sixty_records_come_over_tcp(liar):
    """D6: an answer too large for UDP is fetched over TCP."""
    liar.put(NAME, "SRV", *(f"0 0 {port} a.test." for port in range(1, 61)))
    assert len(resolver(liar).resolve().instances) == 60
    assert liar.over_tcp == 1


def test_a_thousand_records(liar):
    """D15: a thousand targets with glue are used, and nothing is asked twice."""
    liar.glue = True
    liar.put(NAME, "SRV", *(f"0 0 80 n{place}.test." for place in range(1000)))
    for place in range(1000):
        liar.put(f"n{place}.test", "A", f"192.0.2.{place % 250}")
    answer = resolver(liar).resolve()
    assert len(answer.instances) == 1000
    assert liar.asked("n999.test", "A") == 0


# Glue


def test_glue_saves_the_lookup(liar):
    """Addresses in the additional section are used, and their TTL counts."""
    liar.glue = True
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.", ttl=60)
    liar.put("b.test", "A", "192.0.2.2", ttl=6)
    answer = resolver(liar).resolve()
    assert [one.addresses for one in answer.instances] == [("192.0.2.1",), ("192.0.2.2",)]
    assert answer.ttl == 6
    assert liar.asked() == 1


def test_partial_glue_is_completed(liar):
    """What did not come along is asked for: a server leaves out what does not fit, silently.

    Else the addresses of a target would change with what fits, and reset its breaker each time.
    """
    liar.glue = True
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.")
    liar.put("a.test", "AAAA", "2001:db8::1")
    answer = resolver(liar).resolve()
    assert answer.instances[0].addresses == ("192.0.2.1", "2001:db8::1")
    assert liar.asked("a.test") == 0
    assert (liar.asked("b.test", "A"), liar.asked("b.test", "AAAA")) == (0, 1)


def test_glue_is_remembered(liar):
    """D20: an address that was once in the additional section is used while its lookup fails."""
    liar.glue = True
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    asking = resolver(liar)
    asking.resolve()
    liar.glue = False
    liar.fault(servfail, "a.test")
    assert asking.resolve().instances[0].addresses == ("192.0.2.1",)


def test_glue_of_another_name_or_class_is_ignored(liar):
    """S1: only Internet addresses of the target itself are taken from the additional section."""
    liar.put(NAME, "SRV", "0 0 80 a.test.")

    def with_stray_glue(asked: Asked) -> bytes:
        message = dns.message.from_wire(asked.truth)
        for name, rdclass, kind, text in [
            ("evil.test.", "IN", "A", "203.0.113.66"),
            ("a.test.", "CH", "A", "q. 17"),
            ("a.test.", "IN", "TXT", "203.0.113.67"),
        ]:
            message.additional.append(dns.rrset.from_text(name, 60, rdclass, kind, text))
        return message.to_wire()

    liar.fault(with_stray_glue, NAME, "SRV")
    (one,) = resolver(liar).resolve().instances
    assert one.addresses == ("192.0.2.1",)


# Failures


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (nxdomain, "does not exist (NXDOMAIN)"),
        (empty, "has no SRV record"),
        (servfail, "SERVFAIL"),
        (refused, "REFUSED"),
        (formerr, "FORMERR"),
        (truncated, "{0} over TCP: EOF; {0}: truncated"),
        (silence, "{}: no answer"),
        (closed, "{}: no answer"),
        (garbage, "{}: no answer"),
        (wrong_id, "{}: no answer"),
        (wrong_question, "{}: no answer"),
    ],
)
def test_failures_tell_the_name_and_what_came(liar, fault, said):
    """D1, D3, D4, D5, D6, D16: each failure is a DiscoveryError with the name and the cause, in a
    text that does not change from one failure to the next."""
    liar.fault(fault, NAME, "SRV")
    server = liar.address
    asking = resolver(liar, lifetime=QUICK if said == "{}: no answer" else 10.0)
    texts = set()
    for _ in range(2):
        with pytest.raises(DiscoveryError) as caught:
            asking.resolve()
        texts.add(str(caught.value))
    (text,) = texts
    assert f"{NAME}." in text
    assert text.endswith(said.format(server))


def test_answer_of_another_type_is_no_answer(liar):
    """D27: a name with records other than SRV is like one without any."""
    liar.put(NAME, "A", "192.0.2.1")
    with pytest.raises(DiscoveryError, match="has no SRV record"):
        resolver(liar).resolve()


@pytest.mark.parametrize("fault", [servfail, refused, formerr, truncated])
def test_next_nameserver_is_asked(liar, fault):
    """D3: if one nameserver fails, the next one is asked."""
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    with Liar() as bad:
        bad.fault(fault)
        assert len(resolver(bad, liar).resolve().instances) == 1
        assert bad.asked() > 0


def test_silent_nameserver_costs_one_question(liar):
    """D3, D4: a silent nameserver leaves time to ask the next one, and the one that answered is
    asked first from then on."""
    names = [f"n{place}.test" for place in range(5)]
    liar.put(NAME, "SRV", *(f"0 0 80 {name}." for name in names))
    for name in names:
        liar.put(name, "A", "192.0.2.1")
    with Liar() as dead:
        dead.fault(silence)
        asking = resolver(dead, liar, lifetime=SLOW)
        assert [len(asking.resolve().instances) for _ in range(3)] == [5] * 3
        assert dead.asked() == 1


@pytest.mark.parametrize("content", [None, "", "nameserver nonsense\n", "nameserver \udc80\n"])
def test_useless_resolver_configuration(monkeypatch, tmp_path, content):
    """D1: if the resolver configuration is missing or invalid, the error is a DiscoveryError
    too."""
    path = tmp_path / "resolv.conf"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    read = dns.resolver.Resolver.read_resolv_conf
    monkeypatch.setattr(
        dns.resolver.Resolver, "read_resolv_conf", lambda self, _: read(self, str(path))
    )
    asking = SrvResolver(NAME, Dns(None), AddressFilter(), time.monotonic)
    with pytest.raises(DiscoveryError, match=f"asking for SRV of {NAME}. failed"):
        asking.resolve()


def test_round_ends_though_every_target_is_silent():
    """D4: hundreds of targets for which DNS never answers do not block a round for minutes."""
    now = [0.0]

    class Silent:
        def ask(self, name: str, kind: str, lifetime: float) -> DnsAnswer:
            if kind == "SRV":
                texts = (f"0 0 80 n{place}.test." for place in range(500))
                return DnsAnswer(
                    list(dns.rrset.from_text(name, 60, "IN", kind, *texts)), 60, Glue()
                )
            now[0] += lifetime
            raise DiscoveryError("no answer")

    answer = SrvResolver(NAME, Silent(), AddressFilter(), lambda: now[0]).resolve()
    assert len(answer.refused) == 500
    assert now[0] < 10


def test_one_silent_target_does_not_cost_the_others():
    """D20: after a target that used all of its time, the next one is still asked for."""
    now = [0.0]

    class Partly:
        def ask(self, name: str, kind: str, lifetime: float) -> DnsAnswer:
            if kind == "SRV":
                texts = ("0 0 80 silent.test.", "0 0 80 a.test.")
                return DnsAnswer(
                    list(dns.rrset.from_text(name, 60, "IN", kind, *texts)), 60, Glue()
                )
            if name == "silent.test.":
                now[0] += lifetime
                raise DiscoveryError("no answer")
            return DnsAnswer(
                list(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1")), 60, Glue()
            )

    answer = SrvResolver(NAME, Partly(), AddressFilter(), lambda: now[0]).resolve()
    assert [one.host for one in answer.instances] == ["a.test"]


def test_large_set_is_found_over_several_rounds():
    """D15, D20: if the time of a round is too short for all targets, the next round begins with
    those that are still unknown, so that all are found in the end."""
    now = [0.0]

    class Slow:
        def ask(self, name: str, kind: str, _: float) -> DnsAnswer:
            now[0] += 0.01
            if kind == "SRV":
                texts = (f"0 0 80 n{place}.test." for place in range(1000))
                return DnsAnswer(
                    list(dns.rrset.from_text(name, 60, "IN", kind, *texts)), 60, Glue()
                )
            if kind == "AAAA":
                raise NoRecords("none")
            return DnsAnswer(
                list(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1")), 60, Glue()
            )

    resolver = SrvResolver(NAME, Slow(), AddressFilter(), lambda: now[0])
    found = [len(resolver.resolve().instances) for _ in range(4)]
    assert found[0] < 500
    assert found == sorted(found)
    assert found[-1] == 1000


def test_silent_targets_do_not_starve_the_others():
    """D20: however many targets are never answered, the others are looked up in turn, and their new
    addresses are found."""
    now, address = [0.0], ["192.0.2.1"]

    class Mostly:
        def ask(self, name: str, kind: str, lifetime: float) -> DnsAnswer:
            if kind == "SRV":
                texts = ("0 0 80 good.test.", *(f"0 0 80 silent{one}.test." for one in range(12)))
                return DnsAnswer(
                    list(dns.rrset.from_text(name, 60, "IN", kind, *texts)), 60, Glue()
                )
            if name != "good.test.":
                now[0] += lifetime
                raise DiscoveryError("no answer")
            if kind == "AAAA":
                raise NoRecords("none")
            return DnsAnswer(list(dns.rrset.from_text(name, 60, "IN", "A", address[0])), 60, Glue())

    resolver = SrvResolver(NAME, Mostly(), AddressFilter(), lambda: now[0])
    assert resolver.resolve().instances[0].addresses == ("192.0.2.1",)
    address[0] = "192.0.2.2"
    found = [resolver.resolve().instances[0].addresses for _ in range(4)]
    assert found[-1] == ("192.0.2.2",)


class Mutilator(dns.nameserver.Do53Nameserver):
    """Answer with the bytes of a real answer, some of them replaced."""

    def __init__(self, seed: int) -> None:
        super().__init__("127.0.0.1", 53)
        self._dice = random.Random(seed)

    def query(self, request, *_, **__):
        response = dns.message.make_response(request)
        (question,) = request.question
        records = {
            "SRV": ("SRV", "0 0 80 a.test.", "1 5 81 b.test.", "0 0 0 ."),
            "A": ("A", "192.0.2.1"),
            "AAAA": ("AAAA", "2001:db8::1"),
        }[dns.rdatatype.to_text(question.rdtype)]
        response.answer.append(dns.rrset.from_text(question.name, 60, "IN", *records))
        response.additional.append(dns.rrset.from_text("a.test.", 60, "IN", "A", "192.0.2.1"))
        wire = bytearray(response.to_wire())
        for _ in range(self._dice.randrange(3)):
            wire[self._dice.randrange(2, len(wire))] = self._dice.randrange(256)
        message = dns.message.from_wire(bytes(wire), raise_on_truncation=True)
        if not request.is_response(message):
            raise dns.query.BadResponse
        return message


@pytest.mark.parametrize("seed", range(4))
def test_mutilated_answers(seed):
    """S1, S4: whatever bytes are received, the result is an answer with valid instances or a
    DiscoveryError."""
    asking = SrvResolver(NAME, Dns([Mutilator(seed)], 0.01), AddressFilter(), time.monotonic)
    answers = 0
    for _ in range(300):
        try:
            answer = asking.resolve()
        except DiscoveryError:
            continue
        addresses = [one for instance in answer.instances for one in instance.addresses]
        assert all(AddressFilter().refuses(one) is None for one in addresses)
        assert all(one.record.isprintable() for one in answer.refused)
        answers += 1
    assert answers > 50
