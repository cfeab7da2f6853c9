"""What logs, metrics and errors say about failures."""

import contextlib
import errno
import logging
import os
import random
import re
import resource
import socket
import threading
from functools import partial

import anyio
import httpx
import pytest

import lbclient
from lbclient import Balancer, HedgePolicy, Instance, RetryPolicy, simulation
from lbclient._internal.failure_log import Complaint
from lbclient.endpoint.classifier import classify_network_error
from lbclient.http.classifier import HttpClassifier
from lbclient.protocol import CallOptions, Semantics, arun, bind, run
from tests.http.test_features import worlds
from tests.support.hammer import descriptors
from tests.support.http import dies_in_body, in_turn, resets, says, tells_port

ONE, TWO = Instance("10.0.0.1", 80), Instance("10.0.0.2", 80)


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def log(caplog):
    """The lines that lbclient has logged: `LEVEL text`, and `!` if a traceback follows."""
    caplog.set_level(logging.INFO, "lbclient")

    def lines():
        return [
            f"{one.levelname} {one.getMessage()}{'!' if one.exc_info else ''}"
            for one in caplog.records
            if one.name.startswith("lbclient")
        ]

    return lines


# What is logged on change


class Told:
    """A complaint, and what it has logged."""

    def __init__(self):
        self.lines = []
        self.complaint = Complaint(self.log, "orders: the judge", "failed")

    def log(self, level, text, *values, error=None):
        self.lines.append((level, text % values, error))

    def fail(self, now=0.0, error=None, times=1):
        self.complaint.failed(now, error, times=times)

    def new(self):
        lines, self.lines = self.lines, []
        return [text for _, text, _ in lines]


def test_repeated_failures_are_counted():
    """Of endless failures the first is logged with its traceback, then their number at powers of
    ten."""
    told, error = Told(), ValueError("mine")
    for _ in range(1000):
        told.fail(error=error)
    assert told.lines == [
        (logging.ERROR, "orders: the judge failed", error),
        (logging.ERROR, "orders: the judge failed (10 times by now)", None),
        (logging.ERROR, "orders: the judge failed (100 times by now)", None),
        (logging.ERROR, "orders: the judge failed (1000 times by now)", None),
    ]


def test_recovery_is_logged_with_the_count():
    """When it works again, that and the number of failures are logged, and so is the next
    failure."""
    told = Told()
    for _ in range(3):
        told.fail(error=ValueError())
    told.complaint.recovered()
    told.fail(error=ValueError())
    assert told.new() == [
        "orders: the judge failed",
        "orders: the judge works again; failures: 3",
        "orders: the judge failed",
    ]


def test_each_type_of_error_is_logged_once():
    """An error of another type is logged too, up to a limited number of types."""
    told = Told()
    for turn in range(100):
        told.fail(error=ValueError())
        told.fail(error=type(f"Error{turn % 20}", (Exception,), {})())
    assert len(told.new()) <= 8 + 3


def test_failing_by_turns_is_no_log_per_call():
    """Alternating failures and successes are logged more and more rarely, until there was no
    failure for a minute."""
    told = Told()
    for turn in range(1000):
        told.fail(turn * 0.01, ValueError())
        told.complaint.recovered()
    assert len(told.new()) <= 10 * 2 + 20  # ten changes are logged; between them, few counts
    told.fail(100.0, ValueError())
    assert told.new() == ["orders: the judge failed"]


class Broken:
    """A strategy whose methods all raise while it is `bad`."""

    bad = True

    def pick(self, candidates, _):
        if self.bad:
            raise ValueError("mine")
        return candidates[0]

    def ended(self, *_, **__):
        if self.bad:
            raise KeyError("mine")


def test_strategy_that_raises(log):
    """A strategy that raises is logged once with its traceback, with counts, and when it works
    again; each line names the service."""
    strategy = Broken()
    with Balancer([ONE], strategy=strategy, name="orders") as balancer:
        for _ in range(12):
            balancer.call(str)
        strategy.bad = False
        for _ in range(3):
            balancer.call(str)
    pick = "orders: strategy Broken failed to pick, so an instance was picked at random"
    learn = "orders: strategy Broken failed to learn"
    assert log() == [
        f"ERROR {pick}!",
        f"ERROR {learn}!",
        f"ERROR {pick} (10 times by now)",
        f"ERROR {learn} (10 times by now)",
        "INFO orders: strategy Broken works again; failures: 12",
        "INFO orders: strategy Broken works again; failures: 12",
    ]


def test_strategy_that_picks_nonsense(log):
    """A strategy that returns something other than a candidate is logged in the same way."""

    class Nonsense:
        def pick(self, *_):
            return 5

    with Balancer([ONE], strategy=Nonsense(), name="orders") as balancer:
        for _ in range(9):
            balancer.call(str)
    failed = "failed to pick, so an instance was picked at random"
    text = f"strategy Nonsense {failed}: 5 is not a candidate"
    assert log() == [f"ERROR orders: {text}"]


def test_listener_that_raises(log):
    """A listener that raises at each event is logged with its traceback once, then counted."""
    heard = []

    def listener(event):
        heard.append(event)
        raise ValueError("mine")

    before = set(threading.enumerate())
    balancer = Balancer([ONE], listener=listener, name="orders")
    for _ in range(50):
        balancer.call(str)
    (thread,) = set(threading.enumerate()) - before
    balancer.close()
    thread.join(10)
    assert len(heard) == 50
    first, second = log()
    assert first.startswith("ERROR orders: the listener failed: at AttemptPicked(")
    assert first.endswith("!")
    assert second == "ERROR orders: the listener failed (10 times by now)"


def test_judge_that_raises(log):
    """A judge that raises is logged with its traceback once, then counted, and when it works
    again."""
    bad = True

    def judge(_):
        if bad:
            raise ValueError("mine")
        return lbclient.Verdict(fault=False)

    with Balancer([ONE], judge=judge, name="orders") as balancer:
        for _ in range(12):
            balancer.call(str)
        bad = False
        balancer.call(str)
    text = "orders: the judge failed; the outcome counts as neutral"
    assert log() == [
        f"ERROR {text}!",
        f"ERROR {text} (10 times by now)",
        "INFO orders: the judge works again; failures: 12",
    ]


@worlds
def test_late_answers_that_fail_to_close(world, log):
    """If the slower answer of each hedged call fails to close, that is logged when it changes."""
    bad = lbclient.Verdict(fault=True, again="always", backoff=True)

    def judge(answer):
        return bad if answer == "bad" else lbclient.Verdict(fault=False)

    def send(attempt):
        return "good" if attempt.reason == "hedge" else "bad"

    async def asend(attempt):
        return send(attempt)

    def discard(answer):
        raise OSError(answer)

    async def adiscard(answer):
        raise OSError(answer)

    retry = RetryPolicy(backoff=60.0, backoff_max=60.0)  # in which the hedge goes, and wins
    options = {"hedge": HedgePolicy(delay=0.0, budget=None), "retry": retry, "breaker": None}
    with Balancer([ONE, TWO], name="orders", judge=judge, rng=random.Random(1), **options) as one:
        for _ in range(5):
            call = bind(one).begin(CallOptions(idempotent=True), Semantics())
            if world.backend is None:
                assert run(call, send, discard=discard) == "good"
            else:
                work = partial(arun, call, asend, discard=adiscard)
                assert anyio.run(work, backend=world.backend) == "good"
    for one in threading.enumerate():
        if one.name == "lbclient-attempt":
            one.join(10)
    assert log() == ["ERROR orders: a response that arrived too late could not be closed!"]


def test_transports_that_fail_to_close(log):
    """A caller's transports that raise when they are closed are logged when that changes."""

    class Stuck(httpx.MockTransport):
        def close(self):
            raise OSError("mine")

    class Service:
        ports = iter(range(1, 100))

        def resolve(self):
            return lbclient.Answer([Instance("10.0.0.1", next(self.ports))], 3600)

    def make(_):
        return Stuck(lambda _: httpx.Response(200))

    with lbclient.Client(Service(), name="orders", transport=make) as client:
        for _ in range(9):
            client.get("/")
            client.balancer.refresh()
        client.get("/")
        assert len([line for line in log() if "could not be closed" in line]) == 1
        with pytest.raises(OSError, match="mine"):
            client.close()


# Why a call was not tried again


def refuse(_):
    raise ConnectionRefusedError("mine")


def reset(_):
    raise ConnectionResetError("mine")


def policy(**options):
    return lbclient.RetryPolicy(**{"backoff": 0.0, **options})


STOPPED = {
    "attempts": (refuse, {}, {"retry": policy(attempts=2)}, "no attempts are left"),
    "no retry": (refuse, {}, {"retry": None}, "no attempts are left"),
    "budget": (
        reset,
        {"idempotent": True},
        {"retry": policy(budget=lbclient.RetryBudget(0.0, 0.0))},
        "the retry budget is empty",
    ),
    "deadline": (
        reset,
        {"idempotent": True, "deadline": 5.0},
        {"retry": policy(backoff=60.0, backoff_max=60.0), "rng": random.Random(1)},
        "the deadline leaves no time",
    ),
    "method": (reset, {}, {}, "the call may have been carried out, and is not idempotent"),
    "instances": (
        refuse,
        {},
        {"breaker": lbclient.BreakerPolicy(fail_max=1)},
        "no other instance is free",
    ),
    "verdict": (
        refuse,
        {},
        {"judge": lambda one: lbclient.Verdict(fault=isinstance(one, OSError))},
        "such an outcome is never retried",
    ),
}


@pytest.mark.parametrize("reason", STOPPED)
def test_error_says_why_it_was_not_tried_again(reason):
    """The note on the error, and `call_info`, say why no other attempt followed."""
    fn, call, options, why = STOPPED[reason]
    service = [ONE] if reason == "instances" else [ONE, TWO]
    with Balancer(service, **options) as balancer, pytest.raises(OSError, match="mine") as caught:
        balancer.call(fn, **call)
    (note,) = caught.value.__notes__
    assert note.endswith(f"; not tried again: {why}")
    expected = "attempts" if reason == "no retry" else reason
    assert lbclient.call_info(caught.value).stopped == expected


def test_deadline_that_cuts_an_attempt_is_the_reason():
    """If the deadline itself ended the attempt, the error says so."""
    clock = Clock()

    def slow(_):
        clock.now += 2.0
        raise TimeoutError("mine")

    with (
        Balancer([ONE], clock=clock) as balancer,
        pytest.raises(lbclient.DeadlineExceeded) as caught,
    ):
        balancer.call(slow, idempotent=True, deadline=1.0)
    (note,) = caught.value.__notes__
    assert note.endswith("not tried again: the deadline leaves no time")
    assert lbclient.call_info(caught.value).stopped == "deadline"


@worlds
def test_body_that_cannot_be_sent_again(servers, world):
    """A generator is used up by the first attempt, and the error says that the body cannot be sent
    again."""
    (server,) = servers(resets)
    with (
        world.client([server.url], retry=policy()) as client,
        pytest.raises(httpx.TransportError) as caught,
    ):
        client.put("/", content=world.body([b"x" * 10]))
    assert "not tried again: its body cannot be sent a second time" in caught.value.__notes__[0]
    assert lbclient.call_info(caught.value).stopped == "body"


@worlds
def test_response_that_broke_while_it_was_read(servers, world):
    """A stream that breaks in the middle of its body says that it was not retried, and why."""
    (server,) = servers(dies_in_body)
    with (
        world.client([server.url]) as client,
        pytest.raises(httpx.TransportError) as caught,
        client.stream("GET", "/") as response,
    ):
        client.read(response)
    assert "part of the response was already passed on" in caught.value.__notes__[0]
    assert lbclient.call_info(caught.value).stopped == "streaming"


@worlds
def test_response_says_why_it_stands(servers, world):
    """`call_info(response).stopped` says why a bad response was not retried; for a good one, even
    after a retry, it is None."""
    busy, broken, good = servers(says(503), says(500), in_turn(says(503), tells_port))
    for server, method, stopped in (
        (busy, "GET", "attempts"),
        (busy, "POST", "method"),
        (broken, "GET", "verdict"),
        (good, "GET", None),
    ):
        with world.client([server.url]) as client:
            response = client.request(method, "/")
            assert lbclient.call_info(response).stopped == stopped


# Failures of this host


@pytest.mark.parametrize("free", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
        OSError(errno.EBUSY, "Device or resource busy"),
    ],
    ids=["EAI_NONAME", "EAI_AGAIN", "EAI_MEMORY", "EAI_SYSTEM"],
)
def test_lookup_without_descriptors_charges_nobody(error, free):
    """A lookup that fails for lack of file descriptors says nothing about an instance."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    judges = classify_network_error, HttpClassifier({503})
    wrapped = httpx.ConnectError("no")
    wrapped.__cause__ = error
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
    try:
        verdicts = [judges[0](error), judges[1](wrapped)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for verdict in verdicts:
        assert (verdict.fault, verdict.again, verdict.backoff) == (False, "always", True)


def test_unknown_name_is_a_fault():
    """While descriptors can be opened, an unknown name is the instance's fault, and the check
    leaves no descriptor open."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    before = descriptors()
    assert classify_network_error(error) == lbclient.Verdict(fault=True, again="always")
    assert classify_network_error(OSError(errno.EBUSY, "mine")) == lbclient.Verdict(fault=False)
    assert classify_network_error(FileNotFoundError(errno.ENOENT, "mine", "file")).again == "never"
    assert descriptors() == before


# Breakers, ejections, checks


def fail(balancer, fn=reset):
    with contextlib.suppress(OSError, lbclient.LoadBalancingError):
        balancer.call(fn)


def about(lines, *words):
    return [line for line in lines if all(word in line for word in words)]


@pytest.mark.parametrize("observe", [False, True])
def test_log_of_a_breaker(log, observe):
    """A breaker that opens is a warning with service, cause and duration; a failed probe and its
    closing say how long it was open. A breaker that observes says "would be"."""
    clock = Clock()
    breaker = lbclient.BreakerPolicy(fail_max=3, observe=observe)
    options = {"retry": None, "breaker": breaker, "clock": clock, "rng": random.Random(1)}
    with Balancer([ONE], name="orders", **options) as balancer:
        for _ in range(3):
            fail(balancer)
        clock.now += 1.0
        fail(balancer)
        clock.now += 2.5
        balancer.call(str)
    verb, level = ("would be", "INFO") if observe else ("is", "WARNING")
    opened, again, closed = (re.sub(r"for (another )?[\d.]+ s", r"for \1# s", one) for one in log())
    text = f"orders: breaker of 10.0.0.1:80 {verb}"
    fault = "last fault: ConnectionResetError"
    assert opened == f"{level} {text} open for # s: 3 faults in a row; {fault}"
    assert again == f"INFO {text} open for another # s after 1.0 s: its probe failed; {fault}"
    assert closed == f"INFO {text} closed after 3.5 s"


@pytest.mark.parametrize(
    ("rates", "why"),
    [
        ({"failure_rate": 0.5}, "2 of 4 calls failed; last fault: ConnectionResetError"),
        ({"slow_rate": 0.5, "slow_after": 1.0}, "2 of 4 calls were slow"),
    ],
)
def test_log_of_a_rate(log, rates, why):
    """A breaker that opens because of a rate names the rate."""
    clock = Clock()

    def slow(_):
        clock.now += 2.0

    policy_ = lbclient.BreakerPolicy(minimum_calls=4, **rates)
    with Balancer([ONE], name="orders", retry=None, breaker=policy_, clock=clock) as balancer:
        for bad in (False, True, False, True):
            if bad and "failure_rate" in rates:
                fail(balancer)
            else:
                balancer.call(slow if bad else str)
    (line,) = log()
    assert line.startswith("WARNING orders: breaker of 10.0.0.1:80 is open for ")
    assert line.endswith(why)


def test_fault_in_the_middle_of_a_body_is_a_cause(servers, log):
    """A body that breaks after good headers is a fault with a name, in the log and in errors."""
    (server,) = servers(dies_in_body)
    options = {"retry": None, "breaker": lbclient.BreakerPolicy(fail_max=1), "name": "orders"}
    with lbclient.Client([server.url], **options) as client:
        with pytest.raises(httpx.TransportError), client.stream("GET", "/") as response:
            response.read()
        with pytest.raises(lbclient.NoInstanceAvailable, match="last fault Re"):
            client.get("/")
    assert about(log(), "WARNING", "last fault: Re")


def test_log_of_an_ejection(log):
    """An ejection logs service, cause and duration, by hand and as an outlier; an admission logs
    what kept the instance out."""
    clock, rng = Clock(), random.Random(1)
    options = {
        "retry": None,
        "breaker": None,
        "outliers": lbclient.OutlierPolicy(interval=1.0, minimum_calls=5),
    }
    with Balancer([ONE, TWO], name="orders", clock=clock, rng=rng, **options) as balancer:
        balancer.eject(TWO, 10)
        balancer.admit(TWO)

        def bad(instance):
            if instance == ONE:
                raise ConnectionResetError

        for _ in range(30):
            fail(balancer, bad)
            clock.now += 0.1
    by_hand, admitted, outlier, *_ = log()
    assert by_hand == "INFO orders: 10.0.0.2:80 is ejected for 10.0 s, by hand"
    assert admitted == "INFO orders: 10.0.0.2:80 is admitted by hand; it was ejected"
    assert re.fullmatch(
        r"INFO orders: 10.0.0.1:80 is ejected for [\d.]+ s, as an outlier; "
        "last fault: ConnectionResetError",
        outlier,
    )


def test_log_of_health_checks(log):
    """A failed check logs service and cause, and a passed one how long it had failed."""
    clock, event = Clock(), threading.Event()
    with Balancer([ONE], name="orders", clock=clock, listener=lambda _: event.set()) as balancer:
        engine, (endpoint,) = balancer._engine, balancer._engine.pool.endpoints
        engine.record_health(endpoint, endpoint.breaker, healthy=False, why="status 500")
        clock.now += 12.0
        engine.record_health(endpoint, endpoint.breaker, healthy=True, why="")
    assert log() == [
        "WARNING orders: 10.0.0.1:80 fails its health checks: status 500",
        "INFO orders: 10.0.0.1:80 passes its health checks after 12.0 s",
    ]


# The slower attempt of a hedge


class First:
    """Picks the first instance."""

    def pick(self, candidates, _):
        return candidates[0]


@worlds
def test_slower_attempt_of_a_hedge_is_measured(servers, world, telemetry):
    """The attempt that was slower than its hedge is in `http.client.request.duration` too, marked
    `lbclient.lost`."""

    def silent(connection, _):
        connection.server.stopping.wait(30)

    slow, quick = servers(silent, tells_port)
    with world.client(
        [slow.url, quick.url],
        strategy=First(),
        hedge=lbclient.HedgePolicy(delay=0.01),
        tracer_provider=telemetry.tracers,
        meter_provider=telemetry.meters,
        name="orders",
    ) as client:
        assert client.get("/").text == str(quick.port)
        free = threading.Event()
        bind(client.client.balancer).idle().listen(free.set)
        assert free.wait(30)
    points = telemetry.points("http.client.request.duration")
    lost = [(labels, count) for labels, count in points if "lbclient.lost" in labels]
    server = {"server.address": "orders", "server.port": 80}
    assert lost == [({"http.request.method": "GET", "lbclient.lost": True, **server}, 1)]


def test_simulation_warns_nobody(log):
    """Events of simulated instances are not warnings in the log of the process."""
    server = simulation.Server("a", simulation.fails(simulation.exponential(0.01)))
    report = simulation.simulate(simulation.Scenario([server], simulation.Open(50, 5)))
    assert report.success == 0
    assert log() == []


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ({}.__getitem__, "!"),
        (lambda: lbclient.Verdict(fault=False), "!"),
        (lambda _: None, ": it returned NoneType, not lbclient.Verdict"),
        (lambda _: True, ": it returned bool, not lbclient.Verdict"),
    ],
    ids=["written-in-c", "no-argument", "nothing", "a-bool"],
)
def test_judge_that_is_no_use(judge, reason, log):
    """A judge that returns no verdict, or that fails without a frame of its own, does not make
    calls fail."""

    def raises(_):
        raise OSError("mine")

    with Balancer([ONE], judge=judge, name="orders") as balancer:
        assert balancer.call(str) == str(ONE)
        with pytest.raises(OSError, match="mine"):
            balancer.call(raises)
    assert log()[0] == f"ERROR orders: the judge failed; the outcome counts as neutral{reason}"


@pytest.mark.parametrize("pick", [staticmethod(max), lambda _: None], ids=["written-in-c", "arity"])
def test_strategy_without_a_frame(pick, log):
    """A strategy that fails without a frame of its own, in C or by its arguments, does not make
    calls fail."""
    strategy = type("Mine", (), {"pick": pick})()
    with Balancer([ONE, TWO], strategy=strategy, name="orders") as balancer:
        assert balancer.call(str) in {str(ONE), str(TWO)}
    assert log() == [
        "ERROR orders: strategy Mine failed to pick, so an instance was picked at random!"
    ]
