"""Transport and AsyncTransport: load balancing in a transport, for any httpx client."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Unpack

import anyio

from lbclient._internal.blocking import SUSPENDED, run_blocking
from lbclient._internal.signals import Pause
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import described
from lbclient.balancer.event_loops import arun, asleep
from lbclient.balancer.options import shows
from lbclient.balancer.threads import run, sleep
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.discovery.composite import Service
from lbclient.errors import LoadBalancingError

from ._compat import httpx
from .adapter import HttpAdapter
from .connections.custom_transport import (
    AsyncTransportFactory,
    TransportFactory,
    TransportMaker,
    async_transport_factory,
    transport_factory,
)
from .connections.transport_pool import (
    AsyncTransportPool,
    BaseTransportPool,
    PerLoopTransports,
    TransportPool,
)
from .errors import as_httpx
from .options import TransportOptions
from .probes import Reports, checked, reports
from .request import attempt_extensions, below
from .request_body import Replayable, awatch, watch
from .response_stream import AsyncResponseStream, ResponseStream, begun, close, drain, read

__all__ = ["AsyncTransport", "Service", "Transport"]

Send = Callable[[Attempt[httpx.Response]], Coroutine[Any, Any, httpx.Response]]


class _BalancedTransport:
    """The common base of `Transport` and `AsyncTransport`, which differ only in how they wait.

    The coroutines of a `Transport` block, and are never suspended: see `_internal/blocking.py`.
    """

    _looped: bool
    """True in an event loop, False on threads."""
    _adapter: HttpAdapter
    _transports: TransportPool | PerLoopTransports
    _reports: Reports | None
    _stream: type[ResponseStream | AsyncResponseStream]

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

    def _begin_probes(self, make: TransportMaker, *, looped: bool) -> None:
        adapter = self._adapter
        if (health := adapter.health) is not None:
            adapter.binding.check_health(health, checked(health, adapter, make, looped=looped))
        self._reports = reports(adapter, make, looped=looped)

    async def _handle(  # noqa: C901, PLR0912  # with fewer coroutines, calls take less time
        self, request: httpx.Request
    ) -> httpx.Response:
        """Send a request to an instance, and retry it as the retry policy says."""
        adapter = self._adapter
        if adapter.origin is not None:
            request = adapter.origin.admitted(request)
        elif adapter.added_path:
            request = below(adapter.added_path, request)
        stream: Any = request.stream
        replayable: Replayable = None
        if not isinstance(stream, httpx.ByteStream):  # plain bytes can always be sent again
            stream, replayable = awatch(request) if self._looped else watch(request)
        answers: list[httpx.Response] = []
        transports: BaseTransportPool[Any] | None = None
        try:
            call = adapter.call(request, replayable)
            transports = self._transports.ready() or await self._transports.tidied()
            if call.engine.hedging is None:  # as `run` and `arun` do, but with one call fewer
                with call:
                    for step in call:
                        if isinstance(step, Pause):
                            await self._sleep(step)
                        else:
                            with step:
                                step.result = await self._send(
                                    transports, request, stream, answers, step
                                )
                response = call.result()
            else:
                here = transports

                async def send(attempt: Attempt[httpx.Response]) -> httpx.Response:
                    return await self._send(here, request, stream, answers, attempt)

                response = await self._race(call, send)
        except BaseException as error:
            with self._shield():
                for answer in answers:  # only after an interruption
                    await close(answer, looped=self._looped)
            if isinstance(error, LoadBalancingError):
                raise as_httpx(error) from error.__cause__
            raise
        finally:
            if transports is not None and transports.leaving:
                await transports.tidy()
        return adapter.finished(call, response)

    async def _close(self) -> None:
        adapter = self._adapter
        adapter.binding.refuse_calls()
        try:
            await self._sleep(adapter.drain())
        finally:
            adapter.balancer.close()
            adapter.binding.abandon_calls()
            try:
                with self._shield():
                    await self._transports.aclose()
            finally:
                if self._reports is not None:
                    self._reports.close()
        await self._sleep(adapter.last())

    async def _send(
        self,
        transports: BaseTransportPool[Any],
        request: httpx.Request,
        stream: Any,
        answers: list[httpx.Response],
        attempt: Attempt[httpx.Response],
    ) -> httpx.Response:
        adapter = self._adapter
        if attempt.replaces is not None:
            await drain(attempt.replaces, looped=self._looped)
        transport = transports.to(attempt.endpoint, attempt.pick.started)
        extensions: Mapping[str, object] = request.extensions
        if attempt.expiry is not None:
            extensions = attempt_extensions(request, attempt.expiry)
        response = await transport.send(request, stream, extensions)
        attempt.status = status = response.status_code
        if 300 <= status < 400 and response.has_redirect_location:
            adapter.redirected(response, request, attempt.instance)
        if attempt.instance.path or adapter.added_path:
            adapter.logical_cookies(response, attempt.instance)
        if self._reports is not None:
            self._reports.record(attempt.endpoint, response.headers)
        if not isinstance(response.stream, httpx.ByteStream):
            if adapter.reads_at_once(request, response):
                answered = attempt.answered if adapter.first_byte else None
                await read(response, attempt.expiry, answered, looped=self._looped)
            else:
                body: Any = response.stream
                chunks = None
                if adapter.awaits_body(request, response):
                    chunks = await begun(body, attempt.expiry, looped=self._looped)
                response.stream = self._stream(body, attempt, transports, chunks)
                answers.append(response)
        return response

    @abstractmethod
    async def _sleep(self, pause: Pause) -> None:
        """Wait until the pause of a call is over."""

    @abstractmethod
    async def _race(self, call: Call[httpx.Response], send: Send) -> httpx.Response:
        """Carry out a call that may be hedged, and return its response."""

    def _shield(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager that protects its block from a cancellation."""
        return contextlib.nullcontext()


@shows(TransportOptions)
class Transport(_BalancedTransport, httpx.BaseTransport):
    """An httpx transport that balances requests:
    `httpx.Client(transport=lbclient.Transport(service))`.

    A transport can also serve one of several origins: `mounts={"http://orders":
    lbclient.Transport(service)}`. A transport does not change the Host of a request, unless an
    instance has its own scheme or Host. If the service's URL has a path, this path is put before
    the path of each request, and is removed from redirects and from the paths of cookies. A
    transport takes the arguments of `Balancer`, the arguments of `httpx.HTTPTransport` except
    `proxy` and `uds`, and some more.

    - `service`: the service to call, in any of the forms that `Client` takes.
    - `transport`: a function that makes your own transport for each instance, `instance ->
      httpx.BaseTransport`. The URLs of the requests that it gets contain an address of the instance
      that discovery has checked.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """

    _looped = False
    _stream = ResponseStream
    _transports: TransportPool

    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None:
        make = transport_factory(transport, options)
        self._adapter = adapter = HttpAdapter(service, options)
        self._transports = adapter.transports(TransportPool, make)
        self._begin_probes(make, looped=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to an instance, and retry it as the retry policy says."""
        try:
            self._handle(request).send(None)  # as `run_blocking` does, but with two calls fewer
        except StopIteration as end:
            response: httpx.Response = end.value
            return response
        raise RuntimeError(SUSPENDED)

    def close(self) -> None:
        """Wait up to `close_grace` seconds for calls under way, then end these calls and close
        every connection. Later requests raise RuntimeError.

        A call that waits (for a slot, or before a retry) ends with its last outcome, or with
        BalancerClosed if it has none. A call with an attempt in flight ends with the error of its
        connection.
        """
        run_blocking(self._close)

    async def _sleep(self, pause: Pause) -> None:
        sleep(pause)

    async def _race(self, call: Call[httpx.Response], send: Send) -> httpx.Response:
        def blocking(attempt: Attempt[httpx.Response]) -> httpx.Response:
            return run_blocking(lambda: send(attempt))

        return run(call, blocking, discard=httpx.Response.close)


@shows(TransportOptions)
class AsyncTransport(_BalancedTransport, httpx.AsyncBaseTransport):
    """A `Transport` for `httpx.AsyncClient`, on asyncio (also with uvloop) and trio.

    - `service`: the service to call, in any of the forms that `Client` takes.
    - `transport`: a function that makes your own transport for each instance, `instance ->
      httpx.AsyncBaseTransport`.
    """

    _looped = True
    _stream = AsyncResponseStream
    _transports: PerLoopTransports

    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None:
        make = async_transport_factory(transport, options)
        self._adapter = adapter = HttpAdapter(service, options)
        self._transports = PerLoopTransports(
            adapter.binding.pool, partial(adapter.transports, AsyncTransportPool, make)
        )
        if transport is None:  # probes run on threads, over lbclient's own connections
            self._begin_probes(transport_factory(None, options), looped=False)
        else:
            self._begin_probes(make, looped=True)

    # As in httpx, but not declared `async`: the method returns the coroutine.
    def handle_async_request(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: httpx.Request
    ) -> Coroutine[Any, Any, httpx.Response]:
        """Send a request to an instance, and retry it as the retry policy says."""
        return self._handle(request)  # not awaited here, which would need another coroutine

    async def aclose(self) -> None:
        """Like `Transport.close`. Other running event loops close their own connections soon."""
        await self._close()

    async def _sleep(self, pause: Pause) -> None:
        await asleep(pause)

    async def _race(self, call: Call[httpx.Response], send: Send) -> httpx.Response:
        return await arun(call, send, discard=httpx.Response.aclose)

    def _shield(self) -> anyio.CancelScope:
        return anyio.CancelScope(shield=True)
