"""A program that gevent patches: `python -m tests.support.green SCENARIO WHEN PORT...`.

WHEN is "early" (gevent patches before lbclient is imported), "late" (after), or "made" (after a
client was made, and before it was used). The scenario's result is printed as JSON.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import random
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

from lbclient.protocol import bind

HANGS = 50


def patch():
    """Returns what gevent says of modules that it could not patch."""
    monkey = importlib.import_module("gevent.monkey")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        monkey.patch_all()
    return [str(one.message) for one in told]


def begin(when, make):
    """`make()`, and the patch, in the order that is asked for; with the package."""
    if when == "early":
        told = patch()
    for name in ("lbclient", "lbclient.cli", "lbclient.httpx2", "lbclient.simulation"):
        importlib.import_module(name)
    made = make() if when == "made" else None
    if when != "early":
        told = patch()
    assert not [one for one in told if "lbclient" in one], told
    return make() if made is None else made


def spawn(*functions):
    """Their results, of green threads that run beside each other."""
    import gevent

    made = [gevent.spawn(function) for function in functions]
    gevent.joinall(made, timeout=HANGS, raise_error=True)
    return [one.value for one in made]


def idle(client):
    """Wait until nothing is in flight."""
    import threading

    free = threading.Event()
    bind(client.balancer).idle().listen(free.set)
    return free.wait(HANGS)


def whole(when, port, flavour):
    """Discovery, health checks, a listener, a line of calls."""
    asked, heard, checked = SimpleNamespace(count=0), [], []

    def make():
        import lbclient

        class Service:
            def resolve(self):
                asked.count += 1
                return lbclient.Answer([lbclient.Instance("127.0.0.1", int(port))], ttl=0.01)

        def check(_):
            checked.append(True)
            return True

        return importlib.import_module(flavour).Client(
            Service(),
            name="orders",
            health=lbclient.HealthCheck(check=check, interval=0.02, timeout=0.02),
            listener=heard.append,
            max_in_flight=3,
            min_refresh=0.01,
            rng=random.Random(1),
        )

    client = begin(when, make)
    statuses = spawn(*[lambda: client.get("/").status_code] * 9)
    import gevent

    while asked.count < 3 or len(checked) < 3 or len(heard) < 9:
        gevent.sleep(0.005)
    done = idle(client)
    client.close()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"statuses": statuses, "idle": done, "blocked": sorted(blocked)}


def opened():
    """How many sockets this process has."""
    links = [one for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return sum(str(one.readlink()).startswith("socket:") for one in links)


def kills(when, port):
    """Green threads are killed, and time out, in the middle of their calls."""

    def make():
        import lbclient

        return lbclient.Client([f"http://127.0.0.1:{port}"], max_in_flight=4, retry=None)

    client = begin(when, make)
    import gevent

    dice = random.Random(3)
    client.get("/")
    before = opened() - 1  # that connection is idle

    def call():
        with gevent.Timeout(dice.uniform(0.0, 0.01), False):
            client.get("/")

    for _ in range(10):
        calls = [gevent.spawn(call) for _ in range(20)]
        gevent.sleep(0.002)
        gevent.killall(calls[::4])
        gevent.joinall(calls, timeout=HANGS, raise_error=False)
    done = idle(client)
    (instance,) = client.balancer.snapshot().instances
    statuses = spawn(*[lambda: client.get("/").status_code] * 4)
    ((_, transport, _),) = client._transport._transports._transports.values()
    all_idle, kept = transport.is_idle, len(transport._connections.all())
    client.close()
    return {
        "idle": done,
        "in_flight": instance.in_flight,
        "statuses": statuses,
        "all_idle": all_idle,
        "kept": kept,
        "open": opened() - before,
    }


def hedged(when, silent, port):
    """The first attempt of a call goes to an instance that never answers."""

    def make():
        import lbclient

        return lbclient.Client(
            [f"http://127.0.0.1:{one}" for one in (silent, port)],
            hedge=lbclient.HedgePolicy(delay=0.001),
            strategy="round-robin",
            rng=random.Random(1),
        )

    client = begin(when, make)
    statuses = spawn(*[lambda: client.get("/").status_code] * 4)
    done = idle(client)
    client.close()
    return {"statuses": statuses, "idle": done}


def expires(when, port):
    """Idle connections close while the client makes no call."""

    def make():
        import httpx

        import lbclient

        limits = httpx.Limits(keepalive_expiry=0.02)
        return lbclient.Client([f"http://127.0.0.1:{port}"], limits=limits)

    client = begin(when, make)
    import gevent

    statuses = []
    for _ in range(3):
        statuses.append(client.get("/").status_code)
        while len(client._transport._transports._idle):
            gevent.sleep(0.005)
    client.close()
    return {"statuses": statuses}


def looks_up(when, dns, port):
    """A service is looked up while other green threads go on."""

    def make():
        import lbclient

        return lbclient.Client(
            "http+srv://orders.example.com",
            nameservers=[f"127.0.0.1:{dns}"],
            allow=["127.0.0.0/8"],
            retry=lbclient.RetryPolicy(deadline=0.5 if port == "0" else HANGS),
        )

    client = begin(when, make)
    import gevent

    import lbclient

    ticks = SimpleNamespace(count=0)

    def tick():
        while True:
            ticks.count += 1
            gevent.sleep(0.001)

    ticking = gevent.spawn(tick)

    def call():
        try:
            return client.get("/").status_code
        except lbclient.LoadBalancingError as error:
            return type(error).__name__

    results = spawn(call, call)
    ticking.kill()
    client.close()
    return {"results": results, "ticks": ticks.count}


def watches(when, server):
    """A Service of Kubernetes is watched while other green threads go on."""

    def make():
        import lbclient

        return lbclient.Client(
            lbclient.Kubernetes("orders", namespace="shop", server=server), allow=["127.0.0.0/8"]
        )

    client = begin(when, make)
    import threading

    import gevent

    def call_until_changed():
        first = text = client.get("/").text
        while text == first:
            gevent.sleep(0.005)
            text = client.get("/").text
        return [first, text]

    (texts,) = spawn(call_until_changed)
    threads = {one.name for one in threading.enumerate()}
    client.close()
    while "lbclient-watch" in {one.name for one in threading.enumerate()}:
        gevent.sleep(0.005)
    return {"texts": texts, "threads": sorted(threads)}


def used(when):
    """The client has looked its service up before the patch; that is too late."""
    asked = SimpleNamespace(count=0)

    def make():
        import lbclient

        class Service:
            def resolve(self):
                asked.count += 1
                return lbclient.Answer([lbclient.Instance("127.0.0.1", 80)], ttl=0.01)

        balancer = lbclient.Balancer(Service(), name="orders", min_refresh=0.01)
        balancer.call(lambda one: one.port)
        return balancer

    balancer = begin(when, make)
    import gevent

    before = asked.count
    while asked.count < before + 3:
        gevent.sleep(0.005)
    return {"port": balancer.call(lambda one: one.port)}


def watched(when):
    """A watched service: its watch blocks a green thread, and sends two answers."""

    def make():
        import lbclient

        class Registry:
            def watch(self, update, _):
                import threading

                self.update, self.closed = update, threading.Event()
                update(lbclient.Answer([lbclient.Instance("127.0.0.1", 1)]))
                self.closed.wait()

            def close(self):
                self.closed.set()

        registry = Registry()
        return SimpleNamespace(registry=registry, balancer=lbclient.Balancer(registry))

    made = begin(when, make)
    import gevent

    import lbclient

    ports = spawn(*[lambda: made.balancer.call(lambda one: one.port)] * 3)[:1]
    made.registry.update(lbclient.Answer([lbclient.Instance("127.0.0.1", 2)]))
    while (port := made.balancer.call(lambda one: one.port)) == 1:
        gevent.sleep(0.005)
    made.balancer.close()
    while not made.registry.closed.is_set():
        gevent.sleep(0.005)
    return {"ports": [*ports, port]}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(HANGS, exit=True)
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    scenario = globals()[sys.argv[1]]
    sys.stdout.write(json.dumps(scenario(*sys.argv[2:])))
