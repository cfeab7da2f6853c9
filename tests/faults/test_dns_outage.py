"""DNS that fails during calls: no call fails or waits, and DNS is not flooded.

Minutes and hours are virtual; the questions go to a real server over sockets.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

import lbclient
from lbclient._internal.signals import Pause
from lbclient.core.call import CallOptions
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.protocol import bind
from lbclient.simulation import World, carry_out, simulated
from lbclient.telemetry.semantics import Semantics
from tests.support.dns import (
    Liar,
    empty,
    garbage,
    nxdomain,
    servfail,
    silence,
    truncated,
    wrong_id,
)
from tests.support.http import says
from tests.support.slow import slow_rows

NAME = "_http._tcp.shop.test"
TTL = 5.0
BACKED_OFF = 27.0
"""The longest back-off, 30 s, less its jitter."""
STEP = 30.0

each_fault = pytest.mark.parametrize(
    "fault",
    [nxdomain, silence, *slow_rows(servfail, empty, truncated, garbage, wrong_id)],
    ids=lambda fault: fault.__name__,
)


@pytest.fixture
def liar():
    with Liar(glue=True) as one:
        one.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.", ttl=int(TTL))
        one.put("a.test", "A", "192.0.2.1")
        one.put("b.test", "A", "192.0.2.2")
        yield one


class Shop:
    """A caller in virtual time, of a service that a real DNS server knows."""

    def __init__(self, liar: Liar) -> None:
        self.world = World()
        self.rounds: list[float] = []
        self.calls = self.failed = 0
        self.slowest = 0.0
        self.gone = False
        """True to ask nobody: a day has thousands of rounds."""
        dns = Dns(nameservers_of([liar.address]), lifetime=0.05)
        self._srv = SrvResolver(NAME, dns, AddressFilter(), self.world.clock)
        self.balancer = simulated(self.world, self, name="shop.test", rng=random.Random(1))

    def resolve(self):
        self.rounds.append(self.world.clock())
        if self.gone:
            raise lbclient.DiscoveryError("DNS is gone")
        return self._srv.resolve()

    def call(self, seconds: float, rate: float) -> None:
        """This many calls a second, for this long from now on."""
        until = self.world.clock() + seconds
        self.world.spawn(self._caller(until, 1 / rate))
        self.world.run(until)

    def _caller(self, until, every):
        while self.world.clock() < until:
            begun = self.world.clock()
            try:
                yield from carry_out(bind(self.balancer).begin(CallOptions(), Semantics()), _answer)
            except lbclient.LoadBalancingError:
                self.failed += 1
            self.calls += 1
            self.slowest = max(self.slowest, self.world.clock() - begun)
            yield Pause(every)


def _answer(attempt):
    return attempt.instance
    yield


@each_fault
def test_calls_go_on_while_dns_fails(liar, fault):
    """D2, D3, D4, D5, D6, D16, D22: with 200 calls/s, none fails or waits during a minute of a
    fault; after back-off there is one round every 27 s; within 30 s after DNS is back there is a
    good one."""
    shop = Shop(liar)
    shop.call(2 * TTL, rate=200)
    liar.fault(fault)
    broken_at = shop.world.clock()
    shop.call(60, rate=200)
    assert shop.balancer.snapshot().error is not None
    assert shop.balancer.snapshot().age >= 60 - 2 * TTL
    shop.call(240, rate=1)
    backed_off = [b - a for a, b in pairwise(shop.rounds) if a > broken_at + 60]
    assert len(backed_off) >= 5
    assert min(backed_off) >= BACKED_OFF
    liar.heal()
    shop.call(STEP, rate=200)
    snapshot = shop.balancer.snapshot()
    assert (shop.failed, shop.slowest) == (0, 0)
    assert shop.calls >= 200 * (2 * TTL + 60 + STEP)
    assert snapshot.error is None
    assert snapshot.age <= 1.1 * TTL


@pytest.mark.parametrize("fault", [servfail, nxdomain, silence])
def test_first_answer_is_found_soon_while_calls_fail(liar, fault):
    """While calls fail for lack of a first answer, DNS is asked at least every 5 s and at most once
    a second; calls succeed within 5 s after it is back."""
    shop = Shop(liar)
    liar.fault(fault)
    shop.call(60, rate=10)
    gaps = [b - a for a, b in pairwise(shop.rounds)]
    assert shop.failed == shop.calls
    assert 0.9 <= min(gaps) <= max(gaps) <= 5.2
    assert len(shop.rounds) <= 60 / 4.5 + 5
    liar.heal()
    shop.call(5.2, rate=10)
    failed = shop.failed
    shop.call(1, rate=10)
    assert shop.failed == failed


def test_nobody_waits_for_a_first_answer(liar):
    """Without calls the back-off grows to 30 s; a call that comes more than 5 s after the last try
    waits for the next one, which is made at once."""
    shop = Shop(liar)
    liar.fault(servfail)
    shop.call(1, rate=1)
    shop.world.run(shop.world.clock() + 300)
    gaps = [b - a for a, b in pairwise(shop.rounds)]
    assert min(gaps[-5:]) >= BACKED_OFF
    shop.world.run(shop.rounds[-1] + 6)
    assert shop.world.clock() < shop.rounds[-1] + BACKED_OFF
    liar.heal()
    failed = shop.failed
    shop.call(1, rate=10)
    assert shop.failed == failed


def test_rare_calls_do_not_storm_dns(liar):
    """A call every 20 s never gets a failure older than 5 s, and causes one question."""
    shop = Shop(liar)
    liar.fault(servfail)
    shop.call(400, rate=0.05)
    assert len(shop.rounds) <= 2 * shop.calls + 6


def test_absent_service_is_found_soon_when_it_is_back(liar):
    """A service that was declared absent is asked for every 5 s while calls fail."""
    shop = Shop(liar)
    liar.put(NAME, "SRV", "0 0 0 .")
    shop.call(60, rate=10)
    assert shop.failed == shop.calls
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    shop.call(5.2, rate=10)
    failed = shop.failed
    shop.call(1, rate=10)
    assert shop.failed == failed


def test_too_old_an_answer_is_replaced_soon(liar):
    """Calls that fail because of `max_stale` also make discovery try every 5 s."""
    shop = Shop(liar)
    shop.balancer = simulated(shop.world, shop, name="shop.test", max_stale=10.0)
    shop.call(1, rate=1)
    liar.fault(servfail)
    shop.call(120, rate=10)
    assert shop.failed
    liar.heal()
    shop.call(5.2, rate=10)
    failed = shop.failed
    shop.call(1, rate=10)
    assert shop.failed == failed


def test_dns_gone_for_a_day(liar):
    """D22: 24 hours without DNS fail no call, and cause at most one round every 27 s."""
    shop = Shop(liar)
    shop.call(1, rate=1)
    shop.gone = True
    day = 24 * 3600.0
    shop.call(day, rate=1)
    assert (shop.failed, shop.slowest) == (0, 0)
    assert shop.calls >= day
    assert len(shop.rounds) <= day / BACKED_OFF + 10
    assert shop.balancer.snapshot().age >= day - 2 * TTL


def test_max_stale_ends_it(liar):
    """D22: with `max_stale`, calls fail once the set is that old, with the cause, until DNS is
    back."""
    shop = Shop(liar)
    shop.balancer = simulated(shop.world, shop, name="shop.test", max_stale=100.0)
    shop.call(1, rate=1)
    liar.fault(nxdomain)
    shop.call(98, rate=1)
    assert shop.failed == 0
    shop.call(100, rate=1)
    assert 95 <= shop.failed <= 105
    liar.heal()
    shop.call(STEP, rate=1)
    before = shop.failed
    shop.call(STEP, rate=1)
    assert shop.failed == before


@each_fault
def test_calls_over_sockets_while_dns_fails(liar, servers, fault):
    """D4: with real threads and sockets, calls are answered while a question about their service is
    unanswered, or has a bad answer; and the client recovers by itself."""
    (server,) = servers(says(200))
    liar.put(NAME, "SRV", f"0 0 {server.port} here.test.", ttl=0)
    liar.put("here.test", "A", "127.0.0.1")
    options = {"nameservers": [liar.address], "allow": ["127.0.0.0/8"], "min_refresh": 0.05}
    with lbclient.Client("http+srv://shop.test", **options) as client:
        assert client.get("/").status_code == 200
        liar.fault(fault, NAME)
        asked, done = liar.asked(NAME), threading.Event()

        def call(_):
            statuses = []
            while not done.is_set():
                statuses.append(client.get("/").status_code)
            return statuses

        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(call, range(4))
            liar.wait(asked + 1, NAME)
            hits = server.hits
            while server.hits < hits + 50:  # so many more after DNS was asked
                assert server.arrived.acquire(timeout=5)
            done.set()
        assert {status for statuses in answers for status in statuses} == {200}
        liar.heal()
        client.balancer.refresh()
        assert client.balancer.snapshot().error is None
