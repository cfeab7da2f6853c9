"""Faults of instances, over real sockets: which ones fail a call, and which do not."""

import gc
import socket
import threading
import time

import httpx
import pytest

import lbclient
from tests.support.http import (
    dies_in_body,
    drips,
    drips_headers,
    hangs_up,
    in_turn,
    resets,
    says,
    tells_port,
)

pytestmark = pytest.mark.anyio

QUICK = lbclient.RetryPolicy(backoff=0.001, backoff_max=0.002)


def dead(port):
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refusing_instance_costs_no_call(servers, dead_port, method):
    """I1: an instance that refuses connections fails no call, whatever the method."""
    (good,) = servers(tells_port)
    with lbclient.Client([dead(dead_port), good.url]) as client:
        answers = [client.request(method, "/", content=b"x").text for _ in range(30)]
    assert answers == [str(good.port)] * 30


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refusing_instance_costs_no_call_async(servers, dead_port, method):
    """I1: an instance that refuses connections fails no async call, whatever the method."""
    (good,) = servers(tells_port)
    async with lbclient.AsyncClient([dead(dead_port), good.url]) as client:
        answers = [(await client.request(method, "/", content=b"x")).text for _ in range(30)]
    assert answers == [str(good.port)] * 30


@pytest.mark.parametrize("fault", [resets, hangs_up, dies_in_body])
def test_a_dying_instance_costs_no_get(servers, fault):
    """I3, I4, I8: an instance that dies after it has read the request, or in the body, fails no
    idempotent call."""
    bad, good = servers(fault, tells_port)
    with lbclient.Client([bad.url, good.url], retry=QUICK) as client:
        answers = {client.get("/").text for _ in range(20)}
        snapshot = client.balancer.snapshot()
    assert answers == {str(good.port)}
    assert bad.hits == 5
    assert [one.in_flight for one in snapshot.instances] == [0, 0]
    assert [one.breaker for one in snapshot.instances] == ["open", "closed"]


@pytest.mark.parametrize("fault", [resets, hangs_up, dies_in_body])
async def test_a_dying_instance_costs_no_get_async(servers, fault):
    """I3, I4, I8: the same for async calls, which open the breaker too (C6)."""
    bad, good = servers(fault, tells_port)
    async with lbclient.AsyncClient([bad.url, good.url], retry=QUICK) as client:
        answers = {(await client.get("/")).text for _ in range(20)}
        snapshot = client.balancer.snapshot()
    assert answers == {str(good.port)}
    assert bad.hits == 5
    assert [one.in_flight for one in snapshot.instances] == [0, 0]
    assert [one.breaker for one in snapshot.instances] == ["open", "closed"]


@pytest.mark.parametrize("fault", [resets, hangs_up])
def test_a_post_that_may_have_been_carried_out_is_not_repeated(servers, fault):
    """I3: a POST whose connection ended after sending reaches one instance; its error is
    httpx's."""
    bad, good = servers(fault, tells_port)
    with lbclient.Client([bad.url, good.url], retry=QUICK, strategy="round-robin") as client:
        errors = []
        for _ in range(4):
            try:
                client.post("/", content=b"x")
            except httpx.TransportError as error:
                errors.append(error)
    assert len(errors) == 2
    assert (bad.hits, good.hits) == (2, 2)
    for error in errors:
        assert type(error) in {httpx.ReadError, httpx.RemoteProtocolError}
        assert f"127.0.0.1:{bad.port}" in error.__notes__[0]
        assert error.request.method == "POST"


@pytest.mark.parametrize(
    "how",
    [
        {"headers": {"Idempotency-Key": "k1"}},
        {"extensions": {"lbclient": {"idempotent": True}}},
    ],
)
def test_a_post_said_to_be_idempotent_is_repeated(servers, how):
    """A POST with an Idempotency-Key, or marked by its extension, is retried on another
    instance."""
    bad, good = servers(resets, tells_port)
    with lbclient.Client([bad.url, good.url], retry=QUICK, strategy="round-robin") as client:
        answers = {client.post("/", content=b"x", **how).text for _ in range(4)}
    assert answers == {str(good.port)}


def test_an_empty_idempotency_key_is_none(servers):
    """A POST with an empty Idempotency-Key is not repeated: no server can recognize it."""
    (bad,) = servers(resets)
    with lbclient.Client([bad.url], retry=QUICK) as client, pytest.raises(httpx.ReadError):
        client.post("/", content=b"x", headers={"Idempotency-Key": ""})
    assert bad.hits == 1


def test_a_get_said_not_to_be_idempotent_is_not_repeated(servers):
    """A GET marked as not idempotent is not repeated."""
    (bad,) = servers(resets)
    with lbclient.Client([bad.url], retry=QUICK) as client, pytest.raises(httpx.ReadError):
        client.get("/", extensions={"lbclient": {"idempotent": False}})
    assert bad.hits == 1


ONCE, THRICE = (200, 404, 500, 999), (429, 502, 503, 504)


@pytest.mark.parametrize(
    ("status", "sends"), [*((one, 1) for one in ONCE), *((one, 3) for one in THRICE)]
)
def test_which_statuses_are_tried_again(servers, status, sends):
    """I10, I13, I29: 429, 502, 503 and 504 are retried for a GET; the last answer is returned."""
    instances = servers(*[says(status)] * 4)
    with lbclient.Client([one.url for one in instances], retry=QUICK) as client:
        response = client.get("/")
        snapshot = client.balancer.snapshot()
    assert response.status_code == status
    assert sorted(one.hits for one in instances) == [0] * (4 - sends) + [1] * sends
    assert len(lbclient.call_info(response).attempts) == sends
    faults = sum(one.failures for one in snapshot.instances)
    assert faults == (sends if status in {500, 502, 503, 504} else 0)


def test_a_status_is_not_tried_again_for_a_post(servers):
    """I10: a 503 is the result of a POST, which may have been carried out."""
    instances = servers(says(503), says(503))
    with lbclient.Client([one.url for one in instances], retry=QUICK) as client:
        assert client.post("/").status_code == 503
    assert sum(one.hits for one in instances) == 1


def test_a_retry_goes_to_the_untried_also_of_the_next_tier(servers):
    """A retry goes to untried instances, those of the next tier too, before one is tried twice."""
    first, second, third = servers(*[says(503)] * 3)
    instances = [
        lbclient.Instance("127.0.0.1", first.port, priority=0),
        lbclient.Instance("127.0.0.1", second.port, priority=1),
        lbclient.Instance("127.0.0.1", third.port, priority=2),
    ]
    policy = lbclient.RetryPolicy(attempts=4, backoff=0.001, backoff_max=0.002)
    with lbclient.Client(instances, retry=policy) as client:
        info = lbclient.call_info(client.get("/"))
    tried = [one.instance.port for one in info.attempts]
    assert tried[:3] == [first.port, second.port, third.port]
    assert len(tried) == 4
    assert [one.status for one in info.attempts] == [503] * 4


def test_retry_after_rests_that_instance(servers):
    """I11: `Retry-After` makes later calls go to other instances, without an error or a wait."""
    busy, free = servers(says(503, Retry_After="30"), tells_port)
    with lbclient.Client([busy.url, free.url], retry=QUICK) as client:
        answers = {client.get("/").text for _ in range(20)}
    assert answers == {str(free.port)}
    assert busy.hits == 1


def test_when_all_rest_the_soonest_is_used(servers):
    """I11: if every instance asks for a back-off, the one whose back-off ends first is used after
    at most `backoff_max`."""
    (only,) = servers(in_turn(says(429, Retry_After="30"), tells_port))
    with lbclient.Client([only.url], retry=QUICK) as client:
        assert client.get("/").text == str(only.port)
    assert only.hits == 2


def test_an_empty_budget_gives_the_last_outcome_at_once(servers):
    """The retry budget is shared by all calls; when it is empty the last outcome is the result."""
    instances = servers(says(503), says(503))
    policy = lbclient.RetryPolicy(
        backoff=0.001, budget=lbclient.RetryBudget(ratio=0, reserve=0.3, window=10)
    )
    with lbclient.Client([one.url for one in instances], retry=policy, breaker=None) as client:
        statuses = {client.get("/").status_code for _ in range(10)}
    assert statuses == {503}
    assert sum(one.hits for one in instances) == 10 + 3


DRIPPING = lbclient.RetryPolicy(deadline=0.8)


@pytest.mark.parametrize("fault", [drips(0.1), drips_headers(0.1)])
def test_the_deadline_ends_a_drip(servers, fault):
    """I5, I6: a deadline of 0.8 s ends a call to a slowly dripping server within 1.2 s."""
    (server,) = servers(fault)
    with lbclient.Client([server.url], retry=DRIPPING, timeout=5) as client:
        start = time.monotonic()
        with pytest.raises(lbclient.DeadlineExceeded) as caught:
            client.get("/")
        assert time.monotonic() - start < 1.2
        snapshot = client.balancer.snapshot()
    assert isinstance(caught.value, httpx.TimeoutException)
    assert [(one.in_flight, one.failures) for one in snapshot.instances] == [(0, 1)]


@pytest.mark.parametrize("fault", [drips(0.1), drips_headers(0.1)])
async def test_the_deadline_ends_a_drip_async(servers, fault):
    """I5, I6: a deadline of 0.8 s ends an async call to a slowly dripping server within 1.2 s."""
    (server,) = servers(fault)
    async with lbclient.AsyncClient([server.url], retry=DRIPPING, timeout=5) as client:
        start = time.monotonic()
        with pytest.raises(lbclient.DeadlineExceeded):
            await client.get("/")
        assert time.monotonic() - start < 1.2
        snapshot = client.balancer.snapshot()
    assert [(one.in_flight, one.failures) for one in snapshot.instances] == [(0, 1)]


def test_the_deadline_covers_a_streamed_body(servers):
    """I6: a stream ends at the call's deadline too, with DeadlineExceeded, and its slot is
    released."""
    (server,) = servers(drips(0.05))
    with lbclient.Client([server.url], timeout=5) as client:
        asked = {"lbclient": {"deadline": 0.3}}
        with client.stream("GET", "/", extensions=asked) as response:  # noqa: SIM117
            with pytest.raises(lbclient.DeadlineExceeded):
                response.read()
        assert [one.in_flight for one in client.balancer.snapshot().instances] == [0]


def test_an_attempt_timeout_sends_a_get_elsewhere(servers):
    """I5: an attempt that takes longer than `attempt_timeout` is ended, and the call is retried
    elsewhere."""
    slow, good = servers(drips_headers(0.05), tells_port)
    policy = lbclient.RetryPolicy(attempt_timeout=0.2, backoff=0.001)
    with lbclient.Client([slow.url, good.url], retry=policy) as client:
        assert {client.get("/").text for _ in range(2)} == {str(good.port)}
    assert slow.hits == 1


def test_a_stream_outlives_the_attempt_timeout(servers):
    """A streamed body has the time of the call, not of the attempt."""
    (server,) = servers(drips(0.05))
    policy = lbclient.RetryPolicy(attempt_timeout=0.15)
    with lbclient.Client([server.url], retry=policy) as client:  # noqa: SIM117
        with client.stream("GET", "/") as response:
            chunks = response.iter_raw(1)
            assert b"".join(next(chunks) for _ in range(6)) == b"x" * 6


def test_a_back_off_beyond_the_deadline_is_not_slept(servers):
    """C16: if the next delay would pass the deadline, the last outcome is returned at once."""
    (server,) = servers(says(503))
    policy = lbclient.RetryPolicy(deadline=0.5, backoff=30, backoff_max=60)
    start = time.monotonic()
    dice = iter([0.5] * 100)

    class Dice(__import__("random").Random):
        def random(self):
            return next(dice)

    with lbclient.Client([server.url], retry=policy, rng=Dice()) as client:
        assert client.get("/").status_code == 503
    assert time.monotonic() - start < 0.4
    assert server.hits == 1


def test_a_slow_instance_is_not_charged_for_a_deadline_it_had_no_part_in(servers):
    """An attempt that our own deadline ends is a fault only if it began with at least half of the
    time left."""
    first, second = servers(drips_headers(0.05), drips_headers(0.05))
    policy = lbclient.RetryPolicy(deadline=0.5, attempt_timeout=0.3, backoff=0.0)
    with lbclient.Client([first.url, second.url], retry=policy, strategy="round-robin") as client:
        with pytest.raises(lbclient.DeadlineExceeded):
            client.get("/")
        assert sorted(one.failures for one in client.balancer.snapshot().instances) == [0, 1]


def test_out_of_file_descriptors_charges_nobody(servers):
    """I22: if this process has no file descriptor left, no instance is charged."""
    import resource

    (server,) = servers(tells_port)
    with lbclient.Client([server.url], retry=QUICK) as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = socket.socket()
        taken = lowest.fileno()
        lowest.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken, hard))
        try:
            with pytest.raises(httpx.ConnectError):
                client.get("/")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (one,) = client.balancer.snapshot().instances
        assert (one.failures, one.breaker, one.attempts) == (0, "closed", 3)
        assert client.get("/").status_code == 200


def test_an_idle_connection_that_was_closed_costs_no_get(servers):
    """I4: a keep-alive connection that the server has closed meanwhile fails no idempotent call."""
    (server,) = servers(tells_port)
    with lbclient.Client([server.url], retry=QUICK) as client:
        for _ in range(5):
            assert client.get("/").status_code == 200
            server.drop_connections()
    assert server.hits >= 5


def test_408_on_a_reused_connection_is_as_never_sent(servers):
    """I28: an unsolicited 408 on a reused connection is not the response to this request, even a
    POST."""
    (server,) = servers(in_turn(tells_port, says(408, Connection="close"), tells_port))
    with lbclient.Client([server.url], retry=QUICK) as client:
        client.get("/")
        assert client.post("/").status_code == 200
        (one,) = client.balancer.snapshot().instances
    assert (server.hits, one.failures) == (3, 0)


def test_408_on_a_fresh_connection_is_an_answer(servers):
    """I28: a 408 on a fresh connection is the response."""
    (server,) = servers(says(408))
    with lbclient.Client([server.url], retry=QUICK) as client:
        assert client.post("/").status_code == 408
    assert server.hits == 1


def test_all_down_fails_fast_and_names_the_time(dead_port):
    """I16: if every breaker is open, a call fails at once, and the error says when to try again."""
    with lbclient.Client([dead(dead_port)]) as client:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                client.get("/")
        with pytest.raises(lbclient.NoInstanceAvailable, match=r"open.*try again in") as caught:
            client.get("/")
    assert 0 < caught.value.retry_in <= 1.0
    assert isinstance(caught.value, httpx.ConnectError)


def test_a_healed_instance_is_found_by_one_probe(servers):
    """I18: a recovered instance is found by a probe, and then takes calls again."""
    bad, good = servers(says(503), tells_port)
    policy = lbclient.BreakerPolicy(fail_max=2, reset_timeout=0.05)
    with lbclient.Client(
        [bad.url, good.url], retry=QUICK, breaker=policy, strategy="round-robin"
    ) as client:
        while client.balancer.snapshot().instances[0].breaker != "open":
            client.get("/")
        bad.behaviour = tells_port
        deadline = time.monotonic() + 5
        while client.balancer.snapshot().instances[0].breaker != "closed":
            assert client.get("/").status_code == 200
            assert time.monotonic() < deadline
        seen = {client.get("/").text for _ in range(4)}
    assert seen == {str(bad.port), str(good.port)}


def test_sixteen_threads_leave_nothing_behind(servers, dead_port):
    """C7: with sixteen threads over good, dying and dead instances, all counts are zero at the
    end."""
    good, dying = servers(tells_port, in_turn(*[tells_port, resets] * 50, tells_port))
    failed = []
    with lbclient.Client([good.url, dying.url, dead(dead_port)], retry=QUICK) as client:

        def work():
            try:
                for _ in range(30):
                    assert client.get("/").status_code == 200
            except Exception as error:  # noqa: BLE001  # whatever it is, it is told below
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        snapshot = client.balancer.snapshot()
    assert failed == []
    assert [one.in_flight for one in snapshot.instances] == [0, 0, 0]
    assert client.balancer._engine._picker.in_flight == 0


class First:
    """Picks the first instance."""

    def pick(self, candidates, _):
        return candidates[0]


def test_a_dropped_stream_after_a_retry_gives_its_slot_back(servers):
    """A streamed response that is dropped unclosed gives its slot back, even if an earlier attempt
    had failed and its error is kept with the call."""
    one, other = servers(resets, says(200, b"well"))
    with lbclient.Client([one.url, other.url], strategy=First(), max_in_flight=1) as client:
        response = client.send(client.build_request("GET", "/"), stream=True)
        assert [a.error is None for a in lbclient.call_info(response).attempts] == [False, True]
        del response
        with pytest.warns(ResourceWarning, match="never closed"):
            gc.collect()
        assert [one.in_flight for one in client.balancer.snapshot().instances] == [0, 0]
