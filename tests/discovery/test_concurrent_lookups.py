"""Concurrent DNS questions: one that is never answered does not delay the others."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
import subprocess
import sys
import threading
import time

import dns.message
import dns.rrset
import pytest

from lbclient import Balancer, DeadlineExceeded, FirstOf, Union
from lbclient.discovery import scheduler
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import AddressResolver
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from tests.support.dns import Liar, empty, servfail, silence
from tests.support.secure_dns import Certificates, peer

NAME = "_http._tcp.shop.test"
SRV, ADDRESSES = "http+srv://shop.test", "http+dns://shop.test:80"
LOOPBACK = ["127.0.0.0/8", "::1/128"]
NOOP_SPAN, SILENT_TARGET = 2.4, 4.9
"""Seconds that a question without an answer takes at the least: of a name, of an SRV target."""


@pytest.fixture
def liar():
    with Liar() as one:
        one.put("shop.test", "A", "127.0.0.1")
        one.put("shop.test", "AAAA", "::1")
        yield one


@pytest.fixture
def balancers():
    """Make balancers that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(service, nameserver, **options) -> Balancer:
            made = Balancer(service, nameservers=[nameserver], allow=LOOPBACK, **options)
            return stack.enter_context(contextlib.closing(made))

        yield make


def targets(liar: Liar, count: int) -> list[str]:
    """Put an SRV record set with this many targets, each with addresses; return the targets'
    names."""
    names = [f"t{place}.test" for place in range(count)]
    liar.put(NAME, "SRV", *(f"0 0 80 {name}." for name in names))
    for name in names:
        liar.put(name, "A", "127.0.0.1")
        liar.put(name, "AAAA", "::1")
    return names


def hosts(balancer: Balancer) -> list[str]:
    return sorted(one.host for one in balancer.instances())


def asking() -> set[threading.Thread]:
    """The threads that ask questions."""
    return {one for one in threading.enumerate() if one.name == "lbclient-question"}


def end(threads: set[threading.Thread]) -> None:
    for one in threads:
        one.join(5)
        assert not one.is_alive()


@contextlib.contextmanager
def taking_less_than(seconds: float):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# The first answer


@pytest.mark.parametrize(("silent", "host"), [("AAAA", "127.0.0.1"), ("A", "::1")])
def test_silent_family_is_not_waited_for(liar, balancers, silent, host):
    """The first call uses the family that answers, even if the other never does."""
    liar.fault(silence, "shop.test", silent)
    with taking_less_than(NOOP_SPAN):
        balancer = balancers(ADDRESSES, liar.address)
        assert balancer.call(lambda one: one.host, deadline=2.0) == host


@pytest.mark.parametrize("count", [1, 10, 100])
@pytest.mark.parametrize("silent", ["A", "AAAA"])
def test_silent_family_of_many_targets(liar, balancers, count, silent):
    """All targets are found at once if one family answers, whatever their number."""
    names = targets(liar, count)
    liar.fault(silence, kind=silent)
    balancer = balancers(SRV, liar.address)
    with taking_less_than(SILENT_TARGET):
        balancer.call(str)
    assert hosts(balancer) == sorted(names)


@pytest.mark.parametrize("silent", [1, 10, 20])
def test_silent_targets_do_not_delay_the_others(liar, balancers, silent):
    """Targets for which DNS never answers delay the first call by a fraction of a second only."""
    names = targets(liar, silent + 2)
    for name in names[:silent]:
        liar.fault(silence, name)
    balancer = balancers(SRV, liar.address)
    with taking_less_than(SILENT_TARGET):
        balancer.call(str)
    assert hosts(balancer) == sorted(names[silent:])


def test_silent_services_do_not_delay_another(liar, balancers):
    """Ten services for which DNS never answers do not delay calls to an eleventh."""
    waiting = []
    for place in range(10):
        liar.fault(silence, f"silent{place}.test")
        balancer = balancers(f"http+dns://silent{place}.test:80", liar.address)
        waiting.append(threading.Thread(target=failing, args=(balancer,)))
        waiting[-1].start()
    liar.wait(20)
    with taking_less_than(NOOP_SPAN):
        balancers(ADDRESSES, liar.address).call(str)
    for one in waiting:
        one.join()


def failing(balancer: Balancer) -> None:
    with pytest.raises(DeadlineExceeded):
        balancer.call(str, deadline=1.0)


@pytest.mark.parametrize("form", ["tcp", "tls", "https"])
def test_silent_family_over_a_stream(balancers, form, tmp_path, monkeypatch):
    """The same holds for nameservers that are asked over TCP, TLS and HTTPS."""
    certificates = Certificates(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    context, kept = certificates.context(), []

    def serve(connection):
        if form != "tcp":
            connection = context.wrap_socket(connection, server_side=True)
        kept.append(connection)
        with connection.makefile("rb") as stream:
            if form == "https":
                fields = iter(stream.readline, b"\r\n")
                size = next(int(one[15:]) for one in fields if one.lower().startswith(b"content-l"))
                while stream.readline() != b"\r\n":
                    pass
            else:
                (size,) = struct.unpack("!H", stream.read(2))
            query = dns.message.from_wire(stream.read(size))
        if query.question[0].rdtype == dns.rdatatype.AAAA:
            return
        response = dns.message.make_response(query)
        name = query.question[0].name
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "127.0.0.1"))
        wire = response.to_wire()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(wire)}\r\n\r\n".encode()
        connection.sendall((head if form == "https" else struct.pack("!H", len(wire))) + wire)

    with peer(serve) as port:
        path = "/dns-query" if form == "https" else ""
        balancer = balancers(ADDRESSES, f"{form}://127.0.0.1:{port}{path}")
        with taking_less_than(NOOP_SPAN):
            assert balancer.call(lambda one: one.host) == "127.0.0.1"
    for one in kept:
        one.close()


@pytest.mark.parametrize("combine", [FirstOf, Union])
def test_silent_family_of_a_part(liar, balancers, combine):
    """The parts of a composite service are found as quickly."""
    targets(liar, 3)
    liar.fault(silence, kind="AAAA")
    with taking_less_than(NOOP_SPAN):
        balancers(combine(ADDRESSES, SRV), liar.address).call(str)


def test_family_that_is_refused_is_not_enough(liar, balancers):
    """Addresses that may not be connected to do not end the wait for the other family."""
    liar.put("shop.test", "A", "169.254.169.254")
    balancer = balancers(ADDRESSES, liar.address)
    calls = threading.Thread(target=balancer.call, args=(str,))
    with liar.holding("shop.test", "AAAA"):
        calls.start()
        liar.wait(1, "shop.test", "AAAA")
        calls.join(0.2)
        assert calls.is_alive()
    calls.join()
    assert hosts(balancer) == ["::1"]


def test_families_are_asked_together(liar, balancers):
    """A and AAAA of all targets are asked for before the first answer to any of them arrives."""
    targets(liar, 5)
    balancer = balancers(SRV, liar.address)
    with liar.holding(kind="A"), liar.holding():
        calls = threading.Thread(target=balancer.call, args=(str,))
        calls.start()
        liar.wait(1, kind="SRV")
    calls.join()
    assert liar.asked(kind="A") == liar.asked(kind="AAAA") == 5


# A late answer


def test_late_family_joins(liar, balancers):
    """A family that is too late for the first answer joins within seconds, whatever the TTL."""
    liar.put("shop.test", "A", "127.0.0.1", ttl=3600)
    liar.put("shop.test", "AAAA", "::1", ttl=3600)
    joined = threading.Event()

    def listener(_event):
        if len(balancer.instances()) == 2:
            joined.set()

    balancer = balancers(ADDRESSES, liar.address, listener=listener)
    with liar.holding(kind="AAAA"):
        balancer.call(str)
        assert hosts(balancer) == ["127.0.0.1"]
    assert joined.wait(5)


def test_late_target_joins(liar, balancers):
    """A target that was not found in time joins within seconds too."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.", ttl=3600)
    for name in ("a.test", "b.test"):
        liar.put(name, "A", "127.0.0.1", ttl=3600)
    joined = threading.Event()

    def listener(_event):
        if len(balancer.instances()) == 2:
            joined.set()

    balancer = balancers(SRV, liar.address, listener=listener)
    with liar.holding("b.test"):
        balancer.call(str)
        assert hosts(balancer) == ["a.test"]
    assert joined.wait(5)


def resolvers(liar: Liar, lifetime: float = 5.0) -> tuple[AddressResolver, SrvResolver]:
    asked, address_filter = Dns(nameservers_of([liar.address]), lifetime), AddressFilter(LOOPBACK)
    how = {"clock": time.monotonic, "start": THREAD_SCHEDULER.start}
    return (
        AddressResolver("shop.test", 80, asked, address_filter, **how),
        SrvResolver(NAME, asked, address_filter, **how),
    )


@pytest.mark.parametrize("which", [0, 1])
def test_family_that_stays_silent_does_not_shorten_the_ttl(liar, which):
    """The TTL is short while a late answer may come, but not after the family has failed."""
    targets(liar, 3)
    liar.fault(silence, kind="AAAA")
    resolver = resolvers(liar, lifetime=0.2)[which]
    others = asking()
    assert resolver.resolve().ttl <= 1
    end(asking() - others)
    assert resolver.resolve().ttl == 60
    liar.heal()
    end(asking() - others)
    assert resolver.resolve().ttl == 60


def test_target_that_stays_silent_does_not_shorten_the_ttl(liar):
    """The same applies to a target for which DNS never answers."""
    silent, *others = targets(liar, 3)
    liar.fault(silence, silent)
    _, resolver = resolvers(liar, lifetime=0.3)
    ttls, before = [], asking()
    for _ in range(4):
        answer = resolver.resolve()
        assert [one.host for one in answer.instances] == others
        ttls.append(answer.ttl)
        end(asking() - before)
    assert ttls[0] <= 1
    assert ttls[1:] == [60, 60, 60]


def test_refresh_waits_for_a_family_that_was_known(liar, balancers):
    """A refresh, which no call waits for, returns the current addresses of both families."""
    balancer = balancers(ADDRESSES, liar.address)
    balancer.call(str)
    liar.put("shop.test", "A", "127.0.0.2")
    liar.put("shop.test", "AAAA", "::ffff:127.0.0.3")
    refresh = threading.Thread(target=balancer.refresh)
    with liar.holding(kind="AAAA"):
        refresh.start()
        liar.wait(2, kind="AAAA")
        refresh.join(0.2)
        assert refresh.is_alive()
    refresh.join()
    mapped = str(ipaddress.ip_address("::ffff:127.0.0.3"))  # written otherwise since Python 3.13
    assert hosts(balancer) == ["127.0.0.2", mapped]


def test_refresh_waits_once_for_a_family_that_fell_silent(liar):
    """A family that was known and failed the last time is not waited for again, but stays known."""
    addresses, _ = resolvers(liar, lifetime=1.0)
    addresses.resolve()
    liar.fault(silence, kind="AAAA")
    addresses.resolve()
    liar.put("shop.test", "A", "127.0.0.2")
    before = asking()
    assert [one.host for one in addresses.resolve().instances] == ["127.0.0.2", "::1"]
    assert asking() - before


def test_late_answer_of_none_is_taken(liar):
    """A late answer that says that there are no such addresses removes those that were known."""
    addresses, _ = resolvers(liar, lifetime=0.3)
    assert len(addresses.resolve().instances) == 2
    liar.fault(servfail, kind="AAAA")
    assert len(addresses.resolve().instances) == 2
    liar.fault(empty, kind="AAAA")
    assert len(addresses.resolve().instances) == 1


def test_question_under_way_is_not_asked_again(liar):
    """A question that is still unanswered is not repeated by the next lookup."""
    liar.fault(silence, kind="AAAA")
    addresses, _ = resolvers(liar, lifetime=1.0)
    for _ in range(5):
        addresses.resolve()
    assert (liar.asked(kind="A"), liar.asked(kind="AAAA")) == (5, 1)


# Threads


def test_threads_are_bounded_and_end(liar):
    """However many questions are unanswered, a service has few threads, and each ends when the time
    of its question is over."""
    targets(liar, 150)
    liar.fault(silence, kind="A")
    liar.fault(silence, kind="AAAA")
    _, resolver = resolvers(liar, lifetime=0.4)
    most, done = 0, threading.Event()

    def resolve():
        resolver.resolve()
        done.set()

    before = asking()
    threading.Thread(target=resolve, daemon=True).start()
    while not done.wait(0.02):
        most = max(most, len(asking() - before))
    assert 32 <= most <= 128
    end(asking() - before)


def test_glue_needs_no_thread(liar, monkeypatch):
    """Addresses in the additional section are used without starting a thread."""
    liar.glue = True
    names = targets(liar, 5)
    _, resolver = resolvers(liar)
    monkeypatch.setattr(scheduler, "_daemon", None)
    assert [one.host for one in resolver.resolve().instances] == names


def test_no_thread_can_be_started(liar, monkeypatch):
    """If no thread can be started, questions are asked one after another."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    names = targets(liar, 20)
    monkeypatch.setattr(scheduler, "_daemon", refuse)
    _, resolver = resolvers(liar)
    assert [one.host for one in resolver.resolve().instances] == sorted(names)


def test_unexpected_error_is_raised():
    """An error of a question that is not from DNS is raised by the lookup unchanged."""

    class Broken:
        def ask(self, *_):
            raise LookupError("broken")

    resolver = AddressResolver(
        "shop.test", 80, Broken(), AddressFilter(), start=THREAD_SCHEDULER.start
    )
    with pytest.raises(LookupError, match="broken"):
        resolver.resolve()


FORK = """
import os, sys, time
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import AddressResolver
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.scheduler import THREAD_SCHEDULER
dns = Dns(nameservers_of([sys.argv[1]]), 5.0)
how = {"clock": time.monotonic, "start": THREAD_SCHEDULER.start}
filter = AddressFilter(["::/0", "127.0.0.0/8"])
resolver = AddressResolver("shop.test", 80, dns, filter, **how)
assert len(resolver.resolve().instances) == 1
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.readline()
    print(len(resolver.resolve().instances), flush=True)
    os._exit(0)
os.wait()
"""


def test_fork_while_a_question_is_under_way(liar):
    """A forked child asks again what its parent's threads were asking."""
    liar.fault(silence, kind="AAAA")
    command = [sys.executable, "-c", FORK, liar.address]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "forked\n"
        liar.heal()
        assert process.communicate("\n", timeout=20)[0] == "2\n"
    assert process.returncode == 0
