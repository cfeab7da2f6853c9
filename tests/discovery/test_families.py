"""Address families of services in DNS: which are asked for, and which this host can reach."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import socket
import subprocess
import sys
import threading

import pytest

from lbclient import Answer, Balancer, FileResolver, FirstOf, Instance, Union
from tests.support.dns import Liar, silence

NAME = "_http._tcp.shop.test"
SRV, ADDRESSES = "http+srv://shop.test", "http+dns://shop.test:80"
LOOPBACK = ["127.0.0.0/8", "::1/128"]
ERRORS = [
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EACCES,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
]


@pytest.fixture
def liar():
    with Liar() as one:
        one.put("shop.test", "A", "127.0.0.1")
        one.put("shop.test", "AAAA", "::1")
        yield one


@pytest.fixture
def balancers(liar):
    """Make balancers that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(service, **options) -> Balancer:
            made = Balancer(service, nameservers=[liar.address], allow=LOOPBACK, **options)
            return stack.enter_context(contextlib.closing(made))

        yield make


@pytest.fixture
def routes(monkeypatch):
    """Addresses without a route from this host, with the error number of connecting a socket to
    them."""
    none: dict[str, int] = {}
    connect = socket.socket.connect

    def checked(self, address):
        if (error := none.get(address[0])) is not None:
            raise OSError(error, "no route, for this test")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    return none


def hosts(balancer: Balancer) -> list[str]:
    balancer.refresh()
    return sorted(one.host for one in balancer.instances())


# Families that are asked for


@pytest.mark.parametrize(
    ("family", "asked", "expected"),
    [
        ("any", (1, 1), ["127.0.0.1", "::1"]),
        ("ipv4", (1, 0), ["127.0.0.1"]),
        ("ipv6", (0, 1), ["::1"]),
    ],
)
def test_family_is_asked_for(liar, balancers, family, asked, expected):
    """`family=` decides which kinds of address DNS is asked for."""
    assert hosts(balancers(ADDRESSES, family=family)) == expected
    assert (liar.asked(kind="A"), liar.asked(kind="AAAA")) == asked


@pytest.mark.parametrize("glue", [False, True])
@pytest.mark.parametrize(
    ("family", "expected"),
    [("any", {"127.0.0.1", "::1"}), ("ipv4", {"127.0.0.1"}), ("ipv6", {"::1"})],
)
def test_family_of_targets(liar, balancers, glue, family, expected):
    """The addresses of SRV targets are of the wanted family, from either section."""
    liar.glue = glue
    liar.put(NAME, "SRV", "0 0 80 shop.test.")
    balancer = balancers(SRV, family=family)
    balancer.refresh()
    assert set(balancer.instances()[0].addresses) == expected


def test_family_that_did_not_come_along_is_asked_for(liar, balancers):
    """If only the other family is in the additional section, the wanted one is asked for."""
    liar.glue = True
    liar.drop("shop.test", "A")
    liar.put(NAME, "SRV", "0 0 80 shop.test.")
    balancer = balancers(SRV, family="ipv4")
    with pytest.raises(Exception, match="its target has no address"):
        balancer.refresh()
    assert liar.asked("shop.test", "A") == 1


def test_family_ends_the_wait_for_the_other(liar, balancers):
    """A family that is not wanted is not waited for, and its absence is no failure."""
    liar.fault(silence, "shop.test", "AAAA")
    assert hosts(balancers(ADDRESSES, family="ipv4")) == ["127.0.0.1"]
    assert liar.asked(kind="AAAA") == 0


class Registry:
    def resolve(self) -> Answer:
        return Answer([Instance("a.test", 80)], 60)


NOT_IN_DNS = [
    ["http://10.0.0.1:80"],
    "http://a.test",
    [Instance("a.test", 80)],
    Registry(),
    FileResolver("/etc/instances"),
    "http+file:///etc/instances",
    FirstOf(["http://10.0.0.1:80"], Registry()),
]


@pytest.mark.parametrize("service", NOT_IN_DNS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("option", [{"family": "ipv4"}, {"sticky": 60.0}], ids=str)
def test_options_of_dns_are_refused_elsewhere(service, option):
    """`family=` and `sticky=` for a service that is not in DNS are an error at construction."""
    (name,) = option
    with pytest.raises(
        ValueError, match=rf"^{name} applies to services in DNS only, such as 'http\+dns:"
    ):
        Balancer(service, **option)
    Balancer(service, family="any", sticky=None).close()
    Balancer(service, sticky=0).close()


@pytest.mark.parametrize("combine", [FirstOf, Union])
def test_options_of_dns_hold_for_the_parts_in_dns(balancers, combine):
    """In a composite service the options apply to the parts that are in DNS."""
    service = combine(ADDRESSES, [Instance("127.9.9.9", 80)])
    assert "::1" not in hosts(balancers(service, family="ipv4", sticky=60.0))


# Families that this host can reach


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_addresses_without_a_route_are_not_used(balancers, routes, error):
    """If there are two families, the one that this host has no route to is left out."""
    routes["::1"] = error
    assert hosts(balancers(ADDRESSES)) == ["127.0.0.1"]


def test_ipv4_without_a_route(balancers, routes):
    """On a host with IPv6 alone it is IPv4 that is left out."""
    routes["127.0.0.1"] = errno.ENETUNREACH
    assert hosts(balancers(ADDRESSES)) == ["::1"]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOBUFS, errno.EPERM])
def test_other_errors_say_nothing_of_routes(balancers, routes, error):
    """A route check that fails for another reason removes no address."""
    routes["::1"] = error
    assert hosts(balancers(ADDRESSES)) == ["127.0.0.1", "::1"]


def test_nothing_can_be_reached(balancers, routes):
    """If no address has a route, all are kept, since their number says nothing about the
    network."""
    routes |= {"::1": errno.ENETUNREACH, "127.0.0.1": errno.ENETUNREACH}
    assert hosts(balancers(ADDRESSES)) == ["127.0.0.1", "::1"]


def test_one_family_alone_is_kept(liar, balancers, routes):
    """If DNS has one family only, it is used whatever the routes."""
    liar.drop("shop.test", "A")
    routes["::1"] = errno.ENETUNREACH
    assert hosts(balancers(ADDRESSES)) == ["::1"]


def test_single_addresses_without_a_route(liar, balancers, routes):
    """Each address is checked by itself: one that is on this host needs no default route."""
    liar.put("shop.test", "AAAA", "::1", "2001:db8::1")
    routes["2001:db8::1"] = errno.ENETUNREACH
    assert hosts(balancers(ADDRESSES)) == ["127.0.0.1", "::1"]


def test_addresses_of_targets_without_a_route(liar, balancers, routes):
    """A target keeps its reachable addresses; a target without any is left out."""
    liar.put(NAME, "SRV", "0 0 80 shop.test.", "0 0 80 six.test.")
    liar.put("six.test", "AAAA", "::1")
    routes["::1"] = errno.ENETUNREACH
    balancer = balancers(SRV)
    assert hosts(balancer) == ["shop.test"]
    assert balancer.instances()[0].addresses == ("127.0.0.1",)


@pytest.mark.parametrize("sticky", [None, 60.0])
def test_change_of_routes_is_noticed(balancers, routes, sticky):
    """A route that appears or disappears is noticed by the next refresh, even for sticky
    addresses."""
    balancer = balancers(ADDRESSES, sticky=sticky)
    assert hosts(balancer) == ["127.0.0.1", "::1"]
    routes["::1"] = errno.ENETUNREACH
    assert hosts(balancer) == ["127.0.0.1"]
    routes.clear()
    assert hosts(balancer) == ["127.0.0.1", "::1"]


def test_family_without_a_route_does_not_end_the_wait(liar, balancers, routes):
    """Addresses that cannot be reached do not end the wait for the other family."""
    routes["127.0.0.1"] = errno.ENETUNREACH
    balancer = balancers(ADDRESSES)
    call = threading.Thread(target=balancer.call, args=(str,))
    with liar.holding(kind="AAAA"):
        call.start()
        liar.wait(1, kind="AAAA")
        call.join(0.2)
        assert call.is_alive()
    call.join()
    assert [one.host for one in balancer.instances()] == ["::1"]


def test_addresses_without_a_route_are_told_once(liar, balancers, routes, caplog):
    """Unreachable addresses are logged once, with the option that avoids them, not for each
    address."""
    routes |= {"::1": errno.ENETUNREACH, "2001:db8::1": errno.ENETUNREACH}
    balancer = balancers(ADDRESSES)
    with caplog.at_level(logging.WARNING, "lbclient"):
        balancer.refresh()
        liar.put("shop.test", "AAAA", "::1", "2001:db8::1")
        balancer.refresh()
    (message,) = caplog.messages
    assert message.startswith("shop.test: refused IPv6 addresses: this host has no route to them")
    assert message.endswith("; with family='ipv4' they are not asked for")


ALONE = """
import fcntl, socket, struct, sys
from lbclient import Balancer
from tests.support.dns import Liar
UP = 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", UP))  # SIOCSIFFLAGS
with Liar() as liar:
    liar.put("shop.test", "A", "127.0.0.1")
    liar.put("shop.test", "AAAA", "::1", "2001:db8::1")
    how = {"nameservers": [liar.address], "allow": ["127.0.0.0/8", "::1/128"]}
    balancer = Balancer("http+dns://shop.test:80", **how)
    balancer.refresh()
    print(sorted(one.host for one in balancer.instances()))
    liar.put("shop.test", "A", "192.0.2.1")
    liar.put("shop.test", "AAAA", "2001:db8::1")
    balancer.refresh()
    print(sorted(one.host for one in balancer.instances()))
"""


def test_host_with_nothing_but_a_loopback():
    """On a host without another interface, `::1` is used and addresses without a route are not; if
    no address has a route, all are kept."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    command = [unshare, "-rn", sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines() == ["['127.0.0.1', '::1']", "['192.0.2.1', '2001:db8::1']"]
