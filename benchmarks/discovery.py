"""How soon a change in a source is in use, and what it costs: run it, or see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' doubles of registries

import httpx
from stalls import ticking
from turns import uncollected

import lbclient
from tests.support import kubernetes
from tests.support.etcd import Etcd

FEW, MANY, CLIENTS = 10, 10_000, 100
RATE = 200
"""Calls a second while changes are made."""
DELAY_GOAL, CPU_GOAL, STALL_GOAL = 500.0, 20.0, 10.0
"""Milliseconds."""
_LIMIT = 30.0


@dataclass
class Feed:
    """A service in a source, and how to change it."""

    service: Any
    replace: Callable[[int], str]
    """Replaces one instance, and returns `str` of the new one. The number differs each time."""
    options: dict[str, Any] = field(default_factory=dict)

    def balancer(self) -> lbclient.Balancer:
        return lbclient.Balancer(self.service, **self.options)


Source = Callable[[int], AbstractContextManager[Feed]]
"""Makes a service with so many instances, none of which is called over a network."""


def address(number: int) -> str:
    """One of many addresses of a private network."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


class Pushing:
    """A watcher that is told what to send."""

    def __init__(self, many: int) -> None:
        self._instances = [lbclient.Instance(address(one), 8080) for one in range(many)]
        self._updates: list[Callable[[lbclient.Answer], None]] = []
        self._closed = threading.Event()

    def watch(self, update: Callable[[lbclient.Answer], None], _alive: Callable[[], None]) -> None:
        update(lbclient.Answer(self._instances))
        self._updates.append(update)
        self._closed.wait()

    def close(self) -> None:
        """Its watches share it, and end with the process."""

    def replace(self, number: int) -> str:
        new = lbclient.Instance(address((1 << 20) + number), 8080)
        self._instances[number % len(self._instances)] = new
        answer = lbclient.Answer(self._instances)
        for update in self._updates:
            update(answer)
        return str(new)


@contextmanager
def by_watcher(many: int) -> Iterator[Feed]:
    pushing = Pushing(many)
    yield Feed(pushing, pushing.replace)


@contextmanager
def by_consul(many: int) -> Iterator[Feed]:
    """The tests' double of an agent, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.consul", str(many)]
    root, pipe = Path(__file__).parents[1], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        agent = process.stdout.readline().strip()

        def replace(number: int) -> str:
            document = {
                "ID": f"orders-{number % many}",
                "Name": "orders",
                "Address": address((1 << 20) + number),
                "Port": 8080,
            }
            done = httpx.put(f"{agent}/v1/agent/service/register", json=document)
            done.raise_for_status()
            return f"{document['Address']}:8080"

        yield Feed(lbclient.Consul("orders", agent), replace)


@contextmanager
def by_kubernetes(many: int) -> Iterator[Feed]:
    """The tests' double of an API server, in a process of its own, with slices of 100."""
    command = [sys.executable, "-m", "tests.support.kubernetes", str(many)]
    root, pipe = Path(__file__).parents[1], subprocess.PIPE
    slices = kubernetes.many_slices(many)
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process,
        httpx.Client() as client,
    ):
        server = process.stdout.readline().strip()

        def replace(number: int) -> str:
            document = slices[number % len(slices)]
            new = address((1 << 20) + number)
            endpoints = document["endpoints"]
            endpoints[number % len(endpoints)] = kubernetes.endpoint(new, pod=f"orders-{new}")
            path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
            url = f"{server}{path}/{document['metadata']['name']}"
            client.put(url, json=document).raise_for_status()
            return f"{new}:8080"

        yield Feed(lbclient.Kubernetes("orders", namespace="shop", server=server), replace)


@contextmanager
def by_etcd(many: int) -> Iterator[Feed]:
    """One member of etcd itself."""
    with tempfile.TemporaryDirectory() as directory, Etcd(Path(directory)) as member:
        member.fill("/orders/", many)

        def replace(number: int) -> str:
            instance = f"{address((1 << 20) + number)}:8080"
            member.put(f"/orders/{number % many:05}", instance)
            return instance

        yield Feed(lbclient.Etcd("/orders/", member.url), replace)


SOURCES: dict[str, Source] = {
    "Kubernetes": by_kubernetes,
    "Consul": by_consul,
    "etcd": by_etcd,
    "a Watcher": by_watcher,
}


def _until_used(balancers: Sequence[lbclient.Balancer], instance: str) -> None:
    """Wait until each balancer would call this instance."""
    end = time.monotonic() + _LIMIT
    host, _, port = instance.rpartition(":")
    wanted = lbclient.Instance(host, int(port))
    for balancer in balancers:
        while balancer._engine.pool.find(wanted) is None:  # noqa: SLF001  # without a copy of all
            if time.monotonic() > end:
                raise TimeoutError(f"{instance} is not in use")
            time.sleep(0.0005)


@contextmanager
def _calls(balancer: lbclient.Balancer) -> Iterator[None]:
    """Make calls meanwhile, at a steady rate."""
    over = threading.Event()

    def call() -> None:
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            balancer.call(str)
            due += 1 / RATE

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        over.set()
        caller.join()


def delays(source: Source, rounds: int) -> list[float]:
    """Milliseconds from a change in the source until it is in use."""
    numbers = itertools.count()
    found = []
    with source(FEW) as feed, contextlib.closing(feed.balancer()) as balancer:
        balancer.call(str)
        with _calls(balancer):
            for number in itertools.islice(numbers, rounds):
                begun = time.perf_counter()
                _until_used([balancer], feed.replace(number))
                found.append(1e3 * (time.perf_counter() - begun))
                time.sleep(0.02 + 0.01 * (number % 10))
    return found


@dataclass
class Cost:
    """Milliseconds of the client's process, a value for each change."""

    cpu: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)


def cost(source: Source, many: int, rounds: int) -> Cost:
    """CPU time, and the longest stall of an event loop, of a change of one instance.

    The CPU time includes that of the source if it runs in this process, except in `replace`.
    """
    result = Cost()
    with source(many) as feed, contextlib.closing(feed.balancer()) as balancer:
        balancer.call(str)

        async def call() -> None:
            await balancer.acall(_answer)

        async def stall(number: int) -> None:
            instance = await asyncio.to_thread(feed.replace, number)
            await asyncio.to_thread(_until_used, [balancer], instance)

        for number in range(0, 2 * rounds, 2):
            time.sleep(0.15)
            with uncollected():
                instance = feed.replace(number)
                begun = time.process_time()
                _until_used([balancer], instance)
                balancer.call(str)
                result.cpu.append(1e3 * (time.process_time() - begun))
                time.sleep(0.15)
                still = asyncio.run(ticking(call, asyncio.sleep(0.05)))
                late = asyncio.run(ticking(call, stall(number + 1)))
            result.noise.append(1e3 * max(still))
            result.stalls.append(1e3 * max(late))
    return result


def crowd(source: Source, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from a change until the last of many clients uses it, and of CPU time."""
    wall, cpu = [], []
    with source(FEW) as feed, contextlib.ExitStack() as stack:
        balancers = [stack.enter_context(feed.balancer()) for _ in range(CLIENTS)]
        for balancer in balancers:
            balancer.call(str)
        for number in range(rounds):
            time.sleep(0.15)
            begun, spent = time.perf_counter(), time.process_time()
            _until_used(balancers, feed.replace(number))
            wall.append(1e3 * (time.perf_counter() - begun))
            cpu.append(1e3 * (time.process_time() - spent))
    return wall, cpu


async def _answer(instance: lbclient.Instance) -> lbclient.Instance:
    return instance


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def rows(name: str, source: Source, *, quick: bool) -> Iterator[tuple[str, str, float, float]]:
    """What is measured, its figures, and its goal, if there is one."""
    few, many = (3, 200) if quick else (12, MANY)
    late = delays(source, 20 if quick else 200)
    yield f"{name}: until in use", _shown(late), p99(late), DELAY_GOAL
    of = cost(source, many, few)
    yield f"{name}: one of {many:,}, CPU", _shown(of.cpu), statistics.median(of.cpu), CPU_GOAL
    stalls = statistics.median(of.stalls)
    yield f"{name}: one of {many:,}, longest stall", _shown(of.stalls), stalls, STALL_GOAL
    yield "  the same while nothing changes", _shown(of.noise), 0.0, float("inf")
    wall, cpu = crowd(source, few)
    yield f"{name}: {CLIENTS} clients, the last one", _shown(wall), p99(wall), DELAY_GOAL
    yield f"{name}: {CLIENTS} clients, CPU", _shown(cpu), 0.0, float("inf")


def _shown(values: Sequence[float]) -> str:
    return f"{statistics.median(values):>9.2f} {p99(values):>9.2f} {max(values):>9.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"of {', '.join(SOURCES)}")
    parser.add_argument("--quick", action="store_true", help="a few changes: does it run?")
    parser.add_argument("--check", action="store_true", help="exit status 1 above a goal")
    arguments = parser.parse_args()
    logging.disable()
    print(f"In ms{'':<47} {'median':>9} {'p99':>9} {'worst':>9}")
    missed = False
    for name in arguments.sources or SOURCES:
        for what, figures, value, goal in rows(name, SOURCES[name], quick=arguments.quick):
            held = value <= goal
            missed = missed or not held
            said = "" if goal == float("inf") else f"goal {goal:g} {'met' if held else 'MISSED'}"
            print(f"  {what:<50} {figures} {said}".rstrip(), flush=True)
    return int(missed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
