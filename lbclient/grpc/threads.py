"""Channels for threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self, cast

import grpc

from lbclient import protocol
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import described
from lbclient.errors import DeadlineExceeded, LoadBalancingError
from lbclient.grpc import bases
from lbclient.grpc.adapter import Adapter
from lbclient.grpc.calls import Rpc, RpcCall, StreamCall
from lbclient.grpc.classifier import Answered
from lbclient.grpc.connectivity import Connectivity
from lbclient.grpc.errors import BalancingError
from lbclient.grpc.rpc import (
    IS_CLOSED,
    BaseMultiCallable,
    BaseRpc,
    is_from_server,
    is_waited_for,
    pause_until,
    time_for,
    with_trace,
)
from lbclient.grpc.subchannels import Method, SubChannels, make_room

__all__ = ["BalancedChannel"]


class MultiCallable(BaseMultiCallable):
    """The RPCs of one method."""

    rpc: ClassVar[type[BaseRpc]] = Rpc
    kind: Any = RpcCall

    def __init__(self, adapter: Adapter, subchannels: SubChannels, method: Method) -> None:
        super().__init__(adapter, subchannels.to, method)
        self._whole = self.load_reports is not None
        """True if each attempt must return its gRPC call together with the response."""


class UnaryUnary(MultiCallable, bases.UnaryUnary):
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,  # as in gRPC
        compression: Any = None,
    ) -> Any:
        """Send the request, and return the response."""
        send = partial(self._send, self._whole, request, metadata, credentials, compression)
        result = self._carry_out(send, timeout, wait_for_ready)
        return result.response if isinstance(result, Answered) else result

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,  # as in gRPC
        compression: Any = None,
    ) -> tuple[Any, grpc.Call]:
        """Send the request, and return the response and its call."""
        send = partial(self._send, True, request, metadata, credentials, compression)
        result = self._carry_out(send, timeout, wait_for_ready)
        return result.response, result.call

    def future(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Send the request, and return at once."""
        return self.started(request, *arguments, **options)

    def _carry_out(
        self,
        send: Callable[[protocol.Attempt[Any]], Any],
        timeout: float | None,
        wait_for_ready: bool | None,
    ) -> Any:
        """Carry out an RPC. With `wait_for_ready`, the RPC begins again until there is an
        instance."""
        ends = None if timeout is None else time.monotonic() + timeout
        call: protocol.Call[Any] | None = None
        while True:
            try:
                call = self.begin(timeout, None)
                result = protocol.run(call, send)
            except IS_CLOSED as error:
                if call is None or not self.closed():
                    raise
                raise BalancingError.closed(error) from error
            except (LoadBalancingError, grpc.RpcError) as error:
                if not (wait_for_ready and is_waited_for(error)):
                    if isinstance(error, LoadBalancingError):
                        raise BalancingError.of(error) from error
                    raise
                try:
                    pause = pause_until(ends)
                except DeadlineExceeded as over:
                    over.__cause__ = error
                    raise BalancingError.of(over) from over
            else:
                if isinstance(result, grpc.RpcError):
                    protocol.explain(result, call.info())
                    raise result
                return result
            protocol.sleep(pause)
            timeout = None if ends is None else ends - time.monotonic()

    def _send(
        self,
        whole: bool,  # bound by `partial`
        request: Any,
        metadata: Any,
        credentials: Any,
        compression: Any,
        attempt: protocol.Attempt[Any],
    ) -> Any:
        """Carry out one attempt. An error status from the server is returned as a result, not
        raised."""
        subchannel = self.subchannel(attempt.endpoint)
        call = subchannel.methods.get(self.method) or subchannel.method(self.method)
        expiry = attempt.expiry
        timeout = None if expiry is None else time_for(attempt)
        try:
            if self.hedged and expiry is not None:
                future = call.future(
                    request, timeout, with_trace(metadata), credentials, None, compression
                )
                expiry.interrupt = future.cancel
                try:
                    answered = Answered(future.result(), future)
                except grpc.FutureCancelledError:
                    raise future from None
                finally:
                    expiry.settle_interrupt()
            elif not whole:
                return call(request, timeout, with_trace(metadata), credentials, None, compression)
            else:
                answered = Answered(
                    *call.with_call(
                        request, timeout, with_trace(metadata), credentials, None, compression
                    )
                )
            if self.load_reports is not None:
                self.load_reports.record(attempt.endpoint, answered.call.trailing_metadata())
            return answered  # noqa: TRY300  # the shortest way
        except grpc.RpcError as error:
            if not is_from_server(attempt, error, subchannel):
                raise
            if error.code() is grpc.StatusCode.CANCELLED:
                raise
            if self.load_reports is not None:
                self.load_reports.record(attempt.endpoint, error.trailing_metadata())
            return error.with_traceback(None)


class UnaryStream(MultiCallable, bases.UnaryStream):
    """One request, a stream of responses."""

    kind: Any = StreamCall

    def __call__(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Send the request, and return the responses."""
        return self.started(request, *arguments, **options)


class StreamStream(MultiCallable, bases.StreamStream):
    """A stream of requests, a stream of responses."""

    kind: Any = StreamCall

    def __call__(self, request_iterator: Iterator[Any], *arguments: Any, **options: Any) -> Any:
        """Send the requests, and return the responses."""
        return self.started(request_iterator, *arguments, **options)


class StreamUnary(MultiCallable, bases.StreamUnary):
    """A stream of requests, one response."""

    def __call__(self, request_iterator: Iterator[Any], *arguments: Any, **options: Any) -> Any:
        """Send the requests, and return the response."""
        return self.with_call(request_iterator, *arguments, **options)[0]

    def with_call(
        self, request_iterator: Iterator[Any], *arguments: Any, **options: Any
    ) -> tuple[Any, grpc.Call]:
        """Send the requests, and return the response and its call."""
        call = self.future(request_iterator, *arguments, **options)
        try:
            return call.result(), call
        except BaseException:
            call.cancel()
            raise

    def future(self, request_iterator: Iterator[Any], *arguments: Any, **options: Any) -> Any:
        """Send the requests, and return at once."""
        return self.started(request_iterator, *arguments, **options)


_KINDS: dict[str, Any] = {
    "unary_unary": UnaryUnary,
    "unary_stream": UnaryStream,
    "stream_unary": StreamUnary,
    "stream_stream": StreamStream,
}


class _Direct:
    """The channel below the interceptors. Interceptors ask for the multi-callable of a method at
    each RPC, so the multi-callables are stored."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.subchannels = SubChannels(adapter.binding, adapter.open_blocking)
        self._made: dict[tuple[Any, ...], Any] = {}
        self.unary_unary = partial(self._of, "unary_unary")
        self.unary_stream = partial(self._of, "unary_stream")
        self.stream_unary = partial(self._of, "stream_unary")
        self.stream_stream = partial(self._of, "stream_stream")

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
            known = self._made[key] = _KINDS[kind](self._adapter, self.subchannels, method)
        return known


class BalancedChannel(grpc.Channel):
    """A `grpc.Channel` to all instances of one service. `lbclient.grpc.channel` returns it."""

    def __init__(self, adapter: Adapter, interceptors: Sequence[Any]) -> None:
        self._adapter = adapter
        self._direct = _Direct(adapter)
        self._front: Any = self._direct
        if interceptors:
            self._front = grpc.intercept_channel(cast("Any", self._direct), *interceptors)
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
        return self._front.unary_unary(*method, **options)

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._front.unary_stream(*method, **options)

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._front.stream_unary(*method, **options)

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """Return the multi-callable of a method."""
        return self._front.stream_stream(*method, **options)

    def subscribe(
        self,
        callback: Callable[[grpc.ChannelConnectivity], None],
        try_to_connect: bool | None = False,  # as in gRPC
    ) -> None:
        """Call `callback` with the connectivity, now and after each change."""
        self._connectivity.subscribe(callback, connect=bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Stop calling `callback`."""
        self._connectivity.unsubscribe(callback)

    def close(self) -> None:
        """Close all connections, and cancel all RPCs."""
        self._connectivity.close()
        self._adapter.binding.abandon_calls()
        self._adapter.close()
        for channel in self._direct.subchannels.take_all():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
