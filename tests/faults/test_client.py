"""Faults of the client's own side, of its configuration, and of security (C, K and S)."""

import contextlib
import dataclasses
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
import zlib

import anyio
import anyio.lowlevel
import httpx
import pytest
import tenacity
from opentelemetry import baggage, context, trace

import lbclient
from lbclient import BreakerPolicy, RetryBudget, RetryPolicy
from lbclient.strategy.registry import BY_NAME
from tests.http.test_features import all_requests, urls, worlds
from tests.support.http import Gate, head, in_turn, resets, says, tells_port
from tests.support.interpreter import ended_soon
from tests.support.slow import slow_rows
from tests.support.telemetry import Telemetry

AT_ONCE = RetryPolicy(backoff=0)
ENTRIES = [
    lbclient.Balancer,
    lbclient.Client,
    lbclient.AsyncClient,
    lbclient.Transport,
    lbclient.AsyncTransport,
]
entries = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
LIMIT = 5
MIB = 1 << 20


def at_rest(client):
    """Check that nothing is in flight."""
    return not any(one.in_flight for one in client.balancer.snapshot().instances)


def breakers(client):
    return [one.breaker for one in client.balancer.snapshot().instances]


# Places


@pytest.mark.anyio
async def test_cancelled_in_line(servers):
    """C2: of fifty tasks that wait for one slot every second one is cancelled; the others are
    served in order of arrival, and the slot is free at the end."""
    gate = Gate()
    (server,) = servers(gate)
    served, scopes = [], {}

    async def call(number):
        with anyio.CancelScope() as scope:
            scopes[number] = scope
            await client.get(f"/{number}")
            served.append(number)

    async with lbclient.AsyncClient([server.url], max_in_flight=1) as client:
        engine = client.balancer._engine
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(call, number)
                while engine._picker.in_flight + len(engine.queue.waiting) <= number:
                    await anyio.lowlevel.checkpoint()
            for number in range(1, 50, 2):
                scopes[number].cancel()
            gate.open.set()
        assert served == list(range(0, 50, 2))
        assert at_rest(client)
        assert (await client.get("/")).status_code == 200


class Crowd:
    """Counts the requests that each instance has and has not answered yet."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = {}
        self.most = 0

    def __call__(self, then):
        def behave(connection, request):
            port = connection.server.port
            with self.lock:
                self.inside[port] = self.inside.get(port, 0) + 1
                self.most = max(self.most, self.inside[port])
            connection.server.stopping.wait(0.002)
            with self.lock:
                self.inside[port] -= 1
            then(connection, request)

        return behave


@pytest.mark.anyio
async def test_many_tasks_at_once(servers, dead_port):
    """C7: with two hundred tasks over good, dying and dead instances, no instance ever has more
    requests than its limit, all calls are answered, and nothing is in flight at the end."""
    crowd, answered = Crowd(), []
    dying = in_turn(*[resets, tells_port] * 50, tells_port)
    three = servers(crowd(tells_port), crowd(tells_port), crowd(dying))
    service = [*urls(three), f"http://127.0.0.1:{dead_port}"]
    patient = httpx.Timeout(10, pool=60)
    policy = RetryPolicy(attempts=10, backoff=0, budget=None)

    async def call():
        answered.append((await client.get("/")).status_code)

    async with lbclient.AsyncClient(
        service, retry=policy, max_in_flight=LIMIT, timeout=patient
    ) as client:
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(call)
        assert at_rest(client)
    assert answered == [200] * 200
    assert 2 <= crowd.most <= LIMIT


# The process: its end, its clock, its sleep


@pytest.mark.parametrize(
    "work",
    [
        """\
client = lbclient.Client(url)
threading.Thread(target=client.get, args=("/hang",), daemon=True).start()
while not client.balancer.snapshot().instances[0].in_flight:
    time.sleep(0.01)""",
        """\
class Slow:
    asked = threading.Event()
    def resolve(self):
        self.asked.set()
        time.sleep(60)
client = lbclient.Client(Slow(), name="orders.test")
threading.Thread(target=client.get, args=("/",), daemon=True).start()
Slow.asked.wait()""",
        """\
client = lbclient.Client(url)
with client, client.stream("GET", "/body"):
    print(time.time())
    sys.exit()""",
        """\
async def main():
    client = lbclient.AsyncClient(url)
    task = asyncio.create_task(client.get("/hang"))
    while not client.balancer.snapshot().instances[0].in_flight:
        await asyncio.sleep(0.01)
asyncio.run(main())""",
    ],
    ids=["call", "discovery", "exit", "task"],
)
def test_interpreter_ends_in_the_middle_of_it(servers, work):
    """C10: if an interpreter ends while a call, a round of discovery or a body is under way, it
    exits within a second and prints nothing."""
    gate = Gate()

    def behave(connection, request):
        if request.target == "/hang":
            gate(connection, request)
        else:
            connection.send(head(200, {"Content-Length": "1000000"}) + b"x" * 100_000)

    (server,) = servers(behave)
    text = f"import asyncio, sys, threading, time, lbclient\nurl = sys.argv[1]\n{work}\n"
    command = [sys.executable, "-c", f"{text}print(time.time())", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ended_soon(done.stdout)


@worlds
@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_wall_clock_that_jumps(servers, world, monkeypatch, jump):
    """C15: after the wall clock has jumped by an hour, an open breaker stays open, an empty budget
    stays empty, connections are kept, and calls have the time of their deadline."""
    bad, good = servers(says(503), tells_port)
    policy = RetryPolicy(backoff=0, deadline=5, budget=RetryBudget(ratio=0, reserve=0.1))
    with world.client(
        urls([bad, good]),
        retry=policy,
        breaker=BreakerPolicy(fail_max=1, reset_timeout=30),
        strategy="round-robin",
    ) as client:
        while "open" not in breakers(client):
            client.get("/")
        client.get("/")
        connections = good.accepted
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        assert [client.get("/").text for _ in range(5)] == [str(good.port)] * 5
        assert bad.hits == 1
        assert good.accepted == connections
        good.behaviour = says(503)  # the one retry that the budget held was spent on the bad one
        before = good.hits
        client.get("/")
        assert good.hits == before + 1


STOPPED = """
    import contextlib, sys, threading, time, anyio, httpx, lbclient
    kind, bound, seconds, *urls = sys.argv[1:]
    ends = {} if bound == "timeout" else {bound: float(seconds)}
    options = {
        "retry": lbclient.RetryPolicy(attempts=1, **ends),
        "breaker": lbclient.BreakerPolicy(fail_max=1, reset_timeout=30),
        "timeout": httpx.Timeout(30, read=float(seconds)),
    }
    def work():
        with contextlib.suppress(httpx.TimeoutException):
            client.get("/")
    async def awork():
        with contextlib.suppress(httpx.TimeoutException):
            await client.get("/")
    async def main():
        async with client, anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(awork)
    print(time.monotonic(), flush=True)
    if kind == "sync":
        client = lbclient.Client(urls, **options)
        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        client = lbclient.AsyncClient(urls, **options)
        anyio.run(main, backend=kind)
    print(sum(one.failures for one in client.balancer.snapshot().instances))
"""


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("sync", "timeout"),
        ("asyncio", "deadline"),
        ("trio", "attempt_timeout"),
        *slow_rows(("sync", "deadline"), ("sync", "attempt_timeout")),
        *slow_rows(("asyncio", "timeout"), ("asyncio", "attempt_timeout")),
        *slow_rows(("trio", "timeout"), ("trio", "deadline")),
    ],
)
def test_a_process_that_stood_still(servers, kind, bound):
    """C26: if a process is stopped for longer than its timeouts while calls are under way, no
    instance is ejected afterwards: answers that arrived meanwhile count, and a deadline that passed
    meanwhile charges no instance."""
    assert any(stands_still(servers, kind, bound, seconds) for seconds in (1.5, 3.0, 6.0, 12.0))


def stands_still(servers, kind, bound, seconds):
    """False if a busy machine took so long to begin all calls that some ended before the process
    was stopped: the test then does not apply."""
    answered = threading.Semaphore(0)

    def answers(connection, request):
        tells_port(connection, request)
        answered.release()

    gates = [Gate(answers) for _ in range(3)]
    arguments = [kind, bound, str(seconds), *urls(servers(*gates))]
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        began = float(process.stdout.readline())
        entered = all(gate.entered.acquire(timeout=10) for gate in gates for _ in range(4))
        os.kill(process.pid, signal.SIGSTOP)
        if not entered or time.monotonic() - began > seconds - 0.5:
            process.kill()
            return False
        for gate in gates:
            gate.open.set()
        for _ in range(12):
            assert answered.acquire(timeout=10)
        time.sleep(seconds + 0.7)  # what it sleeps through, well beyond its timeout
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "0\n")
    return True


# Bodies


class Counted(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that records whether it is still referenced."""

    def __init__(self, alive):
        self.data = b"x" * 1000
        alive.add(self)

    def __iter__(self):
        yield self.data

    async def __aiter__(self):
        yield self.data


class Failing(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers 503 once, then never again."""

    def __init__(self, alive):
        self.alive, self.turns = alive, itertools.cycle([True, False])

    def answer(self):
        if next(self.turns):
            return httpx.Response(503, stream=Counted(self.alive))
        raise httpx.ReadError("broken")

    def handle_request(self, _):
        return self.answer()

    async def handle_async_request(self, _):
        return self.answer()


@pytest.fixture
def failing():
    """Options of a client whose calls all fail, and the bodies that still exist."""
    transport = Failing(weakref.WeakSet())
    options = {
        "transport": lambda _: transport,
        "retry": RetryPolicy(attempts=2, backoff=0),
        "breaker": BreakerPolicy(fail_max=100),
    }
    gc.disable()
    yield options, transport.alive
    gc.enable()


def test_an_error_keeps_no_body(failing):
    """C23: nothing of a failed call, neither bodies nor frames, is left to the garbage collector:
    it is freed together with the error."""
    options, alive = failing
    with lbclient.Client([lbclient.Instance("a.test", 80)], **options) as client:
        for _ in range(3):
            with contextlib.suppress(httpx.ReadError):
                client.get("/")
            assert not alive


@pytest.mark.anyio
async def test_an_error_keeps_no_body_async(failing):
    """C23: the same for event loops."""
    options, alive = failing
    async with lbclient.AsyncClient([lbclient.Instance("a.test", 80)], **options) as client:
        for _ in range(3):
            with contextlib.suppress(httpx.ReadError):
                await client.get("/")
            assert not alive


def swallows(received):
    """Reads a whole chunked body and keeps none of it."""

    def behave(connection, _):
        end = b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            data = connection.sock.recv(65536)
            received.append(len(data))
            end = (end + data)[-7:]
        connection.answer()
        connection.close()

    behave.on_accept = True
    return behave


def peak_of(function):
    """The maximum of memory that was allocated meanwhile, in bytes."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@worlds
def test_a_huge_body_is_not_kept(servers, world):
    """C13: a generated body is not stored for a retry, however large it is."""
    received = []
    (server,) = servers(swallows(received))
    with world.client([server.url]) as client:
        body = world.body(b"x" * 65536 for _ in range(512))
        assert peak_of(lambda: client.put("/", content=body)) < 4 * MIB
    assert sum(received) > 32 * MIB


@worlds
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's: the body's own
def test_a_huge_body_is_sent_once(servers, world):
    """C13, C11: a generated body that has been begun is sent to no other instance."""

    def breaks(connection, _):
        connection.sock.recv(65536)
        connection.reset()

    breaks.on_accept = True
    begun = []

    def chunks():
        for number in range(512):
            begun.append(number)
            yield b"x" * 65536

    pair = servers(breaks, breaks)
    with world.client(urls(pair), retry=AT_ONCE) as client:
        with pytest.raises(httpx.TransportError) as caught:
            client.put("/", content=world.body(chunks()))
        assert at_rest(client)
    assert len(lbclient.call_info(caught.value).attempts) == 1
    assert begun.count(0) == 1
    assert sum(one.accepted for one in pair) == 1


def floods(connection, _):
    """Send headers without end."""
    connection.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        connection.send(b"X-%d: %s\r\n" % (number, b"a" * 1000))


def long_line(connection, _):
    """One header of a megabyte."""
    connection.send(b"HTTP/1.1 200 OK\r\nX: " + b"a" * MIB + b"\r\n\r\n")


_PACKER = zlib.compressobj(9, wbits=31)
BOMB = _PACKER.compress(bytes(16 * MIB)) + _PACKER.flush()


def bomb(connection, _):
    """16 KiB that decompress to 16 MiB."""
    connection.answer(503, BOMB, Content_Encoding="gzip")


@worlds
@pytest.mark.parametrize("behaviour", [floods, long_line, bomb])
def test_what_would_fill_the_memory(servers, world, behaviour):
    """S9: endless headers and compressed bodies cost little memory when they are refused or
    replaced, and another instance answers."""
    bad, good = servers(behaviour, tells_port)
    with world.client(urls([bad, good]), retry=AT_ONCE, breaker=None) as client:

        def call():
            while not bad.hits:
                assert client.get("/").text == str(good.port)

        assert peak_of(call) < 6 * MIB


# Retries


class NoLuck(random.Random):
    """Random numbers that are always 0.5."""

    def random(self):
        return 0.5


@worlds
def test_no_sleep_beyond_the_deadline(servers, world):
    """C16: if the next delay would pass the deadline, the last answer is returned at once."""
    (server,) = servers(says(503))
    policy = RetryPolicy(deadline=10, backoff=60, backoff_max=60)
    with world.client([server.url], retry=policy, rng=NoLuck()) as client:
        began = time.monotonic()
        response = client.get("/")
        assert time.monotonic() - began < 5
    assert response.status_code == 503
    assert server.hits == 1


@worlds
def test_retries_of_the_callers_own(servers, world):
    """C17: with `retry=None` only the caller's own retries are made. If both retry, the budget
    bounds their total, and each call records its attempts."""
    (server,) = servers(says(503))
    outer = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),
        retry=tenacity.retry_if_result(lambda response: response.status_code == 503),
        retry_error_callback=lambda state: state.outcome.result(),
    )
    with world.client([server.url], retry=None, breaker=None) as client:
        response = outer(client.get, "/")
    assert len(lbclient.call_info(response).attempts) == 1
    assert server.hits == 3
    two_retries = RetryBudget(ratio=0, reserve=0.2, window=10)
    policy = RetryPolicy(attempts=2, backoff=0, budget=two_retries)
    with world.client([server.url], retry=policy, breaker=None) as client:
        first = client.get("/")
        outer(client.get, "/")
    assert len(lbclient.call_info(first).attempts) == 2
    assert server.hits == 3 + 4 + 2


@worlds
def test_never_more_than_a_hundred_attempts(servers, world):
    """K6: a call makes at most a hundred attempts."""
    (server,) = servers(says(503))
    policy = RetryPolicy(attempts=100, backoff=0, budget=None)
    with world.client([server.url], retry=policy, breaker=None) as client:
        assert client.get("/").status_code == 503
    assert server.hits == 100


@pytest.mark.parametrize("attempts", [0, -1, 101, 10**9, True, 2.0, "3", None])
def test_attempts_out_of_bounds(attempts):
    """K6: zero attempts, or more than a hundred, are refused at construction."""
    with pytest.raises((ValueError, TypeError), match=r"^attempts must be"):
        RetryPolicy(attempts=attempts)


RETRY_AFTER = ["1000000000", "9" * 50, "Fri, 31 Dec 9999 23:59:59 GMT"]


@worlds
@pytest.mark.parametrize("after", RETRY_AFTER, ids=["long", "longer", "date"])
def test_retry_after_is_capped(servers, world, after):
    """S11: an instance that asks for a back-off of years is used again after 30 seconds."""
    jump = [0.0]
    date = "Thu, 01 Jan 2026 00:00:00 GMT"
    pair = servers(in_turn(says(503, Retry_After=after, Date=date), tells_port), tells_port)
    with world.client(
        urls(pair),
        retry=AT_ONCE,
        breaker=None,
        strategy="round-robin",
        clock=lambda: time.monotonic() + jump[0],
    ) as client:
        while not pair[0].hits:
            client.get("/")
        for seconds, who in ((0, pair[1:]), (28, pair[1:]), (31, pair)):
            jump[0] = seconds
            answered = {client.get("/").text for _ in range(4)}
            assert answered == {str(one.port) for one in who}


@worlds
@pytest.mark.parametrize("most", [0, 5])
def test_the_cap_on_retry_after_is_an_option(servers, world, most):
    """`retry_after_max` bounds the back-off that an instance may ask for; 0 ignores it."""
    jump = [0.0]
    pair = servers(in_turn(says(503, Retry_After="20"), tells_port), tells_port)
    with world.client(
        urls(pair),
        retry=dataclasses.replace(AT_ONCE, retry_after_max=most),
        breaker=None,
        strategy="round-robin",
        clock=lambda: time.monotonic() + jump[0],
    ) as client:
        while not pair[0].hits:
            client.get("/")
        for seconds, who in ((0, pair[1:] if most else pair), (most + 1, pair)):
            jump[0] = seconds
            answered = {client.get("/").text for _ in range(4)}
            assert answered == {str(one.port) for one in who}


@worlds
def test_retry_after_of_all_holds_nobody_up(servers, world):
    """S11: if every instance asks for a back-off of an hour, no call sleeps longer than
    `backoff_max`."""
    pair = servers(*[says(503, Retry_After="3600")] * 2)
    policy = RetryPolicy(attempts=5, backoff=0, backoff_max=0.2)
    with world.client(urls(pair), retry=policy, breaker=None) as client:
        for _ in range(3):
            began = time.monotonic()
            assert client.get("/").status_code == 503
            assert time.monotonic() - began < 1


# Whose requests go where


def mounted(world, **services):
    """A client of httpx with these services at `http://name.test`."""

    def mounts(kind):
        return {f"http://{name}.test": kind(where) for name, where in services.items()}

    return world.entered(
        lambda: httpx.Client(mounts=mounts(lbclient.Transport)),
        lambda: httpx.AsyncClient(mounts=mounts(lbclient.AsyncTransport)),
    )


@worlds
def test_retries_stay_with_their_service(servers, world):
    """S2: a retry goes to instances of its own service only, under the same Host."""
    failing = servers(says(503), resets)
    (other,) = servers(tells_port)
    with mounted(world, orders=urls(failing), payments=urls([other])) as client:
        for _ in range(4):
            with contextlib.suppress(httpx.ReadError):
                assert client.get("http://orders.test/").status_code == 503
    assert all(one.hits for one in failing)
    assert {one.headers["host"] for one in all_requests(*failing)} == {"orders.test"}
    assert other.hits == 0


@worlds
def test_tls_is_never_given_up(servers, world):
    """S2: if TLS is not possible, the request is not sent in clear text to any instance."""
    first_bytes = []

    def listens(connection, _):
        first_bytes.append(connection.sock.recv(3))
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    listens.on_accept = True
    pair = servers(listens, listens)
    service = [f"https://127.0.0.1:{one.port}" for one in pair]
    with world.client(service, retry=AT_ONCE) as client, pytest.raises(httpx.ConnectError):
        client.get("/?token=secret")
    assert len(first_bytes) >= 2
    assert {data[:2] for data in first_bytes} == {b"\x16\x03"}


@worlds
def test_cookies_stay_with_their_service(servers, world):
    """S3: a cookie of one service is sent to no other, even if both share an address; an unnamed
    list has one cookie jar for all its instances."""
    orders = servers(*[says(200, Set_Cookie="session=42; Path=/")] * 2)
    (payments,) = servers(tells_port)
    with mounted(world, orders=urls(orders), payments=urls([payments])) as client:
        for _ in range(3):
            client.get("http://orders.test/")
        client.get("http://payments.test/")
    assert all_requests(*orders)[-1].headers["cookie"] == "session=42"
    assert "cookie" not in payments.requests[0].headers
    unnamed = [f"http://localhost:{orders[0].port}", orders[1].url]
    for one in orders:
        one.requests.clear()
    with world.client(unnamed, strategy="round-robin") as client:
        for _ in range(4):
            client.get("/")
        assert len(client.cookies.jar) == 1
    assert sorted("cookie" in one.headers for one in all_requests(*orders)) == [False, *[True] * 3]


@worlds
def test_trace_headers_go_nowhere_else(servers, world):
    """S10: only the requests of a client to its service carry our trace headers and baggage, in a
    span and outside one."""
    service, elsewhere = servers(tells_port, tells_port)
    telemetry = Telemetry()
    span = telemetry.tracer.start_span("caller")
    here = baggage.set_baggage("tenant", "a", trace.set_span_in_context(span))
    token = context.attach(here)
    try:
        with mounted(world, orders=urls([service])) as client:
            client.get("http://orders.test/")
            client.get(elsewhere.url)
    finally:
        context.detach(token)
        span.end()
    names = {"traceparent", "baggage"}
    assert names <= set(service.requests[0].headers)
    assert not names & set(elsewhere.requests[0].headers)


# What is told


@worlds
def test_few_series_whatever_is_asked(servers, world, dead_port):
    """S8: paths, queries, methods, failures and instances do not increase the number of series and
    span names without limit, on threads and on event loops."""
    telemetry = Telemetry()
    good = servers(tells_port, tells_port, says(500))
    service = [*urls(good), f"http://127.0.0.1:{dead_port}"]
    policy = BreakerPolicy(fail_max=2, reset_timeout=0.01)
    with world.client(
        service, name="orders.test", breaker=policy, retry=AT_ONCE, **telemetry.options
    ) as client:
        for number in range(40):
            client.request(f"ODD{number}", f"/{number}?q={number}")
            client.get(f"/{number}?q={number}")
    points = [labels for found in telemetry.all_points().values() for labels, _ in found]
    told = {str(value) for labels in points for value in labels.values()}
    assert {"orders.test", "GET", "_OTHER", "200", "500", "ConnectError"} <= told
    assert len(told) < 20
    assert not {str(one.port) for one in good} & told
    assert {span.name for span in telemetry.attempts} == {"GET", "HTTP"}


# Configuration


@entries
@pytest.mark.parametrize("strategy", ["fastest", "Random", "", b"random", 5, None, object()])
def test_unknown_strategy(entry, strategy):
    """K3: an unknown strategy is refused at construction, and the error lists the known ones."""
    with pytest.raises((ValueError, TypeError), match=r"^strategy must be") as caught:
        entry(["http://127.0.0.1:1"], strategy=strategy)
    for name in BY_NAME:
        assert repr(name) in str(caught.value)
