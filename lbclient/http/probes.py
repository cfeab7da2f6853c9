"""The requests that lbclient itself sends (health checks and load probes), and the load reports in
responses.

A health check is a GET request to one instance, with the Host and the TLS name that calls use.
Instances report their load in a response header that ORCA defines.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import anyio

from lbclient._internal.blocking import Blocking, run_blocking
from lbclient._internal.deadline import Expiry
from lbclient._internal.version import __version__
from lbclient.balancer.health_monitor import Check, CheckFailed, plain_check
from lbclient.balancer.load_probe import Loads, Prober, load_of
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.resilience.health_check import HealthCheck

from ._compat import httpx
from .adapter import HttpAdapter
from .connections.custom_transport import InstanceTransport, TransportMaker
from .connections.pool import pool_of
from .connections.transport_pool import TransportPool
from .request import LOAD_FORMAT, attempt_extensions
from .response_stream import close

__all__ = ["HEADER", "Reports", "checked", "load_of", "reports"]

HEADER = "endpoint-load-metrics"
"""The response header with a load report, as defined by ORCA (Open Request Cost Aggregation, of
Envoy and gRPC). Its formats are TEXT and JSON. A request asks for this header with the header
`LOAD_FORMAT`."""

_MOST = 65_536
"""The maximum number of bytes of a probe's response that are read."""

_NO_BODY = httpx.ByteStream(b"")

Headers = Mapping[str, str] | Sequence[tuple[str, str]] | None
OnResponse = Callable[[httpx.Response], None]


class _Probe:
    """A GET request to one instance, with the Host and the TLS name that calls use. `purpose` is
    part of its User-Agent. `make` creates a transport to the instance."""

    def __init__(
        self,
        adapter: HttpAdapter,
        make: TransportMaker,
        path: str,
        purpose: str,
        headers: Headers = None,
    ) -> None:
        self._adapter, self._make = adapter, make
        self._path = path
        self._headers = {"User-Agent": f"lbclient/{__version__} {purpose}", "Accept": "*/*"}
        if adapter.loads is not None:
            self._headers[LOAD_FORMAT] = "TEXT"
        self._more = headers

    async def ask(
        self,
        transport: InstanceTransport,
        endpoint: Endpoint,
        expiry: Expiry,
        on_response: OnResponse,
        *,
        looped: bool,
    ) -> None:
        """Send the request, pass the response to `on_response`, and read its body. Raises httpx's
        errors."""
        request = self._request(endpoint.instance)
        with anyio.fail_after(expiry.left()) if looped else contextlib.nullcontext():
            response = await transport.send(request, _NO_BODY, attempt_extensions(request, expiry))
            try:
                on_response(response)
                read, stream = 0, cast("Any", response.stream)
                async for chunk in stream if looped else Blocking(stream):
                    read += len(chunk)
                    if read > _MOST or not (looped or expiry.left()):
                        return
            finally:
                await close(response, looped=looped)

    async def ask_once(
        self, endpoint: Endpoint, expiry: Expiry, on_response: OnResponse, *, looped: bool
    ) -> None:
        """Send the request over a transport of its own, which is closed after that."""
        options = replace(self._adapter.settings(endpoint.instance), retries=0)
        made = self._make(self._adapter.upstream(endpoint), options, pool_of(options))
        async with contextlib.aclosing(made) as transport:
            await self.ask(transport, endpoint, expiry, on_response, looped=looped)

    def _request(self, instance: Instance) -> httpx.Request:
        target = self._adapter.target
        headers = httpx.Headers({"Host": target.authority_at(instance), **self._headers})
        headers.update(self._more)
        # The transport puts the instance's base path before this path, but only if it differs from
        # the base path of the service. Otherwise the base path is added here.
        path = f"{target.path}{self._path}" if instance.path == target.path else self._path
        return httpx.Request("GET", f"{target.origin}{path}", headers=headers)


def checked(
    policy: HealthCheck, adapter: HttpAdapter, make: TransportMaker, *, looped: bool
) -> Check:
    """Return the check for `policy`. Over HTTP, each check uses a new transport and a new
    connection, since a check must also show that connecting works. `looped` is True if the
    transports need an event loop."""
    if (plain := plain_check(policy)) is not None:
        return plain
    probe = _Probe(adapter, make, policy.path or "", "health-check", policy.headers)

    def classify(response: httpx.Response) -> None:
        if response.status_code not in policy.statuses:
            raise CheckFailed(f"status {response.status_code}")

    def check(endpoint: Endpoint, expiry: Expiry) -> None:
        def ask() -> Coroutine[Any, Any, None]:
            return probe.ask_once(endpoint, expiry, classify, looped=looped)

        asyncio.run(ask()) if looped else run_blocking(ask)

    return check


def reports(adapter: HttpAdapter, make: TransportMaker, *, looped: bool) -> Reports | None:
    """Return the `Reports` of a transport, or None if the strategy does not use load reports. Load
    probes use their own transports, which `make` creates. On threads these transports keep their
    connections open."""
    loads = adapter.loads
    return None if loads is None else Reports(adapter, loads, make, looped=looped)


class Reports:
    """Passes the load reports of a transport's instances to the strategy, and sends load probes."""

    def __init__(
        self, adapter: HttpAdapter, loads: Loads, make: TransportMaker, *, looped: bool
    ) -> None:
        self._transports: TransportPool | None = None
        self._closed = False
        self._loads = loads
        self._prober: Prober | None = None
        if (policy := loads.probe) is not None:
            self._probe = _Probe(adapter, make, policy.path, "load-probe")
            if not looped:
                self._transports = adapter.transports(TransportPool, make)
            self._prober = Prober(
                policy,
                self._ask,
                candidates=loads.candidates,
                scheduler=THREAD_SCHEDULER,
                clock=time.monotonic,
                rng=adapter.binding.rng,
            )

    def record(self, endpoint: Endpoint, headers: httpx.Headers) -> None:
        """Record the load report in the headers of an attempt's response. If a round of load probes
        is due, it begins."""
        self._record_report(endpoint, headers, probed=False)
        if self._prober is not None:
            self._prober.answered()

    def _record_report(self, endpoint: Endpoint, headers: httpx.Headers, *, probed: bool) -> None:
        text = headers.get(HEADER)
        try:
            load = None if text is None else load_of(text)
        except ValueError as error:
            self._loads.refused(endpoint, ascii(str(error))[:200])
            return
        if load is not None or probed:
            self._loads.record(endpoint, load)

    def _recorder(self, endpoint: Endpoint) -> OnResponse:
        return lambda response: self._record_report(endpoint, response.headers, probed=True)

    def close(self) -> None:
        """Send no more load probes."""
        if self._prober is not None:
            self._prober.stop()
        self._closed = True
        if self._transports is not None:
            run_blocking(self._transports.aclose)

    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """Send a load probe to an instance and record its report. If anything raises an exception,
        there is no report."""
        if (transports := self._transports) is not None:
            run_blocking(lambda: self._ask_on_thread(transports, endpoint, expiry))
            return
        recorder = self._recorder(endpoint)
        asyncio.run(self._probe.ask_once(endpoint, expiry, recorder, looped=True))

    async def _ask_on_thread(
        self, transports: TransportPool, endpoint: Endpoint, expiry: Expiry
    ) -> None:
        transports = transports.ready() or await transports.tidied()
        transport = transports.to(endpoint, time.monotonic())
        try:
            recorder = self._recorder(endpoint)
            await self._probe.ask(transport, endpoint, expiry, recorder, looped=False)
        finally:
            if self._closed:  # nothing else closes connections opened after `close`
                await transport.aclose()
