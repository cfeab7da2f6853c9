"""Transport and AsyncTransport: load balancing below any httpx client."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Unpack, cast

import anyio

from lbclient._internal.signals import Pause
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import described
from lbclient.balancer.event_loops import arun, asleep
from lbclient.balancer.options import shows
from lbclient.balancer.threads import run, sleep
from lbclient.core.attempt import Attempt
from lbclient.discovery.composite import Service
from lbclient.errors import LoadBalancingError

from ._compat import httpx
from .adapter import HttpAdapter
from .connections.custom_transport import (
    AsyncTransportFactory,
    TransportFactory,
    async_transport_factory,
    transport_factory,
)
from .connections.transport_pool import AsyncTransportPool, PerLoopTransports, TransportPool
from .errors import as_httpx
from .options import TransportOptions
from .probes import achecked, areports, checked, reports
from .request import attempt_extensions, below
from .request_body import awatch, watch
from .response_stream import AsyncResponseStream, ResponseStream, adrain, aread, drain, read

__all__ = ["AsyncTransport", "Service", "Transport"]


@shows(TransportOptions)
class Transport(httpx.BaseTransport):
    """An httpx transport that balances requests:
    `httpx.Client(transport=lbclient.Transport(service))`.

    It can also serve one of several origins: `mounts={"http://orders":
    lbclient.Transport(service)}`. It does not change the request's Host. A path in the service's
    URL is put before the request's path. It takes the arguments of `Balancer`, those of
    `httpx.HTTPTransport` except `proxy` and `uds`, and some of its own.

    - `service`: as in `Balancer`.
    - `transport`: a function that makes your own transport for each instance, `instance ->
      httpx.BaseTransport`. The URLs of its requests name the instance's checked address.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """

    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None:
        make = transport_factory(transport, options)
        self._adapter = adapter = HttpAdapter(service, options)
        self._transports = TransportPool(
            adapter.binding.pool,
            lambda endpoint, idle: make(
                adapter.upstream(endpoint), adapter.connection_settings, idle
            ),
            adapter.connection_settings,
            adapter.binding.rng,
        )
        if (health := adapter.health) is not None:
            adapter.binding.check_health(health, checked(health, adapter, make))
        self._reports = reports(adapter, make)

    def __repr__(self) -> str:
        adapter = getattr(self, "_adapter", None)
        return described(self, adapter and adapter.binding)

    @property
    def balancer(self) -> Balancer:
        """The balancer of this transport."""
        return self._adapter.balancer

    def own(self, origin: str) -> None:
        """Accept only requests for this origin, as a client of one service does."""
        self._adapter.own(origin)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to an instance, and retry it as the policy says."""
        adapter = self._adapter
        if self._transports.needs_cleanup:
            self._transports.tidy()
        if adapter.origin is not None:
            request = adapter.origin.admitted(request)
        elif adapter.target.path:
            request = below(adapter.target.path, request)
        stream, replayable = request.stream, None
        if not isinstance(stream, httpx.ByteStream):  # otherwise it can always be sent again
            stream, replayable = watch(request)
        answers: list[httpx.Response] = []
        try:
            call = adapter.call(request, replayable)
            send = partial(self._send, request, stream, answers)
            response = run(call, send, discard=httpx.Response.close)
        except BaseException as error:
            for answer in answers:  # interrupted before another attempt replaced the response
                answer.close()
            if isinstance(error, LoadBalancingError):
                raise as_httpx(error) from error.__cause__
            raise
        finally:
            if self._transports.leaving:
                self._transports.tidy()
        return adapter.finished(call, response)

    def close(self) -> None:
        """Wait up to `close_grace` seconds for active calls. Then end them, and close every
        connection. Later requests raise RuntimeError.

        A call that waits ends with its last outcome, or with BalancerClosed if it has none. A call
        that has been sent ends with the error of its connection.
        """
        adapter = self._adapter
        adapter.binding.refuse_calls()
        try:
            sleep(adapter.drain())
        finally:
            adapter.balancer.close()
            adapter.binding.abandon_calls()
            self._transports.close()
            if self._reports is not None:
                self._reports.close()
        sleep(adapter.last())

    def _send(
        self,
        request: httpx.Request,
        stream: httpx.SyncByteStream,
        answers: list[httpx.Response],
        attempt: Attempt[httpx.Response],
    ) -> httpx.Response:
        adapter = self._adapter
        if attempt.replaces is not None:
            drain(attempt.replaces)
        transport = self._transports.to(attempt.endpoint, attempt.pick.started)
        extensions: Mapping[str, object] = request.extensions
        if attempt.expiry is not None:
            extensions = attempt_extensions(request, attempt.expiry)
        response = transport.send(request, stream, extensions)
        attempt.status = response.status_code
        if self._reports is not None:
            self._reports.record(attempt.endpoint, response.headers)
        if not isinstance(response.stream, httpx.ByteStream):
            if adapter.reads_at_once(request, response):
                read(response, attempt.expiry)
            else:
                body = cast("httpx.SyncByteStream", response.stream)
                response.stream = ResponseStream(body, attempt, self._transports)
                answers.append(response)
        return response


@shows(TransportOptions)
class AsyncTransport(httpx.AsyncBaseTransport):
    """The same for `httpx.AsyncClient`, on asyncio (also with uvloop) and trio.

    - `service`: as in `Balancer`.
    - `transport`: a function that makes your own transport for each instance, `instance ->
      httpx.AsyncBaseTransport`.
    """

    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None:
        make = async_transport_factory(transport, options)
        self._adapter = adapter = HttpAdapter(service, options)

        def transports() -> AsyncTransportPool:
            return AsyncTransportPool(
                adapter.binding.pool,
                lambda endpoint, idle: make(
                    adapter.upstream(endpoint), adapter.connection_settings, idle
                ),
                adapter.connection_settings,
                adapter.binding.rng,
            )

        self._per_loop = PerLoopTransports(adapter.binding.pool, transports)
        ours = transport is None
        if (health := adapter.health) is not None:
            check = (
                checked(health, adapter, transport_factory(None, options))
                if ours
                else achecked(health, adapter, make)
            )
            adapter.binding.check_health(health, check)
        self._reports = (
            reports(adapter, transport_factory(None, options)) if ours else areports(adapter, make)
        )

    def __repr__(self) -> str:
        adapter = getattr(self, "_adapter", None)
        return described(self, adapter and adapter.binding)

    @property
    def balancer(self) -> Balancer:
        """The balancer of this transport."""
        return self._adapter.balancer

    def own(self, origin: str) -> None:
        """Accept only requests for this origin, as a client of one service does."""
        self._adapter.own(origin)

    async def handle_async_request(  # noqa: C901, PLR0912  # saves a coroutine in nearly every call
        self, request: httpx.Request
    ) -> httpx.Response:
        """Send a request to an instance, and retry it as the policy says."""
        adapter = self._adapter
        if adapter.origin is not None:
            request = adapter.origin.admitted(request)
        elif adapter.target.path:
            request = below(adapter.target.path, request)
        stream, replayable = request.stream, None
        if not isinstance(stream, httpx.ByteStream):  # otherwise it can always be sent again
            stream, replayable = awatch(request)
        answers: list[httpx.Response] = []
        transports: AsyncTransportPool | None = None
        try:
            call = adapter.call(request, replayable)
            transports = self._per_loop.last() or await self._per_loop.here()
            if transports.needs_cleanup:
                await transports.tidy()
            if call.engine.hedging is None:  # the same as `arun`, without another coroutine
                with call:
                    for step in call:
                        if isinstance(step, Pause):
                            await asleep(step)
                        else:
                            with step:
                                step.result = await self._send(
                                    transports, request, stream, answers, step
                                )
                response = call.result()
            else:
                send = partial(self._send, transports, request, stream, answers)
                response = await arun(call, send, discard=httpx.Response.aclose)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                for answer in answers:  # cancelled before another attempt replaced the response
                    await answer.aclose()
            if isinstance(error, LoadBalancingError):
                raise as_httpx(error) from error.__cause__
            raise
        finally:
            if transports is not None and transports.leaving:
                await transports.tidy()
        return adapter.finished(call, response)

    async def aclose(self) -> None:
        """Like `Transport.close`. Other running event loops close their own connections soon."""
        adapter = self._adapter
        adapter.binding.refuse_calls()
        try:
            await asleep(adapter.drain())
        finally:
            adapter.balancer.close()
            adapter.binding.abandon_calls()
            if self._reports is not None:
                self._reports.close()
            with anyio.CancelScope(shield=True):
                await self._per_loop.aclose()
        await asleep(adapter.last())

    async def _send(
        self,
        transports: AsyncTransportPool,
        request: httpx.Request,
        stream: httpx.AsyncByteStream,
        answers: list[httpx.Response],
        attempt: Attempt[httpx.Response],
    ) -> httpx.Response:
        adapter = self._adapter
        if attempt.replaces is not None:
            await adrain(attempt.replaces)
        transport = transports.to(attempt.endpoint, attempt.pick.started)
        extensions: Mapping[str, object] = request.extensions
        if attempt.expiry is not None:
            extensions = attempt_extensions(request, attempt.expiry)
        response = await transport.send(request, stream, extensions)
        attempt.status = response.status_code
        if self._reports is not None:
            self._reports.record(attempt.endpoint, response.headers)
        if not isinstance(response.stream, httpx.ByteStream):
            if adapter.reads_at_once(request, response):
                await aread(response, attempt.expiry)
            else:
                body = cast("httpx.AsyncByteStream", response.stream)
                response.stream = AsyncResponseStream(body, attempt, transports)
                answers.append(response)
        return response
