"""Requests of our own: health checks over HTTP, load probes, and the load reports in answers.

A health check is one GET to one instance, addressed as calls address it. Instances tell their load
in the header of ORCA.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

import anyio

from lbclient._internal.deadline import Expiry
from lbclient._internal.version import __version__
from lbclient.balancer.health_monitor import Check, CheckFailed, plain_check
from lbclient.balancer.load_probe import Loads, Prober
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.discovery.service_url import authority_of
from lbclient.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.resilience.health_check import HealthCheck
from lbclient.strategy import LoadReport

from ._compat import httpx
from .adapter import HttpAdapter
from .connections.custom_transport import AsyncInstanceTransport, InstanceTransport
from .connections.pool import KeepAlivePool, pool_of
from .connections.transport_pool import TransportPool
from .options import WireOptions
from .request import Upstream, attempt_extensions

__all__ = ["HEADER", "Reports", "achecked", "areports", "checked", "load_of", "reports"]

HEADER = "endpoint-load-metrics"
"""ORCA's, the Open Request Cost Aggregation of Envoy and gRPC, in its forms TEXT and JSON."""

_LONGEST = 4096

_IN_FLIGHT, _LATENCY = "in_flight", "latency"

_NAMED = "named_metrics"


def load_of(text: str) -> LoadReport | None:
    """What `TEXT named_metrics.in_flight=7, named_metrics.latency=0.02` says, or
    `JSON {"named_metrics": {"in_flight": 7, "latency": 0.02}}`; None where it says nothing of that.

    Raises ValueError for what cannot be meant.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    form, _, rest = text.strip().partition(" ")
    try:
        named = _FORMS[form](rest) if form in _FORMS else {}
        if (in_flight := named.get(_IN_FLIGHT)) is None:
            return None
        latency = named.get(_LATENCY)
        return LoadReport(_number(in_flight), None if latency is None else _number(latency))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _pairs(text: str) -> Mapping[str, object]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip().removeprefix(f"{_NAMED}."): value for name, _, value in pairs}


def _object(text: str) -> Mapping[str, object]:
    found = json.loads(text)
    named = found.get(_NAMED, {}) if isinstance(found, dict) else None
    if not isinstance(named, dict):
        raise TypeError("no object of named metrics")
    return named


_FORMS: Mapping[str, Callable[[str], Mapping[str, object]]] = {"TEXT": _pairs, "JSON": _object}


def _number(value: object) -> float:
    return float(value) if isinstance(value, str) else value  # type: ignore[return-value]  # checked there


_HEALTH_AGENT = f"lbclient/{__version__} health-check"

_MOST = 65_536
"""So many bytes of a body are read."""

_NO_BODY = httpx.ByteStream(b"")

W = TypeVar("W")

Make = Callable[[Upstream, WireOptions, KeepAlivePool[Any]], W]


def checked(policy: HealthCheck, adapter: HttpAdapter, make: Make[InstanceTransport]) -> Check:
    """What `policy` asks for; over HTTP, by wires that `make` makes."""
    return plain_check(policy) or _Checkup(policy, adapter, make).check


def achecked(
    policy: HealthCheck, adapter: HttpAdapter, make: Make[AsyncInstanceTransport]
) -> Check:
    """The same for wires that want an event loop: a caller's own. Each check is an asyncio loop."""
    return plain_check(policy) or _AsyncCheckup(policy, adapter, make).check


class _Asks(Generic[W]):
    """The request, and a wire for each check: that connecting works is part of what it proves."""

    def __init__(self, policy: HealthCheck, adapter: HttpAdapter, make: Make[W]) -> None:
        self._policy = policy
        self._target = adapter.target
        self._url = httpx.URL(f"{adapter.target.origin}{policy.path}")
        self._upstream = adapter.upstream
        self._make = make
        self._options = replace(adapter.wire_options, retries=0)

    def _wire(self, endpoint: Endpoint) -> W:
        return self._make(self._upstream(endpoint), self._options, pool_of(self._options))

    def _request(self, instance: Instance) -> httpx.Request:
        target = self._target
        host = target.authority or authority_of(instance.host, instance.port, target.scheme)
        headers = httpx.Headers({"Host": host, "User-Agent": _HEALTH_AGENT, "Accept": "*/*"})
        headers.update(self._policy.headers)
        return httpx.Request("GET", self._url, headers=headers)

    def _classify(self, response: httpx.Response) -> None:
        if response.status_code not in self._policy.statuses:
            raise CheckFailed(f"status {response.status_code}")


class _Checkup(_Asks[InstanceTransport]):
    """By wires for threads."""

    def check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """Ask, and read the answer to its end. Raises CheckFailed or an error of httpx's."""
        request = self._request(endpoint.instance)
        with contextlib.closing(self._wire(endpoint)) as transport:
            response = transport.send(request, _NO_BODY, attempt_extensions(request, expiry))
            with contextlib.closing(response):
                self._classify(response)
                read = 0
                for chunk in response.stream:  # type: ignore[union-attr]  # of a wire for threads
                    if (read := read + len(chunk)) > _MOST or not expiry.left():
                        return


class _AsyncCheckup(_Asks[AsyncInstanceTransport]):
    """By wires for event loops."""

    def check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """The same."""
        asyncio.run(self._check(endpoint, expiry))

    async def _check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        request = self._request(endpoint.instance)
        async with contextlib.aclosing(self._wire(endpoint)) as transport:
            with anyio.fail_after(expiry.left()):
                response = await transport.send(
                    request, _NO_BODY, attempt_extensions(request, expiry)
                )
                async with contextlib.aclosing(response):
                    self._classify(response)
                    read = 0
                    async for chunk in response.stream:  # type: ignore[union-attr]  # as above
                        if (read := read + len(chunk)) > _MOST:
                            return


_LOAD_AGENT = f"lbclient/{__version__} load-probe"


def reports(adapter: HttpAdapter, make: Make[InstanceTransport]) -> Reports | None:
    """None where the strategy does not care. Probes go by wires that `make` makes."""
    loads = adapter.binding.loads()
    return None if loads is None else _Threaded(adapter, loads, make)


def areports(adapter: HttpAdapter, make: Make[AsyncInstanceTransport]) -> Reports | None:
    """The same for wires that want an event loop: a caller's own."""
    loads = adapter.binding.loads()
    return None if loads is None else _Looped(adapter, loads, make)


class Reports(ABC):
    """What the instances of one transport say of their load."""

    def __init__(self, adapter: HttpAdapter, loads: Loads) -> None:
        self._target = adapter.target
        self._loads = loads
        self._prober: Prober | None = None
        if (probe := loads.probe) is not None:
            self._url = httpx.URL(f"{adapter.target.origin}{probe.path}")
            self._prober = Prober(
                probe,
                self._ask,
                candidates=loads.candidates,
                scheduler=THREAD_SCHEDULER,
                clock=time.monotonic,
                rng=adapter.binding.rng,
            )

    def record(self, endpoint: Endpoint, headers: httpx.Headers) -> None:
        """The headers of an attempt have come: it is time to ask others, too."""
        self._hear(endpoint, headers, probed=False)
        if self._prober is not None:
            self._prober.answered()

    def _hear(self, endpoint: Endpoint, headers: httpx.Headers, *, probed: bool) -> None:
        text = headers.get(HEADER)
        try:
            load = None if text is None else load_of(text)
        except ValueError as error:
            self._loads.refused(endpoint, ascii(str(error))[:200])
            return
        if load is not None or probed:
            self._loads.record(endpoint, load)

    def close(self) -> None:
        """No probe follows."""
        if self._prober is not None:
            self._prober.stop()

    @abstractmethod
    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """Probe it, and hear. May raise anything; it has said nothing then."""

    def _request(self, instance: Instance) -> httpx.Request:
        target = self._target
        host = target.authority or authority_of(instance.host, instance.port, target.scheme)
        headers = {"Host": host, "User-Agent": _LOAD_AGENT, "Accept": "*/*"}
        return httpx.Request("GET", self._url, headers=headers)


class _Threaded(Reports):
    """Probes by wires for threads, beside those of the calls, and kept open like them."""

    def __init__(self, adapter: HttpAdapter, loads: Loads, make: Make[InstanceTransport]) -> None:
        self._transports = TransportPool(
            adapter.binding.pool,
            lambda one, idle: make(adapter.upstream(one), adapter.wire_options, idle),
            adapter.wire_options,
            adapter.binding.rng,
        )
        self._closed = False
        super().__init__(adapter, loads)

    def close(self) -> None:
        super().close()
        self._closed = True
        self._transports.close()

    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        if self._transports.needs_cleanup:
            self._transports.tidy()
        request = self._request(endpoint.instance)
        transport = self._transports.to(endpoint, time.monotonic())
        try:
            response = transport.send(request, _NO_BODY, attempt_extensions(request, expiry))
            with contextlib.closing(response):
                self._hear(endpoint, response.headers, probed=True)
                read = 0
                for chunk in response.stream:  # type: ignore[union-attr]  # of a wire for threads
                    if (read := read + len(chunk)) > _MOST or not expiry.left():
                        return
        finally:
            if self._closed:  # what was opened since then, nobody else closes
                transport.close()


class _Looped(Reports):
    """Each probe is an asyncio loop, with a wire of its own."""

    def __init__(
        self, adapter: HttpAdapter, loads: Loads, make: Make[AsyncInstanceTransport]
    ) -> None:
        self._make = make
        self._upstream, self._options = adapter.upstream, adapter.wire_options
        super().__init__(adapter, loads)

    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        asyncio.run(self._aask(endpoint, expiry))

    async def _aask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        request = self._request(endpoint.instance)
        idle: KeepAlivePool[Any] = pool_of(self._options)
        upstream = self._upstream(endpoint)
        async with contextlib.aclosing(self._make(upstream, self._options, idle)) as transport:
            with anyio.fail_after(expiry.left()):
                response = await transport.send(
                    request, _NO_BODY, attempt_extensions(request, expiry)
                )
                await response.aclose()
                self._hear(endpoint, response.headers, probed=True)
