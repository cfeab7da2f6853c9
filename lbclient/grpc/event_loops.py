"""RPCs in an event loop of asyncio. See `rpc.py`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import grpc

from lbclient import protocol
from lbclient._internal.blocking import run_blocking
from lbclient.grpc.aio_replay import Requests, Waiters
from lbclient.grpc.classifier import Answered, Code
from lbclient.grpc.errors import CANCELLED, AioBalancingError
from lbclient.grpc.rpc import BaseMultiCallable, BaseRpc, is_from_server, with_trace
from lbclient.grpc.subchannels import SubChannel

__all__ = ["AioRpc"]

T = TypeVar("T")


def _now(make: Callable[[], Coroutine[Any, Any, T]], otherwise: T) -> T:
    """Return the result of a coroutine that does not wait, since its call has ended."""
    try:
        return run_blocking(make)
    except RuntimeError:
        return otherwise


def error_of(inner: Any) -> grpc.aio.AioRpcError:
    """Return the error of an attempt that has ended."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        _now(inner.code, grpc.StatusCode.UNKNOWN),
        _now(inner.initial_metadata, nothing),
        _now(inner.trailing_metadata, nothing),
        details=_now(inner.details, ""),
        debug_error_string=_now(inner.debug_error_string, ""),
    )


class AioRpc(BaseRpc):
    """One RPC in an event loop."""

    _errors = AioBalancingError
    _rest = staticmethod(protocol.asleep_until)

    requests: Requests | None

    def __init__(
        self, owner: BaseMultiCallable, request: Any, *arguments: Any, wait_for_ready: bool
    ) -> None:
        super().__init__(owner, request, *arguments, wait_for_ready=wait_for_ready)
        if owner.streams_requests:
            self.requests = Requests(request, owner.serializer)
        self._task: asyncio.Task[None] | None = None
        """The task that carries out a call that may be hedged."""
        self._classifying: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        """The timer of `attempt_timeout`."""
        self._loop = asyncio.get_running_loop()
        self._waiters = Waiters()

    def _carry_out(self, call: protocol.Call[Any]) -> None:
        if self._owner.hedged:
            self._task = self._loop.create_task(self._race(call))
            self._task.add_done_callback(self._raced)
        else:
            super()._carry_out(call)

    def _begun(self, attempt: protocol.Attempt[Any], subchannel: SubChannel) -> Any:
        metadata, credentials, compression = self._arguments
        request = self._request if self.requests is None else self.requests.for_attempt()
        return subchannel.method(self._owner.method)(
            request,
            timeout=self._time_for(attempt),
            metadata=with_trace(metadata),
            credentials=credentials,
            compression=compression,
        )

    def _begin(self, attempt: protocol.Attempt[Any]) -> None:
        subchannel = self._owner.subchannel(attempt.endpoint)
        inner = self._begun(attempt, subchannel)
        self._became(attempt, inner, subchannel)
        inner.add_done_callback(partial(self._ended, attempt, inner, subchannel))

    def _ended(
        self, attempt: protocol.Attempt[Any], inner: Any, subchannel: SubChannel, _: object
    ) -> None:
        """Handle the end of an attempt. gRPC calls this method in the event loop."""
        code = _now(inner.code, grpc.StatusCode.UNKNOWN)
        good = code is grpc.StatusCode.OK
        here = code is grpc.StatusCode.CANCELLED and _now(inner.details, "") == CANCELLED
        if here and inner is not self._timed_out:
            self.cancelled = True
        if (reports := self._owner.load_reports) is not None:
            reports.record(attempt.endpoint, _now(inner.trailing_metadata, grpc.aio.Metadata()))
        if self._committed:
            self._complete(attempt, inner, None if good else error_of(inner))
        elif not good:
            self._failed(attempt, inner, subchannel, error_of(inner))
        elif self._run is not None:
            attempt.status = Code(code)
            if self._owner.classifies_responses:
                self._classifying = asyncio.ensure_future(self._classify(attempt, inner))
            else:
                self._run.finish(attempt, Answered(None, inner))

    async def _classify(self, attempt: protocol.Attempt[Any], inner: Any) -> None:
        """Pass the response to the user's classifier."""
        response = None if self._owner.streams_responses else await inner
        if self._run is not None:
            self._run.finish(attempt, Answered(response, inner))

    async def _race(self, call: protocol.Call[Any]) -> None:
        """Carry out a call that may be hedged."""

        def outcome() -> Any:
            if error is not None:
                raise error
            return result

        result: Any = None
        error: Exception | None = None
        try:
            result = await protocol.arun(call, self._send)
        except asyncio.CancelledError:
            if not self.cancelled:
                raise
            error = AioBalancingError.cancelled_by_caller()
        except Exception as raised:  # noqa: BLE001  # raised to the caller
            error = raised
        self._task = None
        self._decided(outcome)

    def _raced(self, task: asyncio.Task[None]) -> None:
        """End the RPC if its task was cancelled before the task began, or by other code than the
        caller."""
        if task.cancelled() and not self.over:
            self._conclude(AioBalancingError.cancelled_by_caller())

    async def _send(self, attempt: protocol.Attempt[Any]) -> Any:
        subchannel = self._owner.subchannel(attempt.endpoint)
        inner = self._begun(attempt, subchannel)
        response = asyncio.ensure_future(_outcome_of(inner))
        try:
            # The calls of gRPC raise CancelledErrors of their own, which anyio does not handle.
            await asyncio.wait([response])
        except asyncio.CancelledError:
            inner.cancel()
            raise
        finally:
            if self._owner.load_reports is not None and inner.done():
                metadata = _now(inner.trailing_metadata, grpc.aio.Metadata())
                self._owner.load_reports.record(attempt.endpoint, metadata)
        # gRPC cancels a call if the channel is closed.
        outcome = error_of(inner) if response.cancelled() else response.result()
        if not isinstance(outcome, grpc.aio.AioRpcError):
            return Answered(outcome, inner)
        if not is_from_server(attempt, outcome, subchannel) or self.cancelled:
            raise outcome
        return outcome.with_traceback(None)

    def _end(self) -> None:
        self.over = True
        self._stop_timer()
        if self.requests is not None:
            self.requests.end()
        callbacks, self._callbacks = self._callbacks, []
        self._notify(callbacks)

    def _wake(self) -> None:
        self._waiters.wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def outcome(self) -> Any:
        """Wait for the end, and return the call or the error that is the outcome."""
        await self._waiters.until(lambda: self.over)
        return self.final

    async def current(self) -> Any:
        """Wait for an attempt, and return its call; None if the RPC ended without an attempt."""
        if not self._committed:
            await self._waiters.until(lambda: self.inner is not None or self.over)
            self._time_message(self.inner)
        return self.inner

    def _set_timer(self, inner: Any, seconds: float) -> None:
        self._stop_timer()
        due = time.monotonic() + seconds
        self._timer = self._loop.call_later(seconds, self._time_out, inner, due)

    async def read(self, inner: Any) -> Any:
        """Read a message from an attempt. Returns EOF if `attempt_timeout` has ended the attempt.

        A gRPC call that was cancelled raises the same error as a task that was cancelled. So
        `_timed_out` says which of them was cancelled.
        """
        if self._committed:
            return await inner.read()
        task = asyncio.current_task()
        cancellations = 0 if task is None else task.cancelling()
        try:
            return await inner.read()
        except asyncio.CancelledError:
            if inner is not self._timed_out or (task and task.cancelling() > cancellations):
                raise
            return grpc.aio.EOF

    async def connects(self, inner: Any) -> bool:
        """Wait until an attempt is connected. Returns False if the attempt has ended before that.

        gRPC's own method does not notice the end of an attempt that sends a stream of requests.
        """
        connected = asyncio.ensure_future(_is_connected(inner))
        connected.add_done_callback(lambda _: self._wake())
        try:
            await self._waiters.until(
                lambda: connected.done() or self.over or self.inner is not inner
            )
        finally:
            connected.cancel()
        return connected.done() and not connected.cancelled() and connected.result()

    async def stands(self, inner: Any) -> bool:
        """Wait until it is known whether another attempt follows this attempt. Returns False if
        another attempt follows."""
        await self._waiters.until(lambda: self.over or self.inner is not inner)
        return self.inner is inner

    async def commit(self, inner: Any, holder: object) -> bool:
        """Decide that no other attempt follows, since the caller gets a part of the response of
        this attempt. Returns False if another attempt has already replaced this attempt."""
        if self._committed:
            return True
        if self._commits(inner, holder):
            self._stop_timer()
            return True
        return await self.stands(inner) and self._came_in_time(inner)

    def cancel(self) -> bool:
        """Cancel the RPC. Returns False if it is over."""
        if not super().cancel():
            return False
        if self._task is not None:
            self._task.cancel()
        return True

    def drop(self) -> None:
        """Like `cancel`, but for a finalizer, which runs on any thread and must take no lock."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.cancel)


async def _outcome_of(inner: Any) -> Any:
    """Return the response of a call, or its error. The error is not raised, since asyncio would log
    an error that is never asked for."""
    try:
        return await inner
    except grpc.aio.AioRpcError as error:
        return error


async def _is_connected(inner: Any) -> bool:
    try:
        await inner.wait_for_connection()
    except grpc.aio.AioRpcError:
        return False
    return True
