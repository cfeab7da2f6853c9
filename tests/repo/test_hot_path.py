"""What one call costs that succeeds at once, counted: functions called, memory used and kept.

Counts are the same on any machine at any load, so a step that somebody adds to the way of a call
shows here, and seconds are left to the benchmarks.
"""

import asyncio
import gc
import itertools
import random
import sys
import tracemalloc
from pathlib import Path

import httpx
import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, RetryPolicy
from lbclient.strategy.registry import BY_NAME
from tests.repo.files_entered import by_get, by_outcome, in_two_parts
from tests.support.http import says
from tests.support.slow import slow_rows

OURS = str(Path(lbclient.__file__).parent)
CONNECTIONS = tuple(
    str(path)
    for path in Path(OURS, "http", "connections").glob("*.py")
    if path.name != "transport_pool.py"  # which finds the transport; the rest is its work
)
FEW, MANY = 10, 5_000
CALLS = 40


def urls(number):
    return [f"http://10.0.{place >> 8}.{place & 255}:8001" for place in range(number)]


class Null(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers at once."""

    def handle_request(self, _):
        return httpx.Response(200)

    async def handle_async_request(self, _):
        return httpx.Response(200)


@pytest.fixture(autouse=True)
def no_garbage():
    """Finalize what earlier tests have dropped before functions are counted."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Functions:
    """Counts the functions in `where`, and those of any kind, that are called within a `with`."""

    def __init__(self, where):
        self.where, self.ours, self.all = where, 0, 0

    def __enter__(self):
        sys.setprofile(self.note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def note(self, frame, event, _):
        if event in {"call", "c_call"}:
            self.all += 1
            if event == "call" and frame.f_code.co_filename.startswith(self.where):
                self.ours += 1


def counted(step, where=OURS):
    """Functions in `where`, and functions of any kind, that one step calls, on average."""
    with Functions(where) as seen:
        for _ in range(CALLS):
            step()
    return seen.ours / CALLS, seen.all / CALLS


async def counted_async(step, where=OURS):
    """The same for a step that is awaited."""
    for _ in range(FEW + 50):
        await step()
    with Functions(where) as seen:
        for _ in range(CALLS):
            await step()
    return seen.ours / CALLS, seen.all / CALLS


def peak(step):
    """The maximum of bytes that one step holds."""
    gc.collect()
    tracemalloc.start()
    try:
        step()
        heights = []
        for _ in range(5):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            step()
            heights.append(tracemalloc.get_traced_memory()[1] - before)
        return min(heights)
    finally:
        tracemalloc.stop()


@pytest.fixture
def client_of():
    """Makes the step of a client: a warmed-up get that is answered at once."""
    with lbclient.Client("http://127.0.0.1:1") as first:
        clients = [first]

        def make(number=FEW, kind=lbclient.Client, **options):
            where = urls(number) if kind is lbclient.Client else ()
            transport = (lambda _: Null()) if kind is lbclient.Client else Null()
            client = kind(*([where] if where else []), transport=transport, **options)
            clients.append(client)
            url = urls(1)[0] + "/"
            for _ in range(number + 50):
                client.get(url)
            return lambda: client.get(url)

        yield make
        for client in clients:
            client.close()


def test_functions_of_a_call(client_of):
    """A call goes through so many functions of ours, and through half as many of all kinds as a
    call of httpx alone: we leave out layers of httpx's that do nothing for it."""
    ours, total = counted(client_of())
    _, bare = counted(client_of(kind=httpx.Client, trust_env=False))
    assert ours <= 56
    assert total <= 0.45 * bare


def test_functions_of_a_plain_call():
    """The same for the engine alone."""
    balancer = Balancer(urls(FEW))

    def step():
        balancer.call(_nothing)

    for _ in range(50):
        step()
    ours, total = counted(step)
    assert ours <= 25
    assert total <= 49


def test_functions_of_an_async_call():
    """The same on an event loop, where the driver is not a separate function."""

    async def nothing(_):
        return None

    balancer = Balancer(urls(FEW))
    ours, total = asyncio.run(counted_async(lambda: balancer.acall(nothing)))
    assert ours <= 24
    assert total <= 48


def test_functions_of_a_call_of_an_async_client():
    """The same for a whole call of a client on an event loop, compared with a call of httpx
    alone."""

    async def calls():
        url = urls(1)[0] + "/"
        async with (
            lbclient.AsyncClient(urls(FEW), transport=lambda _: Null()) as client,
            httpx.AsyncClient(transport=Null(), trust_env=False) as bare,
        ):
            return [await counted_async(lambda one=one: one.get(url)) for one in (client, bare)]

    (ours, total), (_, bare) = asyncio.run(calls())
    assert ours <= 60
    assert total <= 0.45 * bare


def test_functions_of_a_call_over_a_connection(servers):
    """A call over an idle connection goes through so many functions of the connections."""
    (server,) = servers(says(200, b"ok"))
    with lbclient.Client([server.url]) as client:
        client.get("/")
        ours, _ = counted(lambda: client.get("/"), CONNECTIONS)
    assert ours <= 30


def test_functions_of_a_call_over_a_connection_async(servers):
    """The same on an event loop, where what continues after a wait counts twice."""
    (server,) = servers(says(200, b"ok"))

    async def calls():
        async with lbclient.AsyncClient([server.url]) as client:
            await client.get("/")
            return await counted_async(lambda: client.get("/"), CONNECTIONS)

    ours, _ = asyncio.run(calls())
    assert ours <= 31


def test_files_of_a_call(servers):
    """A warm `Client.get` enters this many of our files, and two more if the body arrives after the
    headers: a reader who follows a call reads no more."""
    at_once, later = servers(says(200, b"ok"), in_two_parts)
    assert len(by_get(at_once.url)) <= 27
    assert len(by_get(later.url)) <= 29


def test_files_of_an_outcome(servers):
    """With all rules on, the outcome of a 503 enters this many files, from the end of the attempt
    to the decision about a retry."""
    bad = servers(*[says(503)] * 3)
    assert len(by_outcome([server.url for server in bad])) <= 20


@pytest.mark.parametrize(
    "strategy", ["least-busy", *slow_rows(*sorted(BY_NAME.keys() - {"least-busy"}))]
)
def test_no_more_for_more_instances(strategy):
    """A pick among thousands of instances takes as many steps as among ten."""

    def steps(number):
        ticks = itertools.count()
        options = {"rng": random.Random(1), "clock": lambda: next(ticks) / 1000}
        balancer = Balancer(urls(number), strategy=strategy, **options)
        for _ in range(number + 50):
            balancer.call(_nothing)
        return counted(lambda: balancer.call(_nothing))

    few, many = steps(FEW), steps(MANY)
    assert many[0] <= few[0] + 1
    assert many[1] <= few[1] * 1.1


def test_attributes_of_what_a_call_passes():
    """What each call passes has fewer than thirty attributes: from thirty on, CPython keeps them in
    a dictionary of the object's own, where all are found later (5 % of a call, for the engine)."""
    engine = Balancer(urls(FEW))._engine
    for one in (engine, engine._picker, engine.pool, engine.membership, engine.subscription):
        assert len(vars(one)) < 30, type(one).__name__


def test_policies_cost_nothing_while_all_goes_well():
    """A first attempt that succeeds calls neither tenacity nor pybreaker."""

    def steps(**options):
        balancer = Balancer(urls(FEW), **options)
        for _ in range(50):
            balancer.call(_nothing)
        return counted(lambda: balancer.call(_nothing))

    bare = steps(retry=None, breaker=None)
    full = steps(retry=RetryPolicy(attempts=5), breaker=BreakerPolicy(fail_max=3))
    assert full[0] <= bare[0] + 2
    assert full[1] <= bare[1] + 4


def test_memory_at_its_height(client_of):
    """A call needs at most 2 KiB more memory than one of httpx alone."""
    ours = peak(client_of())
    bare = peak(client_of(kind=httpx.Client, trust_env=False))
    assert ours <= bare + 2048


def kept(step):
    """Blocks of memory that one step leaves to the garbage collector, or forever."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for _ in range(1000):
            step()
        return (sys.getallocatedblocks() - before) / 1000
    finally:
        gc.enable()


def test_nothing_is_left_to_the_collector(client_of):
    """The engine leaves no reference cycle; a client no more than httpx's responses have."""
    balancer = Balancer(urls(FEW))
    assert kept(lambda: balancer.call(_nothing)) < 0.2
    assert kept(client_of()) < kept(client_of(kind=httpx.Client, trust_env=False))


def test_memory_of_an_idle_instance():
    """An instance that is known and not called needs less than 2 KiB, including its `Instance`."""
    gc.collect()
    tracemalloc.start()
    try:
        balancer = Balancer(urls(MANY))
        balancer.call(_nothing)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / MANY < 2048


def _nothing(_):
    return None
