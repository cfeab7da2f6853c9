"""RPCs in an event loop of asyncio.

This works as on threads (see `calls.py`): when gRPC reports the end of an attempt, it is decided
once whether another attempt follows, and readers read from the current attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from lbclient import protocol
from lbclient._internal.blocking import run_blocking
from lbclient.errors import DeadlineExceeded, LoadBalancingError
from lbclient.grpc import bases
from lbclient.grpc.calls import AGAIN, Arguments, expired, is_waited_for, time_for, with_trace
from lbclient.grpc.classifier import Answered, Code, never_sent
from lbclient.grpc.errors import CANCELLED, AioBalancingError
from lbclient.grpc.replay import Message, SentRequests

if TYPE_CHECKING:
    from lbclient.grpc.aio import MultiCallable
    from lbclient.grpc.subchannels import SubChannel

__all__ = [
    "AioRpc",
    "Requests",
    "StreamStreamCall",
    "StreamUnaryCall",
    "UnaryStreamCall",
    "UnaryUnaryCall",
]

T = TypeVar("T")
EOF = grpc.aio.EOF
_FINISHED = "RPC already finished."
_HALF_CLOSED = 'RPC is half closed after calling "done_writing".'
_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."
_logger = logging.getLogger(__name__)


def _now(make: Callable[[], Coroutine[Any, Any, T]], otherwise: T) -> T:
    """Return the result of a coroutine of a call that has ended, and so does not wait."""
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


class Waiters:
    """The tasks of one event loop that wait for a change."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` is True."""
        while not ready():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._futures.add(future)
            try:
                await future
            finally:
                self._futures.discard(future)

    def wake(self) -> None:
        """Wake all tasks, so that they check again."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)


class Requests:
    """The requests of a stream. Each attempt reads them from the beginning."""

    def __init__(self, requests: Any, serializer: Callable[[Any], bytes] | None) -> None:
        self._serializer = serializer
        self._sent = SentRequests()
        self._waiters = Waiters()
        self._taking: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._attempt = 0
        self.written: bool = requests is None
        """True if the caller writes the requests, instead of an iterator."""
        self._iterator: Any = None
        if requests is not None:
            streams = isinstance(requests, AsyncIterable)
            self._iterator = aiter(requests) if streams else _asynchronous(requests)
        self._count = 0
        self._written_count = 0
        self._over = False

    def replayable(self) -> bool:
        """True if all requests that were read can be sent again."""
        return self._sent.replayable

    @property
    def closed(self) -> bool:
        """True if there are no more requests."""
        return self._sent.over

    def commit(self) -> None:
        """Stop storing requests, since there is no other attempt."""
        self._sent.commit()

    def end(self) -> None:
        """Stop reading requests, since the RPC is over."""
        self._over = True
        if self._taking is not None:
            self._taking.cancel()
        self._waiters.wake()

    def for_attempt(self) -> AsyncIterator[Message]:
        """Return the requests for a new attempt, and end those of the previous attempt."""
        self._attempt += 1
        self._written_count = 0
        self._waiters.wake()
        return self._from_the_beginning(self._attempt)

    async def _from_the_beginning(self, attempt: int) -> AsyncIterator[Message]:
        index = 0
        while await self._has(index, attempt):
            yield self._sent.get(index)
            index += 1
            self._written_count = index
            self._waiters.wake()

    async def _has(self, index: int, attempt: int) -> bool:
        while attempt == self._attempt and not self._over:
            if self._sent.has(index):
                return True
            if self._error is not None:
                raise self._error
            if self._sent.over:
                return False
            if self._iterator is not None and self._taking is None:
                self._taking = asyncio.get_running_loop().create_task(self._take())
            await self._waiters.until(
                lambda: (
                    self._sent.has(index)
                    or self._sent.over
                    or self._over
                    or self._error is not None
                    or attempt != self._attempt
                    or (self._iterator is not None and self._taking is None)
                )
            )
        return False

    async def _take(self) -> None:
        """Read the next request of the caller's iterator. This belongs to no single attempt."""
        try:
            self._sent.append(Message(await anext(self._iterator), self._serializer))
        except StopAsyncIteration:
            self._sent.over = True
        except BaseException as error:  # noqa: BLE001  # raised where gRPC takes the requests
            self._error = error
        finally:
            self._taking = None
            self._waiters.wake()

    async def write(self, request: Any) -> None:
        """Send a request that the caller writes. Returns once it has been passed to gRPC."""
        if not self.written:
            raise grpc.aio.UsageError(_MIXED)
        if self._over:
            raise asyncio.InvalidStateError(_FINISHED)
        if self._sent.over:
            raise asyncio.InvalidStateError(_HALF_CLOSED)
        index, self._count = self._count, self._count + 1
        self._sent.append(Message(request, self._serializer))
        self._waiters.wake()
        await self._waiters.until(lambda: self._written_count > index or self._over)

    async def done_writing(self) -> None:
        """End the requests that the caller writes."""
        if not self.written:
            raise grpc.aio.UsageError(_MIXED)
        self._sent.over = True
        self._waiters.wake()


async def _asynchronous(requests: Iterable[T]) -> AsyncIterator[T]:
    for request in requests:
        yield request


class AioRpc:
    """One RPC with all its attempts. The caller has only a call, and may drop it."""

    def __init__(
        self,
        owner: MultiCallable,
        request: Any,
        timeout: float | None,
        arguments: Arguments,
        *,
        wait_for_ready: bool,
    ) -> None:
        self._owner = owner
        self.requests: Requests | None = owner.requests(request)
        self._request = request
        self._arguments = arguments
        self._wait_for_ready = wait_for_ready
        self._run: protocol.CallbackRun[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        """The task that carries out a call that may be hedged."""
        self._timer: asyncio.TimerHandle | None = None
        """With `wait_for_ready`, the timer that begins the RPC again."""
        self._classifying: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._callbacks: list[Callable[[], object]] = []
        self._waiters = Waiters()
        self._attempt: protocol.Attempt[Any] | None = None
        self._committed = False
        self.inner: Any = None
        """The gRPC call of the attempt that is under way or is the outcome of the RPC."""
        self.ends: float | None = None if timeout is None else time.monotonic() + timeout
        """The time of the deadline."""
        self.final: Any = None
        """The gRPC call or the error that is the outcome of the RPC, once it is known."""
        self.over: bool = False
        self.cancelled: bool = False

    def start(self) -> None:
        """Begin the RPC, or begin it again."""
        self._timer = None
        replayable = None if self.requests is None else self.requests.replayable
        left = None if self.ends is None else self.ends - time.monotonic()
        try:
            call = self._owner.begin(left, replayable)
            if self._owner.hedged:
                self._task = self._loop.create_task(self._race(call))
                self._task.add_done_callback(self._raced)
            else:
                self._run = protocol.start(call, self._begin, self._decided, protocol.asleep_until)
        except LoadBalancingError as error:
            self._conclude(AioBalancingError.of(error))

    def _restart(self) -> None:
        """Begin the RPC again, after a pause. Nobody else would handle an exception here."""
        try:
            self.start()
        except Exception:  # noqa: BLE001  # the channel was closed
            self._conclude(AioBalancingError.of(_cancelled()))

    def _begun(self, attempt: protocol.Attempt[Any], sub: SubChannel) -> Any:
        metadata, credentials, compression = self._arguments
        request = self._request if self.requests is None else self.requests.for_attempt()
        return sub.method(self._owner.method)(
            request,
            timeout=time_for(attempt),
            metadata=with_trace(metadata),
            credentials=credentials,
            compression=compression,
        )

    def _begin(self, run: protocol.CallbackRun[Any], attempt: protocol.Attempt[Any]) -> None:
        self._run, self._attempt = run, attempt
        sub = self._owner.subchannels().to(attempt.endpoint)
        inner = self.inner = self._begun(attempt, sub)
        inner.add_done_callback(partial(self._ended, attempt, inner, sub))
        self._waiters.wake()

    def _ended(
        self, attempt: protocol.Attempt[Any], inner: Any, sub: SubChannel, _: object = None
    ) -> None:
        """Handle the end of an attempt. gRPC calls this in the event loop."""
        code = _now(inner.code, grpc.StatusCode.UNKNOWN)
        self.cancelled = self.cancelled or inner.cancelled()
        good = code is grpc.StatusCode.OK
        if (reports := self._owner.load_reports) is not None:
            reports.record(attempt.endpoint, _now(inner.trailing_metadata, grpc.aio.Metadata()))
        if self._committed:
            attempt.finish(None if good else error_of(inner))
            self._end()
            return
        run = self._run
        if run is None or attempt is not self._attempt:
            return
        attempt.status = Code(code)
        if good and self._owner.classifies_responses:
            self._classifying = asyncio.ensure_future(self._classify(attempt, inner))
        elif good:
            run.finish(attempt, Answered(None, inner))
        else:
            error = error_of(inner)
            if self._is_error(attempt, error, sub):
                run.finish(attempt, error=error)
            else:
                run.finish(attempt, error)

    def _is_error(
        self, attempt: protocol.Attempt[Any], error: grpc.aio.AioRpcError, sub: SubChannel
    ) -> bool:
        """True if this status does not come from the server."""
        if never_sent(error, connected=sub.connected):
            sub.failed = True
            return True
        return self.cancelled or expired(attempt, error)

    async def _classify(self, attempt: protocol.Attempt[Any], inner: Any) -> None:
        """Pass the response to the user's classifier."""
        response = await inner if self._owner.unary else None
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
            error = AioBalancingError.of(_cancelled())
        except Exception as raised:  # noqa: BLE001  # raised to the caller
            error = raised
        if isinstance(result, grpc.RpcError):
            protocol.explain(result, call.info())
        self._task = None
        self._decided(outcome)

    def _raced(self, task: asyncio.Task[None]) -> None:
        """End the RPC if its task was cancelled before it began, or by others than the caller."""
        if task.cancelled() and not self.over:
            self._conclude(AioBalancingError.of(_cancelled()))

    async def _send(self, attempt: protocol.Attempt[Any]) -> Any:
        sub = self._owner.subchannels().to(attempt.endpoint)
        inner = self._begun(attempt, sub)
        response = asyncio.ensure_future(_response_of(inner))
        try:
            # gRPC's calls raise a CancelledError of their own, which anyio does not know.
            await asyncio.wait([response])
            if response.cancelled():  # by gRPC, since the channel was closed
                raise error_of(inner)
            return Answered(response.result(), inner)
        except asyncio.CancelledError:
            inner.cancel()
            raise
        except grpc.aio.AioRpcError as error:
            attempt.status = Code(error.code())
            if self._is_error(attempt, error, sub):
                raise
            return error.with_traceback(None)
        finally:
            if self._owner.load_reports is not None and inner.done():
                metadata = _now(inner.trailing_metadata, grpc.aio.Metadata())
                self._owner.load_reports.record(attempt.endpoint, metadata)

    def _decided(self, result: Callable[[], Any]) -> None:
        """Handle the outcome, which is known at the end, or at the first message of a stream."""
        try:
            outcome = result()
        except LoadBalancingError as error:
            outcome = AioBalancingError.of(error)
        except Exception as error:  # noqa: BLE001  # raised to the caller
            outcome = error
        if isinstance(outcome, Answered):
            self.final = self.inner = outcome.call
            if self._committed:
                self._waiters.wake()
            else:
                self._end()
            return
        if self.cancelled:
            self._conclude(AioBalancingError.of(_cancelled()))
            return
        if self._wait_for_ready and is_waited_for(outcome):
            left = None if self.ends is None else self.ends - time.monotonic()
            if left is None or left > 0:
                seconds = AGAIN if left is None else min(AGAIN, left)
                self._timer = self._loop.call_later(seconds, self._restart)
                return
            outcome = AioBalancingError.of(DeadlineExceeded("no instance was ready in time"))
        run = self._run
        if run is not None and isinstance(outcome, grpc.aio.AioRpcError):
            info = run.call.info()
            if info.attempts and not hasattr(outcome, "__notes__"):
                protocol.explain(outcome, info)
        self._conclude(outcome)

    def _conclude(self, error: Any) -> None:
        self.final = error
        self._end()

    def _end(self) -> None:
        self.over = True
        if self.requests is not None:
            self.requests.end()
        callbacks, self._callbacks = self._callbacks, []
        self._waiters.wake()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _logger.exception("a callback of an RPC failed")

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` is True."""
        await self._waiters.until(ready)

    async def outcome(self) -> Any:
        """Wait for the end, and return the call or the error that is the outcome."""
        await self.wait(lambda: self.over)
        return self.final

    async def current(self) -> Any:
        """Wait for an attempt, and return its call; None if the RPC ended without an attempt."""
        await self.wait(lambda: self.inner is not None or self.over)
        return self.inner

    async def stands(self, inner: Any) -> bool:
        """Wait until it is known what follows this attempt. False if another attempt follows."""
        await self.wait(lambda: self.final is not None or self.inner is not inner)
        return self.inner is inner

    async def commit(self, inner: Any, holder: object) -> bool:
        """Commit to this attempt: the caller gets a part of it. False if it was replaced."""
        if self._committed:
            return True
        if self.inner is not inner or self._run is None or self._attempt is None:
            return False
        self._committed = True
        if self._run.finish(self._attempt, Answered(None, inner), holder=holder):
            if self.requests is not None:
                self.requests.commit()
            return True
        self._committed = False
        return await self.stands(inner) and self.final is inner

    def cancel(self) -> bool:
        """Cancel the RPC. Returns False if it is over."""
        if self.over or self.cancelled:
            return False
        self.cancelled = True
        if self._task is not None:
            self._task.cancel()
        if self._run is not None:
            self._run.cancel(_cancelled())
        if self.inner is not None:
            self.inner.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._conclude(AioBalancingError.of(_cancelled()))
        return True

    def drop(self) -> None:
        """Like `cancel`, but for a finalizer, which runs on any thread and must take no lock."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.cancel)

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` at the end of the RPC, or now if the RPC is over."""
        if self.over:
            callback()
        else:
            self._callbacks.append(callback)


async def _response_of(inner: Any) -> Any:
    return await inner


class _Cancelled(LoadBalancingError):
    """The caller has cancelled the RPC."""


def _cancelled() -> Exception:
    return _Cancelled(CANCELLED)


class _Call(grpc.aio.Call):
    """The common part of all kinds of RPC."""

    def __init__(self, rpc: AioRpc) -> None:
        self._rpc = rpc

    def __del__(self) -> None:
        rpc = getattr(self, "_rpc", None)
        if rpc is not None and not rpc.over:
            rpc.drop()  # as gRPC cancels an RPC that its caller has dropped

    def __repr__(self) -> str:
        return repr(self._rpc.final) if self._rpc.over else f"<{type(self).__name__} under way>"

    def cancel(self) -> bool:
        """Cancel the RPC. Returns False if it is over."""
        return self._rpc.cancel()

    def cancelled(self) -> bool:
        """True if the RPC was cancelled."""
        return self._rpc.cancelled

    def done(self) -> bool:
        """True once the RPC is over."""
        return self._rpc.over or self._rpc.cancelled

    def time_remaining(self) -> float | None:
        """The seconds until the deadline; None if there is no deadline."""
        ends = self._rpc.ends
        return None if ends is None else max(0.0, ends - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with this object at the end of the RPC, or now if the RPC is over."""
        self._rpc.add_callback(partial(callback, self))

    async def initial_metadata(self) -> Any:
        """Wait for the initial metadata. After that there is no other attempt."""
        rpc = self._rpc
        while (inner := await rpc.current()) is not None:
            metadata = await inner.initial_metadata()
            if not inner.done():
                if await rpc.commit(inner, self):
                    return metadata
            elif await rpc.stands(inner):
                break
        return await _read_from(await rpc.outcome(), "initial_metadata")

    async def trailing_metadata(self) -> Any:
        """Wait for the end, and return the trailing metadata."""
        return await self._of_outcome("trailing_metadata")

    async def code(self) -> Any:
        """Wait for the end, and return the status."""
        return await self._of_outcome("code")

    async def details(self) -> Any:
        """Wait for the end, and return the details of the status."""
        return await self._of_outcome("details")

    async def debug_error_string(self) -> Any:
        """Wait for the end, and return gRPC's debug text."""
        return await self._of_outcome("debug_error_string")

    async def wait_for_connection(self) -> None:
        """Wait until an attempt is connected. Raises the error if the RPC has ended with one."""
        rpc = self._rpc
        while (inner := await rpc.current()) is not None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await inner.wait_for_connection()
                return
            if await rpc.stands(inner):
                break
        self._raise(await rpc.outcome())

    async def _of_outcome(self, name: str) -> Any:
        return await _read_from(await self._rpc.outcome(), name)

    def _raise(self, final: Any) -> None:
        """Raise the error if the outcome is an error."""
        if self._rpc.cancelled:
            raise asyncio.CancelledError
        if isinstance(final, BaseException):
            raise final


async def _read_from(final: Any, name: str) -> Any:
    """Call a method of a gRPC call, whose methods are coroutines, or of an error."""
    if isinstance(final, AioBalancingError) and isinstance(final.__cause__, _Cancelled):
        final = grpc.aio.AioRpcError(
            grpc.StatusCode.CANCELLED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(),
            CANCELLED,
            CANCELLED,
        )
    found = getattr(final, name)()
    return await found if isinstance(found, Coroutine) else found


class _UnaryResponse(_Call):
    """An RPC with one response. Await it to get the response."""

    def __await__(self) -> Generator[Any, None, Any]:
        rpc = self._rpc
        try:
            while True:
                inner = rpc.inner
                if inner is None:
                    inner = yield from rpc.current().__await__()
                    if inner is None:
                        break
                try:
                    response = yield from inner.__await__()
                except grpc.aio.AioRpcError:
                    if (yield from rpc.stands(inner).__await__()):
                        break
                else:
                    if rpc.final is inner or (
                        (yield from rpc.stands(inner).__await__()) and rpc.final is inner
                    ):
                        return response
                    if rpc.inner is inner:
                        break
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        self._raise(rpc.final)
        raise AssertionError("an RPC without an outcome")


class _StreamResponse(_Call):
    """An RPC with a stream of responses."""

    def __init__(self, rpc: AioRpc) -> None:
        super().__init__(rpc)
        self._messages: AsyncIterator[Any] | None = None
        self._reads = False

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._reads:
            raise grpc.aio.UsageError(_MIXED)
        if self._messages is None:
            self._messages = self._each()
        return self._messages

    async def read(self) -> Any:
        """Return the next response, or `grpc.aio.EOF`."""
        if self._messages is not None:
            raise grpc.aio.UsageError(_MIXED)
        self._reads = True
        return await self._read()

    async def _each(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not EOF:
            yield message

    async def _read(self) -> Any:  # noqa: C901  # each way in which an attempt can go on
        rpc = self._rpc
        try:
            while (inner := await rpc.current()) is not None:
                try:
                    message = await inner.read()
                except grpc.aio.AioRpcError:
                    if await rpc.stands(inner):
                        if rpc.final is inner:
                            raise
                        break
                else:
                    if message is not EOF:
                        if await rpc.commit(inner, self):
                            return message
                    elif await rpc.stands(inner):
                        if rpc.final is inner:
                            return EOF
                        break
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        self._raise(rpc.final)
        raise AssertionError("an RPC without an outcome")


class _StreamRequest(_Call):
    """An RPC with a stream of requests."""

    async def write(self, request: Any) -> None:
        """Send a request."""
        rpc = self._rpc
        if rpc.over:
            self._raise(rpc.final)
        if rpc.requests is not None:
            try:
                await rpc.requests.write(request)
            except asyncio.CancelledError:
                rpc.cancel()
                raise
        if rpc.over and rpc.requests is not None:
            self._raise(rpc.final)

    @property
    def _done_writing_flag(self) -> bool:
        """The interceptors of gRPC read this attribute."""
        return self._rpc.requests is not None and self._rpc.requests.closed

    async def done_writing(self) -> None:
        """End the requests."""
        if self._rpc.requests is not None:
            await self._rpc.requests.done_writing()


class UnaryUnaryCall(_UnaryResponse, bases.AioUnaryUnaryCall):
    """One request, one response."""


class UnaryStreamCall(_StreamResponse, bases.AioUnaryStreamCall):
    """One request, a stream of responses."""


class StreamUnaryCall(_StreamRequest, _UnaryResponse, bases.AioStreamUnaryCall):
    """A stream of requests, one response."""


class StreamStreamCall(_StreamRequest, _StreamResponse, bases.AioStreamStreamCall):
    """A stream of requests, a stream of responses."""
