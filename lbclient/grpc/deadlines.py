"""Interceptors for servers: the deadline that a caller sends also limits the calls that the server
makes."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from lbclient._internal import validation
from lbclient._internal.deadline import CURRENT, Block, Deadline
from lbclient.balancer.deadlines import begun

__all__ = ["AioDeadlineInterceptor", "DeadlineInterceptor"]

_NO_DEADLINE = 1e8
"""If the caller has set no deadline, gRPC's server reports that about this number of seconds, or
more, is left."""
Behaviour = Callable[[Any, Any], Any]


class _Deadlines:
    """Begins the deadlines of RPCs, and wraps the handlers of a server."""

    def __init__(self, max_seconds: float = 30.0) -> None:
        self._max_seconds = validation.seconds("max_seconds", max_seconds)

    def _deadline(self, context: Any) -> Deadline | None:
        """Begin the deadline of an RPC. Returns None if the caller has set no deadline."""
        left: float | None = context.time_remaining()
        if left is None or left > _NO_DEADLINE:
            return None
        return begun(min(left, self._max_seconds))

    def _wrapped(self, handler: Any, wrap: Callable[[Behaviour, bool], Behaviour]) -> Any:
        kind = f"{'stream' if handler.request_streaming else 'unary'}_" + (
            "stream" if handler.response_streaming else "unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behaviour = wrap(getattr(handler, kind), handler.response_streaming)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _on_a_thread(self, behaviour: Behaviour, streams: bool) -> Behaviour:
        def unary(request: Any, context: Any) -> Any:
            if (deadline := self._deadline(context)) is None:
                return behaviour(request, context)
            with _ended_early(deadline, context.add_callback), Block(deadline):
                return behaviour(request, context)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            if (deadline := self._deadline(context)) is None:
                yield from behaviour(request, context)
                return
            # All parts of the handler run in this context, so that the thread's own context does
            # not change.
            inner = contextvars.copy_context()
            deadline.outer = CURRENT.get()
            inner.run(CURRENT.set, deadline)
            with _ended_early(deadline, context.add_callback):
                responses = inner.run(lambda: iter(behaviour(request, context)))
                while (response := inner.run(next, responses, _END)) is not _END:
                    yield response

        return stream if streams else unary


_END = object()


@contextmanager
def _ended_early(
    deadline: Deadline, add_callback: Callable[[Callable[..., object]], object]
) -> Generator[None]:
    """End the deadline if the RPC ends before its handler, since then the caller has cancelled the
    RPC."""
    over = False

    def ended(_: object = None) -> None:
        if not over:
            deadline.end()

    add_callback(ended)
    try:
        yield
    finally:
        over = True
        deadline.lift()


class DeadlineInterceptor(_Deadlines, grpc.ServerInterceptor):
    """Reads the deadline of each RPC that a server of grpcio receives, and applies it to all calls
    that the handler of this RPC makes.

    It works like a block of `lbclient.deadline` that begins together with the handler. If the
    caller cancels the RPC, the deadline expires at once. Work that is done after the response has
    no deadline.

    - `max_seconds`: the longest deadline in seconds. A longer deadline is shortened.

    Raises ValueError or TypeError, naming the argument, if the argument is invalid.
    """

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Wrap the handler of an RPC."""
        handler = continuation(handler_call_details)
        return None if handler is None else self._wrapped(handler, self._on_a_thread)


class AioDeadlineInterceptor(_Deadlines, grpc.aio.ServerInterceptor):
    """A `DeadlineInterceptor` for servers of `grpc.aio`."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wrap the handler of an RPC."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self._wrapped(handler, self._in_a_task)

    def _in_a_task(self, behaviour: Behaviour, streams: bool) -> Behaviour:
        async def coroutine(request: Any, context: Any) -> Any:
            if (deadline := self._deadline(context)) is None:
                return await behaviour(request, context)
            with _ended_early(deadline, context.add_done_callback), Block(deadline):
                return await behaviour(request, context)

        async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
            if (deadline := self._deadline(context)) is None:
                async for response in behaviour(request, context):
                    yield response
                return
            with _ended_early(deadline, context.add_done_callback), Block(deadline):
                async for response in behaviour(request, context):
                    yield response

        if inspect.iscoroutinefunction(behaviour):
            return coroutine
        if inspect.isasyncgenfunction(behaviour):
            return generator
        return self._on_a_thread(behaviour, streams)
