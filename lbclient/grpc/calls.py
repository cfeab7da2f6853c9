"""RPCs that return before they have an outcome, on threads: futures and streams.

Each attempt is a gRPC call. When gRPC reports the end of an attempt, on a thread of the
sub-channel, it is decided once whether another attempt follows. The code that reads responses never
decides this. A reader reads from the current attempt. The first message is passed on only if
another attempt has not replaced this attempt meanwhile, so no message is delivered twice.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from lbclient import protocol
from lbclient.errors import (
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
    Throttled,
)
from lbclient.grpc import bases
from lbclient.grpc.classifier import Answered, Code, mark_expired, never_sent, was_unsent
from lbclient.grpc.errors import CANCELLED, AioBalancingError, BalancingError

if TYPE_CHECKING:
    from lbclient.grpc.replay import Replay
    from lbclient.grpc.subchannels import SubChannel
    from lbclient.grpc.threads import MultiCallable

__all__ = [
    "AGAIN",
    "Arguments",
    "Rpc",
    "RpcCall",
    "StreamCall",
    "expired",
    "is_waited_for",
    "time_for",
    "with_trace",
]

Arguments = tuple[Any, Any, Any]
"""Metadata, credentials and compression of one RPC."""
AGAIN = 0.1
"""Seconds after which a call with `wait_for_ready` looks for an instance again."""
_EARLY = 0.005
"""gRPC's timers may fire this many seconds earlier than ours."""

_logger = logging.getLogger(__name__)


def with_trace(metadata: Any) -> Any:
    """Add the headers that tell the server which span calls it."""
    headers = protocol.propagation()
    return (*(metadata or ()), *headers.items()) if headers else metadata


def is_waited_for(outcome: object) -> bool:
    """True for an outcome after which a call with `wait_for_ready` waits for an instance."""
    if isinstance(outcome, BalancingError | AioBalancingError):
        outcome = outcome.__cause__
    if isinstance(outcome, Throttled | DeadlineExceeded):
        return False
    return isinstance(outcome, DiscoveryError | NoInstanceAvailable) or was_unsent(outcome)


def time_for(attempt: protocol.Attempt[Any]) -> float | None:
    """The time limit of an attempt in seconds; None if there is no limit."""
    if attempt.expiry is None or (left := attempt.expiry.left()) == math.inf:
        return None
    return left


def expired(attempt: protocol.Attempt[Any], error: grpc.RpcError) -> bool:
    """True if our own deadline ended the attempt. Then the error is marked for the classifier."""
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or attempt.expiry is None:
        return False
    if attempt.expiry.left() >= _EARLY:
        return False
    mark_expired(error)
    return True


def _cancelled(details: str = CANCELLED) -> BalancingError:
    return BalancingError(grpc.StatusCode.CANCELLED, details)


class Rpc:
    """One RPC with all its attempts. The caller has only an `RpcCall`, and may drop it."""

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
        self._replay: Replay | None = owner.replay(request)
        self._request = request
        self._arguments = arguments
        self._wait_for_ready = wait_for_ready
        self._run: protocol.CallbackRun[Any] | None = None
        self._callbacks: list[Callable[[], object]] | None = []
        self._waiters: deque[queue.SimpleQueue[None]] = deque()
        self._context = contextvars.copy_context() if wait_for_ready else None
        """The context in which the RPC may begin again."""
        self._lock = threading.RLock()
        """Held while an attempt is chosen for the caller, and while that attempt ends."""
        self._current: tuple[protocol.Attempt[Any], Any] | None = None
        """The attempt that is under way or is the outcome of the RPC, and its gRPC call."""
        self._committed = False
        self.ends: float | None = None if timeout is None else time.monotonic() + timeout
        """The time of the deadline."""
        self.final: Any = None
        """The gRPC call or the error that is the outcome of the RPC, once it is known."""
        self.over: bool = False
        self.cancelled: bool = False

    def start(self) -> None:
        """Begin the RPC, or begin it again."""
        replayable = None if self._replay is None else self._replay.replayable
        left = None if self.ends is None else self.ends - time.monotonic()
        try:
            call = self._owner.begin(left, replayable)
            self._run = protocol.start(call, self._begin, self._decided)
        except LoadBalancingError as error:
            self._conclude(BalancingError.of(error))

    def _restart(self) -> None:
        """Begin the RPC again, after a pause. Nobody else would handle an exception here."""
        if self.cancelled:
            self._conclude(_cancelled())
            return
        try:
            (self._context or contextvars.copy_context()).run(self.start)
        except Exception:  # noqa: BLE001  # the channel was closed
            self._conclude(_cancelled("the channel is closed"))

    def _begin(self, run: protocol.CallbackRun[Any], attempt: protocol.Attempt[Any]) -> None:
        self._run = run
        sub = self._owner.subchannels.to(attempt.endpoint)
        metadata, credentials, compression = self._arguments
        timeout = time_for(attempt)
        request = self._request if self._replay is None else iter(self._replay)
        begin = self._owner.starter(sub)
        inner = begin(request, timeout, with_trace(metadata), credentials, None, compression)
        self._current = attempt, inner
        self._wake()
        if self.cancelled:
            inner.cancel()
        ended = partial(self._ended, attempt, inner, sub)
        if not inner.add_callback(ended):
            ended()

    def _ended(self, attempt: protocol.Attempt[Any], inner: Any, sub: SubChannel) -> None:
        """Handle the end of an attempt. gRPC calls this on its own thread, so it must not wait."""
        good = inner.code() is grpc.StatusCode.OK
        if (reports := self._owner.load_reports) is not None:
            reports.record(attempt.endpoint, inner.trailing_metadata())
        if not self._finish(attempt, inner, sub):  # the caller has received a part of it
            with self._lock:
                attempt.finish(None if good else inner)
            self._end()

    def _finish(self, attempt: protocol.Attempt[Any], inner: Any, sub: SubChannel) -> bool:
        """End an attempt. Returns False if the caller has already got a part of its response."""
        run = self._run
        if run is None or self._committed:
            return False
        code = inner.code()
        attempt.status = Code(code)
        if code is grpc.StatusCode.OK:
            return run.finish(attempt, Answered(self._owner.response_of(inner), inner))
        if never_sent(inner, connected=sub.connected):
            sub.failed = True
            return run.finish(attempt, error=inner)
        if self.cancelled or expired(attempt, inner):
            return run.finish(attempt, error=inner)
        return run.finish(attempt, inner)

    def _decided(self, result: Callable[[], Any]) -> None:
        """Handle the outcome, which is known at the end, or at the first message of a stream."""
        try:
            outcome = result()
        except LoadBalancingError as error:
            outcome = BalancingError.of(error)
        except Exception as error:  # noqa: BLE001  # raised to the caller
            outcome = error
        if isinstance(outcome, Answered):
            self.final = outcome.call
            if self._committed:
                self._wake()
            else:
                self._end()
            return
        if self.cancelled:
            self._conclude(_cancelled())
            return
        if self._wait_for_ready and is_waited_for(outcome):
            left = None if self.ends is None else self.ends - time.monotonic()
            pause = protocol.Pause(AGAIN if left is None else min(AGAIN, max(0.0, left)))
            if left is None or left > 0:
                self._kept = protocol.sleep_until(pause, self._restart)
                return
            outcome = BalancingError.of(DeadlineExceeded("no instance was ready in time"))
        run = self._run
        if run is not None and isinstance(outcome, grpc.RpcError) and outcome is self._inner:
            info = run.call.info()
            if info.attempts and not hasattr(outcome, "__notes__"):
                protocol.explain(outcome, info)
        self._conclude(outcome)

    def _conclude(self, error: Any) -> None:
        self.final = error
        self._end()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            callbacks, self._callbacks = self._callbacks, None
        self._wake()
        for callback in callbacks or ():
            try:
                callback()
            except Exception:  # an exception would end gRPC's thread
                _logger.exception("a callback of an RPC failed")

    @property
    def _inner(self) -> Any:
        return None if self._current is None else self._current[1]

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `ready()` is True. Returns False if the time is over first."""
        until = None if timeout is None else time.monotonic() + timeout
        while not ready():
            woken: queue.SimpleQueue[None] = queue.SimpleQueue()
            self._waiters.append(woken)
            try:
                if ready():
                    break
                woken.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                return ready()
            finally:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(woken)
        return True

    def _wake(self) -> None:
        for woken in list(self._waiters):
            woken.put(None)

    def wait_until_over(self, timeout: float | None = None) -> bool:
        """Wait for the end of the RPC. Returns False if the time is over first."""
        return self.wait(lambda: self.over, timeout)

    def current(self) -> Any:
        """Wait for an attempt, and return its call; None if the RPC ended without an attempt."""
        self.wait(lambda: self._current is not None or self.over)
        return self._inner

    def stands(self, inner: Any) -> bool:
        """Wait until it is known what follows this attempt. False if another attempt follows."""
        self.wait(lambda: self.final is not None or self._inner is not inner)
        return self._inner is inner

    def commit(self, inner: Any, holder: object) -> bool:
        """Commit to this attempt: the caller gets a part of it. False if it was replaced."""
        if self._committed:
            return True
        with self._lock:
            current, run = self._current, self._run
            if current is None or run is None or current[1] is not inner:
                return False
            self._committed = True
            if run.finish(current[0], Answered(None, inner), holder=holder):
                if self._replay is not None:
                    self._replay.commit()
                return True
            self._committed = False
        return self.stands(inner) and self.final is inner

    def cancel(self) -> bool:
        """Cancel the RPC. Returns False if it is over."""
        if self.over:
            return False
        self.cancelled = True
        if self._run is not None:
            self._run.cancel(_cancelled())
        if self._inner is not None:
            self._inner.cancel()
        return True

    def drop(self) -> None:
        """Like `cancel`, but for a finalizer, which must not take the balancer's lock."""
        self.cancelled = True
        if self._run is not None:
            self._run.drop(_cancelled())
        if self._inner is not None:
            self._inner.cancel()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call `callback` at the end of the RPC. Returns False if the RPC is over."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True


class RpcCall(grpc.Call, bases.Future):
    """The object that the caller of an RPC gets: a `grpc.Call` and a `grpc.Future`."""

    def __init__(self, rpc: Rpc) -> None:
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
        """True if the caller has cancelled the RPC."""
        return self._rpc.cancelled

    def running(self) -> bool:
        """True until the RPC is over."""
        return not self.done()

    def done(self) -> bool:
        """True once the RPC is over."""
        return self._rpc.over or self._rpc.cancelled

    def is_active(self) -> bool:
        """True until the RPC is over."""
        return not self.done()

    def time_remaining(self) -> Any:
        """The seconds until the deadline; None if there is no deadline."""
        ends = self._rpc.ends
        return None if ends is None else max(0.0, ends - time.monotonic())

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the response, and return it. Raises the `grpc.RpcError` that ended it."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._rpc.final.result()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the end, and return the error, or None."""
        if not self._rpc.wait_until_over(timeout):
            raise grpc.FutureTimeoutError
        if self._rpc.cancelled:
            raise grpc.FutureCancelledError
        final = self._rpc.final
        if isinstance(final, grpc.RpcError) and final.code() is grpc.StatusCode.OK:
            return None
        error: Exception = final
        return error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """Wait for the end, and return the traceback of the error, or None."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[grpc.Future[Any]], None]) -> None:
        """Call `fn` with this object at the end of the RPC, or now if the RPC is over."""
        if not self._rpc.add_callback(partial(fn, self)):
            fn(self)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback` at the end of the RPC. Returns False if the RPC is over."""
        return self._rpc.add_callback(callback)

    def initial_metadata(self) -> Any:
        """Wait for the initial metadata, and return it. After that there is no other attempt."""
        rpc = self._rpc
        while (inner := rpc.current()) is not None:
            metadata = inner.initial_metadata()
            if inner.is_active():
                if rpc.commit(inner, self):
                    return metadata
            elif rpc.stands(inner):
                break
        return self._outcome().initial_metadata()

    def trailing_metadata(self) -> Any:
        """Wait for the end, and return the trailing metadata."""
        return self._outcome().trailing_metadata()

    def code(self) -> Any:
        """Wait for the end, and return the status."""
        return self._outcome().code()

    def details(self) -> Any:
        """Wait for the end, and return the details of the status."""
        return self._outcome().details()

    def debug_error_string(self) -> Any:
        """Wait for the end, and return gRPC's debug text."""
        return self._outcome().debug_error_string()

    def _outcome(self) -> Any:
        self._rpc.wait_until_over()
        return self._rpc.final


class StreamCall(RpcCall):
    """The object that the caller of an RPC with a stream of responses gets: also an iterator."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        rpc = self._rpc
        while True:
            inner = rpc.current()
            if inner is None:
                raise rpc.final
            try:
                message = next(inner)
            except StopIteration:
                if rpc.stands(inner):
                    if rpc.final is not inner:
                        raise rpc.final from None
                    raise
            except grpc.RpcError as error:
                error.__traceback__ = None  # it refers to this frame, and gRPC's call is the error
                if rpc.stands(inner):
                    raise rpc.final from None
            else:
                if rpc.commit(inner, self):
                    return message

    next = __next__
