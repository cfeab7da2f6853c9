"""Faults of instances, each by its name: what it costs a call, and what is charged.

`tests/support/faults.py` plays them all. Survival under load is in `tests/stress/test_survival.py`.
"""

import contextlib
import email.utils
import errno
import itertools
import random
import threading
import time

import anyio
import httpx
import pytest

import lbclient
from lbclient import Answer, BreakerPolicy, Instance, RetryPolicy
from lbclient.http.classifier import rest_asked
from tests.http.test_features import First, World, urls, worlds
from tests.support.faults import FAULTS, PLAIN, Fault, on_accept, says_nothing
from tests.support.http import Gate, says, tells_port
from tests.support.slow import slow_rows

# A body of bytes that is cut short is a generator of httpx's, of which trio complains.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning")

SYNC, ASYNCIO, TRIO = worlds.args[1]
UVLOOP = World("asyncio", use_uvloop=True)
drivers = pytest.mark.parametrize(
    "world", [SYNC, ASYNCIO, UVLOOP, TRIO], ids=["sync", "asyncio", "uvloop", "trio"]
)
"""Whatever moves the bytes of connections."""
some_drivers = pytest.mark.parametrize(
    "world", [SYNC, ASYNCIO, *slow_rows(UVLOOP, TRIO)], ids=["sync", "asyncio", "uvloop", "trio"]
)
PATIENCE = 0.25
"""Seconds for an attempt and for connecting in tests in which something hangs."""
QUICK = RetryPolicy(backoff=0.001, backoff_max=0.002)
IMPATIENT = RetryPolicy(backoff=0.001, backoff_max=0.002, attempt_timeout=PATIENCE)
TIMEOUT = httpx.Timeout(5, connect=PATIENCE)


def faults(names):
    return pytest.mark.parametrize("fault", [FAULTS[name] for name in names], ids=names)


def over(world, fault, instances, **options):
    """A client whose first pick is the first of these instances."""
    given = {"strategy": First(), "retry": QUICK, **fault.speech.options()}
    if fault.hangs:
        given |= {"retry": IMPATIENT, "timeout": TIMEOUT}
    return world.client([one.url for one in instances], **given | options)


@contextlib.contextmanager
def bad_and_good(world, fault, **options):
    """A client of an instance that will have the fault, and of one that never will."""
    with (
        fault.instance() as bad,
        fault.healthy() as good,
        over(world, fault, [bad, good], **options) as client,
    ):
        assert client.get("/").text.startswith(str(bad.port))  # over a connection that is kept
        yield client, bad, good


def failures(client):
    return [one.failures for one in client.balancer.snapshot().instances]


def attempts(outcome):
    return lbclient.call_info(outcome).attempts


# What each fault costs: the table of outcomes


CERTAIN = [name for name, fault in FAULTS.items() if fault.alone is not None]
PROMPT = [name for name in CERTAIN if not FAULTS[name].hangs]
HANGS = [name for name in CERTAIN if FAULTS[name].hangs]
DRIPS = [name for name in FAULTS if name.startswith(("drip-", "endless-", "flood-"))]
QUIET = [name for name in HANGS if name not in DRIPS]
LOOPS = itertools.cycle([("asyncio", ASYNCIO), ("trio", TRIO), ("uvloop", UVLOOP)])
"""What hangs takes its time: on threads, and on one kind of event loop by turns."""


def outcome_of(attempt):
    return attempt.status if attempt.error is None else type(attempt.error)


def check_a_get(world, fault):
    with bad_and_good(world, fault) as (client, bad, good):
        bad.strike()
        response = client.get("/")
        first, *others = attempts(response)
        assert (first.instance.port, outcome_of(first)) == (bad.port, fault.alone)
        assert [one.instance.port for one in others] == [good.port] * (fault.again != "never")
        if others:
            assert (response.status_code, response.text) == (200, str(good.port))
        assert failures(client) == [int(fault.charged), 0]
        assert client.in_flight == 0


@drivers
@faults(PROMPT)
def test_what_a_fault_costs_a_get(world, fault: Fault):
    """I1 to I29: an idempotent call that meets a fault is answered by another instance within two
    attempts; only the instance's own faults are charged, and nothing stays in flight."""
    check_a_get(world, fault)


@pytest.mark.parametrize(
    ("world", "name"),
    [pytest.param(SYNC, name, id=f"{name}-sync") for name in HANGS]
    + [
        pytest.param(world, name, id=f"{name}-{loop}")
        for name, (loop, world) in zip(QUIET, LOOPS, strict=False)
    ],
)
def test_what_a_fault_that_hangs_costs_a_get(world, name):
    """I2, I5, I6, I7, I20, I26, I31: the same for faults that end by a timeout."""
    check_a_get(world, FAULTS[name])


def check_a_post(world, fault):
    with bad_and_good(world, fault) as (client, bad, good):
        bad.strike()
        try:
            outcome = client.post("/", content=b"order")
        except httpx.TransportError as error:
            outcome = error
        ports = [one.instance.port for one in attempts(outcome)]
        assert ports == [bad.port, good.port][: 1 + (fault.again == "always")]
        assert outcome_of(attempts(outcome)[0]) == fault.alone
        assert failures(client) == [int(fault.charged), 0]
        assert client.in_flight == 0


@drivers
@faults(PROMPT)
def test_what_a_fault_costs_a_post(world, fault: Fault):
    """I1 to I29: a POST is retried elsewhere only if it was certainly not carried out."""
    check_a_post(world, fault)


@faults(["blackholed-syn", "stalled-handshake", "silence", "drip-body", "flood-1xx", "stopped"])
def test_what_a_fault_that_hangs_costs_a_post(fault: Fault):
    """I2, I5, I6, I7, I20, I26: the same for a POST and faults that end by a timeout."""
    check_a_post(SYNC, fault)


SECURED = {
    name: FAULTS[name].over_tls()
    for name in CERTAIN
    if FAULTS[name].bad is not None and FAULTS[name].speech is PLAIN and name != "tls-port"
}


@some_drivers
@pytest.mark.parametrize("name", [name for name in SECURED if name in PROMPT])
def test_what_a_fault_costs_over_tls(world, name):
    """I3 to I29: the same over TLS, where the server ends its connections without close_notify."""
    check_a_get(world, SECURED[name])


WORLDS = itertools.cycle([("sync", SYNC), ("uvloop", UVLOOP), ("trio", TRIO), ("asyncio", ASYNCIO)])


@pytest.mark.parametrize(
    ("world", "name"),
    [
        pytest.param(world, name, id=f"{name}-{driver}")
        for name, (driver, world) in zip(
            [name for name in SECURED if name in HANGS], WORLDS, strict=False
        )
    ],
)
def test_what_a_fault_that_hangs_costs_over_tls(world, name):
    """I5, I6, I7: the same over TLS for faults that end by a timeout, with one driver each."""
    check_a_get(world, SECURED[name])


@drivers
def test_reset_after_accept(world):
    """I3: a connection that is reset as soon as it is accepted fails no idempotent call."""
    with bad_and_good(world, FAULTS["reset-after-accept"]) as (client, bad, good):
        bad.strike()
        response = client.get("/")
        assert response.text == str(good.port)
        # Whoever writes after the reset has come hears of it there, and then reads an end.
        kinds = (httpx.NetworkError, httpx.RemoteProtocolError)
        assert isinstance(attempts(response)[0].error, kinds)
        assert failures(client) == [1, 0]


# Time


DEADLINE, LATE = 0.2, 0.15
WITHIN = {"lbclient": {"deadline": DEADLINE}}


class Watch:
    """The duration of a block in seconds, and how much of it was caused by the machine: how much
    too late it woke a thread that only slept."""

    NAP = 0.01

    def __enter__(self):
        self._done = False
        self.machines = 0.0
        self._napper = threading.Thread(target=self._nap)
        self._napper.start()
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_):
        self.record_latency = time.monotonic() - self._begun
        self._done = True
        self._napper.join()

    def _nap(self):
        while not self._done:
            begun = time.monotonic()
            time.sleep(self.NAP)
            self.machines += time.monotonic() - begun - self.NAP


@worlds
@faults(DRIPS)
def test_no_drip_outlives_the_deadline(world, fault: Fault):
    """I5, I6, I7: whatever drips, at any speed, a call ends within its deadline + 150 ms; the
    instance is charged, and its connection is closed."""
    with fault.instance() as bad, world.client([bad.url], timeout=30) as client:
        client.get("/")
        bad.strike()
        with Watch() as watch, pytest.raises(lbclient.DeadlineExceeded):
            client.get("/", extensions=WITHIN)
        assert failures(client) == [1]
        assert client.in_flight == 0
        bad.heal()
        assert client.get("/").text == str(bad.port)
        assert bad.server.accepted == 2
    assert DEADLINE - 0.01 <= watch.record_latency <= DEADLINE + LATE + watch.machines


@worlds
@faults(["drip-body", "drip-trailers", "flood-body"])
def test_no_drip_outlives_the_deadline_of_a_stream(world, fault: Fault):
    """I6: the same for a body that is streamed, though its headers came at once."""
    with fault.instance() as bad, world.client([bad.url], timeout=30) as client:
        bad.strike()
        with (
            Watch() as watch,
            client.stream("GET", "/", extensions=WITHIN) as response,
            pytest.raises(lbclient.DeadlineExceeded),
        ):
            client.read(response)
        assert failures(client) == [1]
        assert client.in_flight == 0
    assert DEADLINE - 0.01 <= watch.record_latency <= DEADLINE + LATE + watch.machines


@worlds
def test_an_endless_upload_ends_with_the_deadline(servers, world):
    """I5: the upload of an endless body to an instance that reads it ends at the deadline too."""

    @on_accept
    def takes_in(connection, _):
        while connection.sock.recv(1_000_000):
            pass

    def chunks():
        until = time.monotonic() + 5
        while time.monotonic() < until:
            yield b"x" * 1000

    (server,) = servers(takes_in)
    with world.client([server.url]) as client:
        with Watch() as watch, pytest.raises(lbclient.DeadlineExceeded):
            client.post("/", content=world.body(chunks()), extensions=WITHIN)
        assert client.in_flight == 0
    assert watch.record_latency <= DEADLINE + LATE + watch.machines


@pytest.mark.parametrize("world", [SYNC, TRIO], ids=["sync", "trio"])
def test_blackholed_syn(world):
    """I2: a lost SYN costs the client's own connect timeout, 1.25 s, and fails no call, even a
    POST."""
    fault = FAULTS["blackholed-syn"]
    with (
        fault.instance() as bad,
        fault.healthy() as good,
        world.client([bad.url, good.url], strategy=First()) as client,
    ):
        bad.strike()
        begun = time.monotonic()
        response = client.post("/", content=b"order")
        took = time.monotonic() - begun
        assert response.text == str(good.port)
        assert failures(client) == [1, 0]
        bad.heal()
        assert client.get("/").text == str(bad.port)
    assert 1.2 <= took <= 1.75


def test_silence_ends_with_the_read_timeout(servers):
    """I5: without a deadline an instance that never answers costs the read timeout, once."""
    fault = FAULTS["silence"]
    (good,) = servers(tells_port)
    with (
        fault.instance() as bad,
        lbclient.Client([bad.url, good.url], strategy=First(), timeout=0.2) as client,
    ):
        bad.strike()
        response = client.get("/")
        assert response.text == str(good.port)
        assert isinstance(attempts(response)[0].error, httpx.ReadTimeout)


# Connections that are dead while idle


class Restarted:
    """Resets connections opened before `restart`; later ones work."""

    def __init__(self):
        self.gate = Gate()
        self.known, self.old = set(), set()

    def __call__(self, connection, request):
        if connection in self.old:
            connection.reset()
            return
        self.known.add(connection)
        self.gate(connection, request)

    def restart(self):
        self.old = set(self.known)


KEPT = 6
LIMITS = httpx.Limits(max_keepalive_connections=20, keepalive_expiry=60)


def open_connections(client, gate):
    """Leave this many idle connections behind."""
    threads = [threading.Thread(target=client.get, args=("/",)) for _ in range(KEPT)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert gate.entered.acquire(timeout=5)
    gate.open.set()
    for thread in threads:
        thread.join()


@worlds
def test_a_retry_goes_over_a_fresh_connection(servers, world):
    """I4: however many idle connections a restart has broken, an idempotent call meets at most one
    of them, even if there is no other instance."""
    restarted = Restarted()
    (server,) = servers(restarted)
    with world.client([server.url], limits=LIMITS) as client:
        open_connections(client, restarted.gate)
        restarted.restart()
        response = client.get("/")
        assert [outcome_of(one) for one in attempts(response)] == [httpx.ReadError, 200]
        for _ in range(KEPT):
            assert len(attempts(client.get("/"))) == 1
        assert failures(client) == [1]
    assert server.accepted == KEPT + 1


@worlds
def test_a_path_that_is_gone_takes_its_connections_along(world):
    """I26, I31: if the path of several connections was dropped, only the first one times out: the
    others are not tried, although each worked when it became idle."""
    fault = FAULTS["path-dropped"]
    with fault.instance() as bad, world.client([bad.url], retry=IMPATIENT, limits=LIMITS) as client:
        gate = bad.server.behaviour = Gate()
        open_connections(client, gate)
        opened = bad.server.accepted
        bad.strike()
        response = client.get("/")
        assert [outcome_of(one) for one in attempts(response)] == [httpx.ReadTimeout, 200]
        for _ in range(KEPT):
            assert len(attempts(client.get("/"))) == 1
        assert bad.server.accepted == opened + 1


@worlds
def test_a_slow_request_costs_only_its_own_connection(servers, world):
    """I15: a request that times out while others are answered does not affect their connections."""
    gate = Gate()

    def behave(connection, request):
        (says_nothing if request.target == "/slow" else gate)(connection, request)

    (server,) = servers(behave)
    with world.client([server.url], limits=LIMITS, breaker=None) as client:
        open_connections(client, gate)
        asked = {"lbclient": {"deadline": 0.3}}
        failed = []

        def slow():
            try:
                client.get("/slow", extensions=asked)
            except lbclient.DeadlineExceeded as error:
                failed.append(error)

        thread = threading.Thread(target=slow)
        thread.start()
        while thread.is_alive():
            client.get("/")
        thread.join()
        assert len(failed) == 1
        for _ in range(KEPT):
            client.get("/")
    assert server.accepted == KEPT


@worlds
def test_no_answer_but_ones_own(world):
    """If an instance sends two responses to one request, the first is used, no call gets the
    second, and every request is sent once."""
    with (
        FAULTS["answer-unasked"].instance() as bad,
        world.client([bad.url], retry=QUICK, breaker=None) as client,
    ):
        for _ in range(4):
            assert client.get("/").text == str(bad.port)
            assert client.post("/", content=b"x").text == str(bad.port)
        with client.stream("GET", "/") as response:
            assert client.read(response).decode() == str(bad.port)
        assert client.in_flight == 0
        (one,) = client.balancer.snapshot().instances
        assert (one.attempts, one.failures) == (9, 0)


# Statuses, and `Retry-After`


@worlds
def test_500_is_opted_into(servers, world):
    """I10: with 500 in `statuses` an idempotent call is retried, but a POST never."""
    pair = servers(says(500), tells_port)
    policy = RetryPolicy(statuses={500}, backoff=0.001)
    with world.client(urls(pair), strategy=First(), retry=policy) as client:
        assert client.get("/").status_code == 200
        assert client.post("/").status_code == 500
        assert failures(client) == [2, 0]


@worlds
def test_throttling_never_opens_a_breaker(servers, world):
    """I13: twenty 429s in a row are no fault: the instance backs off, and its breaker stays
    closed."""
    pair = servers(says(429), tells_port)
    with world.client(urls(pair), strategy=First(), retry=QUICK) as client:
        for _ in range(20):
            assert client.get("/").status_code == 200
        assert client.post("/").status_code == 429
        snapshot = client.balancer.snapshot()
    assert [(one.breaker, one.failures) for one in snapshot.instances] == [("closed", 0)] * 2
    assert pair[0].hits == 21


def stamp(seconds):
    return email.utils.formatdate(784111777 + seconds, usegmt=True)


DATE = stamp(0)
RESTS = {
    "7": 7.0,
    " 7 ": 7.0,
    "0": 0.0,
    "1000000000": 30.0,
    "9" * 400: 30.0,
    "1e9": 0.0,
    "-7": 0.0,
    "+7": 0.0,
    "7.5": 7.5,
    "7.0": 7.0,
    "7.": 0.0,
    ".5": 0.0,
    "7.5.1": 0.0,
    "soon": 0.0,
    "3, 7": 7.0,
    "soon, 7": 7.0,
    f"{stamp(3)}, {stamp(7)}": 7.0,
    f"7, {stamp(3)}": 7.0,
    "": 0.0,
    stamp(7): 7.0,
    "Sunday, 06-Nov-94 08:49:44 GMT": 7.0,
    "Sun Nov  6 08:49:44 1994": 7.0,
    stamp(-7): 0.0,
    stamp(0): 0.0,
    stamp(10**9): 30.0,
    "Mon, 99 Jan 2024 99:99:99 GMT": 0.0,
    "Mon, 01 Jan 2024 00:00:00 +99999999999999999999": 0.0,
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT": 0.0,
}


@pytest.mark.parametrize(("asked", "rest"), RESTS.items(), ids=[one[:40] for one in RESTS])
@pytest.mark.parametrize("status", [503, 429])
def test_retry_after(servers, asked, rest, status):
    """I11, I12: after `Retry-After`, in seconds or in any of HTTP's date formats, the instance is
    not used for that time, at most 30 s; a past or invalid value has no effect, and fails no
    call."""
    busy, free = servers(says(status, Retry_After=asked, Date=DATE), tells_port)
    now = [1000.0]
    with lbclient.Client(
        urls([busy, free]), strategy=First(), retry=QUICK, breaker=None, clock=lambda: now[0]
    ) as client:
        assert client.get("/").text == str(free.port)
        for at in (0.0, rest - 0.001, rest + 0.001):
            now[0] = 1000.0 + at
            before = busy.hits
            assert client.get("/").text == str(free.port)
            assert busy.hits == before + (at >= rest)
            if busy.hits > before:
                return


def lines(status, *fields):
    """A response with these header lines, which may repeat a name."""

    def behave(connection, _):
        head = [f"HTTP/1.1 {status} X", "Content-Length: 0", *fields, "", ""]
        connection.send("\r\n".join(head).encode())

    return behave


NOW = 784111777.0
HOURS_OFF = f"Date: {stamp(7200)}"
UNDATED = {
    "no date": ([f"Retry-After: {stamp(7)}"], 7.0),
    "no date, RFC 850": (["Retry-After: Sunday, 06-Nov-94 08:49:44 GMT"], 7.0),
    "no date, asctime": (["Retry-After: Sun Nov  6 08:49:44 1994"], 7.0),
    "no date, past": ([f"Retry-After: {stamp(-7)}"], 0.0),
    "no date, far": ([f"Retry-After: {stamp(10**9)}"], 1e9),
    "nonsense for a date": ([f"Retry-After: {stamp(7)}", "Date: yesterday"], 7.0),
    "empty date": ([f"Retry-After: {stamp(7)}", "Date: "], 7.0),
    "its own date, hours off": ([f"Retry-After: {stamp(7207)}", HOURS_OFF], 7.0),
    "two lines": (["Retry-After: 5", "Retry-After: 7"], 7.0),
    "two lines, the same": (["Retry-After: 7", "Retry-After: 7"], 7.0),
    "two lines, the longer first": (["Retry-After: 7", "Retry-After: 5"], 7.0),
    "a number and a date": (["Retry-After: 5", f"Retry-After: {stamp(7)}"], 7.0),
    "a number and nonsense": (["Retry-After: soon", "Retry-After: 7"], 7.0),
    "a number beside a past date": (["Retry-After: 7", f"Retry-After: {stamp(-7)}"], 7.0),
    "two dates, dated": (
        [f"Retry-After: {stamp(7205)}", f"Retry-After: {stamp(7207)}", HOURS_OFF],
        7,
    ),
}


@worlds
@pytest.mark.parametrize(("fields", "rest"), UNDATED.values(), ids=list(UNDATED))
def test_retry_after_line_by_line(servers, world, fields, rest):
    """A date counts from the response's own date, else from its receipt; the longest of all values
    counts."""
    (server,) = servers(lines(503, *fields))
    with world.client([server.url], retry=None) as client:
        assert rest_asked(client.get("/").headers, lambda: NOW) == rest


@worlds
def test_retry_after_as_a_date_without_date(servers, world):
    """A date of return is obeyed even if the response does not say what time it is."""
    busy, free = servers(tells_port, tells_port)
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    busy.behaviour = lines(503, f"Retry-After: {later}")
    with world.client(urls([busy, free]), strategy=First(), retry=QUICK, breaker=None) as client:
        for _ in range(5):
            assert client.get("/").text == str(free.port)
    assert busy.hits == 1


@worlds
def test_retry_after_is_no_lever(servers, world):
    """I12, S11: if all instances ask for a billion seconds, a call waits `backoff_max`."""
    pair = servers(*[says(503, Retry_After="1000000000")] * 2)
    policy = RetryPolicy(backoff=0.001, backoff_max=0.1)
    with world.client(urls(pair), retry=policy, breaker=None) as client:
        begun = time.monotonic()
        response = client.get("/")
        assert time.monotonic() - begun < 1.0
        assert response.status_code == 503
        assert len(attempts(response)) == 3


# Breakers: outages, flapping, recovery


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@worlds
def test_all_down_is_told_once_and_by_name(servers, world):
    """I16: a call that finds all instances down names each attempt; once all breakers are open
    nothing is sent, and the error says when to try again."""
    trio = servers(*[says(503)] * 3)
    clock = Clock()
    policy = RetryPolicy(backoff=0.0, backoff_max=0.0)
    with world.client(urls(trio), retry=policy, clock=clock) as client:
        response = client.get("/")
        assert {one.instance.port for one in attempts(response)} == {one.port for one in trio}
        while {one.breaker for one in client.balancer.snapshot().instances} != {"open"}:
            client.get("/")
        hits = sum(one.hits for one in trio)
        assert hits == 15
        with pytest.raises(lbclient.NoInstanceAvailable, match="open") as caught:
            client.get("/")
        assert sum(one.hits for one in trio) == hits
        assert 0 < caught.value.retry_in <= 1.0
        assert all(str(one.port) in str(caught.value) for one in trio)
        clock.now += caught.value.retry_in
        assert client.get("/").status_code == 503
        assert sum(one.hits for one in trio) == hits + 1


def test_the_last_error_names_each_attempt():
    """I16: the error of the last attempt has a note that lists all instances and their errors."""
    names = ["refused-port", "reset-after-request", "closed-without-answer"]
    with contextlib.ExitStack() as stack:
        bad = [stack.enter_context(FAULTS[name].instance()) for name in names]
        for one in bad:
            one.strike()
        client = stack.enter_context(lbclient.Client([one.url for one in bad], retry=QUICK))
        with pytest.raises(httpx.TransportError) as caught:
            client.get("/")
    (note,) = caught.value.__notes__
    for one, name in zip(bad, ["ConnectError", "ReadError", "RemoteProtocolError"], strict=True):
        assert f"127.0.0.1:{one.port}: {name}" in note


@pytest.mark.parametrize("strategy", ["weighted", "round-robin"])
def test_flapping_costs_less_each_time(servers, strategy):
    """I17: an instance that passes its probes and fails again is out of rotation for longer each
    time, and gets at most a dozen trials a minute; after a healthy period it starts again."""
    flapper, good = servers(tells_port, tells_port)
    clock = Clock()
    policy = RetryPolicy(backoff=0.0, backoff_max=0.0)
    with lbclient.Client(
        urls([flapper, good]), strategy=strategy, retry=policy, clock=clock, rng=random.Random(1)
    ) as client:

        def step():
            closed = client.balancer.snapshot().instances[0].breaker == "closed"
            flapper.behaviour = says(503) if closed else tells_port
            assert client.get("/").status_code == 200
            clock.now += 0.1

        trips, before = [], 0
        for _ in range(600):
            step()
            if client.balancer.snapshot().instances[0].failures >= before + 5:
                before += 5
                trips.append(clock.now)
        assert 4 <= len(trips) <= 12
        assert trips[-1] - trips[-2] > 4 * (trips[1] - trips[0])
        flapper.behaviour = tells_port
        for _ in range(700):
            assert client.get("/").status_code == 200
            clock.now += 0.1
        flapper.behaviour = says(503)
        while client.balancer.snapshot().instances[0].breaker == "closed":
            client.get("/")
        (endpoint, _) = client.balancer._engine.pool.endpoints
        assert endpoint.breaker.due - clock.now <= 1.0


def test_one_probe_at_a_time(servers):
    """I18: while a probe is under way a recovering instance gets no other call, from any thread;
    after its success the instance gets its share again."""
    gate = Gate()
    bad, good = servers(says(503), tells_port)
    clock = Clock()
    with lbclient.Client(urls([bad, good]), retry=QUICK, clock=clock) as client:
        while client.balancer.snapshot().instances[0].breaker == "closed":
            client.get("/")
        bad.behaviour = gate
        clock.now += 1.0
        hits = bad.hits
        probe = threading.Thread(target=client.get, args=("/",))
        probe.start()
        assert gate.entered.acquire(timeout=5)
        seen = []
        threads = [
            threading.Thread(target=lambda: seen.extend(client.get("/").text for _ in range(20)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (bad.hits, set(seen), len(seen)) == (hits + 1, {str(good.port)}, 160)
        assert client.balancer.snapshot().instances[0].breaker == "half-open"
        gate.open.set()
        probe.join()
        assert client.balancer.snapshot().instances[0].breaker == "closed"
        assert {client.get("/").text for _ in range(4)} == {str(bad.port), str(good.port)}


@worlds
@pytest.mark.parametrize("panic", [0.5, 0.0])
def test_most_down_at_once(servers, world, panic):
    """I19: if fewer than `panic_threshold` of the instances are admissible, their breakers are
    ignored, so that the last one is not flooded; by default it gets all calls. No call fails."""
    trio = servers(says(503), says(503), tells_port)
    breaker = BreakerPolicy(fail_max=2, reset_timeout=30, panic_threshold=panic)
    policy = RetryPolicy(attempts=9, backoff=0.0, backoff_max=0.0, budget=None)
    with world.client(urls(trio), retry=policy, breaker=breaker) as client:
        for _ in range(10):
            assert client.get("/").text == str(trio[2].port)
        hits = [one.hits for one in trio]
        for _ in range(12):
            assert client.get("/").text == str(trio[2].port)
        more = [now - then for now, then in zip((one.hits for one in trio), hits, strict=True)]
    assert more[2] == 12
    assert (min(more[:2]) > 0) == (panic > 0)


# The caller's own machine


@worlds
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_route_to_one(servers, world, method):
    """I23: an instance without a route from this host fails no call; while another one can be
    reached, it leaves the rotation like any other that fails, from its second failure on."""
    (good,) = servers(tells_port)
    nowhere = f"http://127.255.255.255:{good.port}"  # a broadcast address: ENETUNREACH, no packet
    with world.client([nowhere, good.url], strategy=First()) as client:
        for number in range(8):
            response = client.request(method, "/")
            assert response.text == str(good.port)
            assert len(attempts(response)) == (2 if number < 6 else 1)
        snapshot = client.balancer.snapshot()
    told = [(one.failures, one.breaker) for one in snapshot.instances]
    assert told == [(5, "open"), (0, "closed")]


@pytest.mark.parametrize("world", [SYNC, ASYNCIO], ids=["sync", "asyncio"])
def test_no_local_address_charges_nobody(servers, world):
    """I23: a `local_address` that is not this machine's fails every call, and charges nobody.

    On trio anyio leaves the socket to the garbage collector, which warns of it.
    """
    pair = servers(tells_port, tells_port)
    with world.client(urls(pair), local_address="192.0.2.1", retry=QUICK) as client:
        for _ in range(4):
            with pytest.raises(httpx.ConnectError):
                client.get("/")
        snapshot = client.balancer.snapshot()
    assert [(one.failures, one.breaker) for one in snapshot.instances] == [(0, "closed")] * 2


OWN = [errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT]
EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@pytest.mark.parametrize("number", OWN + EXHAUSTED, ids=errno.errorcode.get)
def test_our_own_errors(number):
    """I22, I23: an error of this host charges no instance, whatever the call; calls wait for
    exhausted resources, and are retried elsewhere at once if there is no route."""
    waits = []

    def fail(_):
        waits.append(time.monotonic())
        raise OSError(number, "ours")

    policy = RetryPolicy(attempts=2, backoff=0.2, backoff_max=0.2)
    with lbclient.Balancer(
        ["http://10.0.0.1", "http://10.0.0.2"], retry=policy, rng=random.Random(1)
    ) as balancer:
        with pytest.raises(OSError, match="ours"):
            balancer.call(fail)
        snapshot = balancer.snapshot()
    assert [(one.failures, one.attempts) for one in snapshot.instances] == [(0, 1)] * 2
    assert (waits[1] - waits[0] > 0.01) == (number in EXHAUSTED)


@worlds
def test_no_place_left(servers, world):
    """I24: a call that gets no slot in time fails quickly with a clear error, and charges no
    instance."""
    (server,) = servers(says(200, b"x" * 100_000))
    soon = httpx.Timeout(5, pool=0.05)
    with world.client([server.url], limits=httpx.Limits(max_connections=1)) as client:
        with client.stream("GET", "/"):
            begun = time.monotonic()
            with pytest.raises(lbclient.NoInstanceAvailable, match="limit"):
                client.get("/", timeout=soon)
            assert time.monotonic() - begun < 1.0
        assert client.get("/", timeout=soon).status_code == 200
        (one,) = client.balancer.snapshot().instances
    assert (one.failures, one.attempts, one.breaker) == (0, 2, "closed")


# The network


@worlds
def test_packet_loss(world):
    """I32: with a fifth of all packets lost, calls are slower, but none fails."""
    fault = FAULTS["packet-loss"]
    with contextlib.ExitStack() as stack:
        lossy = [stack.enter_context(fault.instance()) for _ in range(2)]
        client = stack.enter_context(world.client([one.url for one in lossy]))
        for one in lossy:
            one.strike()
        assert {client.get("/").status_code for _ in range(8)} == {200}


@worlds
@pytest.mark.parametrize("name", ["stopped", "path-dropped", "killed", "refused-port"])
def test_out_and_back(world, name):
    """I1, I26, I31: a failing instance leaves the rotation after `fail_max` faults, and is back
    after one good probe once it has recovered, over new connections."""
    fault, clock = FAULTS[name], Clock()
    policy = RetryPolicy(attempt_timeout=PATIENCE, backoff=0.0, backoff_max=0.0)
    breaker = BreakerPolicy(fail_max=1, reset_timeout=1.0)
    with bad_and_good(world, fault, breaker=breaker, clock=clock, retry=policy) as (
        client,
        bad,
        good,
    ):
        bad.strike()
        assert client.get("/").text == str(good.port)
        assert client.balancer.snapshot().instances[0].breaker == "open"
        assert {client.get("/").text for _ in range(5)} == {str(good.port)}
        bad.heal()
        clock.now += 1.0
        response = client.get("/")
        (one,) = attempts(response)
        assert (one.instance.port, one.reason, one.status) == (bad.port, "probe", 200)
        assert client.balancer.snapshot().instances[0].breaker == "closed"
        assert failures(client) == [1, 0]


# Who there is


class Scripted:
    """A resolver that returns the instances it is given."""

    def __init__(self, *instances):
        self.instances = instances
        self.asked = threading.Semaphore(0)
        self.rounds = 0

    def resolve(self):
        self.rounds += 1
        self.asked.release()
        return Answer(self.instances, 3600)


@pytest.mark.parametrize("listed", [True, False], ids=["list", "resolver"])
def test_the_same_instance_twice_is_one(servers, listed):
    """I33: two entries with the same host and port are one instance: one breaker, one limit."""
    (server,) = servers(says(200, b"x" * 100_000))
    twice = [Instance("127.0.0.1", server.port), Instance("127.0.0.1", server.port, weight=2)]
    service = twice if listed else Scripted(*twice)
    with lbclient.Client(service, name="shop.test", max_in_flight=1) as client:
        with client.stream("GET", "/"), pytest.raises(lbclient.NoInstanceAvailable):
            client.get("/", timeout=httpx.Timeout(5, pool=0.05))
        (one,) = client.balancer.snapshot().instances
    assert (one.attempts, server.hits) == (1, 1)


@pytest.mark.anyio
async def test_restarted_elsewhere_is_found_at_once(servers, dead_port):
    """I34: when the only instance is refused, discovery is asked at once, even if its answer is
    valid for an hour, but not again for every refused call."""
    (server,) = servers(tells_port)
    resolver = Scripted(Instance("127.0.0.1", dead_port))
    policy = RetryPolicy(attempts=1)
    async with lbclient.AsyncClient(
        resolver, name="shop.test", retry=policy, breaker=None
    ) as client:
        await client.balancer.arefresh()
        assert resolver.asked.acquire(timeout=5)
        for _ in range(20):
            with pytest.raises(httpx.ConnectError):
                await client.get("/")
        assert await anyio.to_thread.run_sync(resolver.asked.acquire, True, 5)
        assert resolver.rounds == 2
        resolver.instances = [Instance("127.0.0.1", server.port)]
        await client.balancer.arefresh()
        assert (await client.post("/")).text == str(server.port)


def test_the_early_refresh_brings_the_new_address(servers, dead_port):
    """I34: calls after an early refresh use what it has found, without further help."""
    (server,) = servers(tells_port)
    resolver = Scripted(Instance("127.0.0.1", dead_port))
    policy = RetryPolicy(attempts=1)
    with lbclient.Client(resolver, name="shop.test", retry=policy) as client:
        client.balancer.refresh()
        resolver.instances = [Instance("127.0.0.1", server.port)]
        with pytest.raises(httpx.ConnectError):
            client.get("/")
        until = time.monotonic() + 5
        while client.balancer.instances()[0].port != server.port:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert client.get("/").text == str(server.port)
    assert resolver.rounds == 2


# The bench itself


OF_MANY = {"I12", "I16", "I18", "I19", "I30", "I33", "I34"}
"""What no instance has by itself: forms of a header, outages, recovery, who there is."""
OF_CALLERS = {"I22", "I23", "I24"}
"""What the caller's own machine has: see `LOCAL`, and the tests above."""


def test_the_bench_has_every_fault():
    """Each fault that an instance can have can be played by its name."""
    played = {one for fault in FAULTS.values() for one in fault.ids.split(", ")}
    assert played == {f"I{number}" for number in range(1, 35)} - OF_MANY - OF_CALLERS


def test_the_benchs_flapping_instance():
    """I17: the flapping instance of the benchmark fails five times, is good five times, and so
    on."""
    fault = FAULTS["flapping"]
    with fault.instance() as bad, lbclient.Client([bad.url], retry=None, breaker=None) as client:
        bad.strike()
        statuses = [client.get("/").status_code for _ in range(15)]
    assert statuses == [503] * 5 + [200] * 5 + [503] * 5
