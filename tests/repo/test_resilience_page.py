"""What docs/resilience.md says: its tables, its numbers, its Python."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import itertools
import math
import random
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import anyio.lowlevel
import httpcore
import httpx
import pytest

import lbclient
from lbclient.balancer.listener import _MOST
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.endpoint import Endpoint, EndpointStatus
from lbclient.http.classifier import HttpClassifier
from lbclient.http.connections.connection import PeerLeft
from lbclient.http.options import DEFAULT_TIMEOUT
from lbclient.resilience.retry import RetryController, RetryRules, RetryState
from lbclient.resilience.retry_budget import Budget
from lbclient.resilience.throttle import Throttle
from tests.support.breakers import probe
from tests.support.drivers import settings
from tests.support.http import dies_in_body, in_turn, says, slow, tells_port

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "resilience.md").read_text()
TEXT = " ".join(PAGE.split())
"""The same without line breaks."""
NUMBERS = {"two": 2, "four": 4, "five": 5, "eight": 8, "third": 1 / 3, "tenth": 0.1}
STATUSES = lbclient.RetryPolicy().statuses


# What the page says


def table(first: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading this is, by their first cell."""
    text = PAGE.partition(f"\n| {first} |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\|.*\|$", text, re.MULTILINE)[1:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {first: rest for first, *rest in rows}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def said(pattern: str) -> tuple[float, ...]:
    """The figures in the only sentence that matches this pattern."""
    (found,) = re.findall(pattern, TEXT)
    figures = (found,) if isinstance(found, str) else found
    return tuple(NUMBERS[one] if one in NUMBERS else float(one.replace(",", "")) for one in figures)


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Dice(random.Random):
    """Random numbers that are always the same."""

    def __new__(cls, _face):
        return super().__new__(cls)

    def __init__(self, face):
        super().__init__()
        self._face = face

    def random(self):
        return self._face


def engine(instances=2, **options):
    """A balancer and its clock."""
    clock = Clock()
    addresses = [f"http://10.0.0.{place}" for place in range(1, instances + 1)]
    given = {"name": "orders", "clock": clock, "rng": random.Random(1), "retry": None, **options}
    return lbclient.Balancer(addresses, **given), clock


def standings(balancer):
    return [one.standing for one in balancer.snapshot().instances]


# What an outcome means


def raised(kind, cause=None):
    error = kind("told by a test")
    error.__cause__ = cause
    return error


def unconnected(*numbers):
    return [raised(httpx.ConnectError, OSError(number, "told by a test")) for number in numbers]


def went_away(*, unprocessed):
    return raised(httpx.RemoteProtocolError, PeerLeft(unprocessed=unprocessed))


def went_away_over_httpcore(**what):
    """What a caller's own transport over httpcore raises."""
    told = SimpleNamespace(**{"error_code": None, "last_stream_id": None, **what})
    return raised(httpx.RemoteProtocolError, httpcore.RemoteProtocolError(told))


def of_the_body():
    error = httpx.ReadError("the file could not be read")
    error._lbclient_callers_own = True
    return error


def statuses(*numbers):
    return [httpx.Response(number) for number in numbers]


UNPROCESSED = range(400, 600)
OTHERS = [*range(200, 408), *range(409, 429), *range(430, 500), *range(600, 1000)]
MAYBE_SENT = [
    raised(kind)
    for kind in (
        httpx.ReadError,
        httpx.WriteError,
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.RemoteProtocolError,
    )
]
SAMPLES = {
    "2xx, 3xx, 4xx except 408 and 429, or above 599": statuses(*OTHERS),
    "408 on a new connection": statuses(408),
    "429": statuses(429),
    "4xx that is `unprocessed`": statuses(*UNPROCESSED[:100]),
    "5xx that is `unprocessed`": statuses(*UNPROCESSED[100:]),
    "502, 503, 504": statuses(502, 503, 504),
    "any other 5xx": statuses(500, 501, *range(505, 600)),
    "connection refused, no connection in time, TLS handshake failed, name unknown": [
        *unconnected(errno.ECONNREFUSED),
        raised(httpx.ConnectTimeout),
        raised(httpx.ConnectError, ssl.SSLCertVerificationError("expired")),
        raised(httpx.ConnectError, socket.gaierror(socket.EAI_NONAME, "unknown")),
    ],
    "read or write failed or timed out, invalid response, closed without a response": MAYBE_SENT,
    "HTTP/2: the peer says that it has not begun the request": [
        went_away(unprocessed=True),
        went_away_over_httpcore(error_code=7),
        went_away_over_httpcore(error_code=0, last_stream_id=0),
    ],
    "HTTP/2: the peer closes the connection in an orderly way (GOAWAY)": [
        went_away(unprocessed=False),
        went_away_over_httpcore(error_code=0, last_stream_id=5),
    ],
    "this host cannot reach any instance": unconnected(
        errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT
    ),
    "this process has no file descriptor or memory left, or a pool of your own has no free place": [
        *unconnected(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
        raised(httpx.PoolTimeout),
    ],
    "cancelled, interrupted, an exception of your own, an error in the request's body": [
        ValueError("a caller's"),
        raised(httpx.UnsupportedProtocol),
        raised(httpx.LocalProtocolError),
        of_the_body(),
    ],
}
LIVE = {
    "this host cannot reach the instance, but can reach others",
    "no local port is free on this host",
    "408 on a reused connection",
    "the same error in a body that is not streamed",
    "the same error in a streamed body",
    "ended by the deadline, after half of the call's time or more",
    "ended by the deadline, after less than half of the call's time",
    "ended by the deadline of a block or a caller, before responses usually arrive",
}
OUTCOMES = table("what came back")
FAULT = {"yes": True, "no": False}


def again(verdict: Verdict) -> str:
    """Whether the retry rules repeat it, in the words of the table."""
    retries = RetryRules(lbclient.RetryPolicy(), Dice(0.5))

    def delay(repeatable):
        turn = RetryState(verdict, 0.0, repeatable, replayable=True, deadline=None, pause=0.0)
        return RetryController(retries).delay(turn)

    anybody, repeatable = delay(repeatable=False), delay(repeatable=True)
    if repeatable is None:
        assert anybody is None
        return "no"
    who = "for `methods`" if anybody is None else "any method"
    return f"{who}, {'after a back-off' if repeatable else 'at once'}"


def test_every_outcome_is_tested():
    """The table of outcomes contains what is tested below, and nothing else."""
    assert set(OUTCOMES) == {*SAMPLES, *LIVE}


@pytest.mark.parametrize("row", SAMPLES)
def test_outcomes(row):
    """Each outcome is classified, and retried or not, as its row says."""
    judge = HttpClassifier(STATUSES, UNPROCESSED if "`unprocessed`" in row else ())
    for sample in SAMPLES[row]:
        verdict = judge(sample)
        assert [verdict.fault, again(verdict)] == [FAULT[OUTCOMES[row][0]], OUTCOMES[row][1]]


def test_408_on_a_reused_connection(servers):
    """I28: a 408 that belongs to no request is distinguished from one that does, as its row
    says."""
    (server,) = servers(in_turn(tells_port, says(408)))
    with lbclient.Client([server.url], retry=None) as client:
        client.get("/")
        verdict = HttpClassifier(STATUSES)(client.get("/"))
    fault, repeated = OUTCOMES["408 on a reused connection"]
    assert [verdict.fault, again(verdict)] == [FAULT[fault], repeated]


def test_dying_in_the_body(servers):
    """I8: a broken body is a fault; the call is retried as its row says."""
    fault, repeated = OUTCOMES["the same error in a body that is not streamed"]
    assert (fault, repeated) == ("yes", "for `methods`, after a back-off")
    for method, attempts in (("GET", 3), ("POST", 1)):
        (server,) = servers(dies_in_body)
        with lbclient.Client([server.url]) as client:
            with pytest.raises(httpx.ReadError) as caught:
                client.request(method, "/")
            (one,) = client.balancer.snapshot().instances
        assert len(lbclient.call_info(caught.value).attempts) == one.failures == attempts


def test_dying_in_the_body_of_a_stream(servers):
    """I8: a stream that breaks is a fault, and is not retried."""
    assert OUTCOMES["the same error in a streamed body"] == ["yes", "no"]
    (server,) = servers(dies_in_body)
    with lbclient.Client([server.url]) as client:
        with client.stream("GET", "/") as response, pytest.raises(httpx.ReadError):
            response.read()
        (one,) = client.balancer.snapshot().instances
    assert (server.hits, one.failures) == (1, 1)


@pytest.mark.parametrize("began", [0.0, 0.5, 0.6])
def test_ended_by_the_deadline(began):
    """I5: an attempt that our own deadline ends is a fault if it had half of the call's time."""
    row = "less than half of the call's time" if began > 0.5 else "half of the call's time or more"
    fault, repeated = OUTCOMES[f"ended by the deadline, after {row}"]
    balancer, clock = engine(retry=lbclient.RetryPolicy(backoff=0))
    sent = []

    def times_out(instance):
        sent.append(instance)
        clock.now = 1.0 if clock.now or not began else began
        raise TimeoutError

    with pytest.raises(lbclient.DeadlineExceeded):
        balancer.call(times_out, idempotent=True, deadline=1.0)
    last = sent[-1]
    failures = {one.instance: one.failures for one in balancer.snapshot().instances}
    assert failures[last] == int(FAULT[fault])
    assert repeated == "no"
    assert len(sent) == 1 + bool(began)


def test_ended_by_the_deadline_of_a_caller():
    """An attempt that the deadline of a block ends is no fault if responses take longer."""
    fault, repeated = OUTCOMES[
        "ended by the deadline of a block or a caller, before responses usually arrive"
    ]
    balancer, clock = engine(retry=lbclient.RetryPolicy(backoff=0))
    sent = []

    def takes(seconds, error=None):
        def fn(instance):
            sent.append(instance)
            clock.now += seconds
            if error is not None:
                raise error

        return fn

    balancer.call(takes(10.0))
    with lbclient.deadline(20.0), pytest.raises(lbclient.DeadlineExceeded):
        balancer.call(takes(20.0, TimeoutError()), idempotent=True)
    failures = sum(one.failures for one in balancer.snapshot().instances)
    assert [failures, repeated] == [int(FAULT[fault]), "no"]
    assert len(sent) == 2


def check_that_nobody_is_charged(balancer):
    (row,) = (one for one in OUTCOMES if one.startswith("cancelled, "))
    assert OUTCOMES[row] == ["no", "no"]
    snapshot = balancer.snapshot().instances
    assert sum(one.attempts for one in snapshot) == 1
    assert [(one.failures, one.in_flight) for one in snapshot] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_interrupted(kind):
    """C4: an interrupt, or the caller's own exception, charges no instance and is not retried."""
    balancer, _ = engine(retry=lbclient.RetryPolicy())

    def fn(_):
        raise kind

    with pytest.raises(kind):
        balancer.call(fn, idempotent=True)
    check_that_nobody_is_charged(balancer)


async def test_cancelled():
    """C1, C3: a cancelled call charges no instance, and is not retried."""
    balancer, _ = engine(retry=lbclient.RetryPolicy())
    with anyio.CancelScope() as scope:

        async def fn(_):
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        await balancer.acall(fn, idempotent=True)
    assert scope.cancelled_caught
    check_that_nobody_is_charged(balancer)


def test_429_is_a_success_to_a_breaker():
    """I13: a 429 among faults restarts their count; throttle and limits count it as a rejection."""
    assert "429 is no fault, and to a breaker it is a success" in TEXT
    judge = HttpClassifier(STATUSES)
    breaker = Breaker(lbclient.BreakerPolicy(), "a")
    for status in (503, 503, 503, 503, 429, 503, 503, 503, 503):
        fault = judge(httpx.Response(status)).fault
        breaker.record_outcome(breaker.permit, fault=fault, now=0.0, rng=Dice(0.5))
    assert breaker.closed
    assert judge(httpx.Response(429)).turned_away


def test_defaults_in_the_text():
    """What the page says about each fault, and about the options, is true for the defaults."""
    retry, breaker, outliers = (
        lbclient.RetryPolicy(),
        lbclient.BreakerPolicy(),
        lbclient.OutlierPolicy(),
    )
    connect, read = said(
        r"connecting, ([\d.]+) s.*Each attempt ends with the read timeout, (\d+) s"
    )
    assert (connect, read) == (DEFAULT_TIMEOUT.connect, DEFAULT_TIMEOUT.read)
    assert said(r"a call with three attempts takes (\d+) s") == (retry.attempts * read,)
    assert said(r"After (\w+) faults in a row \(`fail_max`\)") == (breaker.fail_max,)
    assert said(r"after that time, at most (\d+) s") == (retry.retry_after_max,)
    assert said(r"`minimum_calls` = (\d+) of this client") == (breaker.minimum_calls,)
    assert said(r"Outlier detection needs (\d+) calls in an interval") == (outliers.minimum_calls,)
    assert f"or for the pool timeout ({DEFAULT_TIMEOUT.pool:g} s)" in TEXT
    budget = (retry.budget.window, retry.budget.ratio, retry.budget.reserve)
    sentence = (
        r"`window` of (\d+) s, `ratio` = ([\d.]+) retries for each call, and `reserve` = (\d+)"
    )
    assert said(sentence) == budget


# At three in the morning


def same(text: str) -> str:
    """The text of an error, with any figures."""
    return re.sub(r"\d+\.\d\d s", "# s", text)


def client_of(answer=None, **options):
    """Two instances that do not exist; `answer` responds for them."""
    urls = ["http://10.0.0.1", "http://10.0.0.2"]
    given = {"name": "orders", "rng": random.Random(1), "timeout": httpx.Timeout(5, pool=0.02)}
    transport = httpx.MockTransport(answer or (lambda _: httpx.Response(200)))
    return lbclient.Client(urls, transport=lambda _: transport, **given | options)


def outcome(client, **options):
    with pytest.raises(httpx.TransportError) as caught:
        client.get("/", **options)
    return caught.value


def refuses(_):
    raise httpx.ConnectError("refused")


def all_out():
    with client_of(refuses, retry=None) as client:
        client.balancer.eject(client.balancer.instances()[1], 60)
        for _ in range(5):
            outcome(client)
        return outcome(client)


def all_full(**options):
    with client_of(max_in_flight_total=1) as client, client.balancer.acquire():
        return outcome(client, **options)


def throttled():
    answers = client_of(lambda _: httpx.Response(503), throttle=lbclient.ThrottlePolicy())
    with answers as client:
        for _ in itertools.repeat(None, 100):
            try:
                client.get("/")
            except httpx.TransportError as error:
                return error
    return None


def overdue():
    clock = Clock()

    def times_out(_):
        clock.now += 0.5
        raise httpx.ReadTimeout("silence")

    retry = lbclient.RetryPolicy(deadline=1.0, backoff=0)
    with client_of(times_out, clock=clock, retry=retry) as client:
        return outcome(client)


def overdue_between_requests():
    clock = Clock()

    def redirects(_):
        clock.now += 0.5
        return httpx.Response(302, headers={"Location": "/next"})

    def stops(_):
        clock.now += 0.5

    hooks = {"response": [stops]}
    retry = lbclient.RetryPolicy(deadline=1.0)
    with client_of(redirects, clock=clock, retry=retry, event_hooks=hooks) as client:
        return outcome(client, follow_redirects=True)


def overdue_in_the_body():
    clock = Clock()

    class Body(httpx.SyncByteStream):
        def __iter__(self):
            yield b"first"
            clock.now += 2.0
            yield b"second"

    retry = lbclient.RetryPolicy(deadline=1.0)
    drips = client_of(lambda _: httpx.Response(200, stream=Body()), clock=clock, retry=retry)
    with drips as client, client.stream("GET", "/") as response:
        with pytest.raises(httpx.TransportError) as caught:
            response.read()
        return caught.value


def failed():
    answers = iter([httpx.Response(503), httpx.ConnectError("refused")])

    def answer(_):
        if isinstance(one := next(answers), Exception):
            raise one
        return one

    retry = lbclient.RetryPolicy(attempts=2, backoff=0)
    with client_of(answer, retry=retry, strategy="round-robin") as client:
        return outcome(client)


def unknown():
    def resolve():
        raise OSError("no DNS here")

    with lbclient.Client(SimpleNamespace(resolve=resolve), name="orders") as client:
        return outcome(client)


def closed():
    wait = httpx.Timeout(5, pool=10)
    client = client_of(max_in_flight_total=1, close_grace=0, timeout=wait)
    with client.balancer.acquire(), ThreadPoolExecutor(1) as pool:
        call = pool.submit(outcome, client)
        while not client.balancer._engine.queue:
            time.sleep(0.001)
        client.close()
        return call.result()


RAISED = table("exception, and its text")
HOW = [
    all_out,
    all_full,
    throttled,
    lambda: all_full(extensions={"lbclient": {"deadline": 0.02}}),
    overdue,
    overdue_between_requests,
    overdue_in_the_body,
    failed,
    closed,
    unknown,
]


@pytest.mark.parametrize(("row", "how"), [*zip(RAISED, HOW, strict=True)])
def test_what_is_raised(row, how):
    """Each error has the class and the text of its row; if the row says that nothing was sent,
    there was no attempt."""
    error = how()
    *name, text = spans(row) if len(spans(row)) == 2 else (spans(row)[0], "")
    attempts = lbclient.call_info(error).attempts
    if row.startswith("an error of httpx's"):
        assert not isinstance(error, lbclient.LoadBalancingError)
        (note,) = error.__notes__
        # Which of the two instances came first is up to the dice.
        assert re.sub(r"0\.\d:80", "0.#:80", note) == re.sub(r"0\.\d:80", "0.#:80", spans(row)[0])
        assert [one.status for one in attempts] == [503, None]
        return
    assert isinstance(error, getattr(lbclient, name[0]))
    assert same(text) in same(str(error))
    if "nothing was sent" in RAISED[row][0]:
        assert attempts == ()


def test_who_is_out():
    """Each standing is in the table, and of several the lowest is shown."""
    rows = [one.strip("`") for one in table("standing")]
    assert set(rows) == set(get_args(EndpointStatus))
    endpoint = Endpoint(lbclient.Instance("10.0.0.1", 80), lbclient.BreakerPolicy(fail_max=1))
    breaker, seen = endpoint.breaker, []
    breaker.record_outcome(breaker.permit, fault=True, now=0.0, rng=Dice(0.5))
    endpoint.backing_off_until, endpoint.ejected_until, endpoint.healthy = 10.0, 10.0, False
    probe(breaker, 2.0)
    seen.append(endpoint.standing(5.0))
    endpoint.ejected_until = 0.0
    seen.append(endpoint.standing(5.0))
    endpoint.healthy = True
    seen.append(endpoint.standing(5.0))
    endpoint.renew(Breaker(lbclient.BreakerPolicy(), "a"))
    endpoint.backing_off_until = 10.0
    seen.extend([endpoint.standing(5.0), endpoint.standing(11.0)])
    assert seen == [one for one in reversed(rows) if one != "open"]


def test_metrics_are_there(telemetry):
    """Each metric that the page names exists."""
    balancer, _ = engine(breaker=None, throttle=lbclient.ThrottlePolicy(), **telemetry.options)
    named = set(re.findall(r"`(lbclient\.[a-z_.]+)`", PAGE))
    ours = {
        metric
        for kind in vars(balancer._engine.telemetry.metrics._instruments).values()
        if (metric := getattr(kind, "name", None)) is not None
    }
    assert len(named) >= 8
    assert named <= ours


# Retries and the budget


def test_what_the_budget_allows():
    """The worked example is what `RetryBudget` computes."""
    rate, calls, allowed, a_second = said(
        r"(\d+) calls a second: 0\.2 . (\d+) \+ 10 . 10 = (\d+) retries in any 10 s, (\d+) a second"
    )
    budget = Budget(lbclient.RetryBudget())
    for number in range(int(calls)):
        budget.deposit(number / rate)
    assert calls == 10 * rate
    assert round(budget.balance(9.99)) == allowed == 10 * a_second
    (wanted,) = said(r"One of three instances fails: (\d+) calls a second want one retry each")
    assert wanted == round(rate / 3) < a_second


def test_when_the_budget_is_used_up():
    """In an outage that no breaker notices, the budget is empty after two seconds, for eight
    more."""
    used_up, empty = said(r"used up within (\w+) seconds; for the next (\w+) seconds,")
    budget, made = Budget(lbclient.RetryBudget()), []
    for now in (number / 50 for number in range(50 * 20)):
        budget.deposit(now)
        if now >= 10:
            made.extend(now for _ in range(2) if budget.withdraw(now))
    assert made
    assert max(made) < 10 + used_up
    assert used_up + empty == 10


def test_how_soon_breakers_are_open():
    """All three are open after the 15th attempt."""
    (attempts,) = said(r"opened all three breakers by the (\d+)th attempt")
    balancer, _ = engine(3, retry=lbclient.RetryPolicy(backoff=0))

    def down(_):
        raise ConnectionResetError

    while set(standings(balancer)) != {"open"}:
        with pytest.raises(ConnectionResetError):
            balancer.call(down, idempotent=True)
    assert sum(one.attempts for one in balancer.snapshot().instances) == attempts


def test_the_reserve_of_many_processes():
    """The figure is the sum of all."""
    processes, reserve, together = said(
        r"(\d+) processes with (\d+) a second may send ([\d,]+) retries"
    )
    ours, all_together = said(r"reserve=2\.0\), # (\d+) processes: (\d+) a second")
    assert ours * documented()["retry"].budget.reserve == all_together
    assert reserve == lbclient.RetryBudget().reserve
    assert processes * reserve == together


# Breakers


def fed(policy, outcomes):
    """A breaker after these outcomes (fault, seconds), one every 0.4 s."""
    breaker = Breaker(policy, "a")
    for number, (fault, elapsed) in enumerate(outcomes):
        now = 0.4 * number
        breaker.record_outcome(breaker.permit, fault=fault, now=now, rng=Dice(0.5), elapsed=elapsed)
    return breaker.state


OPENS = {
    "`fail_max` = 5 faults in a row": [(True, 0.0)] * 5,
    "a share of faults in the last `window` seconds": [(False, 0.0), (True, 0.0)] * 10,
    "a share of calls longer than `slow_after` seconds": [(False, 0.1), (False, 1.1)] * 10,
}


def test_what_opens_a_breaker():
    """Each way to open a breaker needs the settings of its row, and exactly that number of
    calls."""
    rows = table("opens at")
    assert set(rows) == set(OPENS)
    for row, (_, given) in rows.items():
        options = eval(f"dict({spans(given)[0] if spans(given) else ''})")
        policy = lbclient.BreakerPolicy(**options)
        assert fed(policy, OPENS[row]) == "open"
        assert fed(policy, OPENS[row][:-1]) == "closed"
        if options:
            assert fed(lbclient.BreakerPolicy(), OPENS[row]) == "closed"
    assert lbclient.BreakerPolicy().minimum_calls == 20 == 2 * lbclient.BreakerPolicy().window


def periods(face, times):
    """How long it stays open each time, if each probe fails."""
    breaker, now = Breaker(lbclient.BreakerPolicy(), "a"), 0.0
    for _ in range(5):
        breaker.record_outcome(breaker.permit, fault=True, now=now, rng=Dice(face))
    for _ in range(times):
        yield breaker.due - now
        now = breaker.due
        breaker.record_outcome(probe(breaker, now), fault=True, now=now, rng=Dice(face))


def test_how_long_a_breaker_is_open():
    """The table of open periods is what breakers do."""
    (cells,) = table("open for the … time").values()
    documented = [tuple(map(float, re.findall(r"[\d.]+", cell))) for cell in cells]
    found = list(zip(periods(0.0, 8), periods(1.0, 8), strict=True))
    assert found == [*documented, documented[-1], documented[-1]]


@pytest.mark.parametrize(("healthy", "period"), [(29.0, 2.0), (31.0, 1.0)])
def test_health_begins_anew(healthy, period):
    """After 30 s of health it is open for as short as the first time."""
    assert (
        "When a breaker has been closed for 30 s, its next open period is the first period again"
        in TEXT
    )
    breaker = Breaker(lbclient.BreakerPolicy(fail_max=1), "a")
    breaker.record_outcome(breaker.permit, fault=True, now=0.0, rng=Dice(1.0))
    breaker.record_outcome(probe(breaker, 1.0), fault=False, now=1.0, rng=Dice(1.0))
    now = 1.0 + healthy
    breaker.record_outcome(breaker.permit, fault=True, now=now, rng=Dice(1.0))
    assert breaker.due - now == period


def test_what_an_observing_breaker_counts(telemetry):
    """The documented policy refuses nothing, and counts about the share of the bad instances."""
    (code,) = (one for one in blocks("python") if "observe=True" in one)
    made = executed(code)
    made["client"].close()
    balancer, clock = engine(4, breaker=made["breaker"], **telemetry.options)

    def fails(instance):
        if instance.host == "10.0.0.4":
            raise ConnectionResetError

    for _ in range(2000):
        clock.now += 0.01
        with contextlib.suppress(ConnectionResetError):
            balancer.call(fails)
    assert standings(balancer) == ["serving"] * 4
    share = telemetry.total("lbclient.breaker.observed") / telemetry.total("lbclient.picks")
    assert 0.23 < share < 0.25


def test_panic():
    """With fewer than the threshold admissible all instances get calls, except ejected ones; and in
    an outage of all, calls are sent."""
    assert "An ejected instance stays out" in TEXT
    policy = lbclient.BreakerPolicy(panic_threshold=0.5)
    balancer, _ = engine(10, breaker=policy, strategy="round-robin")
    sick = [f"10.0.0.{place}" for place in range(1, 6)]

    def send(instance):
        if instance.host in sick:
            raise ConnectionResetError
        return instance.host

    def reached(calls):
        seen = set()
        for _ in range(calls):
            try:
                seen.add(balancer.call(send))
            except ConnectionResetError:
                seen.add("sick")
        return seen

    reached(100)
    assert standings(balancer).count("open") == 5
    assert "sick" not in reached(20)
    balancer.eject(balancer.instances()[9], 60)
    assert reached(20) == {"sick", *(f"10.0.0.{place}" for place in range(6, 10))}
    sick.extend(f"10.0.0.{place}" for place in range(6, 10))
    assert reached(100) == {"sick"}


# Outliers, limits, hedging, slow start


def test_five_in_a_row_by_chance():
    """The number of calls, on average, until five in a row fail."""
    percent, calls = said(
        r"fails (\d+) % of its calls at random fails five calls in a row only once in about (\d+)"
    )
    rate = percent / 100
    expected = (1 - rate**5) / (rate**5 * (1 - rate))
    assert round(expected, -1) == calls


def test_an_outlier_is_out():
    """An instance that fails two of five calls, while its peers fail none, is out after 10 s, and
    back after 15 to 30 s."""
    after, least, most = said(
        r"ejects it after (\d+) s\..* back after (\d+) to (\d+) s, the second time"
    )
    balancer, clock = engine(3, outliers=lbclient.OutlierPolicy(), strategy="round-robin")
    turns = itertools.cycle([True, False, False, True, False])

    def send(instance):
        if instance.host == "10.0.0.1" and next(turns):
            raise ConnectionResetError

    def call():
        clock.now += 0.1
        with contextlib.suppress(ConnectionResetError):
            balancer.call(send)

    while standings(balancer)[0] == "serving":
        call()
        assert clock.now < 60
    out = clock.now
    assert after <= out < after + 1
    while standings(balancer)[0] == "ejected":
        clock.now += 0.1
    assert least - 0.1 <= clock.now - out <= most + 0.1
    policy = lbclient.OutlierPolicy()
    assert (least, most) == (policy.ejection / 2, policy.ejection)
    assert policy.max_ejected == pytest.approx(NUMBERS["third"], abs=0.01)


def test_a_learned_limit():
    """The limit falls by the documented steps, and a full round of good answers adds half the
    root."""
    steps = [int(one) for one in re.search(r"\(((\d+, )+\d+)\)", TEXT)[1].split(", ")]
    rule, limit = lbclient.AdaptiveLimit(), None
    found = [rule.initial]
    for _ in steps[1:]:
        limit = rule.shrunk(limit)
        found.append(limit)
    assert found == steps
    limit = 20.0
    for _ in range(20):
        limit = rule.grown(limit, in_flight=20)
    assert "adds half the square root of the limit" in TEXT
    assert limit - 20 == pytest.approx(math.sqrt(20) / 2, rel=0.05)


def test_the_throttle():
    """A service that serves nothing is sent a tenth; everything is sent again within four
    minutes."""
    refused, minutes = said(
        r"At most (\d+) % of the requests are refused .* it takes up to (\w+) minutes until nothing"
    )
    throttle, dice = Throttle(lbclient.ThrottlePolicy()), random.Random(1)

    def goes(now, accepted):
        if not throttle.admits(now, dice):
            return False
        (throttle.accepted if accepted else throttle.refused)(now)
        return True

    outage = [goes(number / 10, accepted=False) for number in range(10 * 600)]
    assert sum(outage[3000:]) == pytest.approx((1 - refused / 100) * 3000, rel=0.15)
    after = [goes(600 + number / 10, accepted=True) for number in range(10 * 300)]
    assert not all(after[: 10 * 60])
    assert all(after[int(minutes * 600) :])


@pytest.mark.parametrize("cell", [cells[0] for cells in table("you know").values()])
def test_limits_can_be_set(cell):
    """Each limit of the table is an option."""
    configured(spans(cell)[0]).close()


def test_a_thread_for_each_call_that_may_be_hedged():
    """A hedge runs on its own thread, even if nothing is hedged in the end; any other call does
    not."""
    assert "each call that may be hedged starts a thread, and a hedged call starts two" in TEXT
    balancer, _ = engine(hedge=lbclient.HedgePolicy(delay=60))
    here = threading.current_thread()
    assert balancer.call(lambda _: threading.current_thread(), idempotent=True) is not here
    assert balancer.call(lambda _: threading.current_thread()) is here


def test_what_a_hedge_costs():
    """By default the slowest twentieth is hedged; slow start begins with a tenth."""
    assert "one more attempt for each twenty calls" in TEXT
    assert lbclient.HedgePolicy().percentile == 1 - 1 / 20
    assert lbclient.SlowStart().least == NUMBERS["tenth"]


# Health checks


def test_health_checks_as_documented():
    """The numbers are the defaults; the load is that of all processes together."""
    policy = lbclient.HealthCheck("/health")
    down, up, apart = said(
        r"`down` = (\d+) failed checks, and back after `up` = (\d+).* about (\d+) s apart"
    )
    assert (policy.down, policy.up, policy.interval) == (down, up, apart)
    processes, interval, load = said(
        r"(\d+) processes with a check every (\d+) s send (\d+) requests a second"
    )
    assert processes / interval == load


def marked(balancer, *hosts, healthy):
    """Active checks find these results."""
    for one in list(balancer._engine.pool.endpoints):
        if one.instance.host in hosts:
            balancer._engine.record_health(one, one.breaker, healthy=healthy, why="a test")


def test_both_must_say_yes():
    """An instance that answers but fails its checks is out; one that becomes healthy is probed
    within 1 s, however long its breaker was open."""
    balancer, clock = engine(strategy="round-robin")
    marked(balancer, "10.0.0.1", healthy=False)
    assert {balancer.call(lambda one: one.host) for _ in range(4)} == {"10.0.0.2"}
    (sick, _) = balancer._engine.pool.endpoints
    for _ in range(5):
        sick.breaker.record_outcome(sick.breaker.permit, fault=True, now=0.0, rng=Dice(1.0))
    for _ in range(5):
        clock.now = sick.breaker.due
        permit = probe(sick.breaker, clock.now)
        sick.breaker.record_outcome(permit, fault=True, now=clock.now, rng=Dice(1.0))
    assert sick.breaker.due - clock.now == 30
    marked(balancer, "10.0.0.1", healthy=True)
    assert standings(balancer)[0] == "open"
    assert 0 < sick.breaker.due - clock.now <= lbclient.BreakerPolicy().reset_timeout
    clock.now = sick.breaker.due
    assert balancer.call(lambda one: one.host, idempotent=True) == "10.0.0.1"
    assert standings(balancer) == ["serving", "serving"]


def test_all_unhealthy_is_disregarded():
    """All priorities count together: a healthy spare serves before checks are ignored."""
    assert "**If all instances are unhealthy, checks are ignored**, over all priorities" in TEXT
    pair = [lbclient.Instance("10.0.0.1", 80), lbclient.Instance("10.0.0.2", 80, priority=1)]
    balancer = lbclient.Balancer(pair)
    marked(balancer, "10.0.0.1", healthy=False)
    assert balancer.call(lambda one: one.host) == "10.0.0.2"
    marked(balancer, "10.0.0.2", healthy=False)
    assert balancer.call(lambda one: one.host) == "10.0.0.1"
    assert standings(balancer) == ["unhealthy", "unhealthy"]


# By hand, and who listens


def test_what_a_hand_does():
    """If all instances are ejected none is left, panic or not; an admitted instance has a new
    breaker."""
    balancer, _ = engine(breaker=lbclient.BreakerPolicy(panic_threshold=1.0))
    for one in balancer.instances():
        balancer.eject(one, 600)
    with pytest.raises(lbclient.NoInstanceAvailable, match="ejected"):
        balancer.call(lambda one: one)
    (first, _) = balancer._engine.pool.endpoints
    before = first.breaker
    balancer.admit(first.instance)
    assert balancer.call(lambda one: one) == first.instance
    assert first.breaker is not before


def test_events_as_documented():
    """Each event is in the table, with its fields besides `service` and `at`."""
    documented = {row.strip("`"): spans(cells[0]) for row, cells in table("event").items()}
    common = {one.name for one in dataclasses.fields(lbclient.Event)}
    assert common == {"service", "at"}
    assert documented == {
        kind.__name__: [one.name for one in dataclasses.fields(kind) if one.name not in common]
        for kind in lbclient.Event.__subclasses__()
    }
    (most,) = said(r"When ([\d,]+) events wait for it, further events are dropped")
    assert most == _MOST


def test_the_documented_listener(capsys):
    """The page's listener is told once of an ejection, and once of a breaker that opens."""
    (code,) = (one for one in blocks("python") if "def told" in one)
    made = executed(code)
    made["client"].close()
    heard = threading.Event()

    def told(event):
        made["told"](event)
        if isinstance(event, lbclient.BreakerChanged):
            heard.set()

    balancer, _ = engine(listener=told, strategy="round-robin")
    first, second = balancer.instances()
    balancer.eject(first, 600)

    def down(_):
        raise ConnectionResetError

    for _ in range(5):
        with pytest.raises(ConnectionResetError):
            balancer.call(down)
    assert heard.wait(10)
    balancer.close()
    out = capsys.readouterr().out.splitlines()
    assert out == [f"orders: {first} is ejected for 600 s, by hand", f"orders: {second} is out"]


# Connections


def test_connections_as_documented():
    """The defaults are those of the table."""
    rows = table("what")
    kept = said(r"idle connections are closed after \| (\d+) s")
    assert kept == (settings().limits.keepalive_expiry,)
    with lbclient.Client("http://127.0.0.1:1") as client:
        grace = client._transport._adapter.close_grace
    assert rows["`close_grace`"][0] == f"{grace:g} s"
    assert rows["`max_connection_age`"][0] == "none"
    assert settings().max_connection_age is None


# Choosing the numbers


NAMES = {name: getattr(lbclient, name) for name in lbclient.__all__} | {"httpx": httpx}


def configured(options):
    """A client with options as a table writes them."""
    return eval(f"Client('http://127.0.0.1:1', {options})", NAMES)


CHOICES = [span for given, _ in table("your service").values() for span in spans(given)]


@pytest.mark.parametrize("options", CHOICES)
def test_choices_can_be_set(options):
    """The settings that a row names are valid unchanged."""
    if "=" in options:
        configured(options).close()
    else:
        assert options in {one.name for one in dataclasses.fields(lbclient.RetryPolicy)}


def documented():
    """The options of the complete configuration."""
    (code,) = (one for one in blocks("python") if one.startswith("import lbclient"))
    made = []
    names = {one: getattr(lbclient, one) for one in lbclient.__all__}
    stub = SimpleNamespace(**names | {"Client": lambda *given, **more: made.append((given, more))})
    tree = ast.parse(code)
    tree.body = [one for one in tree.body if not isinstance(one, ast.Import)]
    exec(compile(tree, "docs/resilience.md", "exec"), {"lbclient": stub})
    ((_, options),) = made
    return options


BAD = {"refuses": None, "answers 503": says(503), "is slow": slow(2.0)}


@pytest.fixture(params=itertools.combinations(BAD, 2), ids=" and ".join)
def fleet(request, servers, dead_port):
    """Six instances, of which two are bad: three attempts always reach a healthy one."""
    dead = f"http://127.0.0.1:{dead_port}"
    bad = [BAD[one] for one in request.param]
    urls = [dead if one is None else servers(one)[0].url for one in bad]
    return urls + [one.url for one in servers(*[tells_port] * 4)]


def well(fleet):
    return {one.rpartition(":")[2] for one in fleet[2:]}


def test_the_complete_configuration(fleet):
    """With the documented options no GET fails; the bad instances are charged."""
    with lbclient.Client(fleet, name="orders", **documented()) as client:
        answers = [client.get("/") for _ in range(60)]
        snapshot = client.balancer.snapshot().instances
    assert {one.status_code for one in answers} == {200}
    assert {one.text for one in answers} == well(fleet)
    assert [one.failures for one in snapshot[:2]] == [one.attempts for one in snapshot[:2]]
    assert all(one.failures for one in snapshot[:2])


async def test_the_complete_configuration_async(fleet):
    """The same for concurrent async calls."""
    answers = []
    async with lbclient.AsyncClient(fleet, name="orders", **documented()) as client:

        async def call():
            answers.append((await client.get("/")).text)

        for _ in range(12):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(call)
    assert len(answers) == 60
    assert set(answers) == well(fleet)


def test_an_instance_is_told_as_documented(servers):
    """The documented header contains what is left of the attempt, in milliseconds."""
    (server,) = servers(tells_port)
    options = documented()
    with lbclient.Client([server.url], **options) as client:
        client.get("/")
    (told,) = (one.headers["x-deadline-ms"] for one in server.requests if one.target == "/")
    assert 0 < int(told) <= 1000 * options["retry"].attempt_timeout


# The Python of the page


def executed(code):
    names = {"lbclient": lbclient}
    exec(compile(code, "docs/resilience.md", "exec"), names)
    return names


@pytest.mark.parametrize("code", blocks("python"))
def test_snippets_run(code, capsys):
    """Each piece of Python runs unchanged: a client asks nothing before its first call."""
    with client_of() as client:
        names = {"lbclient": lbclient, "client": client}
        exec(compile(code, "docs/resilience.md", "exec"), names)
    names["client"].close()
    if "print(one." in code:
        assert capsys.readouterr().out.splitlines()[0] == "10.0.0.1:80 serving 0 0 0 None"


def test_commands_name_tests_that_are_there():
    """Each measured figure has a command, and what that runs exists."""
    tests = (Path(__file__).parents[1] / "stress" / "test_survival.py").read_text()
    selected = re.findall(
        r"`python -m pytest tests/stress/test_survival\.py (?:-m slow )?-k (\w+)`", PAGE
    )
    assert len(selected) == 2
    assert all(re.search(rf"^(async )?def test_\w*{one}", tests, re.MULTILINE) for one in selected)
