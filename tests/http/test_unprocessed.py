"""Statuses by which a service says that it did not start to process a request."""

import random
import threading

import pytest

import lbclient
from lbclient import HedgePolicy, Instance, RetryBudget, RetryPolicy
from tests.http.test_features import urls, worlds
from tests.support.http import in_turn, says, tells_port

UNPROCESSED = RetryPolicy(backoff=0, unprocessed={429, 503})


def in_order(servers):
    """Instances of which the first is used as long as it can be."""
    return [Instance(one.host, one.port, priority=place) for place, one in enumerate(servers)]


def recorded(outcome):
    """The statuses of a call's attempts, and why there were no more."""
    info = lbclient.call_info(outcome)
    return [one.status for one in info.attempts], info.stopped


@worlds
@pytest.mark.parametrize("way", ["client", "under_httpx"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_post_goes_to_another_instance(servers, world, way, status):
    """A POST that an instance did not process is sent with its whole body to another instance, and
    the record of the call has both attempts."""
    busy, free = pair = servers(says(status), tells_port)
    with getattr(world, way)(in_order(pair), retry=UNPROCESSED) as client:
        response = client.post("http://127.0.0.1/" if way == "under_httpx" else "/", json=[1])
        snapshot = client.in_flight if way == "client" else 0
    assert (response.text, snapshot) == (str(free.port), 0)
    assert recorded(response) == ([status, 200], None)
    assert [one.body for one in [*busy.requests, *free.requests]] == [b"[1]"] * 2


@worlds
def test_a_stream_goes_to_another_instance(servers, world):
    """A streamed POST is retried before its response is passed on."""
    _, free = pair = servers(says(429, b"busy"), tells_port)
    with (
        world.client(in_order(pair), retry=UNPROCESSED) as client,
        client.stream("POST", "/", content=b"x") as response,
    ):
        assert client.read(response) == str(free.port).encode()
    assert recorded(response) == ([429, 200], None)


@worlds
def test_other_statuses_are_retried_as_before(servers, world):
    """A status that is not `unprocessed` is the result of a POST, and is retried for a GET."""
    pair = servers(says(502), tells_port)
    with world.client(in_order(pair), retry=UNPROCESSED) as client:
        assert recorded(client.post("/")) == ([502], "method")
        assert recorded(client.get("/")) == ([502, 200], None)


@worlds
def test_a_status_that_is_retried_only_because_it_is_unprocessed(servers, world):
    """A status may be `unprocessed` without being one of `statuses`; `Retry-After` counts."""
    policy = RetryPolicy(backoff=0, statuses=(), unprocessed={425})
    early, free = pair = servers(says(425, Retry_After="20"), tells_port)
    with world.client(in_order(pair), retry=policy) as client:
        assert recorded(client.patch("/", content=b"x")) == ([425, 200], None)
        assert client.post("/").text == str(free.port)
        standing = [one.standing for one in client.client.balancer.snapshot().instances]
    assert (early.hits, standing) == (1, ["resting", "serving"])


@worlds
def test_a_body_that_cannot_be_sent_again(servers, world):
    """A generator that was sent is not sent again, although the instance did not process it."""
    pair = servers(says(429), tells_port)
    with world.client(in_order(pair), retry=UNPROCESSED) as client:
        assert recorded(client.post("/", content=world.body([b"x"]))) == ([429], "body")


@worlds
def test_attempts_and_budget_bound_it(servers, world):
    """Attempts and the retry budget bound these retries as they bound others."""
    every = servers(*[says(429)] * 4)
    with world.client(in_order(every), retry=UNPROCESSED) as client:
        assert recorded(client.post("/")) == ([429] * 3, "attempts")
    nothing = RetryBudget(ratio=0, reserve=0)
    policy = RetryPolicy(backoff=0, unprocessed={429}, budget=nothing)
    with world.client(in_order(every), retry=policy) as client:
        assert recorded(client.post("/")) == ([429], "budget")


@worlds
def test_the_deadline_bounds_it(servers, world):
    """A retry that would begin after the deadline is not made."""
    (only,) = servers(says(429))
    policy = RetryPolicy(backoff=60, backoff_max=60, unprocessed={429}, deadline=7)
    sometime = random.Random(1)  # the first back-off takes 8 seconds
    with world.client(urls([only]), retry=policy, rng=sometime) as client:
        assert recorded(client.post("/")) == ([429], "deadline")


@worlds
def test_a_hedged_call(servers, world):
    """A hedged call of which neither attempt was processed is retried on a third instance."""
    both = threading.Barrier(2)

    def refuses_both(connection, _):
        both.wait(10)
        connection.answer(429)

    trio = servers(*[in_turn(refuses_both, refuses_both, tells_port)] * 3)
    policy = RetryPolicy(backoff=0, statuses=(), unprocessed={429})
    with world.client(urls(trio), retry=policy, hedge=HedgePolicy(delay=0.001)) as client:
        response = client.get("/")
    assert response.status_code == 200
    assert [one.hits for one in trio] == [1, 1, 1]


@worlds
def test_one_instance_is_asked_again(servers, world):
    """If there is no other instance, the same one is asked again, after a back-off."""
    (only,) = servers(in_turn(says(429), tells_port))
    policy = RetryPolicy(backoff=0.001, backoff_max=0.002, unprocessed={429})
    with world.client(urls([only]), retry=policy) as client:
        assert recorded(client.post("/")) == ([429, 200], None)
