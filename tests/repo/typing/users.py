"""What users write, for type checkers: mypy and pyright accept it, and report each marked error.

It is never run. `assert_type` states what a user gets. Each `type: ignore` stands for an error that
both must report, since both report an unused one.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import assert_type

import httpx
import httpx2

import lbclient
import lbclient.httpx2
from lbclient import protocol
from lbclient.simulation import (
    Open,
    Report,
    Scenario,
    Server,
    answers,
    constant,
    simulate,
)


def client() -> None:
    """A client is an httpx client, with the options of a balancer."""
    with lbclient.Client(
        "http+srv://orders.test",
        strategy="least-busy",
        retry=lbclient.RetryPolicy(attempts=2, deadline=1.0),
        breaker=None,
        hedge=lbclient.HedgePolicy(),
        timeout=2.0,
        headers={"accept": "text/plain"},
    ) as orders:
        assert_type(orders.get("/"), httpx.Response)
        assert_type(orders.balancer, lbclient.Balancer)
        assert_type(orders.balancer.snapshot().instances[0].in_flight, int)
        as_httpx: httpx.Client = orders
        as_httpx.close()
    lbclient.Client("http://a.test", strategy="leest-busy")  # type: ignore[arg-type]
    lbclient.Client("http://a.test", retry=3)  # type: ignore[arg-type]
    lbclient.Client("http://a.test", retries_max=3)  # type: ignore[call-arg]
    lbclient.Client(5)  # type: ignore[arg-type]


async def async_client() -> None:
    """The same for `AsyncClient`."""
    async with lbclient.AsyncClient(
        ["http://10.0.0.1:80", lbclient.Instance("10.0.0.2", 80)], name="orders"
    ) as orders:
        assert_type(await orders.get("/"), httpx.Response)
        as_httpx: httpx.AsyncClient = orders
        await as_httpx.aclose()
    lbclient.AsyncClient("http://a.test", strategy="leest-busy")  # type: ignore[arg-type]


def instances() -> None:
    """Instances may have a scheme, a base path, headers and a TLS name of their own."""
    eu = lbclient.Instance.from_url(
        "https://eu.test/v1", weight=3, headers={"api-key": "a"}, tls_name="eu.test"
    )
    us = lbclient.Instance("us.test", 443, scheme="https", path="/v2", headers=eu.headers)
    assert_type(us.headers["api-key"], str)
    with lbclient.Client([eu, us]) as client:
        assert_type(client.balancer.snapshot().as_dict(), dict[str, object])
    lbclient.Instance("us.test", 443, headers={"api-key": 1})  # type: ignore[dict-item]


def transport() -> None:
    """Transports are transports of httpx and httpx2, for their clients."""
    httpx.Client(transport=lbclient.Transport("http://a.test", http2=True))
    httpx.AsyncClient(transport=lbclient.AsyncTransport("http://a.test"))
    httpx2.Client(transport=lbclient.httpx2.Transport("http://a.test"))
    lbclient.Transport("http://a.test", transport=lambda _: httpx.MockTransport(respond))
    httpx.AsyncClient(transport=lbclient.Transport("http://a.test"))  # type: ignore[arg-type]
    lbclient.Transport("http://a.test", headers={})  # type: ignore[call-arg]


def respond(request: httpx.Request) -> httpx.Response:
    """Respond to any request."""
    return httpx.Response(200, request=request)


def flavour() -> None:
    """A client of `lbclient.httpx2` returns responses of httpx2."""
    with lbclient.httpx2.Client("http://a.test", strategy=lbclient.LeastBusy()) as orders:
        assert_type(orders.get("/"), httpx2.Response)
        assert_type(orders.balancer, lbclient.Balancer)


def call(balancer: lbclient.Balancer) -> None:
    """`Balancer.call` returns what the function returns."""

    def port(instance: lbclient.Instance) -> int:
        return instance.port

    assert_type(balancer.call(port, idempotent=True, deadline=1.0), int)
    with balancer.acquire() as instance:
        assert_type(instance, lbclient.Instance)
    balancer.call(len)  # type: ignore[arg-type]


async def acall(balancer: lbclient.Balancer) -> None:
    """`Balancer.acall` returns what the coroutine function returns."""

    async def host(instance: lbclient.Instance) -> str:
        return instance.host

    def port(instance: lbclient.Instance) -> int:
        return instance.port

    assert_type(await balancer.acall(host, key="a"), str)
    async with balancer.acquire() as instance:
        assert_type(instance, lbclient.Instance)
    await balancer.acall(port)  # type: ignore[arg-type]


class First:
    """A strategy of a user's own."""

    def pick(
        self, candidates: Sequence[lbclient.Endpoint], call: lbclient.PickContext
    ) -> lbclient.Endpoint:
        """Pick the first of those with the least in flight."""
        assert_type(call.rng, random.Random)
        return min(candidates, key=lambda one: (one.in_flight, one.latency or 0.0))


def strategies(name: lbclient.StrategyName, text: str) -> None:
    """A strategy is a known name or an object with `pick`; in the simulator, a function too."""
    one: lbclient.Strategy = First()
    lbclient.Balancer("http://a.test", strategy=one)
    lbclient.Client("http://a.test", strategy=First())
    lbclient.Balancer("http://a.test", strategy=name)
    lbclient.Balancer("http://a.test", strategy=lbclient.Zone("a", inner="prequal"))
    lbclient.Balancer("http://a.test", strategy=text)  # type: ignore[arg-type]
    lbclient.Balancer("http://a.test", strategy=object())  # type: ignore[arg-type]
    lbclient.Zone("a", inner="zone")  # type: ignore[arg-type]
    scenario = Scenario([Server("a", answers(constant(0.1)))], Open(rate=1, seconds=1))
    assert_type(simulate(scenario, strategy="random"), Report)
    simulate(scenario, strategy=First)
    simulate(scenario, strategy="first")  # type: ignore[arg-type]


class Fixed:
    """A resolver of a user's own."""

    def resolve(self) -> lbclient.Answer:
        """Return one instance, for a minute."""
        return lbclient.Answer([lbclient.Instance("10.0.0.1", 80, weight=3)], ttl=60.0)


class Lacking:
    """A resolver that returns something else."""

    def resolve(self) -> list[str]:
        """Return no answer."""
        return []


def resolvers() -> None:
    """A resolver is any object with `resolve`, alone or as part of others."""
    service: lbclient.Service = Fixed()
    lbclient.Client(service)
    lbclient.Client(lbclient.FirstOf("http+srv://a.test", Fixed(), patience=1.0))
    lbclient.Client(Lacking())  # type: ignore[arg-type]


class Changes:
    """A watcher of a user's own."""

    def watch(self, update: Callable[[lbclient.Answer], None], alive: Callable[[], None]) -> None:
        """Send one answer."""
        update(lbclient.Answer([]))
        alive()

    def close(self) -> None:
        """Do nothing."""


class WrongChanges:
    """A watcher that cannot be closed."""

    def watch(self, update: Callable[[lbclient.Answer], None], alive: Callable[[], None]) -> None:
        """Send nothing."""


def watchers() -> None:
    """A watcher is any object with `watch` and `close`, alone or as part of others."""
    watcher: lbclient.Watcher = Changes()
    lbclient.Client(watcher)
    lbclient.AsyncClient(lbclient.FirstOf(Changes(), "http+srv://shop.test"))
    lbclient.Balancer(WrongChanges())  # type: ignore[arg-type]


def judge(outcome: object) -> lbclient.Verdict:
    """Classify a result, or an exception."""
    if isinstance(outcome, ConnectionError):
        return lbclient.Verdict(fault=True, again="idempotent")
    return lbclient.Verdict(fault=False)


def judges() -> None:
    """A classifier takes anything and returns a verdict."""
    lbclient.Balancer("http://a.test", judge=judge)
    lbclient.Balancer("http://a.test", judge=bool)  # type: ignore[arg-type]
    lbclient.Verdict(fault=True, again="often")  # type: ignore[arg-type]


def listener(event: lbclient.Event) -> None:
    """Handle the events of a balancer."""
    if isinstance(event, lbclient.InstancesChanged):
        assert_type(event.joined, tuple[lbclient.Instance, ...])


def listeners() -> None:
    """A listener takes an event."""
    lbclient.Client("http://a.test", listener=listener)
    lbclient.Client("http://a.test", listener=print)
    lbclient.Client("http://a.test", listener=listeners)  # type: ignore[arg-type]


class LineClient:
    """The binding of another protocol."""

    def __init__(self, service: lbclient.Service) -> None:
        self.balancer = lbclient.Balancer(service, judge=judge)
        self._binding = protocol.bind(self.balancer)

    def line(self, command: bytes) -> bytes:
        """Send a command on this thread."""

        def send(attempt: protocol.Attempt[bytes]) -> bytes:
            assert_type(attempt.instance, lbclient.Instance)
            return command

        call: protocol.Call[bytes] = self._binding.begin(protocol.CallOptions(idempotent=True))
        return protocol.run(call, send)

    async def aline(self, command: bytes) -> bytes:
        """Send a command on an event loop."""

        async def send(attempt: protocol.Attempt[bytes]) -> bytes:
            attempt.hold(self)
            return command

        call: protocol.Call[bytes] = self._binding.begin()
        return await protocol.arun(call, send)

    async def wrong(self, send: Callable[[protocol.Attempt[bytes]], bytes]) -> None:
        """What `arun` carries out is a coroutine function."""
        call: protocol.Call[bytes] = self._binding.begin()
        await protocol.arun(call, send)  # type: ignore[arg-type]


def attempts(response: httpx.Response) -> None:
    """`call_info` tells of a call, attempt by attempt."""
    assert_type(lbclient.call_info(response), lbclient.CallInfo)
    assert_type(lbclient.call_info(response).attempts[0].status, int | None)
