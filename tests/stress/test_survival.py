"""Instances fail under load, over real sockets, and no idempotent call fails.

Callers form a closed loop: each begins its next call when the last has ended.
"""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import httpx
import pytest

import lbclient
from lbclient import RetryPolicy
from lbclient._internal.signals import Pause
from lbclient.core.call import CallOptions
from lbclient.protocol import bind
from lbclient.simulation import World, carry_out
from lbclient.telemetry.semantics import Semantics
from tests.support.faults import FAULTS, NAMESPACE
from tests.support.http import serve, slow, tells_port
from tests.support.slow import slow_rows

CALLERS = 8
LONGEST = 30.0
"""No load lasts longer, in seconds, whatever happens."""


class Load:
    """The outcomes of the calls: when each began, by the monotonic clock, and its error, if any."""

    def __init__(self, client):
        self.client = client
        self.calls = []
        self._done = threading.Event()
        self._until = time.monotonic() + LONGEST

    @property
    def going(self):
        return not self._done.is_set() and time.monotonic() < self._until

    def end(self):
        self._done.set()

    @property
    def failed(self):
        return [error for _, error in self.calls if error is not None]

    def since(self, begun):
        return [error for at, error in self.calls if at >= begun]

    def _ended(self, begun, error=None):
        self.calls.append((begun, error))

    def call(self):
        begun = time.monotonic()
        try:
            self._ended(begun, None if self.client.get("/").status_code == 200 else "status")
        except httpx.TransportError as error:
            self._ended(begun, error)
            self._done.wait(0.001)

    async def acall(self):
        begun = time.monotonic()
        try:
            status = (await self.client.get("/")).status_code
            self._ended(begun, None if status == 200 else "status")
        except httpx.TransportError as error:
            self._ended(begun, error)
            await anyio.sleep(0.001)


@contextlib.contextmanager
def loaded(client, callers=CALLERS):
    """This many threads that make calls until the block ends."""
    load = Load(client)

    def work():
        while load.going:
            load.call()

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.end()
        for thread in threads:
            thread.join()


@contextlib.asynccontextmanager
async def aloaded(client, callers=CALLERS):
    """This many tasks that make calls until the block ends."""
    load = Load(client)

    async def work():
        while load.going:
            await load.acall()

    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(work)
        try:
            yield load
        finally:
            load.end()


@contextlib.contextmanager
def one_of_three(name):
    """An instance that will have the fault, and two that never will."""
    with FAULTS[name].instance() as bad, serve(tells_port, tells_port) as good:
        yield bad, [one.url for one in (bad, *good)]


def attempts_of(client):
    """How many attempts went to the first instance, and how many there were."""
    counts = {one.instance.port: one.attempts for one in client.balancer.snapshot().instances}
    return next(iter(counts.values())), sum(counts.values())


WARM, SETTLED, SEEN = 0.2, 2.0, 0.5
"""Seconds of load before the fault, from there until the client must have got over it, and after
that."""

POLICIES = {"stopped": RetryPolicy(attempt_timeout=0.3)}
KILLING = ["killed", "death-mid-body", "reset-after-accept"]
BAD = [
    *((name, "weighted") for name in (*KILLING, "stopped", "blackholed-syn", "status-503")),
    ("status-503", "least-busy"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), BAD)
def test_one_of_three_fails(name, strategy):
    """I1, I2, I3, I8, I10, I14, I26: if one of three instances fails under eight threads, no
    idempotent call fails, and two seconds later that instance gets at most a hundredth of the
    attempts."""
    with (
        one_of_three(name) as (bad, urls),
        lbclient.Client(urls, strategy=strategy, retry=POLICIES.get(name, RetryPolicy())) as client,
    ):
        with loaded(client) as load:
            time.sleep(WARM)
            before, _ = attempts_of(client)
            bad.strike()
            time.sleep(SETTLED)
            struck, then = attempts_of(client)
            time.sleep(SEEN)
            later, now = attempts_of(client)
        snapshot = client.balancer.snapshot()
    assert load.failed == []
    assert 0 < before < struck
    assert now - then > 100
    assert later - struck <= (now - then) / 100
    assert snapshot.instances[0].breaker != "closed"
    assert [one.in_flight for one in snapshot.instances] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("name", KILLING)
async def test_one_of_three_fails_async(name):
    """I1, I3, I8: the same for eight tasks of an event loop: no idempotent call fails."""
    with one_of_three(name) as (bad, urls):
        async with lbclient.AsyncClient(urls) as client:
            async with aloaded(client) as load:
                await anyio.sleep(WARM)
                bad.strike()
                await anyio.sleep(SEEN)
            snapshot = client.balancer.snapshot()
    assert load.failed == []
    assert len(load.calls) > 100
    assert snapshot.instances[0].failures >= 5
    assert snapshot.instances[0].breaker != "closed"
    assert [one.in_flight for one in snapshot.instances] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("callers", [2, 8])
def test_one_of_three_is_slow(callers):
    """I15: if one of three instances is ten times as slow, and at least two calls are in flight,
    least-busy sends it at most 15 % of the traffic, and no call fails."""
    with (
        serve(slow(0.1), slow(0.01), slow(0.01)) as servers,
        lbclient.Client([one.url for one in servers], strategy="least-busy") as client,
    ):
        with loaded(client, callers) as load:
            time.sleep(1.2)
        hits = [one.hits for one in servers]
    assert load.failed == []
    assert hits[0] >= 5
    assert hits[0] <= 0.15 * sum(hits)


# Outages of all


class Outage:
    """Three instances in virtual time, a client, and calls that arrive at a rate."""

    def __init__(self, fault, seed):
        self.world = World()
        self.fault = fault
        self.down = False
        self.calls = []
        self.balancer = lbclient.Balancer(
            [f"http://10.0.0.{number}" for number in (1, 2, 3)],
            clock=self.world.clock,
            rng=random.Random(seed),
        )

    @property
    def attempts(self):
        return sum(one.attempts for one in self.balancer.snapshot().instances)

    def call(self, seconds, rate):
        """This many a second, for this long; all are waited for."""
        until = self.world.clock() + seconds
        self.world.spawn(self._arrivals(until, 1 / rate))
        self.world.run(until)

    def _arrivals(self, until, every):
        while self.world.clock() < until:
            self.world.spawn(self._one())
            yield Pause(every)

    def _one(self):
        begun = self.world.clock()
        ended = None
        try:
            asked = CallOptions(idempotent=True)
            yield from carry_out(bind(self.balancer).begin(asked, Semantics()), self._send)
        except (OSError, lbclient.LoadBalancingError) as error:
            ended = error
        self.calls.append((begun, ended))

    def _send(self, attempt):
        seconds, error = self.fault if self.down else (0.01, None)
        yield Pause(seconds)
        if error is not None:
            raise error("down")
        return attempt.instance


@pytest.mark.parametrize("seed", [0, *slow_rows(1)])
@pytest.mark.parametrize("rate", [10, *slow_rows(100)])
@pytest.mark.parametrize(
    "fault",
    [(0.0, ConnectionRefusedError), (0.01, ConnectionResetError), (0.3, TimeoutError)],
    ids=["refused", "reset", "silent"],
)
def test_total_outage(fault, rate, seed):
    """I16: in an outage of all instances for 60 s there are at most 1.2 attempts per call, and
    within 5 s after it, 99 % of the calls succeed."""
    outage = Outage(fault, seed)
    outage.call(5, rate)
    assert {error for _, error in outage.calls} == {None}
    calls, attempts = len(outage.calls), outage.attempts
    outage.down = True
    outage.call(60, rate)
    calls, attempts = len(outage.calls) - calls, outage.attempts - attempts
    outage.down = False
    healed = outage.world.clock()
    outage.call(10, rate)
    after = [error for at, error in outage.calls if at >= healed + 5]
    assert attempts <= 1.2 * calls
    assert len(after) >= 4.9 * rate
    assert sum(error is None for error in after) >= 0.99 * len(after)


@pytest.mark.slow
def test_total_outage_over_sockets():
    """I16, I18: the same for processes that are stopped for four seconds, under eight threads."""
    with contextlib.ExitStack() as stack:
        trio = [stack.enter_context(FAULTS["killed"].instance()) for _ in range(3)]
        client = stack.enter_context(lbclient.Client([one.url for one in trio]))
        with loaded(client) as load:
            time.sleep(WARM)
            for one in trio:
                one.strike()
            calls, (_, attempts) = len(load.calls), attempts_of(client)
            time.sleep(4)
            down, (_, during) = len(load.calls), attempts_of(client)
            for one in trio:
                one.heal()
            healed = time.monotonic()
            while any(one.breaker != "closed" for one in client.balancer.snapshot().instances):
                assert time.monotonic() < healed + 5
                time.sleep(0.01)
            back = time.monotonic()
            time.sleep(0.5)
        after = load.since(back)
    assert during - attempts <= 1.2 * (down - calls)
    assert len(after) > 100
    assert sum(error is None for error in after) >= 0.99 * len(after)


# The caller's own machine

SCRIPT = """
import errno, json, os, socket, sys, threading
import anyio, httpx, lbclient
from tests.support.faults import LOCAL, enter_own_network

fault, host, lookups = sys.argv[1:]
if fault != "no-descriptors":
    try:
        enter_own_network()
    except OSError as error:
        sys.exit(f"cannot: {error}")

from tests.support.http import serve, tells_port

look_up = socket.getaddrinfo

# How a look-up fails for lack of descriptors depends on the modules in nsswitch.conf.
def fails(*args, **options):
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        if lookups == "EAI_NONAME":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        raise OSError(errno.EBUSY, "Device or resource busy") from None
    return look_up(*args, **options)

if lookups:
    socket.getaddrinfo = fails

POLICY = lbclient.RetryPolicy(backoff=0.001, backoff_max=0.002, budget=None)

def told(client, errors):
    snapshot = client.balancer.snapshot().instances
    return {
        "errors": sorted(set(errors)),
        "calls": len(errors),
        "charged": [one.failures for one in snapshot],
        "breakers": [one.breaker for one in snapshot],
        "in flight": [one.in_flight for one in snapshot],
    }

def sync(urls):
    errors = []

    def call():
        try:
            errors.append(str(client.get("/").status_code))
        except httpx.TransportError as error:
            errors.append(type(error).__name__)

    def storm():
        threads = [threading.Thread(target=lambda: [call() for _ in range(10)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = told(client, errors)
        errors.clear()
        return now

    with lbclient.Client(urls, retry=POLICY) as client:
        with LOCAL[fault]():
            during = storm()
        return during, storm()

async def tasks(urls):
    errors = []

    async def call():
        for _ in range(10):
            try:
                errors.append(str((await client.get("/")).status_code))
            except httpx.TransportError as error:
                errors.append(type(error).__name__)

    async def storm():
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(call)
        now = told(client, errors)
        errors.clear()
        return now

    async with lbclient.AsyncClient(urls, retry=POLICY) as client:
        with LOCAL[fault]():
            during = await storm()
        return during, await storm()

with serve(tells_port, tells_port) as servers:
    urls = [f"http://{host}:{one.port}" for one in servers]
    loops = [anyio.run(tasks, urls, backend=backend) for backend in ("asyncio", "trio")]
    print(json.dumps([sync(urls), *loops]))
"""


@pytest.mark.parametrize(
    ("fault", "host", "lookups"),
    [
        pytest.param("no-descriptors", "127.0.0.1", "", id="no-descriptors-127.0.0.1"),
        # Its look-up fails, and tells another reason: which, is up to the machine.
        pytest.param(
            "no-descriptors", "localhost", "", id="no-descriptors-localhost", marks=pytest.mark.slow
        ),
        pytest.param(
            "no-descriptors",
            "localhost",
            "EAI_NONAME",
            id="no-descriptors-unknown",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "no-descriptors",
            "localhost",
            "EAI_SYSTEM",
            id="no-descriptors-busy",
            marks=pytest.mark.slow,
        ),
        pytest.param("no-route", "127.0.0.1", "", id="no-route-127.0.0.1"),
        pytest.param("no-local-port", "127.0.0.1", "", id="no-local-port-127.0.0.1"),
    ],
)
def test_own_machine_fails(fault, host, lookups):
    """I22, I23: without file descriptors, a route or a local port every call fails with a connect
    error, on threads and event loops, and no instance is charged; as soon as they are available
    again calls succeed."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT, fault, host, lookups]
    root = Path(lbclient.__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    if done.stderr.startswith("cannot:"):
        pytest.skip(f"{NAMESPACE}: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    nobody = {"charged": [0, 0], "breakers": ["closed"] * 2, "in flight": [0, 0], "calls": 80}
    for during, after in json.loads(done.stdout):
        assert during == {"errors": ["ConnectError"], **nobody}
        assert after == {"errors": ["200"], **nobody}
