"""Rate limits in the headers of responses: an instance that has no requests left rests."""

import logging

import httpx
import pytest

import lbclient
from lbclient.http import rate_limits
from tests.http.test_features import worlds
from tests.http.test_unprocessed import in_order
from tests.support.http import Gate, head, in_turn, says, tells_port

DATE = "Date: Mon, 30 Nov 2026 09:00:00 GMT"
OPENAI = ["x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 20s"]


def openai(reset, what="requests", left="0"):
    return [f"X-RateLimit-Remaining-{what}: {left}", f"x-ratelimit-reset-{what}: {reset}"]


def anthropic(reset, what="requests", left="0"):
    return [
        DATE,
        f"anthropic-ratelimit-{what}-remaining: {left}",
        f"anthropic-ratelimit-{what}-reset: {reset}",
    ]


def earlier(left, reset):
    return [f"RateLimit-Remaining: {left}", f"RateLimit-Reset: {reset}"]


RESTS = {
    "milliseconds": (openai("20ms"), 0.02),
    "seconds": (openai("1s"), 1),
    "minutes": (openai("0m6.5s"), 6.5),
    "a plain number": (openai("12"), 12),
    "tokens": (openai("7s", "tokens"), 7),
    "another limit": (openai("7s", "tokens-usage-based"), 7),
    "the longest": ([*openai("7s", "tokens"), *openai("9s"), *openai("8s", "images")], 9),
    "one of two": ([*openai("7s", "tokens"), *openai("9s", left="1")], 7),
    "a date": (anthropic("2026-11-30T09:00:07Z"), 7),
    "a date elsewhere": (anthropic("2026-11-30T10:00:07.5+01:00"), 7.5),
    "input tokens": (anthropic("2026-11-30T09:00:07Z", "input-tokens"), 7),
    "output tokens": (anthropic("2026-11-30T09:00:07Z", "output-tokens"), 7),
    "RateLimit": (['RateLimit: "default";r=0;t=7'], 7),
    "with a policy": (['RateLimit-Policy: "a";q=9;w=60', 'RateLimit: "a";r=0;t=7'], 7),
    "a token for a name": (["RateLimit: default; r=0; t=7"], 7),
    "a partition": (['RateLimit: "default";r=0;t=7;pk=:cHNzc3Q=:'], 7),
    "a list": (['RateLimit: "hour";r=9;t=9, "second;r=0;t=8,";r=0;t=7'], 7),
    "two lines": (['RateLimit: "a";r=0;t=7', 'RateLimit: "b";r=0;t=6'], 7),
    "an earlier draft": (["RateLimit: limit=10, remaining=0, reset=7"], 7),
    "its parameters": (["RateLimit: limit=10;w=60, remaining=0, reset=7"], 7),
    "separate": (earlier(0, 7), 7),
    "left": (openai("7s", left="1"), 0),
    "left at Anthropic": (anthropic("2026-11-30T09:00:07Z", left="9"), 0),
    "left in RateLimit": (['RateLimit: "default";r=1;t=7'], 0),
    "left in an earlier draft": (["RateLimit: limit=10, remaining=1, reset=7"], 0),
    "left, separate": (earlier(1, 7), 0),
    "no limit": (openai("7s", left="-1"), 0),
    "a past date": (anthropic("2026-11-30T08:59:00Z"), 0),
    "now": (openai("0s"), 0),
    "no reset": (["x-ratelimit-remaining-requests: 0"], 0),
    "a reset alone": (["x-ratelimit-reset-requests: 7s"], 0),
    "a reset of another limit": ([*openai("7s", left="1"), "x-ratelimit-remaining-tokens: 0"], 0),
    "no t": (['RateLimit: "default";r=0'], 0),
    "a point in time": (earlier(0, 1796029200), 0),
    "bare names": (["x-ratelimit-remaining: 0", "x-ratelimit-reset: 7"], 0),
}
MALFORMED = {
    "a word": openai("soon"),
    "a negative duration": openai("-7s"),
    "no unit": openai("6m7"),
    "another unit": openai("7w"),
    "an empty reset": openai(""),
    "not a number": openai("nan"),
    "a date without a zone": anthropic("2026-11-30T09:00:07"),
    "a date that does not exist": anthropic("2026-13-30T09:00:07Z"),
    "a remainder in words": openai("7s", left="none"),
    "no parameters": ["RateLimit: default"],
    "an empty field": ["RateLimit: "],
    "a name without an end": ['RateLimit: "default;r=0;t=7'],
    "t in words": ['RateLimit: "default";r=0;t=soon'],
    "bytes": ["RateLimit: \xff\xfe;r=\xb2;t=7"],
    "long": openai("9" * 50_000),
}


def lines(status, fields, body=b""):
    """A response with these header lines, which may repeat a name."""
    text = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *fields, "", ""])
    return lambda connection, _: connection.send(text.encode("latin-1") + body)


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def standing(client):
    return client.client.balancer.snapshot().instances[0].standing


@pytest.mark.parametrize(("fields", "rest"), RESTS.values(), ids=list(RESTS))
@pytest.mark.parametrize("status", [200, 404, 429])
def test_the_rest_until_the_reset(servers, fields, rest, status):
    """Any response that says that nothing remains of a limit rests its instance until the reset;
    of several limits the longest counts."""
    pair, clock = servers(lines(status, fields), tells_port), Clock()
    with lbclient.Client(in_order(pair), retry=None, breaker=None, clock=clock) as client:
        assert client.get("/").status_code == status
        for at in (max(0.0, rest - 0.001), rest + 0.001):
            clock.now = 1000.0 + at
            (first, _) = client.balancer.snapshot().instances
            assert first.standing == ("resting" if at < rest else "serving")


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=list(MALFORMED))
def test_invalid_limits_are_ignored(servers, caplog, fields):
    """An invalid limit rests no instance and fails no call; it is logged at level DEBUG."""
    pair = servers(lines(200, fields), tells_port)
    with (
        caplog.at_level(logging.DEBUG, "lbclient"),
        lbclient.Client(in_order(pair), retry=None) as client,
    ):
        assert client.get("/").status_code == 200
        assert client.balancer.snapshot().instances[0].standing == "serving"
    (said,) = [one for one in caplog.messages if "rate limit" in one]
    assert "is ignored, since it is invalid" in said
    assert len(said) < 300


@worlds
@pytest.mark.parametrize("way", ["client", "under_httpx"])
def test_later_calls_go_to_other_instances(servers, world, way):
    """The call itself gets its answer; later calls go to other instances, POSTs too."""
    full, free = pair = servers(lines(200, OPENAI, b"last"), tells_port)
    with getattr(world, way)(in_order(pair)) as client:
        url = "http://127.0.0.1/" if way == "under_httpx" else "/"
        answers = [client.post(url).text for _ in range(5)]
    assert answers == ["last", *[str(free.port)] * 4]
    assert full.hits == 1


@worlds
def test_the_rest_begins_with_the_head(servers, world):
    """The instance rests while its body is still being streamed, and until the reset counted from
    the head; the end of the body does not prolong it."""
    clock = Clock()
    gate = Gate(lambda connection, _: connection.send(b"end"))

    def streams(connection, request):
        fields = dict(one.split(": ") for one in OPENAI)
        connection.send(head(200, {"Content-Length": "3", **fields}))
        gate(connection, request)

    pair = servers(streams, tells_port)
    with world.client(in_order(pair), breaker=None, clock=clock) as client:
        with client.stream("GET", "/") as response:
            assert standing(client) == "resting"
            assert client.get("/").text == str(pair[1].port)
            clock.now += 15
            gate.open.set()
            assert client.read(response) == b"end"
        assert standing(client) == "resting"
        clock.now += 6
        assert standing(client) == "serving"


@worlds
def test_a_stream_that_breaks_later_is_still_a_fault(servers, world):
    """A limit that is used up does not hide that the body broke."""

    def breaks(connection, _):
        fields = dict(one.split(": ") for one in OPENAI)
        connection.send(head(200, {"Content-Length": "3", **fields}) + b"x")
        connection.reset()

    (only,) = servers(breaks)
    with world.client([only.url]) as client:
        with client.stream("GET", "/") as response, pytest.raises(httpx.ReadError):
            client.read(response)
        (one,) = client.client.balancer.snapshot().instances
    assert (one.failures, one.in_flight) == (1, 0)


@worlds
def test_the_last_instance_is_used_all_the_same(servers, world):
    """If all instances rest, calls are still sent, as with `Retry-After`."""
    (only,) = servers(in_turn(lines(200, OPENAI), tells_port))
    with world.client([only.url]) as client:
        assert client.get("/").status_code == 200
        assert client.get("/").text == str(only.port)


def test_the_cap_is_that_of_retry_after(servers):
    """`retry_after_max` bounds these rests too."""
    pair, clock = servers(lines(200, openai("6h0m0s")), tells_port), Clock()
    policy = lbclient.RetryPolicy(retry_after_max=5)
    with lbclient.Client(in_order(pair), retry=policy, clock=clock) as client:
        client.get("/")
        for seconds, expected in ((4.9, "resting"), (5.1, "serving")):
            clock.now = 1000 + seconds
            assert client.balancer.snapshot().instances[0].standing == expected


def test_retry_after_takes_precedence(servers):
    """`Retry-After` says how long to wait, whatever the limits say."""
    fields = ["Retry-After: 3", *OPENAI]
    pair, clock = servers(lines(429, fields), tells_port), Clock()
    with lbclient.Client(in_order(pair), retry=None, clock=clock) as client:
        client.get("/")
        clock.now += 3.1
        assert client.balancer.snapshot().instances[0].standing == "serving"


def test_latency_and_breaker_of_an_instance_that_rests(servers):
    """A good answer counts as one, also if it was the last one of a limit."""
    (only,) = servers(lines(200, OPENAI))
    with lbclient.Client([only.url]) as client:
        client.get("/")
        (one,) = client.balancer.snapshot().instances
    assert (one.failures, one.breaker) == (0, "closed")
    assert one.latency > 0


def test_the_names_that_are_kept_are_bounded(servers, monkeypatch):
    """The set of names without limits is bounded in its size and in the length of a name; limits
    are still found when it is full."""
    monkeypatch.setattr(rate_limits, "_MOST", len(rate_limits.UNRELATED))
    fields = [*(f"x-{place}: 1" for place in range(500)), *OPENAI, f"{'y' * 100}: 1"]
    pair = servers(in_turn(says(200), lines(200, fields)), tells_port)
    before = set(rate_limits.UNRELATED)
    with lbclient.Client(in_order(pair)) as client:
        client.get("/")
        client.get("/")
        assert client.balancer.snapshot().instances[0].standing == "resting"
    assert before == rate_limits.UNRELATED
