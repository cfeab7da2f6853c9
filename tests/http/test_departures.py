"""What goes away while something still uses it: instances, addresses, event loops, threads at a
fork."""

import subprocess
import sys
import textwrap
import threading

import anyio
import anyio.lowlevel
import httpx
import pytest

import lbclient
from lbclient import Answer, Balancer, BreakerPolicy, Instance, Verdict
from lbclient._internal.blocking import run_blocking
from lbclient.core.pool import Pool
from tests.support.http import Gate, says, transports_of

A, B, C = (Instance(f"{name}.test", 80) for name in "abc")


def script(text: str, *arguments: str) -> tuple[int, str, str]:
    """Run it in an interpreter of its own."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(text), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


class Scripted:
    """A resolver that returns the instances it is given."""

    def __init__(self, *instances):
        self.instances = instances

    def resolve(self):
        return Answer(self.instances, 3600)


# Event loops


@pytest.mark.parametrize("caller", ["None", "'gone'"])
def test_loop_that_dies_in_line_blocks_nobody(caller):
    """C2, C9: tasks that wait for a slot when their loop is closed do not keep it from those behind
    them, on threads and in other loops, even if callers take turns."""
    text = """
    import asyncio, gc, logging, threading, lbclient
    logging.disable()
    balancer = lbclient.Balancer(["http://127.0.0.1:1"], max_in_flight=1, retry=None)
    entered, go = threading.Event(), threading.Event()
    holder = threading.Thread(target=balancer.call, args=(lambda _: (entered.set(), go.wait()),))
    holder.start()
    entered.wait()
    async def answer(instance):
        return instance
    async def main():
        tasks = [loop.create_task(balancer.acall(answer, caller=CALLER)) for _ in range(3)]
        while len(balancer._engine.queue) < 3:
            await asyncio.sleep(0)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    go.set()
    holder.join()
    print(balancer.call(str, deadline=5))
    print(asyncio.run(balancer.acall(answer, deadline=5)))
    """
    assert script(text.replace("CALLER", caller))[:2] == (0, "127.0.0.1:1\n127.0.0.1:1\n")


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
def test_end_of_a_loop_closes_the_transports_of_all(kind):
    """C9: when a loop ends, every transport in it is closed, even if one of them fails to close."""
    closed = []

    class Mine(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _):
            return httpx.Response(200)

        async def aclose(self):
            await anyio.lowlevel.checkpoint()
            closed.append(self)
            if len(closed) == 2:
                raise RuntimeError("no")

    urls = [f"http://127.0.0.1:{port}" for port in (1, 2, 3)]
    clients = [lbclient.AsyncClient(urls, transport=lambda _: Mine()) for _ in range(2)]

    async def job():
        for client in clients:
            for _ in urls:
                await client.get("/")

    anyio.run(job, backend=kind)
    assert len(closed) == 6
    assert [transports_of(client) for client in clients] == [[], []]


# Instances


def test_transport_that_does_not_close_is_nobody_elses_business(caplog):
    """C18: if a caller's transport fails to close, this is logged; the next call does not fail, and
    other transports are closed."""
    closed = []

    class Mine(httpx.BaseTransport):
        def __init__(self, instance):
            self.instance = instance

        def handle_request(self, _):
            return httpx.Response(200)

        def close(self):
            closed.append(self.instance)
            raise RuntimeError("no")

    resolver = Scripted(A, B, C)
    client = lbclient.Client(resolver, name="shop.test", transport=Mine, strategy="round-robin")
    for _ in range(3):
        client.get("/")
    resolver.instances = (C,)
    client.balancer.refresh()
    assert client.get("/").status_code == 200
    assert set(closed) == {A, B}
    assert "could not be closed" in caplog.text
    with pytest.raises(RuntimeError, match="no"):
        client.close()
    assert set(closed) == {A, B, C}


def test_transport_of_who_left_meanwhile_is_closed(servers):
    """I30: a call that was given an instance just before it left opens no connection that stays
    open."""
    old, new = servers(says(200), says(200))
    resolver = Scripted(Instance("127.0.0.1", old.port))
    with lbclient.Client(resolver, name="shop.test", retry=None) as client:
        client.balancer.refresh()
        transports = client._transport._transports
        true, turns = transports.to, []

        def to(endpoint, now):
            if not turns:
                turns.append(endpoint)
                resolver.instances = [Instance("127.0.0.1", new.port)]
                client.balancer.refresh()
                client.get("/")
            return true(endpoint, now)

        transports.to = to
        client.get("/")
        client.get("/")
        assert [transport._dial.hosts for transport in transports_of(client)] == [("127.0.0.1",)]
        assert transports.ready()


def test_connections_to_an_old_address_are_closed_though_the_instance_is_busy(servers):
    """I34: when an instance has another address, idle connections to the old one are closed, even
    while calls to the new one are under way."""
    gate = Gate()
    (server,) = servers(says(200))
    resolver = Scripted(Instance("pod.test", server.port, addresses=("127.0.0.1",)))
    with lbclient.Client(resolver, name="shop.test") as client:
        client.get("/")
        resolver.instances = [Instance("pod.test", server.port, addresses=("127.0.0.2",))]
        client.balancer.refresh()
        with pytest.raises(httpx.ConnectError):  # nobody listens there
            client.get("/")
        server.behaviour = gate
        resolver.instances = [Instance("pod.test", server.port, addresses=("127.0.0.1",))]
        client.balancer.refresh()
        thread = threading.Thread(target=client.get, args=("/",))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        run_blocking(client._transport._transports.tidy)
        assert client._transport._transports.ready()
        gate.open.set()
        thread.join()


def test_late_outcome_of_the_machine_before_is_not_charged():
    """I34: a call that ends after its instance got another address does not count for the new
    machine."""
    pod = Instance("pod.test", 80, addresses=("192.0.2.1",))
    resolver = Scripted(pod)
    balancer = Balancer(
        resolver,
        name="shop.test",
        retry=None,
        breaker=BreakerPolicy(fail_max=1),
        judge=lambda _: Verdict(fault=True, rest=20.0),
    )

    def replaced(_):
        resolver.instances = [Instance("pod.test", 80, addresses=("192.0.2.2",))]
        balancer.refresh()

    balancer.call(replaced)
    (one,) = balancer.snapshot().instances
    assert (one.breaker, one.failures, one.in_flight) == ("closed", 0, 0)
    (endpoint,) = balancer._engine.pool.endpoints
    assert endpoint.backing_off_until == 0
    balancer.close()


def test_closed_balancer_is_not_asked_for_by_a_refresh_under_way():
    """C20: a refresh that was about to begin when the balancer was closed asks nothing."""
    resolver = Scripted(A)
    balancer = Balancer(resolver, name="shop.test")
    pauses = balancer._refresh_round()
    balancer.close()
    with pytest.raises(RuntimeError, match=r"shop\.test is closed"):
        next(iter(pauses))
    assert balancer._engine.subscription.stopped


# Forks


def test_places_of_the_parents_threads_are_free_in_a_child(servers):
    """C8: calls of other threads that were under way at a fork hold no slot in the child."""
    (server,) = servers(says(200))
    text = """
    import os, sys, threading, lbclient
    client = lbclient.Client(sys.argv[1], max_in_flight=1)
    entered = threading.Event()
    go = threading.Event()
    hold = lambda _: (entered.set(), go.wait())
    thread = threading.Thread(target=client.balancer.call, args=(hold,))
    thread.start()
    entered.wait()
    if (child := os.fork()) == 0:
        client.balancer.call(str, deadline=5)
        os._exit(client.balancer.snapshot().instances[0].in_flight)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go.set()
    thread.join()
    sys.exit(status + client.balancer.snapshot().instances[0].in_flight)
    """
    assert script(text, server.url) == (0, "", "")


@pytest.mark.parametrize("step", ["marked", "assigned", "looking"])
def test_half_made_change_is_mended_in_a_child(step):
    """C8: a fork in the middle of an update, or of a check of the queue, leaves a child that
    works."""
    pool = Pool(BreakerPolicy())
    pool.update([A, B])
    b = next(one for one in pool.endpoints if one.instance == B)
    b.backing_off_until = 50.0
    pool.changed(b)
    assert [one.instance for one in pool.candidates(0.0)] == [A]
    if step == "looking":  # the time of the next look is set, the look not yet taken
        b.backing_off_until = 100.0
        pool.changed(b)
        pool._dirty, pool._stale_at = {}, 100.0
    else:
        change = pool.plan([B, C])
        pool._updating = True
        change.apply()
        if step == "assigned":
            pool._endpoint_set = change.endpoint_set
    assert pool.after_fork() is (step != "looking")
    assert not any(one.gone for one in pool.endpoints)
    known = {one.instance for one in pool.endpoints}
    assert known == ({B, C} if step == "assigned" else {A, B})
    assert {one.instance for one in pool.candidates(10.0)} == known - {B}
    pool.update([B, C])
    assert {one.instance for one in pool.candidates(200.0)} == {B, C}
