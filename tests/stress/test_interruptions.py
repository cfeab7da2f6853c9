"""Exceptions at any moment: whatever a signal handler raises, and wherever, nothing is left behind.

Celery's and rq's soft time limits, Ctrl-C in a notebook, `PyThreadState_SetAsyncExc`: each of them
raises between two instructions of whatever runs. Here one is raised at each point where CPython
looks for them, one point a run.
"""

import asyncio
import contextlib
import copy
import ctypes
import gc
import os
import queue
import random
import signal
import subprocess
import sys
import threading

import httpx
import pytest

import lbclient
import lbclient.httpx2
from lbclient import (
    AdaptiveLimit,
    Balancer,
    BreakerPolicy,
    HedgePolicy,
    OutlierPolicy,
    SlowStart,
    ThrottlePolicy,
    Zone,
)
from lbclient._internal.blocking import run_blocking
from lbclient._internal.deadline import CURRENT
from lbclient._internal.signals import Pause, Signal
from lbclient.balancer.threads import sleep
from lbclient.http.connections import instance_transport, threads
from tests.support import hammer
from tests.support.faults import NAME, TlsServer, trust
from tests.support.http import says, serve, transports_of
from tests.support.interruptions import Interrupt, SoftLimit, points
from tests.support.slow import slow_rows

pytestmark = [
    pytest.mark.skipif(
        sys.version_info >= (3, 12),
        reason="since 3.12, CPython's trace function leaves out points, or crashes (3.12.1)",
    ),
    # What is interrupted is left to finalizers in part, which say so.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BOTH = [Interrupt, SoftLimit]
KINDS = [Interrupt, *slow_rows(SoftLimit)]
STEP = int(os.environ.get("LBCLIENT_INTERRUPTION_STEP", "31"))
"""Of the points of a request, every so many-th: all of them take minutes."""
SIGNALS = int(os.environ.get("LBCLIENT_SIGNALS", "10000"))
SWALLOWED = "the exception was swallowed"
URLS = ["http://127.0.0.1:1", "http://127.0.0.1:2"]


@pytest.fixture(autouse=True)
def _collected():
    """Collect here what a run leaves to the garbage collector, where it does no harm."""
    yield
    gc.collect()


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def left_behind(balancer):
    """What an interrupted call has not given back, not even through the garbage collector."""
    if found := _held(balancer):
        gc.collect()  # the responses of httpx are cycles
        found = _held(balancer)
    return found


def _held(balancer):
    """What is held now; another thread checks that the lock is free."""
    engine, free = balancer._engine, []

    def look():
        if engine.lock.acquire(timeout=1):
            engine.lock.release()
            free.append(True)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if not free:
        return ["the lock"]
    found = [f"{one.in_flight} at {one.instance}" for one in balancer.snapshot().instances]
    left = [text for text in found if not text.startswith("0 ")]
    left += [
        f"the probe of {one.instance}" for one in engine.pool.endpoints if one.breaker.probe_permit
    ]
    left += ["a place in the line"] * len(engine.queue)
    if engine.in_flight:
        left.append(f"{engine.in_flight} in all")
    return left


def swept(prepare, kind, **options):
    """Interrupt some work at each point; `prepare` makes the balancer and the work for each run.

    Returns the number of points, and for each point what was left behind or swallowed.
    """
    balancers, faults, count = [], [], 0

    def prepared():
        balancer, work = prepare()
        balancers[:] = [balancer]
        return work

    for where, reached in points(prepared, kind, **options):
        count += 1
        faults += [(where, one) for one in left_behind(*balancers)]
        if not reached:
            faults.append((where, SWALLOWED))
    return count, faults


def refused_once():
    """A function whose first call is refused."""
    tries = []

    def fn(_):
        tries.append(None)
        if len(tries) == 1:
            raise ConnectionRefusedError(111, "refused")
        return len(tries)

    return fn


def opened(**options):
    """A balancer of one instance whose breaker is open, and due for a probe."""
    clock = Clock()
    balancer = Balancer(
        URLS[:1], breaker=BreakerPolicy(fail_max=1), retry=None, clock=clock, **options
    )
    with pytest.raises(ConnectionResetError), balancer.acquire():
        raise ConnectionResetError
    clock.now += 10
    return balancer


STRATEGIES = ["weighted", "round-robin", "random", "least-busy", "peak-ewma", "prequal"]


@pytest.mark.parametrize(
    "strategy", ["weighted", *slow_rows("prequal", *STRATEGIES[1:-1], "consistent-hash")]
)
def test_the_first_call(strategy):
    """The first call of a balancer, which looks at its instances for the first time, may be
    interrupted anywhere: the calls that follow find them. Every one, unless the strategy may prefer
    the one that was quicker."""
    every = strategy not in {"peak-ewma", "prequal"}
    made, broken = [], []

    def check():
        for balancer in made:
            picked = {balancer.call(lambda one: one.port, key=str(key)) for key in range(64)}
            if every and len(picked) < len(URLS):
                broken.append(picked)

    def prepare():
        check()
        made[:] = [Balancer(URLS, strategy=strategy)]
        return lambda: made[0].call(lambda _: None, key="a")

    count = sum(1 for _ in points(prepare, Interrupt))
    check()
    assert broken == []
    assert count > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_is_retried(kind):
    """A call that is interrupted, in its first attempt or its second, leaves no slot taken."""

    def prepare():
        balancer = Balancer(URLS, max_in_flight=1)
        fn = refused_once()
        return balancer, lambda: balancer.call(fn, idempotent=True)

    count, faults = swept(prepare, kind)
    assert faults == []
    assert count > 100


@pytest.mark.parametrize("which", ["second", *slow_rows("first")])
@pytest.mark.parametrize("strategy", ["least-busy", *slow_rows(Zone("here"))], ids=str)
def test_the_call_after_one_that_is_interrupted(which, strategy):
    """Wherever a call is interrupted, the first of all or the second, the next one finds an
    instance."""
    balancers, served = [], []

    def prepare():
        balancers[:] = [Balancer(URLS, strategy=copy.deepcopy(strategy))]
        if which == "second":
            balancers[0].call(lambda _: 1)
        return lambda: balancers[0].call(lambda _: 1)

    for _ in points(prepare, SoftLimit):
        served += [balancers[0].call(lambda _: 1)]
    assert set(served) == {1}
    assert len(served) > 50


@pytest.mark.parametrize("kind", [SoftLimit, *slow_rows(Interrupt)])
def test_every_rule_at_once(kind):
    """The same with every optional rule on, a listener and a strategy that learns."""

    def prepare():
        balancer = Balancer(
            URLS,
            strategy="peak-ewma",
            limit=AdaptiveLimit(),
            outliers=OutlierPolicy(),
            throttle=ThrottlePolicy(),
            slow_start=SlowStart(),
            breaker=BreakerPolicy(fail_max=1, failure_rate=0.5),
            listener=lambda _: None,
        )
        fn = refused_once()
        return balancer, lambda: balancer.call(fn, idempotent=True, deadline=5.0)

    count, faults = swept(prepare, kind)
    assert faults == []
    assert count > 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("healed", [True, *slow_rows(False)])
def test_a_probe(kind, healed):
    """A probe that is interrupted gives its permit back, so the next one may be sent at once."""

    def prepare():
        balancer = opened()
        return balancer, lambda: balancer.call(fn if healed else failing, idempotent=True)

    def fn(_):
        return 1

    def failing(_):
        with contextlib.suppress(ConnectionResetError):
            raise ConnectionResetError
        return 1

    _, faults = swept(prepare, kind)
    assert faults == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_is_retried(kind):
    """While a result waits for its retry its slot passes to the next attempt, or is given back."""

    def prepare():
        results = ["busy", "well"]
        balancer = Balancer(URLS, judge=_judge, max_in_flight_total=1)
        return balancer, lambda: balancer.call(lambda _: results.pop(0), idempotent=True)

    _, faults = swept(prepare, kind)
    assert faults == []


def _judge(outcome):
    again = "always" if outcome == "busy" else "never"
    return lbclient.Verdict(fault=False, again=again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_waits_in_line(kind):
    """A waiting call that is interrupted leaves the queue, and those behind it get their turn."""

    def prepare():
        balancer = Balancer(URLS[:1], max_in_flight=1)
        held = balancer.acquire()
        held.__enter__()

        def work():
            try:
                with contextlib.suppress(lbclient.DeadlineExceeded):
                    balancer.call(lambda _: 1, deadline=0.001)
            finally:
                trace, _ = sys.gettrace(), sys.settrace(None)
                held.__exit__(None, None, None)
                sys.settrace(trace)

        return balancer, work

    _, faults = swept(prepare, kind)
    assert faults == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_on_a_thread(kind):
    """A wait that is interrupted at any point does not block the thread that wakes it later."""
    signals, blocked = [], []

    def prepare():
        signals.append(Signal())
        return lambda: sleep(Pause(0.001, signals[-1]))

    for where, _ in points(prepare, kind, everywhere=True):
        waker = threading.Thread(target=signals[-1].set, daemon=True)
        waker.start()
        waker.join(1)
        blocked += [where] if waker.is_alive() else []
    assert blocked == []


def test_a_wait_on_a_thread_ends():
    """A wait ends when its signal is set, or after its time, of any length."""
    signal = Signal()
    threading.Timer(0.01, signal.set).start()
    sleep(Pause(60.0, signal))
    assert signal.is_set
    for seconds in (-1.0, 0.0, 0.001):
        sleep(Pause(seconds, Signal()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_waits_for_discovery(kind):
    """A call that is interrupted while it waits for discovery no longer waits for anything."""

    class Silent:
        def resolve(self):
            raise lbclient.DiscoveryError("not yet")

    def prepare():
        balancer = Balancer(Silent(), name="silent")

        def work():
            with contextlib.suppress(lbclient.LoadBalancingError):
                balancer.call(lambda _: 1, deadline=0.002)

        return balancer, work

    _, faults = swept(prepare, kind)
    assert faults == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_block(kind):
    """A block that holds an instance gives its slot back, wherever it is interrupted."""

    def prepare():
        balancer = Balancer(URLS, max_in_flight=1)

        def work():
            with balancer.acquire():
                pass

        return balancer, work

    _, faults = swept(prepare, kind)
    assert faults == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_hedged_call(kind):
    """The same for a call whose attempts run on other threads: each gives back what it holds."""

    def prepare():
        balancer = Balancer(URLS, hedge=HedgePolicy(delay=0.0))
        return balancer, lambda: balancer.call(lambda _: 1, idempotent=True)

    _, faults = swept(prepare, kind)
    assert faults == []


def test_the_start_of_a_thread(monkeypatch):
    """An exception that comes while a thread of a hedged call starts reaches the caller.

    `threading` turns it into a RuntimeError where it cannot release its own lock after that.
    """
    interruption = SoftLimit()

    def start(_):
        try:
            raise interruption
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(threading.Thread, "start", start)
    balancer = Balancer(URLS, hedge=HedgePolicy(delay=0.001))
    with pytest.raises(SoftLimit) as caught:
        balancer.call(str, idempotent=True)
    monkeypatch.undo()
    assert caught.value is interruption
    assert left_behind(balancer) == []


def test_no_thread_to_be_had(monkeypatch):
    """A hedged call continues if its thread cannot be started, even while an exception is
    handled."""

    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    balancer = Balancer(URLS, hedge=HedgePolicy(delay=0.001))
    try:
        {}["key"]
    except KeyError:
        assert balancer.call(lambda _: "answered", idempotent=True) == "answered"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_threads_of_a_hedged_call():
    """An exception that is set in one of its threads ends the call, and leaves nothing behind.

    Or it comes too late, and the call has its result.
    """

    def prepare():
        balancer = Balancer(URLS, hedge=HedgePolicy(delay=0.0))

        def work():
            try:
                balancer.call(lambda _: 1, idempotent=True)
            finally:
                for one in threading.enumerate():
                    if one.name == "lbclient-attempt":
                        one.join()

        return balancer, work

    _, faults = swept(prepare, Interrupt, threads=True)
    assert [one for one in faults if one[1] != SWALLOWED] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hedged", [True, *slow_rows(False)])
def test_an_async_call(kind, hedged):
    """The same on an event loop."""

    async def fn(_):
        await asyncio.sleep(0)
        return 1

    def prepare():
        balancer = Balancer(URLS, max_in_flight=1, hedge=HedgePolicy(delay=0.0) if hedged else None)

        def work():
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(balancer.acall(fn, idempotent=True))

        return balancer, work

    _, faults = swept(prepare, kind)
    assert faults == []


@pytest.fixture(scope="module")
def urls():
    """A busy instance, and a free one."""
    with serve(says(503, b"busy"), says(200, b"well")) as servers:
        yield [server.url for server in servers]


class First:
    """Picks the first instance."""

    def pick(self, candidates, _):
        return candidates[0]


def get(client):
    assert client.get("/x").text == "well"


def stream(client):
    with client.stream("GET", "/x") as response:
        assert response.read() == b"well"


@pytest.mark.parametrize(
    ("client_of", "sends", "kind"),
    [
        (lbclient.Client, get, Interrupt),
        *slow_rows(
            (lbclient.Client, stream, SoftLimit),
            (lbclient.httpx2.Client, get, SoftLimit),
            (lbclient.httpx2.Client, stream, Interrupt),
        ),
    ],
)
def test_a_request(client_of, sends, kind, urls):
    """A request that is interrupted, even in its retry, leaves no slot taken."""
    clients = []

    def prepare():
        for one in clients:
            one.close()
        clients[:] = [client_of(urls, strategy=First(), breaker=None)]
        return clients[0].balancer, lambda: sends(clients[0])

    _, faults = swept(prepare, kind, step=STEP)
    clients[0].close()
    assert faults == []


def post(client):
    assert client.post("/x", content=b"x" * 300_000).text == "well"


def upload(client):
    assert client.post("/x", content=(b"x" * 1000 for _ in range(3))).text == "well"


def expecting(client):
    assert client.post("/x", content=b"x", headers={"Expect": "100-continue"}).text == "well"


def in_time(client):
    assert client.get("/x", extensions={"lbclient": {"deadline": 30.0}}).text == "well"


def stream_in_part(client):
    with client.stream("GET", "/x"):
        pass


REQUESTS = {
    "get": (get, {}),
    "warm get": (get, {"warm": True}),
    "retried": (get, {"first": True}),
    "stream": (stream, {}),
    "stream in part": (stream_in_part, {"warm": True}),
    "post": (post, {}),
    "upload": (upload, {"warm": True}),
    "expecting": (expecting, {}),
    "in time": (in_time, {"warm": True}),
    "hedged": (get, {"hedge": HedgePolicy(delay=0.0)}),
    "tls get": (get, {"tls": True}),
    "tls post": (post, {"tls": True, "warm": True}),
}


def attempts_end():
    """Wait until the slower attempts of hedged calls have ended."""
    for one in threading.enumerate():
        if one.name == "lbclient-attempt":
            one.join()


@pytest.fixture(scope="module")
def secure_urls():
    servers = [TlsServer(says(503, b"busy")), TlsServer(says(200, b"well"))]
    yield [server.url for server in servers]
    for server in servers:
        server.stop()


INTERRUPTED = [(name, BOTH[number % 2]) for number, name in enumerate(REQUESTS)]


@pytest.mark.parametrize(("name", "kind"), [*INTERRUPTED[:2], *slow_rows(*INTERRUPTED[2:])])
def test_the_connections_of_a_request(name, kind, urls, secure_urls, monkeypatch):
    """Wherever a request is interrupted, its connection is closed, or is idle and serves the next
    request. None is left to the garbage collector."""
    sends, options = REQUESTS[name]
    options = dict(options)
    tls, warm, retried = (options.pop(one, False) for one in ("tls", "warm", "first"))
    if tls:
        options |= {"name": NAME, "verify": trust()}
    instances = (secure_urls if tls else urls)[0 if retried else 1 :]
    sockets, clients, faults = [], [], []
    open_socket = threads.open_socket

    def opened(*args):
        sockets.append(open_socket(*args))
        return sockets[-1]

    monkeypatch.setattr(threads, "open_socket", opened)
    monkeypatch.setattr(instance_transport, "_PATIENCE", 0.005)

    def prepare():
        sockets.clear()
        clients[:] = [lbclient.Client(instances, strategy=First(), breaker=None, **options)]
        if warm:
            get(clients[0])
        return lambda: sends(clients[0])

    for where, _ in points(prepare, kind, step=STEP):
        (client,) = clients
        attempts_end()
        faults += [(where, one) for one in left_behind(client.balancer)]
        get(client)
        attempts_end()
        faults += [(where, "in use")] * (
            not all(transport.is_idle for transport in transports_of(client))
        )
        idle = sum(len(transport._connections._stack) for transport in transports_of(client))
        still = [sock for sock in sockets if sock.fileno() >= 0]
        faults += [(where, "open")] * (len(still) != idle)
        client.close()
        faults += [(where, "open after the end") for sock in still if sock.fileno() >= 0]
    clients[0].close()
    assert faults == []


def test_the_deadline_of_a_request():
    """Wherever a request with a deadline is interrupted, its thread keeps nothing of that: later
    requests are as they would have been."""
    left = []
    with lbclient.Client(
        URLS, transport=lambda _: httpx.MockTransport(lambda _: httpx.Response(200, text="well"))
    ) as client:
        for where, _ in points(lambda: lambda: in_time(client), SoftLimit):
            left += [where] * (CURRENT.get() is not None)
            CURRENT.set(None)
    assert left == []


HOLDERS = (httpx.SyncByteStream, type(Balancer(URLS).acquire()))


def dropped_response(client):
    client.send(client.build_request("GET", "/x"), stream=True)


def dropped_block(client):
    held = client.balancer.acquire()
    held.__enter__()


@pytest.mark.parametrize("drop", [dropped_response, dropped_block])
def test_a_finalizer(drop, urls):
    """A response or block that is dropped frees its slot, also if its finalizer is interrupted.

    An exception that comes while a finalizer runs is swallowed by the interpreter.
    """

    def interrupt(frame, event, _):
        holder = frame.f_locals.get("self")
        if event == "call" and frame.f_code.co_name == "__del__" and isinstance(holder, HOLDERS):
            raise SoftLimit

    with lbclient.Client(urls[1], max_in_flight=1) as client:
        sys.settrace(interrupt)
        try:
            drop(client)
            gc.collect()
        finally:
            sys.settrace(None)
        get(client)
        assert left_behind(client.balancer) == []
        assert not client.balancer._engine.owners


async def aget(client):
    assert (await client.get("/x")).text == "well"


async def astream(client):
    async with client.stream("GET", "/x") as response:
        assert await response.aread() == b"well"


ASYNC = {
    "httpx-get": (lbclient.AsyncClient, aget, SoftLimit),
    "httpx-stream": (lbclient.AsyncClient, astream, Interrupt),
    "httpx2-get": (lbclient.httpx2.AsyncClient, aget, Interrupt),
    "httpx2-stream": (lbclient.httpx2.AsyncClient, astream, SoftLimit),
}


def sweep_async(name, urls):
    """Print what was left behind, and at which points."""
    client_of, sends, kind = ASYNC[name]

    def prepare():
        client = client_of(urls, strategy=First(), breaker=None)

        def work():
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(sends(client))

        return client.balancer, work

    _, faults = swept(prepare, kind, step=STEP)
    sys.stdout.write(f"{[one for one in faults if one[1] != SWALLOWED]}\n")


@pytest.mark.parametrize("name", ["httpx-get", *slow_rows(*sorted(ASYNC.keys() - {"httpx-get"}))])
def test_an_async_request(name, urls):
    """The same on an event loop, which itself logs and swallows what its callbacks raise.

    In a process of its own, since an event loop that is interrupted closes nothing.
    """
    code = (
        f"from tests.stress.test_interruptions import sweep_async; sweep_async({name!r}, {urls!r})"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert told.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client_of", "signals"),
    [(lbclient.Client, SIGNALS), (lbclient.httpx2.Client, SIGNALS // 10)],
)
def test_thousands_of_signals(client_of, signals, urls):
    """After thousands of signals that raise in the middle of requests nothing is in flight.

    The limit is far below their number, so the last request would be refused otherwise. No
    connection and no descriptor is left either.
    """
    dice, armed, raised, reached = random.Random(1), [], [], []

    def limit(*_):
        if armed:
            armed.clear()
            raised.append(None)
            raise SoftLimit

    before = signal.signal(signal.SIGALRM, limit)
    try:
        with client_of(urls, max_in_flight=5) as client:
            get(client)
            descriptors = hammer.descriptors()
            while len(raised) < signals:
                try:
                    armed.append(None)
                    signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.00001, 0.002))
                    get(client)
                except SoftLimit:
                    reached.append(None)
                finally:
                    armed.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert left_behind(client.balancer) == []
            get(client)
            assert hammer.descriptors() <= descriptors + 20  # a few connections that are idle
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(reached) >= 0.98 * len(raised)  # the rest came up in finalizers, which tell nobody


def test_exceptions_that_another_thread_sets():
    """An exception that another thread sets in a thread with calls ends one call, and leaves
    nothing behind."""
    balancer = Balancer(URLS, max_in_flight=3)
    set_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    ended, over, begun = [], [], queue.SimpleQueue()  # an Event is not whole after an interruption

    def work():
        while not over:
            begun.put(None)
            balancer.call(lambda _: 1, idempotent=True)

    def interrupted():
        while True:
            try:
                return work()
            except Interrupt:
                ended.append(None)

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    for _ in range(300):
        while begun.qsize() > 1:
            begun.get()
        begun.get(timeout=5)
        assert set_in(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt)) == 1
    over.append(None)
    thread.join(10)
    assert not thread.is_alive()
    assert len(ended) > 100
    assert left_behind(balancer) == []


def test_coroutines_are_begun():
    """A signal handler that raises leaves no coroutine that was never begun, wherever it comes in
    a chain of coroutines on a thread, so Python warns about none."""
    armed, warned = [], []

    def interrupt(*_):
        if armed:
            armed.clear()
            raise SoftLimit

    async def outer(number):
        return await inner(number) + await inner(number)

    async def inner(number):
        return number

    def at_random(dice):
        with contextlib.suppress(SoftLimit):
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(2e-5, 1e-4))
            for number in range(2_000):
                assert run_blocking(lambda number=number: outer(number)) == 2 * number
        armed.clear()

    before, hook = signal.signal(signal.SIGALRM, interrupt), sys.unraisablehook
    sys.unraisablehook = warned.append
    try:
        for seed in range(SIGNALS // 10):
            at_random(random.Random(seed))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = hook
    assert warned == []
