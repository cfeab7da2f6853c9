"""What `repr` says of clients, balancers and resolvers."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lbclient
import lbclient.httpx2
from lbclient.balancer.balancer import Balancer
from tests.support.http import tells_port
from tests.support.interruptions import SoftLimit

SERVICE = ["http://10.0.0.1:1", "http://10.0.0.2:1"]
KINDS = [
    lbclient.Balancer,
    lbclient.Client,
    lbclient.AsyncClient,
    lbclient.Transport,
    lbclient.AsyncTransport,
    lbclient.httpx2.Client,
    lbclient.httpx2.AsyncClient,
    lbclient.httpx2.Transport,
    lbclient.httpx2.AsyncTransport,
]
pytestmark = pytest.mark.anyio


def balancer_of(thing):
    return thing if isinstance(thing, Balancer) else thing.balancer


async def close(thing):
    await thing.aclose() if hasattr(thing, "aclose") else thing.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_it_names_the_service_and_its_state(kind):
    """It says how many instances are known and in rotation, and whether it is closed."""
    thing, name = kind(SERVICE, name="orders"), kind.__name__
    assert repr(thing) == f"<{name} orders: 2 of 2 instances in rotation>"
    balancer = balancer_of(thing)
    balancer.eject(balancer.instances()[0], 60)
    assert repr(thing) == f"<{name} orders: 1 of 2 instances in rotation>"
    await close(thing)
    assert repr(thing) == f"<{name} orders: closed>"


@pytest.mark.parametrize("kind", [*KINDS, lbclient.Registration, lbclient.FirstOf])
async def test_it_does_not_raise_before_it_is_constructed(kind):
    """A debugger may show an object whose `__init__` has not ended."""
    assert kind.__name__ in repr(kind.__new__(kind))


@pytest.mark.parametrize("kind", KINDS)
async def test_it_takes_no_lock(kind):
    """It can be called while another thread holds the balancer's lock."""
    thing = kind(SERVICE, name="orders")
    balancer = balancer_of(thing)
    held, release = threading.Event(), threading.Event()

    def hold():
        with balancer._engine.lock:
            held.set()
            release.wait()

    with ThreadPoolExecutor() as pool:
        holding = pool.submit(hold)
        held.wait()
        try:
            assert "2 of 2" in pool.submit(repr, thing).result(timeout=10)
        finally:
            release.set()
        holding.result()
    await close(thing)


async def test_it_resolves_nothing():
    """It does not ask discovery: before the first call no instance is known."""
    asked = []

    class Asked:
        def resolve(self):
            asked.append(1)
            return lbclient.Answer([lbclient.Instance("10.0.0.1", 1)], ttl=None)

    with lbclient.Balancer(Asked(), name="orders") as balancer:
        assert repr(balancer) == "<Balancer orders: 0 of 0 instances in rotation>"
        assert not asked
        balancer.refresh()
        assert repr(balancer) == "<Balancer orders: 1 of 1 instances in rotation>"


async def test_it_survives_a_clock_that_fails():
    """C18: a clock that raises does not make `repr` raise."""
    broken = []

    def clock():
        if broken:
            raise ValueError("no time")
        return 0.0

    with lbclient.Balancer(SERVICE, name="orders", clock=clock) as balancer:
        broken.append(1)
        assert repr(balancer) == "<Balancer orders: 2 instances>"
        broken.clear()


async def test_it_does_not_swallow_what_a_signal_handler_raises():
    """C4: an exception of a signal handler that comes during `repr` reaches the caller."""
    armed = []

    def clock():
        if armed:
            signal.raise_signal(signal.SIGUSR1)
        return 0.0

    def handler(*_):
        raise SoftLimit

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with lbclient.Balancer(SERVICE, clock=clock) as balancer:
            armed.append(1)
            with pytest.raises(SoftLimit):
                repr(balancer)
            armed.clear()
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_it_shows_no_secrets(servers):
    """S5: credentials of a client, and those in the URLs of a composite, are not shown."""
    (server,) = servers(tells_port)
    secrets = {"headers": {"Authorization": "hidden"}, "auth": ("hidden", "hidden")}
    with lbclient.Client(server.url, params={"token": "hidden"}, **secrets) as client:
        client.get("/?token=hidden", headers={"Cookie": "hidden"})
        assert "hidden" not in repr(client)
        assert "1 of 1" in repr(client)
    services = "http+srv://hidden:hidden@orders.test", "http+srv://b.test/?token=hidden"
    assert repr(lbclient.FirstOf(*services, SERVICE)) == (
        "FirstOf('orders.test', 'http+srv://b.test/', <list>)"
    )


@pytest.mark.parametrize(
    ("service", "shown"),
    [
        (SERVICE, "<StaticResolver of 2 instances>"),
        ("http+srv://a.test", "<DnsService of <SrvResolver _http._tcp.a.test.>>"),
        ("http+dns://a.test:80", "<DnsService of <AddressResolver a.test:80>>"),
        ("http+file:///a/b", f"<FileResolver {Path('/a/b')}>"),
        (lbclient.FileResolver("/a/b"), f"<FileResolver {Path('/a/b')}>"),
        (
            lbclient.Union("http+srv://a.test", SERVICE),
            "<UnionResolver of http+srv://a.test, 10.0.0.1:1>",
        ),
        (
            lbclient.FirstOf(SERVICE, "http+srv://a.test"),
            "<FirstOfResolver of 10.0.0.1:1, http+srv://a.test>",
        ),
    ],
)
async def test_a_resolver_names_what_it_resolves(service, shown):
    """The `repr` of a resolver says where its instances come from."""
    with lbclient.Balancer(service) as balancer:
        assert repr(balancer.target.resolver) == shown


async def test_first_of_names_the_service_in_use():
    """The `repr` of the resolver of `FirstOf` says which part gave the last answer."""
    with lbclient.Balancer(lbclient.FirstOf(SERVICE, ["http://10.0.0.3:1"])) as balancer:
        balancer.refresh()
        assert repr(balancer.target.resolver) == (
            "<FirstOfResolver of 10.0.0.1:1, 10.0.0.3:1; 10.0.0.1:1 serves>"
        )
