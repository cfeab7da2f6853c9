"""gRPC over the balancer, for asyncio.

async with lbclient.grpc.aio.channel("grpc+srv://orders.example.com") as channel:
    order = await OrdersStub(channel).Get(OrderRequest(id=42), timeout=2.0)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

import grpc

from lbclient import protocol
from lbclient._internal import validation
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import described
from lbclient.endpoint.endpoint import Endpoint
from lbclient.grpc import bases
from lbclient.grpc.adapter import Adapter, ChannelArguments, Codes, Idempotent
from lbclient.grpc.aio_calls import (
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from lbclient.grpc.connectivity import Connectivity
from lbclient.grpc.deadlines import AioDeadlineInterceptor as DeadlineInterceptor
from lbclient.grpc.event_loops import AioRpc
from lbclient.grpc.options import ChannelOptions
from lbclient.grpc.rpc import BaseMultiCallable, BaseRpc
from lbclient.grpc.subchannels import (
    Method,
    SubChannel,
    SubChannels,
    claim_grpc,
    make_room,
    opened,
)

if TYPE_CHECKING:
    from lbclient.discovery.composite import Service

__all__ = ["BalancedChannel", "DeadlineInterceptor", "channel"]

_POLL = 0.1
"""Seconds between two checks of the connectivity."""
_NOWHERE = "ipv4:127.0.0.1:9"
"""The target of gRPC's own channel, which only calls the interceptors. This channel never
connects."""


def channel(
    service: Service,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: ChannelArguments = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    idempotent: Idempotent = (),
    codes: Codes = frozenset({"UNAVAILABLE"}),
    **balancing: Unpack[ChannelOptions],
) -> BalancedChannel:
    """Return a `grpc.aio.Channel` that spreads its RPCs over the instances of one service.

    The arguments are those of `lbclient.grpc.channel`.
    """
    given = validation.several("interceptors", interceptors, "interceptors of grpc.aio")
    for one in given:
        if not isinstance(one, grpc.aio.ClientInterceptor):
            raise TypeError(f"interceptors must contain interceptors of grpc.aio, not {one!r}")
    adapter = Adapter(
        service,
        credentials=credentials,
        options=options,
        idempotent=idempotent,
        codes=codes,
        balancing=balancing,
    )
    return BalancedChannel(adapter, given)


class MultiCallable(BaseMultiCallable):
    """The RPCs of one method."""

    rpc: ClassVar[type[BaseRpc]] = AioRpc


class UnaryUnary(MultiCallable, bases.AioUnaryUnary):
    """One request, one response."""

    kind: Any = UnaryUnaryCall

    def __call__(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Begin an RPC, and return its call."""
        return self.started(request, *arguments, **options)


class UnaryStream(MultiCallable, bases.AioUnaryStream):
    """One request, a stream of responses."""

    kind: Any = UnaryStreamCall

    def __call__(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Begin an RPC, and return its call."""
        return self.started(request, *arguments, **options)


class StreamUnary(MultiCallable, bases.AioStreamUnary):
    """A stream of requests, one response."""

    kind: Any = StreamUnaryCall

    def __call__(self, request_iterator: Any = None, *arguments: Any, **options: Any) -> Any:
        """Begin an RPC, and return its call."""
        return self.started(request_iterator, *arguments, **options)


class StreamStream(MultiCallable, bases.AioStreamStream):
    """A stream of requests, a stream of responses."""

    kind: Any = StreamStreamCall

    def __call__(self, request_iterator: Any = None, *arguments: Any, **options: Any) -> Any:
        """Begin an RPC, and return its call."""
        return self.started(request_iterator, *arguments, **options)


_KINDS: dict[str, Any] = {
    "unary_unary": UnaryUnary,
    "unary_stream": UnaryStream,
    "stream_unary": StreamUnary,
    "stream_stream": StreamStream,
}


class _Loop:
    """The objects of a channel that belong to one event loop."""

    def __init__(self, adapter: Adapter, interceptors: Sequence[Any], find: Find) -> None:
        self.subchannels = SubChannels(adapter.binding, adapter.open_on_loop)
        self.front: Any = None
        """gRPC's own channel, which calls the interceptors."""
        if interceptors:
            claim_grpc(on_loop=True)
            chain = [*interceptors, *(innermost(find) for innermost in _INNERMOST)]
            self.front = opened(grpc.aio.insecure_channel(_NOWHERE, interceptors=chain))


class BalancedChannel(grpc.aio.Channel):
    """A `grpc.aio.Channel` to all instances of one service. `lbclient.grpc.aio.channel` returns it.

    Connections belong to one event loop. In another event loop, the channel opens other
    connections.
    """

    def __init__(self, adapter: Adapter, interceptors: Sequence[Any]) -> None:
        self._adapter = adapter
        self._interceptors = interceptors
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._made: dict[tuple[Any, ...], MultiCallable] = {}
        self._by_path: dict[tuple[str, str], MultiCallable] = {}
        self._connectivity = Connectivity(adapter.balancer, adapter.binding)

    @property
    def balancer(self) -> Balancer:
        """The balancer of this channel, for example for its snapshot, to eject an instance, or to
        refresh discovery."""
        return self._adapter.balancer

    def __repr__(self) -> str:
        return described(self, self._adapter.binding)

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._of("unary_unary", *method, **options)

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._of("unary_stream", *method, **options)

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._of("stream_unary", *method, **options)

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._of("stream_stream", *method, **options)

    def _of(
        self,
        kind: str,
        path: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = False,  # as in gRPC
    ) -> Any:
        key = kind, path, request_serializer, response_deserializer, bool(_registered_method)
        known = self._made.get(key)
        if known is None:
            make_room(self._made)
            method = Method(path, kind, *key[2:])
            known = self._made[key] = _KINDS[kind](self._adapter, self._subchannel, method)
        self._by_path[kind, path] = known
        return _Intercepted(self._front, known) if self._interceptors else known

    def _find(self, kind: str, path: str) -> MultiCallable:
        """Return the multi-callable of a method that an interceptor names."""
        known = self._by_path.get((kind, path))
        if known is None:
            raise ValueError(f"an interceptor names {path}, of which this channel has no stub")
        return known

    def _subchannel(self, endpoint: Endpoint) -> SubChannel:
        """Return the sub-channel to an instance, in the running event loop."""
        return self._loop().subchannels.to(endpoint)

    def _loop(self) -> _Loop:
        running = asyncio.get_running_loop()
        known = self._loops.get(running)
        if known is None:
            for closed in [one for one in self._loops if one.is_closed()]:
                self._loops.pop(closed, None)
            known = self._loops[running] = _Loop(self._adapter, self._interceptors, self._find)
        return known

    def _front(self) -> Any:
        return self._loop().front

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # as in gRPC
        """Return the connectivity: READY while an instance is in rotation."""
        if try_to_connect:
            self._connectivity.connect()
        return self._connectivity.state()

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connectivity has changed."""
        self._refuse_if_closed()
        while self._connectivity.state() is last_observed_state:
            self._connectivity.attend()
            await asyncio.sleep(_POLL)

    async def channel_ready(self) -> None:
        """Wait until an instance accepts a connection."""
        self._refuse_if_closed()
        while not await asyncio.to_thread(self._connectivity.try_to_connect):
            await asyncio.sleep(_POLL)
            self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self._adapter.binding.closed:
            raise grpc.aio.UsageError(self._adapter.closed)

    async def close(self, grace: float | None = None) -> None:
        """Begin no more RPCs, wait `grace` seconds for the current RPCs, and then cancel those that
        have not ended."""
        self._connectivity.close()
        binding, loops = self._adapter.binding, list(self._loops.values())
        binding.refuse_calls()
        if grace:
            await protocol.asleep(protocol.Pause(grace, binding.idle()))
        binding.abandon_calls()
        self._adapter.close()
        for loop in loops:
            for one in loop.subchannels.take_all():
                await one.close()
            if loop.front is not None:
                await loop.front.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Intercepted:
    """The RPCs of one method, with interceptors. gRPC's own channel calls the interceptors. The
    last interceptor belongs to lbclient, and begins the RPC."""

    def __init__(self, front: Callable[[], Any], called: MultiCallable) -> None:
        self._front = front
        self._called = called

    def __call__(self, *request: Any, **options: Any) -> Any:
        """Begin an RPC, and return its call."""
        method = self._called.method
        made = getattr(self._front(), method.kind)(method.path)
        token = _called.set(self._called)  # gRPC calls the interceptors in a task that it begins
        try:
            return made(*request, **options)
        finally:
            _called.reset(token)


_called: ContextVar[MultiCallable | None] = ContextVar("lbclient_grpc_called", default=None)
"""The RPCs of the method that the caller has called, while the interceptors are called."""
Find = Callable[[str, Any], MultiCallable]
"""Returns the multi-callable of a method by its kind and path."""


class _Innermost:
    """The last interceptor of the chain: it begins the RPC."""

    kind: str

    def __init__(self, find: Find) -> None:
        self._find = find

    def begin(self, details: Any, request: Any) -> Any:
        """Begin the RPC with the changes that the interceptors have made."""
        path = details.method
        path = path.decode() if isinstance(path, bytes) else path
        called = _called.get()
        if called is None or called.method.path != path:  # an interceptor names another method
            called = self._find(self.kind, path)
        return called.started(
            request, details.timeout, details.metadata, details.credentials, details.wait_for_ready
        )


class _InnermostUnaryUnary(_Innermost, grpc.aio.UnaryUnaryClientInterceptor):
    kind = "unary_unary"

    async def intercept_unary_unary(
        self,
        continuation: Any,  # noqa: ARG002  # the RPC begins here
        client_call_details: Any,
        request: Any,
    ) -> Any:
        return self.begin(client_call_details, request)


class _InnermostUnaryStream(_Innermost, grpc.aio.UnaryStreamClientInterceptor):
    kind = "unary_stream"

    async def intercept_unary_stream(
        self,
        continuation: Any,  # noqa: ARG002  # the RPC begins here
        client_call_details: Any,
        request: Any,
    ) -> Any:
        return self.begin(client_call_details, request)


class _InnermostStreamUnary(_Innermost, grpc.aio.StreamUnaryClientInterceptor):
    kind = "stream_unary"

    async def intercept_stream_unary(
        self,
        continuation: Any,  # noqa: ARG002  # the RPC begins here
        client_call_details: Any,
        request_iterator: Any,
    ) -> Any:
        return self.begin(client_call_details, request_iterator)


class _InnermostStreamStream(_Innermost, grpc.aio.StreamStreamClientInterceptor):
    kind = "stream_stream"

    async def intercept_stream_stream(
        self,
        continuation: Any,  # noqa: ARG002  # the RPC begins here
        client_call_details: Any,
        request_iterator: Any,
    ) -> Any:
        return self.begin(client_call_details, request_iterator)


_INNERMOST = (
    _InnermostUnaryUnary,
    _InnermostUnaryStream,
    _InnermostStreamUnary,
    _InnermostStreamStream,
)
