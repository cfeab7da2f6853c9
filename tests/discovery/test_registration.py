"""Registration: dynamic updates of a real zone, signals, event loops, forks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import itertools
import logging
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from lbclient import Balancer, Instance
from lbclient.discovery.registration import Registration, RegistrationError
from lbclient.discovery.registration.dns_update import Tsig, key_of
from lbclient.discovery.registration.registrar import UpdateError
from lbclient.discovery.registration.registration import REGISTRARS, Renewal
from lbclient.errors import LoadBalancingError
from tests.support.dns import Bind
from tests.support.registrar import Proxy, Service

SECRET = "aJFMHuxW4Qf/gFxs/5J39os5bWDLYJfLc7A5mqRan60="
KEY = f"reg:{SECRET}"
ZONE = "shop.test."
_numbers = itertools.count()


def holding():
    """A hook that holds a message back, an event that says that it has come, and one that lets it
    go."""
    reached, proceed = threading.Event(), threading.Event()

    def hold(forward):
        reached.set()
        assert proceed.wait(10)
        return forward()

    return hold, reached, proceed


@pytest.fixture(scope="module")
def bind(tmp_path_factory):
    records = (
        "_probe._tcp SRV 0 1 80 a\na A 127.0.0.1\n_alias._tcp CNAME _probe._tcp\n"
        "delegated NS ns.elsewhere.test."
    )
    with Bind(tmp_path_factory.mktemp("bind"), ZONE, f"_probe._tcp.{ZONE}", records, KEY) as server:
        yield server


@pytest.fixture
def service():
    """A separate service for each test, by the name of its SRV records."""
    return f"_s{next(_numbers)}._tcp.shop.test"


@pytest.fixture
def registration(bind, service):
    """Make registrations of one service, which are left at the end."""
    made: list[Registration] = []

    def make(host="127.0.0.1", port=8080, *, weight=1, priority=0, addresses=(), **options):
        instance = Instance(host, port, weight, priority, addresses=addresses)
        options = {"server": bind.address, "key": KEY, **options}
        made.append(Registration(options.pop("service", service), instance, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def proxy(bind):
    with Proxy(bind.address) as before:
        yield before


@pytest.fixture
def sigterm():
    """What SIGTERM did, as a list of names; the previous handler is restored at the end."""
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("first"))
    yield seen
    signal.signal(signal.SIGTERM, before)


def records(bind: Bind, name: str, kind: str = "SRV") -> set[str]:
    """The server's records, asked for by an ordinary query."""
    host, port = bind.address.split(":")
    query = dns.message.make_query(name, kind)
    response = dns.query.tcp(query, host, port=int(port), timeout=5)
    return {one.to_text() for rrset in response.answer for one in rrset}


def made_up(service: str, word: str) -> str:
    """A target with a generated name."""
    return f"{word}-{service.split('.', 1)[0][1:]}-tcp.{ZONE}"


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# Entering and leaving


def test_instance_with_an_address(bind, service, registration):
    """An address gets a generated target name in the service's domain, with an address record;
    leaving removes both."""
    target = made_up(service, "127-0-0-1")
    with registration(weight=5, priority=2):
        assert records(bind, service) == {f"2 5 8080 {target}"}
        assert records(bind, target, "A") == {"127.0.0.1"}
    assert records(bind, service) == set()
    assert records(bind, target, "A") == set()


def test_instance_with_an_ipv6_address(bind, service, registration):
    """An IPv6 address makes a valid label and an AAAA record."""
    target = made_up(service, "2001-0db8-0000-0000-0000-0000-0000-0001")
    with registration("2001:db8::1", 80, addresses=["10.1.2.3"]):
        assert records(bind, service) == {f"0 1 80 {target}"}
        assert records(bind, target, "AAAA") == {"2001:db8::1"}
        assert records(bind, target, "A") == {"10.1.2.3"}
    assert records(bind, target, "AAAA") | records(bind, target, "A") == set()


def test_instance_with_a_name(bind, service, registration):
    """A host name is the target itself, and its address records are not changed."""
    with registration("a.shop.test"):
        assert records(bind, service) == {f"0 1 8080 a.{ZONE}"}
    assert records(bind, service) == set()
    assert records(bind, f"a.{ZONE}", "A") == {"127.0.0.1"}


def test_instance_with_a_name_and_addresses(bind, registration):
    """The addresses of a named instance become records of that name, in addition to those that
    exist."""
    bind.update(f"update add b.{ZONE} 60 A 10.0.0.1")
    with registration("b.shop.test", addresses=["10.0.0.2", "2001:db8::2"]):
        assert records(bind, f"b.{ZONE}", "A") == {"10.0.0.1", "10.0.0.2"}
        assert records(bind, f"b.{ZONE}", "AAAA") == {"2001:db8::2"}
    assert records(bind, f"b.{ZONE}", "A") == {"10.0.0.1"}
    assert records(bind, f"b.{ZONE}", "AAAA") == set()


@pytest.mark.parametrize(
    ("words", "owner"),
    [
        ("http+srv://w.shop.test", "_http._tcp.w.shop.test"),
        ("https+srv://w.shop.test/base", "_https._tcp.w.shop.test"),
        ("http+srv://_w._tcp.shop.test", "_w._tcp.shop.test"),
        ("_w._tcp.shop.test", "_w._tcp.shop.test"),
        ("_W._tcp.Shop.test.", "_w._tcp.shop.test"),
    ],
)
def test_service_is_named_as_for_a_client(bind, registration, words, owner):
    """A service has the same name for registrations and for clients."""
    with registration(service=words):
        assert len(records(bind, owner)) == 1
        url = words if "://" in words else f"http+srv://{words}"
        with Balancer(url, nameservers=bind.address, allow=["127.0.0.0/8"]) as balancer:
            balancer.refresh()
            assert [one.port for one in balancer.instances()] == [8080]


def test_ttl(bind, service, registration):
    """`ttl` is the records' TTL."""
    host, port = bind.address.split(":")
    with registration(ttl=17):
        response = dns.query.tcp(dns.message.make_query(service, "SRV"), host, 5, port=int(port))
        assert {rrset.ttl for rrset in response.answer} == {17}


def test_key_file(bind, service, registration, tmp_path):
    """The key may be a file that tsig-keygen wrote."""
    file = tmp_path / "reg.key"
    file.write_text(f'key "reg" {{\n\talgorithm hmac-sha256;\n\tsecret "{SECRET}";\n}};\n')
    with registration(key=file):
        assert records(bind, service)


def test_zone_given(bind, service, registration):
    """If a zone is given, it is used without asking."""
    with registration(zone="shop.test"):
        assert records(bind, service)


def test_reuse(bind, service, registration):
    """A registration may be entered again after it was left, but not twice at a time."""
    one = registration()
    for _ in range(2):
        with one:
            assert records(bind, service)
            with pytest.raises(RuntimeError, match="is already entered"):
                one.__enter__()
            assert records(bind, service)
        assert not records(bind, service)


def test_close_within_the_block(bind, service, registration):
    """`close` removes the record before the block ends, and may be called more than once."""
    with registration() as one:
        one.close()
        assert not records(bind, service)
        one.close()


def test_exception_passes_through(bind, service, registration):
    """An exception of the block is raised, and the record is removed."""
    with pytest.raises(ZeroDivisionError), registration():
        raise ZeroDivisionError
    assert not records(bind, service)


def test_exception_passes_through_though_dns_is_dead(registration, proxy, caplog):
    """An error of DNS at the end does not hide an exception of the block: it is logged."""
    proxy.hooks = [lambda forward: forward(), lambda _: None]
    with pytest.raises(ZeroDivisionError), registration(server=proxy.address):
        raise ZeroDivisionError
    (told,) = caplog.messages
    assert "may stay registered" in told
    assert "it closed the connection without an answer" in told


def test_repr(service, registration):
    """The repr shows the instance and the record."""
    assert repr(registration()) == f"<Registration 127.0.0.1:8080 as {service}.>"


# What others have


def test_records_of_others_stay(bind, service, registration):
    """Records of other instances of the service are not changed."""
    bind.update(
        f"update add {service}. 60 SRV 0 1 8080 a.{ZONE}",
        f"update add {service}. 60 SRV 7 9 8081 {made_up(service, '127-0-0-1')}",
        f"update add {service}. 60 SRV 0 0 0 .",
    )
    before = records(bind, service)
    with registration():
        assert len(records(bind, service)) == 4
    assert records(bind, service) == before


def test_shared_target_keeps_its_address(bind, service, registration):
    """The address of a target stays while another record of the service uses it."""
    target = made_up(service, "127-0-0-1")
    first, second = registration(port=1), registration(port=2)
    with first:
        with second:
            assert len(records(bind, service)) == 2
        assert records(bind, service) == {f"0 1 1 {target}"}
        assert records(bind, target, "A") == {"127.0.0.1"}
    assert records(bind, target, "A") == set()


def test_services_of_one_instance_are_apart(bind, service, registration):
    """An instance that is registered for two services leaves one without affecting the other."""
    other = f"_other{service}"
    for options in ({}, {"identity": "pod-0"}):
        with registration(**options):
            with registration(service=other, **options):
                assert len(records(bind, other)) == 1
            (record,) = records(bind, service)
            assert records(bind, record.split()[3], "A") == {"127.0.0.1"}


def test_identity_is_no_host(bind, registration):
    """A host of the zone with the same name as an identity keeps its address."""
    with registration("127.0.0.9", service="_probe2._tcp.shop.test", identity="a"):
        assert records(bind, f"a.{ZONE}", "A") == {"127.0.0.1"}
    assert records(bind, f"a.{ZONE}", "A") == {"127.0.0.1"}


def test_target_that_is_named_meanwhile_keeps_its_address(bind, service, registration, proxy):
    """If another record begins to use the target between our query and our update, that is noticed
    (RFC 2136, 2.4.2)."""
    target = made_up(service, "127-0-0-1")

    def race(forward):
        bind.update(f"update add {service}. 60 SRV 0 1 9 {target}")
        return forward()

    proxy.hooks = [lambda forward: forward(), lambda forward: forward(), race]
    with registration(server=proxy.address):
        pass
    assert records(bind, service) == {f"0 1 9 {target}"}
    assert records(bind, target, "A") == {"127.0.0.1"}


def test_others_come_and_go_meanwhile(bind, service, registration, proxy):
    """If others change the service at the same time, the records are only read again."""

    def race(forward):
        bind.update(f"update add {service}. 60 SRV 0 1 {proxy.updates} a.{ZONE}")
        return forward()

    proxy.hooks = [lambda forward: forward()] + [race] * 8
    with registration(server=proxy.address):
        pass
    assert f"0 1 8080 {made_up(service, '127-0-0-1')}" not in records(bind, service)
    assert records(bind, made_up(service, "127-0-0-1"), "A") == set()


def test_endless_changes_end(bind, service, registration, proxy, caplog):
    """If the addresses cannot be removed after some tries, the record is still removed, and a
    warning says so."""

    def race(forward):
        bind.update(f"update add {service}. 60 SRV 0 1 {proxy.updates} a.{ZONE}")
        return forward()

    proxy.hooks = [lambda forward: forward()] + [race] * 100
    with registration(server=proxy.address, timeout=60):
        pass
    assert "20 times in the meantime" in caplog.text
    assert f"0 1 8080 {made_up(service, '127-0-0-1')}" not in records(bind, service)


def test_many_come_and_go_at_once(bind, service, registration):
    """Thirty instances that register and leave at the same time leave nothing behind, without a
    warning."""
    many = [registration("127.0.0.1", 8000 + number) for number in range(15)]
    many += [registration(f"127.0.1.{number}") for number in range(15)]
    inside = threading.Barrier(31)

    def run(one):
        with one:
            inside.wait(30)
            inside.wait(30)

    threads = [threading.Thread(target=run, args=(one,)) for one in many]
    for thread in threads:
        thread.start()
    inside.wait(30)
    assert len(records(bind, service)) == 30
    inside.wait(30)
    for thread in threads:
        thread.join()
    assert records(bind, service) == set()
    assert records(bind, made_up(service, "127-0-0-1"), "A") == set()


# What a killed process left


def killed(one: Registration) -> None:
    """Act as if the process was killed: nothing is removed, and nothing follows."""
    one.__enter__()
    one._stay.renewal.stopped = True
    one._stay.sigterm_hook.remove()
    one._stay = None


def test_same_target_and_port_is_replaced(bind, service, registration):
    """A record that was left behind with the same target and port is replaced, whatever its weight
    and priority."""
    killed(registration(weight=3, priority=4))
    assert records(bind, service) == {f"4 3 8080 {made_up(service, '127-0-0-1')}"}
    with registration(weight=7):
        assert records(bind, service) == {f"0 7 8080 {made_up(service, '127-0-0-1')}"}
    assert records(bind, service) == set()


def test_identity_is_replaced_whatever_its_address(bind, service, registration):
    """All records under an identity are replaced, whatever their port and address."""
    killed(registration("127.0.0.1", 1, identity="Pod-0"))
    killed(registration("127.0.0.1", 1, identity="pod-1"))
    target = made_up(service, "pod-0")
    with registration("127.0.0.2", 2, identity="pod-0"):
        assert records(bind, service) == {f"0 1 2 {target}", f"0 1 1 {made_up(service, 'pod-1')}"}
        assert records(bind, target, "A") == {"127.0.0.2"}
    assert records(bind, service) == {f"0 1 1 {made_up(service, 'pod-1')}"}
    assert records(bind, target, "A") == set()


def test_identity_changes_its_family(bind, service, registration):
    """An identity that moves from IPv4 to IPv6 leaves no address behind."""
    target = made_up(service, "pod-0")
    killed(registration("127.0.0.1", identity="pod-0"))
    with registration("2001:db8::1", identity="pod-0"):
        assert records(bind, target, "A") == set()
        assert records(bind, target, "AAAA") == {"2001:db8::1"}


@pytest.mark.parametrize("port", [8080, 8081])
def test_successor_is_left_alone(bind, service, registration, port):
    """An identity that another process has taken over belongs to that process, even with the same
    port."""
    target = made_up(service, "pod-0")
    old = registration("127.0.0.1", identity="pod-0")
    with registration("127.0.0.2", port, identity="pod-0") as new:
        with old:
            new._stay.record.renew()
        assert records(bind, service) == {f"0 1 {port} {target}"}
        assert records(bind, target, "A") == {"127.0.0.2"}


def test_successor_that_comes_meanwhile_is_left_alone(bind, service, registration, proxy):
    """The same applies if it is taken over between our query and our update."""
    target = made_up(service, "pod-0")
    new = registration("127.0.0.2", identity="pod-0")

    def race(forward):
        new.__enter__()
        return forward()

    proxy.hooks = [lambda forward: forward(), race]
    with registration("127.0.0.1", identity="pod-0", server=proxy.address):
        pass
    assert records(bind, service) == {f"0 1 8080 {target}"}
    assert records(bind, target, "A") == {"127.0.0.2"}


def test_identity_whose_address_was_wiped_is_taken_out(bind, service, registration):
    """An identity whose address has been lost still removes its own record."""
    with registration(identity="pod-0"):
        bind.update(f"update delete {made_up(service, 'pod-0')} A")
    assert records(bind, service) == set()


def test_odd_addresses_of_others(bind, service, registration):
    """Every address that DNS may contain can be compared."""
    with registration(identity="pod-0"):
        bind.update(
            f"update add {made_up(service, 'pod-0')} 60 A 0.0.0.0",
            f"update add {made_up(service, 'pod-0')} 60 AAAA ::ffff:1.2.3.4",
            f"update add {made_up(service, 'pod-0')} 60 AAAA ::1.2.3.4",
        )
    assert records(bind, service) == set()


# Refusals


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"key": "reg:QUJD"}, r"NOTAUTH \(BADSIG\)"),
        ({"key": f"other:{SECRET}"}, r"NOTAUTH \(BADKEY\)"),
        ({"key": f"hmac-sha512:{KEY}"}, r"NOTAUTH \(BADKEY\)"),
        ({"key": None}, r"zone shop\.test\., without a key: REFUSED: it does not allow this"),
        ({"zone": "test"}, r"zone test\.: NOTAUTH: it is not authoritative"),
        ({"service": "_x._tcp.elsewhere.test"}, "REFUSED"),
        ({"service": "_alias._tcp.shop.test"}, "alias"),
        ({"host": "a.elsewhere.test", "addresses": ["10.0.0.1"]}, r"NOTZONE: a name is outside"),
    ],
)
def test_refusal_says_why(bind, registration, options, reason, caplog):
    """Entering fails with an error that says server and reason, and nothing is logged."""
    one = registration(**options)
    with pytest.raises(RegistrationError, match=reason) as caught:
        one.__enter__()
    assert isinstance(caught.value, LoadBalancingError)
    assert str(caught.value).startswith("127.0.0.1:8080 as _") or "elsewhere" in str(caught.value)
    assert f"server {bind.address}" in str(caught.value)
    assert not caplog.messages
    assert one._stay is None


def test_server_that_refuses_the_connection(registration, dead_port):
    """If nothing listens at the server's address, entering fails at once."""
    with pytest.raises(RegistrationError, match="it refused the connection"):
        registration(server=f"127.0.0.1:{dead_port}").__enter__()


def test_silent_server(registration, caplog):
    """With a server that never answers, entering takes at most `timeout`."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        one = registration(server=f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.05)
        with pytest.raises(RegistrationError, match="no answer in time"):
            one.__enter__()
    assert not caplog.messages


def test_no_time_left(bind, registration):
    """`timeout` covers all questions together."""
    clock = itertools.count(0, 3).__next__
    with pytest.raises(RegistrationError, match="no time was left"):
        registration(clock=clock).__enter__()
    assert bind


def test_garbage(registration):
    """The error says that an answer is invalid."""

    class Garbage(Proxy):
        def _answer(self, message):
            return message[:2] + b"\xff" * 40

    with (
        Garbage("127.0.0.1:53") as bad,
        pytest.raises(RegistrationError, match="its answer is invalid"),
    ):
        registration(server=bad.address).__enter__()


def test_lost_answer(bind, service, registration, proxy):
    """If only the answer to the update is lost, entering fails and leaves nothing behind."""

    def lose(forward):
        forward()

    proxy.hooks = [lose]
    with pytest.raises(RegistrationError, match="it closed the connection without an answer"):
        registration(server=proxy.address).__enter__()
    assert records(bind, service) == set()


@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.SERVFAIL])
def test_unsigned_answers_are_not_believed(registration, rcode):
    """With a key, an answer that is not signed is not accepted (RFC 8945, 5.3)."""

    class Stranger(Proxy):
        def _answer(self, message):
            key = key_of(KEY)
            query = dns.message.from_wire(message, {key.name: key})
            query.keyring = query.tsig = None
            answer = dns.message.make_response(query)
            answer.set_rcode(rcode)
            answer.flags |= dns.flags.AA
            return answer.to_wire()

    with (
        Stranger("127.0.0.1:53") as bad,
        pytest.raises(RegistrationError, match="its answer is not signed"),
    ):
        registration(server=bad.address).__enter__()


def test_answer_signed_with_another_key_is_not_believed(bind, proxy, service, registration):
    """An answer that was changed on the way is an error."""

    def change(forward):
        answer = bytearray(forward())
        answer[2] ^= 4  # the AA bit
        return bytes(answer)

    proxy.hooks = [change]
    with pytest.raises(RegistrationError, match="signature is wrong"):
        registration(server=proxy.address).__enter__()
    assert records(bind, service) == set()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0, "it is not authoritative for it"), (dns.flags.AA, "its answer does not name the zone")],
)
def test_server_that_is_not_the_primary(registration, flags, reason):
    """A server that is not authoritative for the zone, or does not name it, is sent no update."""

    class Hearsay(Proxy):
        def _answer(self, message):
            answer = dns.message.make_response(dns.message.from_wire(message))
            answer.flags |= flags
            return answer.to_wire()

    with Hearsay("127.0.0.1:53") as bad, pytest.raises(RegistrationError, match=reason):
        registration(server=bad.address, key=None).__enter__()
    assert bad.updates == 0


@pytest.mark.parametrize("options", [{}, {"zone": "shop.test"}])
def test_delegated_service(registration, options):
    """A name that the zone has delegated is not registered in it, since it would not be found."""
    with pytest.raises(RegistrationError, match="it is not authoritative for it"):
        registration(service="http+srv://delegated.shop.test", **options).__enter__()


# Renewal


def test_wiped_record_is_put_again(bind, service, registration):
    """A record that was deleted is added again by the next renewal, with its address."""
    target = made_up(service, "127-0-0-1")
    with registration(ttl=1) as one:
        put, renewed = one._stay.record.renew, threading.Event()

        def renew():
            put()
            renewed.set()

        one._stay.renewal._renew = renew
        bind.update(f"update delete {service}. SRV", f"update delete {target} A")
        renewed.clear()
        assert renewed.wait(10)
        assert records(bind, service) == {f"0 1 8080 {target}"}
        assert records(bind, target, "A") == {"127.0.0.1"}


def test_renewal_changes_nothing_that_is_there(bind, service, registration):
    """A renewal that changes nothing leaves the zone's serial unchanged, so nothing is
    transferred."""
    for options in ({}, {"identity": "pod-0"}):
        with registration(**options) as one:
            before = records(bind, ZONE, "SOA")
            one._stay.record.renew()
            assert records(bind, ZONE, "SOA") == before
            assert records(bind, service)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_renewal_times():
    """Renewals are about every `interval`, ±10 %; after failures they follow after 1 s, doubled up
    to 30 s."""
    clock, failing = Clock(), False

    def renew():
        if failing:
            raise UpdateError("no")

    one = Renewal(renew, "x", 60, clock=clock, rng=random.Random(1))

    def pauses(count):
        for _ in range(count):
            clock.now = one.next_at
            assert one.claim()
            one.run()
            yield one.next_at - clock.now

    regular = list(pauses(50))
    assert min(regular) >= 54
    assert max(regular) <= 66
    assert max(regular) - min(regular) > 6
    failing = True
    for pause, wanted in zip(pauses(8), [1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert 0.9 * wanted <= pause <= 1.1 * wanted
    failing = False
    assert next(pauses(1)) >= 54
    failing = True
    assert next(pauses(1)) <= 1.1


@pytest.mark.parametrize(("interval", "most"), [(3, 3), (0.3, 1)])
def test_failed_renewals_of_a_lease(interval, most):
    """After a failure the next renewal follows within the usual time, since a lease would end, but
    not sooner than after a second."""
    clock = Clock()
    one = Renewal(lambda: 1 // 0, "x", interval, clock=clock, rng=random.Random(1))
    for _ in range(6):
        clock.now = one.next_at
        assert one.claim()
        one.run()
        assert 0.9 <= one.next_at - clock.now <= most
    assert one.next_at - clock.now == most


def test_renewal_logs_what_is_new(caplog):
    """The first of several equal failures is logged, and the success after them; nothing else
    is."""
    caplog.set_level(logging.INFO)
    clock, failures = Clock(), iter(["a", "a", "b", "", "", "a"])

    def renew():
        if failure := next(failures):
            raise UpdateError(failure)

    one = Renewal(renew, "x", 60, clock=clock, rng=random.Random(1))
    for _ in range(6):
        clock.now = one.next_at
        assert one.claim()
        one.run()
    assert caplog.messages == [
        "x could not be registered again: a",
        "x could not be registered again: b",
        "x is registered again",
        "x could not be registered again: a",
    ]


def test_renewal_survives_any_error(caplog):
    """An unexpected exception of a renewal does not prevent the next one."""
    clock = Clock()
    one = Renewal(lambda: 1 // 0, "x", 60, clock=clock, rng=random.Random(1))
    clock.now = one.next_at
    assert one.claim()
    assert not one.claim()
    one.run()
    assert one.next_at > clock.now
    assert not one.busy
    assert caplog.messages


def test_renewal_under_way_is_not_the_last_word(bind, service, registration, proxy):
    """A renewal that was about to add the record when the block was left does not add it again."""
    hold, reached, proceed = holding()

    proxy.hooks = [lambda forward: forward(), hold]
    one = registration(server=proxy.address)
    with one:
        renewing = threading.Thread(target=one._stay.record.renew)
        renewing.start()
        assert reached.wait(10)
        leaving = threading.Thread(target=one.close)
        leaving.start()
        proceed.set()
        leaving.join()
        renewing.join()
    assert records(bind, service) == set()


def test_late_renewal_does_nothing(bind, service, registration):
    """A renewal that begins after the block was left does nothing."""
    with registration() as one:
        presence = one._stay.record
    presence.renew()
    assert records(bind, service) == set()


def test_stuck_change_does_not_hold_up_the_exit(bind, service, registration, caplog):
    """Leaving waits for a change under way, but only for a limited time."""
    with registration() as one:
        presence = one._stay.record
        presence._timeout = 0.01
        presence._lock.acquire()
    assert "an earlier change has not ended" in caplog.text
    presence._lock.release()
    presence._timeout = 5
    presence.leave()
    assert records(bind, service) == set()


def test_dropped_registration_is_not_renewed(registration, bind, service):
    """A registration without references is collected, and no longer renewed."""
    one = Registration(service, Instance("127.0.0.1", 1), server=bind.address, key=KEY, ttl=1)
    one.__enter__()
    renewal = weakref.ref(one._stay.renewal)
    del one
    gc.collect()
    assert renewal() is None
    with registration(port=1):
        pass
    assert records(bind, service) == set()


def test_renewal_ends_with_the_stay(registration):
    """After leaving, no round is claimed, however late it is."""
    clock = Clock()
    with registration(clock=clock) as one:
        renewal = one._stay.renewal
        clock.now = renewal.next_at
        assert renewal.claim()
        renewal.run()
    clock.now = renewal.next_at
    assert renewal.stopped
    assert not renewal.claim()


# SIGTERM


def test_sigterm_leaves_then_does_what_was_before(bind, service, registration, sigterm):
    """The record is removed before the previous handler runs; the end of the block restores that
    handler."""
    before = signal.getsignal(signal.SIGTERM)
    with registration():
        terminate()
        assert sigterm == ["first"]
        assert records(bind, service) == set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_handler_that_exits(bind, service, registration):
    """A handler that raises SystemExit ends the block, and the record is removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    try:
        with pytest.raises(SystemExit), registration():
            terminate()
        assert records(bind, service) == set()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_registrations_end_in_any_order(bind, service, registration, sigterm, order):
    """Each registration that is left is removed from the chain, in any order, and the last one
    restores the first handler."""
    before = signal.getsignal(signal.SIGTERM)
    several = [registration(port=port) for port in (1, 2, 3)]
    for one in several:
        one.__enter__()
    for number in order[:2]:
        several[number].close()
    assert len(records(bind, service)) == 1
    terminate()
    assert sigterm == ["first"]
    assert records(bind, service) == set()
    several[order[2]].close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_all_leave_on_sigterm(bind, service, registration, sigterm):
    """One signal removes all records, and the previous handler runs once."""
    with registration(port=1), registration(port=2), registration(port=3):
        terminate()
        assert records(bind, service) == set()
        assert sigterm == ["first"]


def test_handler_in_between(bind, service, registration, sigterm):
    """A handler of the user's that was set between two registrations, and calls the previous one,
    is called once."""
    first, second = registration(port=1), registration(port=2)
    with first:
        inner = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *what: (sigterm.append("between"), inner(*what)))
        between = signal.getsignal(signal.SIGTERM)
        with second:
            terminate()
            assert sigterm == ["between", "first"]
            assert records(bind, service) == set()
        assert signal.getsignal(signal.SIGTERM) is between
    assert signal.getsignal(signal.SIGTERM) is between
    terminate()
    assert sigterm == ["between", "first"] * 2


def test_handler_that_came_later_stays(registration, sigterm):
    """A handler that has replaced ours is not removed at the end."""
    with registration():
        later = signal.signal(signal.SIGTERM, lambda *_: sigterm.append("later"))
        later = signal.getsignal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is later


def test_again_and_again(bind, service, registration, sigterm):
    """Entering repeatedly does not make the chain longer."""
    one, other = registration(port=1), registration(port=2)
    before = signal.getsignal(signal.SIGTERM)
    one.__enter__()
    for _ in range(3):
        other.__enter__()
        one.close()
        one.__enter__()
        other.close()
    assert signal.getsignal(signal.SIGTERM)._previous is before
    terminate()
    assert sigterm == ["first"]
    one.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert records(bind, service) == set()


def test_ignored_sigterm_stays_ignored(bind, service, registration):
    """If SIGTERM is ignored it stays ignored, and nothing is removed."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with registration():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            terminate()
            assert records(bind, service)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handler_that_python_did_not_make_stays(registration, monkeypatch, sigterm):
    """A handler in C code cannot be chained, and is not changed."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(signal, "getsignal", lambda _: None)
        one = registration().__enter__()
    assert signal.getsignal(signal.SIGTERM) is before
    one.close()
    assert not sigterm


def test_off_the_main_thread(bind, service, registration, sigterm):
    """A registration that is entered on another thread handles no signal; everything else works."""
    before = signal.getsignal(signal.SIGTERM)

    def run():
        with registration():
            assert records(bind, service)
            assert signal.getsignal(signal.SIGTERM) is before
        assert not records(bind, service)
        done.append(True)

    done = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done
    assert not sigterm


def test_left_on_another_thread(bind, service, registration, sigterm):
    """A registration that is entered on the main thread and left on another only passes signals
    on."""
    one = registration().__enter__()
    thread = threading.Thread(target=one.close)
    thread.start()
    thread.join()
    terminate()
    assert sigterm == ["first"]
    assert records(bind, service) == set()
    with registration(port=9):
        terminate()
    assert sigterm == ["first", "first"]


def test_dropped_registration_passes_on(registration, bind, service, sigterm):
    """The handler does not keep an unreferenced registration alive, and still passes signals on."""
    one = Registration(service, Instance("127.0.0.1", 1), server=bind.address, key=KEY)
    one.__enter__()
    presence = weakref.ref(one._stay.record)
    del one
    gc.collect()
    assert presence() is None
    terminate()
    assert sigterm == ["first"]
    with registration(port=1):
        pass


def _signalling(forward):
    terminate()
    return forward()


@pytest.mark.parametrize("when", ["before", "after"])
def test_sigterm_while_entering(bind, service, registration, proxy, sigterm, when):
    """A signal during the update is handled after it, and nothing is left behind."""

    def hook(forward):
        if when == "before":
            return _signalling(forward)
        answer = forward()
        terminate()
        return answer

    proxy.hooks = [hook]
    with registration(server=proxy.address):
        assert sigterm == ["first"]
        assert records(bind, service) == set()
    assert records(bind, service) == set()


def test_sigterm_that_exits_while_entering(bind, service, registration, proxy):
    """The same applies if the previous handler raises."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    try:
        proxy.hooks = [_signalling]
        one = registration(server=proxy.address)
        with pytest.raises(SystemExit):
            one.__enter__()
        assert records(bind, service) == set()
        assert one._stay is None
        proxy.hooks = [lambda forward: forward(), _signalling]
        with pytest.raises(SystemExit), one:
            pass
        assert records(bind, service) == set()
    finally:
        assert signal.signal(signal.SIGTERM, before) is not before


def test_sigterm_while_leaving(bind, service, registration, proxy, sigterm):
    """A signal while the record is being removed does not disturb this, and is passed on once."""
    proxy.hooks = [lambda forward: forward(), _signalling]
    with registration(server=proxy.address):
        pass
    assert sigterm == ["first"]
    assert records(bind, service) == set()
    assert records(bind, made_up(service, "127-0-0-1"), "A") == set()


def test_second_sigterm_while_handling_the_first(bind, service, registration, proxy, sigterm):
    """Further signals while the record is being removed change nothing."""
    proxy.hooks = [lambda forward: forward(), _signalling]
    with registration(server=proxy.address):
        terminate()
        assert sigterm == ["first"]
        assert records(bind, service) == set()
    assert sigterm == ["first"]


def test_sigterm_while_another_thread_enters(bind, service, registration, proxy, sigterm):
    """A signal during an update on another thread waits for it, and removes the record."""
    one = registration(server=proxy.address)

    def hold(forward):
        presence = one._stay.record
        terminate()
        while presence._wanted:
            pass
        return forward()

    async def main():
        async with one:
            assert sigterm == ["first"]
            assert records(bind, service) == set()

    proxy.hooks = [hold]
    asyncio.run(main())
    assert sigterm == ["first"]
    assert records(bind, service) == set()


def test_sigterm_while_a_log_is_written(bind, service, registration, proxy, sigterm):
    """A log handler that holds a lock which is not re-entrant cannot block the signal."""
    lock = threading.Lock()

    class Locking(logging.Handler):
        def emit(self, _):
            with lock:
                pass

    handler = Locking()
    logger = logging.getLogger("lbclient")
    logger.addHandler(handler)
    try:
        proxy.hooks = [lambda forward: forward(), lambda _: None]
        with registration(server=proxy.address) as one:
            one._stay.sigterm_hook._patience = 1
            with lock:  # as if the main thread were in the middle of writing
                terminate()
            assert sigterm == ["first"]
    finally:
        logger.removeHandler(handler)
    assert records(bind, service) == set()


# Processes


def test_processes(bind, service):
    """Three processes register and are found. One is killed: its record stays, and is replaced when
    it starts again. One ends by SIGTERM as it would without us, and its record is removed."""
    url = f"http+srv://{service}"

    def start(host):
        return Service(service, host, 8080, bind.address, KEY)

    with (
        Balancer(url, nameservers=bind.address, allow=["127.0.0.0/8"]) as balancer,
        start("127.0.0.1") as first,
        start("127.0.0.2") as second,
        start("127.0.0.3") as third,
    ):

        def found():
            balancer.refresh()
            return sorted(one.addresses[0] for one in balancer.instances())

        for one in (first, second, third):
            one.registered()
        assert found() == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        first.process.kill()
        assert first.process.wait(10) == -signal.SIGKILL
        assert found() == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        second.process.terminate()
        assert second.process.wait(20) == -signal.SIGTERM
        assert found() == ["127.0.0.1", "127.0.0.3"]
        with start("127.0.0.1") as again:
            again.registered()
            assert found() == ["127.0.0.1", "127.0.0.3"]
            assert len(records(bind, service)) == 2
            again.process.stdin.close()
            assert again.process.wait(20) == 0
        assert found() == ["127.0.0.3"]


def test_killed_process_comes_back_elsewhere(bind, service):
    """With an identity, the record is replaced even if address and port are new."""
    with Service(service, "127.0.0.1", 1, bind.address, KEY, "pod-0") as one:
        one.registered()
    with Service(service, "127.0.0.2", 2, bind.address, KEY, "pod-0") as one:
        one.registered()
        assert records(bind, service) == {f"0 1 2 {made_up(service, 'pod-0')}"}
        one.process.terminate()
        assert one.process.wait(20) == -signal.SIGTERM
    assert records(bind, service) == set()


def script(bind: Bind, service: str, body: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, after `one` was made.

    Its output is unbuffered: `os._exit` drops what is in a buffer.
    """
    begin = f"""
import asyncio, os, signal, sys, threading, warnings
from lbclient import Instance
from lbclient.discovery.registration import Registration
warnings.simplefilter("ignore")
one = Registration({service!r}, Instance("127.0.0.1", 80), server={bind.address!r}, key={KEY!r})
"""
    command = [sys.executable, "-u", "-c", begin + body]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_sigterm_on_an_event_loop(bind, service):
    """A process that waits on an event loop ends by SIGTERM, and its record is removed."""
    body = """
async def main():
    async with one:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    assert script(bind, service, body).returncode == -signal.SIGTERM
    assert records(bind, service) == set()


def test_loop_that_handles_sigterm_itself(bind, service):
    """A handler that asyncio has set before still runs on its loop."""
    body = """
async def main():
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    async with one:
        os.kill(os.getpid(), signal.SIGTERM)
        await done.wait()
    print("graceful")
asyncio.run(main())
"""
    ended = script(bind, service, body)
    assert (ended.returncode, ended.stdout) == (0, "graceful\n")
    assert records(bind, service) == set()


def test_end_without_leaving_does_not_hang(bind, service):
    """A process that ends without leaving ends normally; its record stays."""
    ended = script(bind, service, "one.__enter__()\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(records(bind, service)) == 1


def test_child_leaves_the_parents_record(bind, service):
    """A forked child removes the record neither at its end nor on SIGTERM, which ends it; the
    parent's registration continues."""
    body = """
with one:
    for way in ("exit", "signal"):
        child = os.fork()
        if not child:
            if way == "exit":
                break
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        print(way, os.waitpid(child, 0)[1])
    else:
        assert one._stay is not None
        assert not one._stay.renewal.stopped
        os._exit(0)
assert one._stay is None
os._exit(0)
"""
    ended = script(bind, service, body)
    assert (ended.stderr, ended.stdout) == ("", f"exit 0\nsignal {int(signal.SIGTERM)}\n")
    assert len(records(bind, service)) == 1


def test_child_may_register_itself(bind, service):
    """A registration that was made in the parent may be entered in a child, and then belongs to
    it."""
    body = """
with one:
    child = os.fork()
    if not child:
        with one:
            assert one._stay.renewal is not None
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    print(os.waitpid(child, 0)[1])
"""
    ended = script(bind, service, body)
    assert (ended.stderr, ended.stdout) == ("", f"{int(signal.SIGTERM)}\n")
    assert records(bind, service) == set()


def test_child_forked_during_a_change(bind, service):
    """A lock that a thread of the parent holds at the fork does not block the child."""
    body = """
with one:
    lock = one._stay.record._lock
    lock.acquire()
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    print(os.waitpid(child, 0)[1])
    lock.release()
"""
    ended = script(bind, service, body)
    assert (ended.stderr, ended.stdout) == ("", f"{int(signal.SIGTERM)}\n")
    assert records(bind, service) == set()


# Event loops


@pytest.mark.anyio
async def test_async(bind, service, registration):
    """`async with` works like `with`."""
    one = registration()
    for _ in range(2):
        async with one:
            assert records(bind, service)
        assert not records(bind, service)
    async with one:
        await one.aclose()
        assert not records(bind, service)
        await one.aclose()


@pytest.mark.anyio
async def test_async_does_not_block_the_loop(bind, service, registration, proxy):
    """During an update, on entering and on leaving, the event loop continues: here each waits for
    it."""
    loop = anyio.lowlevel.current_token()

    def hold(forward):
        anyio.from_thread.run_sync(int, token=loop)
        return forward()

    proxy.hooks = [hold, hold, hold]
    async with registration(server=proxy.address):
        assert records(bind, service)
    assert not records(bind, service)
    assert not proxy.hooks


@pytest.mark.anyio
async def test_async_refusal(registration):
    """With `async with`, entering raises the same error."""
    with pytest.raises(RegistrationError, match="BADSIG"):
        async with registration(key="reg:QUJD"):
            pass


@pytest.mark.anyio
async def test_threads_that_are_all_busy(bind, service, registration):
    """Entering does not wait for other users of threads."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    taken = [object() for _ in range(int(limiter.total_tokens))]
    for one in taken:
        limiter.acquire_on_behalf_of_nowait(one)
    try:
        async with registration():
            assert records(bind, service)
        assert not records(bind, service)
    finally:
        for one in taken:
            limiter.release_on_behalf_of(one)


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "during", "inside"])
async def test_cancelled(bind, service, registration, proxy, when, sigterm):
    """If it is cancelled at any time, nothing is left behind, and the previous handler is
    restored."""
    before = signal.getsignal(signal.SIGTERM)
    with anyio.CancelScope() as scope:
        loop = anyio.lowlevel.current_token()

        def cancel(forward):
            anyio.from_thread.run_sync(scope.cancel, token=loop)
            return forward()

        if when == "before":
            scope.cancel()
        if when == "during":
            proxy.hooks = [cancel]
        async with registration(server=proxy.address):
            if when == "inside":
                scope.cancel()
            await anyio.sleep(60)
    assert scope.cancelled_caught
    assert records(bind, service) == set()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not sigterm


@pytest.mark.parametrize("times", [1, 2, 3])
def test_asyncio_task_cancelled_while_entering(bind, service, registration, proxy, times):
    """If asyncio's cancel() interrupts it, which no scope can delay, even repeatedly, nothing is
    left behind."""
    hold, reached, proceed = holding()

    async def enter():
        async with registration(server=proxy.address):
            await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(enter())
        await asyncio.to_thread(reached.wait, 10)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        proceed.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    proxy.hooks = [hold]
    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "lbclient-leaving" or "AnyIO" in thread.name:
            thread.join(10)
    assert records(bind, service) == set()


@pytest.mark.parametrize("times", [1, 2])
def test_asyncio_task_cancelled_while_leaving(bind, service, registration, proxy, times):
    """If asyncio's cancel() interrupts leaving, the record is removed."""
    hold, reached, proceed = holding()

    async def enter():
        async with registration(server=proxy.address):
            pass

    async def main():
        task = asyncio.create_task(enter())
        await asyncio.to_thread(reached.wait, 10)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        proceed.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    proxy.hooks = [lambda forward: forward(), hold]
    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "lbclient-leaving" or "AnyIO" in thread.name:
            thread.join(10)
    assert records(bind, service) == set()


def test_interrupted_while_entering(bind, service, registration, proxy):
    """Ctrl-C in the middle of the update leaves nothing behind."""
    interrupted = threading.Event()

    def interrupt(forward):
        answer = forward()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(10)
        return answer

    proxy.hooks = [interrupt]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            registration(server=proxy.address).__enter__()
    finally:
        interrupted.set()
        signal.signal(signal.SIGINT, before)
    assert records(bind, service) == set()


# Another registry than DNS


class Registry:
    """What `via=` may be in these tests: a registry in memory. `hooks` run before each change."""

    def __init__(self):
        self.instances: list[Instance] = []
        self.registrars: list[InMemory] = []
        self.hooks: list = []


class InMemory:
    interval = 3600.0

    def __init__(self, registry, options):
        if options.instance.path:
            raise ValueError("instance must not have path")
        self._registry, self._instance = registry, options.instance
        self.puts: list[float] = []
        registry.registrars.append(self)

    def put(self, seconds):
        self._registry.hooks and self._registry.hooks.pop(0)()
        self.puts.append(seconds)
        self._registry.instances = [self._instance]

    def remove(self, _seconds):
        self._registry.hooks and self._registry.hooks.pop(0)()
        self._registry.instances.remove(self._instance)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setitem(REGISTRARS, Registry, InMemory)
    return Registry()


def test_via(registry):
    """`via` names another registry than DNS. Each block has a registrar of its own, which gets the
    seconds for each change."""
    one = Registration("orders", Instance("127.0.0.1", 80), via=registry, timeout=3)
    assert repr(one) == "<Registration 127.0.0.1:80 as orders>"
    for _ in range(2):
        with one:
            assert registry.instances == [Instance("127.0.0.1", 80)]
            assert registry.registrars[-1].puts == [3]
        assert registry.instances == []
    checked, first, second = registry.registrars
    assert not checked.puts
    assert first is not second


def test_registrar_sets_the_pace(registry, monkeypatch):
    """The time between renewals is the registrar's, and not the TTL."""
    monkeypatch.setattr(InMemory, "interval", 0.05)
    renewed = threading.Event()
    with Registration("orders", Instance("127.0.0.1", 80), via=registry, ttl=3600):
        registry.hooks = [renewed.set]
        assert renewed.wait(10)


def fail(text, **options):
    def run():
        raise UpdateError(text, **options)

    return run


@pytest.mark.parametrize(("undecided", "left"), [(False, []), (True, ["remove"])])
def test_registry_that_refuses(registry, undecided, left):
    """An error of the registry is a RegistrationError. If the instance may be registered
    nevertheless, it is removed."""
    seen = []
    registry.hooks = [fail("no leader", undecided=undecided), lambda: seen.append("remove")]
    registry.instances = [Instance("127.0.0.1", 80)]
    one = Registration("orders", Instance("127.0.0.1", 80), via=registry)
    with pytest.raises(
        RegistrationError, match=r"^127\.0\.0\.1:80 as orders could not be reg.*no le"
    ):
        one.__enter__()
    assert seen == left


def test_registry_that_is_gone_at_the_end(registry, caplog):
    """If the instance cannot be removed, a warning is logged and nothing is raised."""
    with Registration("orders", Instance("127.0.0.1", 80), via=registry):
        registry.hooks = [fail("gone")] * 2
    assert "127.0.0.1:80 as orders may stay registered: gone" in caplog.messages


def test_sigterm_via(registry, sigterm):
    """SIGTERM removes the instance from any registry, before the previous handler runs."""
    with Registration("orders", Instance("127.0.0.1", 80), via=registry):
        terminate()
        assert sigterm == ["first"]
        assert registry.instances == []


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"server": "127.0.0.1"}, ValueError, "server"),
        ({"key": KEY}, ValueError, "key"),
        ({"zone": "shop.test"}, ValueError, "zone"),
        ({"via": "http+etcd://u:hunter2@h/x"}, TypeError, "via"),
        ({"via": Registry}, TypeError, "via"),
        ({"service": 5}, TypeError, "service"),
        ({"service": ""}, ValueError, "service"),
        ({"service": "a\nb"}, ValueError, "service"),
        ({"instance": "127.0.0.1:80"}, TypeError, "instance"),
        ({"instance": Instance("127.0.0.1", 80, path="/v1")}, ValueError, "instance"),
        ({"ttl": 0}, ValueError, "ttl"),
    ],
)
def test_bad_arguments_via(registry, options, error, name):
    """K1: with `via`, an invalid argument, or one that is for DNS alone, is refused at construction
    by an error that names it."""
    given = {"service": "orders", "instance": Instance("127.0.0.1", 80), "via": registry, **options}
    with pytest.raises(error, match=rf"^{name}\b") as caught:
        Registration(given.pop("service"), given.pop("instance"), **given)
    assert "hunter2" not in str(caught.value)


# What a user may pass


@pytest.mark.parametrize("field", [{"path": "/v1"}, {"headers": {"a": "b"}}, {"tls_name": "a.b"}])
def test_an_instance_with_what_no_record_can_have(service, field):
    """An instance is refused if it has a base path, headers or a TLS name, since no client would
    learn them."""
    (name,) = field
    with pytest.raises(ValueError, match=f"^instance must not have {name}, since an SRV record"):
        Registration(service, Instance("127.0.0.1", 80, **field), server="127.0.0.1")


@pytest.mark.parametrize(
    ("service", "error"),
    [
        (5, TypeError),
        (b"_a._tcp.shop.test", TypeError),
        (None, TypeError),
        (["http://a.test"], TypeError),
        ("", ValueError),
        ("shop.test", ValueError),
        ("http://shop.test", ValueError),
        ("http+dns://shop.test", ValueError),
        ("ftp+srv://shop.test", ValueError),
        ("://", ValueError),
        ("http+srv://", ValueError),
        ("http+srv://10.0.0.1", ValueError),
        ("http+srv://shop.test:80", ValueError),
        ("http+srv://u:hunter2@shop.test", ValueError),
        ("http+srv://u:hunter2@shop.test://x", ValueError),
        ("ftp://u:hunter2@shop.test", ValueError),
        ("_a._tcp.shop.test/x", ValueError),
        ("_a._tcp.shop.test:80", ValueError),
        ("_a:hunter2@shop.test", ValueError),
        ("_a._tcp", ValueError),
        ("_a._tcp.shop test", ValueError),
        ("_a._tcp.shop.test\n", ValueError),
        ("_a._tcp." + "x" * 300, ValueError),
        ("_a._tcp." + ".".join(["x" * 60] * 4), ValueError),
    ],
)
def test_bad_service(service, error):
    """K1: an invalid service is refused at construction by an error that names the argument."""
    with pytest.raises(error, match=r"^service ") as caught:
        Registration(service, Instance("10.0.0.1", 80), server="127.0.0.1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("instance", "error"),
    [
        ("10.0.0.1:80", TypeError),
        (None, TypeError),
        (Instance("10.0.0.1", 80, weight=1.5), ValueError),
        (Instance("10.0.0.1", 80, weight=65536), ValueError),
        (Instance("10.0.0.1", 80, priority=65536), ValueError),
        (Instance("0.0.0.0", 80), ValueError),
        (Instance("::", 80), ValueError),
        (Instance("::ffff:0.0.0.0", 80), ValueError),
        (Instance("fe80::1%eth0", 80), ValueError),
        (Instance("a.shop.test", 80, addresses=["0.0.0.0"]), ValueError),
        (Instance("localhost", 80), ValueError),
    ],
)
def test_bad_instance(instance, error):
    """A value that no SRV or address record can have, or an address that no client can reach, is
    refused."""
    with pytest.raises(error, match=r"^instance"):
        Registration("_a._tcp.shop.test", instance, server="127.0.0.1")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"server": "localhost"}, ValueError),
        ({"server": ""}, ValueError),
        ({"server": "tls://127.0.0.1"}, ValueError),
        ({"server": "127.0.0.1:0"}, ValueError),
        ({"server": ["127.0.0.1"]}, TypeError),
        ({"server": None}, TypeError),
        ({"zone": ""}, ValueError),
        ({"zone": "other.test"}, ValueError),
        ({"zone": "op.test"}, ValueError),
        ({"zone": 5}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"ttl": 2**31}, ValueError),
        ({"ttl": 1.5}, TypeError),
        ({"ttl": True}, TypeError),
        ({"identity": ""}, ValueError),
        ({"identity": "a.b"}, ValueError),
        ({"identity": "a_b"}, ValueError),
        ({"identity": "-a"}, ValueError),
        ({"identity": "a\n"}, ValueError),
        ({"identity": "x" * 63}, ValueError),
        ({"identity": 5}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": math.inf}, ValueError),
        ({"timeout": None}, TypeError),
        ({"clock": 5}, TypeError),
        ({"rng": 5}, TypeError),
    ],
)
def test_bad_option(options, error):
    """K1: an invalid argument is refused at construction by an error that names it."""
    (name,) = options
    with pytest.raises(error, match=rf"^{name}\b"):
        Registration(
            "_a._tcp.shop.test", Instance("10.0.0.1", 80), **{"server": "127.0.0.1", **options}
        )


def test_identity_beside_a_name():
    """A host that is a name is not given a generated one."""
    with pytest.raises(ValueError, match=r"^identity is for an instance whose host is an address"):
        Registration(
            "_a._tcp.shop.test", Instance("a.shop.test", 80), server="127.0.0.1", identity="pod-0"
        )


def test_longest_label_fits():
    """The generated name for an IPv6 address fits a label, even with the longest service name of
    RFC 6335."""
    Registration("_fifteen-letters._tcp.shop.test", Instance("2001:db8::1", 80), server="127.0.0.1")


# Keys


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (KEY, "hmac-sha256."),
        (f"hmac-sha512:{KEY}", "hmac-sha512."),
        (f"HMAC-SHA1:{KEY}", "hmac-sha1."),
        (f"hmac-md5:{KEY}", "HMAC-MD5.SIG-ALG.REG.INT."),
    ],
)
def test_key_as_nsupdate_has_it(text, algorithm):
    """`[algorithm:]name:secret`."""
    key = key_of(text)
    assert (str(key.name), str(key.algorithm)) == ("reg.", algorithm)
    assert base64.b64encode(key.secret).decode() == SECRET
    assert key_of(None) is None


@pytest.mark.parametrize(
    "text",
    [
        f'key reg {{ secret "{SECRET}"; algorithm "hmac-sha256"; }};',
        f'key "reg" {{ algorithm hmac-sha256; secret {SECRET}; }};',
        f'# why\nkey "reg" {{ // what\n algorithm hmac-sha256; /* ; }} */ secret "{SECRET}"; }} ;',
    ],
)
def test_key_file_as_named_reads_it(tmp_path, text):
    """Order, quotes and comments are as named.conf allows them; `//` within a string is not a
    comment."""
    (tmp_path / "key").write_text(text)
    assert base64.b64encode(key_of(tmp_path / "key").secret).decode() == SECRET
    double = "QUJD//8="
    (tmp_path / "key").write_text(f'key r {{ algorithm hmac-sha256; secret "{double}"; }};')
    assert base64.b64encode(key_of(tmp_path / "key").secret).decode() == double


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", ValueError),
        (SECRET, ValueError),
        ("/etc/reg.key", ValueError),
        (f"{SECRET}:reg", ValueError),
        (f"reg:{SECRET[:-2]}", ValueError),
        ("reg:", ValueError),
        (f":{SECRET}", ValueError),
        (f"hmac-none:{KEY}", ValueError),
        (f"gss-tsig:{KEY}", ValueError),
        (f"a:b:{KEY}", ValueError),
        (f"re g:{SECRET}", ValueError),
        (f"reg:{SECRET}\n", ValueError),
        (f"rég:{SECRET}é", ValueError),
        (("reg", SECRET), TypeError),
        (KEY.encode(), TypeError),
        (5, TypeError),
    ],
)
def test_bad_key(key, error):
    """An invalid key is refused, and no part of it is shown, since it may be the secret."""
    with pytest.raises(error, match=r"^key must") as caught:
        Registration("_a._tcp.shop.test", Instance("10.0.0.1", 80), server="127.0.0.1", key=key)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET[:20] not in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key",
        f'key "reg" {{ secret "{SECRET}"; }};',
        f'key "reg" {{ algorithm hmac-sha256; secret "{SECRET}"; }}',
        f'key "reg" {{ algorithm hmac-sha256; secret "{SECRET}" }};',
        f'key "reg" {{ algorithm hmac-none; secret "{SECRET}"; }};',
        f'key "reg" {{ algorithm hmac-sha256; secret "{SECRET}"; }};' * 2,
    ],
)
def test_bad_key_file(tmp_path, text):
    """A file without exactly one key is refused, and its content is not shown."""
    (tmp_path / "key").write_text(text)
    with pytest.raises(ValueError, match=r"^key must") as caught:
        key_of(tmp_path / "key")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_key_file_that_cannot_be_read(tmp_path):
    """The error says why a file cannot be read."""
    with pytest.raises(ValueError, match="No such file"):
        key_of(tmp_path / "none")
    with pytest.raises(ValueError, match="Is a directory"):
        key_of(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="it is not text"):
        key_of(Path(tmp_path / "binary"))


def test_secret_is_not_shown(registration, proxy, caplog):
    """S5: neither repr, nor error, nor a traceback with its variables, nor a log shows the
    secret."""
    caplog.set_level(logging.DEBUG)
    one = registration(server=proxy.address, key=f"wrong:{SECRET}")
    try:
        one.__enter__()
    except RegistrationError as error:
        shown = io.StringIO()
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown.write("".join(told.format()))
    proxy.hooks = [lambda _: None] * 4
    with contextlib.suppress(RegistrationError):
        registration(server=proxy.address).__enter__()
    text = shown.getvalue() + repr(one) + repr(key_of(KEY)) + str(vars(one)) + caplog.text
    assert SECRET not in text
    assert repr(base64.b64decode(SECRET)) not in text
    assert isinstance(key_of(KEY), Tsig)
