"""Idle connections: the one used last is used next, and the one that has been idle longest is
closed first."""

import math
import random
from collections import Counter, deque

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lbclient
from lbclient.http.connections.pool import KeepAlivePool
from tests.support.drivers import settings
from tests.support.http import tells_port, transports_of

LIMITS = httpx.Limits(keepalive_expiry=60)


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Connection:
    """What the pool uses of a connection."""

    def __init__(self, name):
        self.name = name
        self.uses = 0
        self.idle_since = None

    def __eq__(self, other):
        return self.name == other

    def __hash__(self):
        return hash(self.name)

    def __repr__(self):
        return str(self.name)


class Lease:
    """What a connection is recorded in."""

    connection = None
    use = 0


def put(pool, name, stack):
    return [one.name for one in pool.put(Connection(name), stack)]


def take(pool, stack):
    lease = Lease()
    taken = pool.take(lease, stack)
    assert lease.connection is taken
    return None if taken is None else taken.name


def test_the_last_one_used_is_the_next():
    """A few connections stay warm, and the others can be closed: the stack of one instance does not
    affect another's."""
    idle, here, there = KeepAlivePool(60.0, 100, None), deque(), deque()
    for name in "abc":
        assert put(idle, name, here) == []
    assert put(idle, "d", there) == []
    assert [take(idle, here) for _ in range(4)] == ["c", "b", "a", None]
    assert len(idle) == 1
    assert take(idle, there) == "d"


def test_too_many_in_all():
    """S: above `most` in total, the connection that has been idle longest is closed, whatever its
    instance."""
    idle, here, there = KeepAlivePool(None, 3, None), deque(), deque()
    assert put(idle, "a", here) == put(idle, "b", there) == put(idle, "c", here) == []
    assert put(idle, "d", there) == ["a"]
    assert take(idle, there) == "d"
    assert put(idle, "e", here) == []
    assert put(idle, "f", here) == ["b"]
    assert [*here] == ["c", "e", "f"]
    assert not there


def test_too_many_to_one():
    """Above `each` for one instance, its oldest connection is closed, and no other."""
    idle, here, there = KeepAlivePool(None, 100, 2), deque(), deque()
    put(idle, "a", there)
    gone = [put(idle, name, here) for name in "bcd"]
    assert gone == [[], [], ["b"]]
    assert [*there] == ["a"]


def test_too_long():
    """A connection that has been idle for `expiry` seconds is closed as soon as another becomes
    idle."""
    clock = Clock()
    idle, here, there = KeepAlivePool(4.0, 100, None, clock), deque(), deque()
    put(idle, "a", here)
    clock.now = 2.0
    put(idle, "b", there)
    clock.now = 3.9
    assert put(idle, "c", there) == []
    clock.now = 6.0
    assert put(idle, "d", there) == ["a", "b"]
    assert not here
    assert [*there] == ["c", "d"]


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "take", "clear"]), st.integers(0, 3), st.floats(0, 3)),
    max_size=60,
)


@given(steps=STEPS, most=st.integers(1, 6), each=st.none() | st.integers(1, 3))
def test_nothing_is_lost_or_kept_too_long(steps, most, each):
    """Each connection is idle, taken, or returned to be closed, exactly once; no limit is exceeded,
    and after a `put` none is expired."""
    clock = Clock()
    idle, shelves = KeepAlivePool(4.0, most, each, clock), [deque() for _ in range(4)]
    out, since, number = Counter(), {}, 0
    for what, place, passed in steps:
        clock.now += passed
        shelf = shelves[place]
        if what == "put":
            number += 1
            since[number] = clock.now
            out.update(put(idle, number, shelf))
            assert len(idle) <= most
            assert each is None or len(shelf) <= each
            assert all(clock.now - since[one.name] < 4.0 for some in shelves for one in some)
        elif what == "take":
            if (one := take(idle, shelf)) is not None:
                out[one] += 1
        else:
            out.update(one.name for one in idle.clear(shelf))
    out.update(one.name for shelf in shelves for one in shelf)
    assert len(idle) == sum(map(len, shelves))
    assert out == Counter(range(1, number + 1))


def test_what_is_over_is_told():
    """The pool returns what has expired, and when to check again, so that connections close without
    another call. It requests a wake-up only while none is scheduled."""
    clock, woken = Clock(), []
    pool, stack = KeepAlivePool(4.0, 100, None, clock), deque()
    pool.wake = lambda: pool.watch(lambda seconds: woken.append((clock.now, seconds)))
    put(pool, "a", stack)
    clock.now = 1.0
    put(pool, "b", stack)
    for _ in range(3):
        put(pool, take(pool, stack), stack)
    assert woken == [(0.0, 4.0)]
    clock.now = 4.5
    assert (pool.expired(), pool.next_look()) == (["a"], 5.0)
    clock.now = 5.0
    assert (pool.expired(), pool.next_look()) == (["b"], math.inf)
    assert not stack
    put(pool, "c", stack)
    assert woken[1:] == [(5.0, 4.0)]


def test_failure_to_watch_is_not_for_ever():
    """If an exception interrupts the scheduling of a check, the next connection schedules it."""
    pool, stack = KeepAlivePool(4.0, 100, None, Clock()), deque()

    def interrupted(_):
        raise KeyboardInterrupt

    pool.wake = lambda: pool.watch(interrupted)
    for name in "ab":
        with pytest.raises(KeyboardInterrupt):
            put(pool, name, stack)
    assert list(stack) == ["a", "b"]


def test_nobody_is_woken_where_nothing_expires():
    """Without an expiry no wake-up is needed."""
    pool = KeepAlivePool(None, 100, None)
    pool.wake = pytest.fail
    put(pool, "a", deque())
    assert len(pool) == 1


def idle_connections(client):
    return [one for transport in transports_of(client) for one in transport._connections.all()]


def test_a_limit_for_all_instances(servers):
    """With more instances than `max_idle_connections`, the connection that has been idle longest is
    closed, and its instance is connected to again at its next call."""
    pair = servers(tells_port, tells_port, tells_port)
    with lbclient.Client(
        [one.url for one in pair], strategy="round-robin", max_idle_connections=2, limits=LIMITS
    ) as client:
        for _ in range(3):
            client.get("/")
        assert len(idle_connections(client)) == 2
        for _ in range(3):
            client.get("/")
        assert sorted(one.accepted for one in pair) == [2, 2, 2]


@pytest.mark.anyio
async def test_a_limit_for_all_instances_async(servers):
    """The same for async calls."""
    pair = servers(tells_port, tells_port, tells_port)
    async with lbclient.AsyncClient(
        [one.url for one in pair], strategy="round-robin", max_idle_connections=2, limits=LIMITS
    ) as client:
        for _ in range(6):
            await client.get("/")
        assert len(idle_connections(client)) == 2
        assert sorted(one.accepted for one in pair) == [2, 2, 2]


def test_instances_that_are_called_no_more(servers):
    """S: an expired connection is closed by the next call to any instance; httpcore's own pools
    would keep it until their instance is called again."""
    pair = servers(tells_port, tells_port)
    with lbclient.Client([one.url for one in pair], strategy="round-robin") as client:
        clock = client._transport._transports._idle.clock = Clock()
        client.get("/")
        client.get("/")
        client.balancer.eject(client.balancer.instances()[0], 3600)
        clock.now = 100.0
        for _ in range(2):
            client.get("/")
        assert len(idle_connections(client)) == 1


@pytest.mark.anyio
async def test_many_at_once_leave_no_more_than_allowed(servers):
    """A burst opens the connections that it needs; `limits` bounds how many of them each instance
    keeps."""
    (server,) = servers(tells_port)
    limits = httpx.Limits(max_keepalive_connections=3, keepalive_expiry=60)
    async with lbclient.AsyncClient([server.url], limits=limits) as client:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(client.get, "/")
        assert 1 <= len(idle_connections(client)) <= 3
        assert client.balancer.snapshot().instances[0].in_flight == 0


def test_half_of_the_descriptors():
    """By default idle connections leave half of the process's descriptors for other uses."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert settings().max_idle == soft // 2
    assert settings(max_idle_connections=7).max_idle == 7


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "7", True])
def test_what_is_no_limit(wrong):
    """K: K: invalid values are refused at construction by an error that names the argument."""
    with pytest.raises((ValueError, TypeError), match="max_idle_connections"):
        lbclient.Client("http://127.0.0.1:1", max_idle_connections=wrong)


def test_where_connections_are_not_ours():
    """K: K: with a caller's transports the limit would have no effect, so it is refused."""
    with pytest.raises(ValueError, match="max_idle_connections"):
        lbclient.AsyncClient(
            "http://127.0.0.1:1",
            transport=lambda _: httpx.AsyncHTTPTransport(),
            max_idle_connections=7,
        )


def test_threads_share_a_stack(servers):
    """C: C: sixteen threads use each connection one at a time, and lose none."""
    from concurrent.futures import ThreadPoolExecutor

    pair = servers(tells_port, tells_port)
    with (
        lbclient.Client([one.url for one in pair], rng=random.Random(1), limits=LIMITS) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(lambda _: client.get("/").status_code, range(800)))
        connections = idle_connections(client)
        assert all(transport.is_idle for transport in transports_of(client))
        assert len(connections) == len(set(connections)) == sum(one.accepted for one in pair)
    assert answers == [200] * 800
    assert sum(one.accepted for one in pair) <= 32
