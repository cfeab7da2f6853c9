"""RPCs that return before they have an outcome, on threads: futures and streams. See `rpc.py`."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from lbclient import protocol
from lbclient.balancer.callbacks import Alarm
from lbclient.grpc import bases
from lbclient.grpc.classifier import Answered, Code, is_of_the_caller
from lbclient.grpc.errors import BalancingError
from lbclient.grpc.replay import Replay
from lbclient.grpc.rpc import BaseCall, BaseMultiCallable, BaseRpc, with_trace
from lbclient.grpc.subchannels import SubChannel

__all__ = ["Rpc", "RpcCall", "StreamCall"]

_waiting: set[Rpc] = set()
"""The RPCs that wait for an instance. During a pause, nothing else refers to them."""


class Rpc(BaseRpc):
    """One RPC on threads."""

    _errors = BalancingError
    _rest = staticmethod(protocol.sleep_until)

    requests: Replay | None

    def __init__(
        self, owner: BaseMultiCallable, request: Any, *arguments: Any, wait_for_ready: bool
    ) -> None:
        super().__init__(owner, request, *arguments, wait_for_ready=wait_for_ready)
        if owner.streams_requests:
            self.requests = Replay(request, owner.serializer)
        self._waiters: deque[queue.SimpleQueue[None]] = deque()
        self._context = contextvars.copy_context() if wait_for_ready else None
        """The context (of `contextvars`) in which the RPC begins again after a pause."""
        self._timer: Alarm | None = None
        """The timer of `attempt_timeout`. Its thread ends when nothing refers to this object."""
        self._lock = threading.RLock()
        """A lock that is held while an attempt is chosen for the caller."""

    def _wait_for_instance(self) -> None:
        _waiting.add(self)
        super()._wait_for_instance()

    def _restart(self) -> None:
        context = contextvars.copy_context() if self._context is None else self._context.copy()
        context.run(super()._restart)  # another thread may still be in the context itself

    def _begin(self, attempt: protocol.Attempt[Any]) -> None:
        owner, (metadata, credentials, compression) = self._owner, self._arguments
        subchannel = owner.subchannel(attempt.endpoint)
        request = self._request if self.requests is None else iter(self.requests)
        begin = subchannel.method(owner.method)
        inner = (begin if owner.streams_responses else begin.future)(
            request, self._time_for(attempt), with_trace(metadata), credentials, None, compression
        )
        self._became(attempt, inner, subchannel)
        ended = partial(self._ended, attempt, inner, subchannel)
        if not inner.add_callback(ended):
            ended()

    def _ended(self, attempt: protocol.Attempt[Any], inner: Any, subchannel: SubChannel) -> None:
        """Handle the end of an attempt. gRPC calls this on its own thread, so it must not wait."""
        good = inner.code() is grpc.StatusCode.OK
        if (reports := self._owner.load_reports) is not None:
            reports.record(attempt.endpoint, inner.trailing_metadata())
        if not self._committed and self._finish(attempt, inner, subchannel):
            return
        with self._lock:  # so `commit` has ended on its thread
            if not self._committed or self.over:
                return
        self._complete(attempt, inner, None if good else inner)

    def _finish(self, attempt: protocol.Attempt[Any], inner: Any, subchannel: SubChannel) -> bool:
        """End an attempt. Returns False if the caller has received a part of its response."""
        if inner.code() is not grpc.StatusCode.OK:
            return self._failed(attempt, inner, subchannel, inner)
        attempt.status = Code(grpc.StatusCode.OK)
        response = None if self._owner.streams_responses else inner.result()
        return self._run is not None and self._run.finish(attempt, Answered(response, inner))

    def _end(self) -> None:
        _waiting.discard(self)
        self._timer = None
        with self._lock:
            self.over = True
            callbacks, self._callbacks = self._callbacks, []
        self._notify(callbacks)

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `ready()` is True. Returns False if the time is up first."""
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
        """Wait for the end of the RPC. Returns False if the time is up first."""
        return self.wait(lambda: self.over, timeout)

    def error(self) -> Exception | None:
        """The error of an RPC that is over; None if it has ended well."""
        final = self.final
        if isinstance(final, grpc.RpcError) and final.code() is grpc.StatusCode.OK:
            return None
        error: Exception = final
        return error

    def current(self) -> Any:
        """Wait for an attempt, and return its call; None if the RPC ended without an attempt."""
        if not self._committed:
            self.wait(lambda: self.inner is not None or self.over)
            inner = self.inner  # only once: another attempt may follow at any time
            self._time_message(inner)
            return inner
        return self.inner

    def _set_timer(self, inner: Any, seconds: float) -> None:
        late = partial(self._time_out, inner, time.monotonic() + seconds)
        self._timer = protocol.sleep_until(protocol.Pause(seconds), late)

    def _is_late(self, inner: Any) -> bool:
        with self._lock:
            return super()._is_late(inner)

    def stands(self, inner: Any) -> bool:
        """Wait until it is known whether another attempt follows this attempt. Returns False if
        another attempt follows."""
        self.wait(lambda: self.over or self.inner is not inner)
        return self.inner is inner

    def failed_here(self, inner: Any) -> None:
        """Record that a function of the caller has failed on a message of this attempt. gRPC
        reports the end of such an attempt only when the server has ended it."""
        current = self._current
        if current is not None and current[1] is inner:
            self._ended(*current)

    def commit(self, inner: Any, holder: object) -> bool:
        """Decide that no other attempt follows, since the caller gets a part of the response of
        this attempt. Returns False if another attempt has already replaced this attempt."""
        if self._committed:
            return True
        with self._lock:
            if self._commits(inner, holder):
                self._timer = None
                return True
        return self.stands(inner) and self._came_in_time(inner)

    def drop(self) -> None:
        """Like `cancel`, but for a finalizer, which must not take the balancer's lock."""
        self.cancelled = True
        if self._run is not None:
            self._run.drop(BalancingError.cancelled_by_caller())
        if self.inner is not None:
            self.inner.cancel()
        if (pause := self._pause) is not None:
            pause.ring()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call `callback` at the end of the RPC. Returns False if the RPC is over."""
        with self._lock:
            return super().add_callback(callback)


class RpcCall(BaseCall, grpc.Call, bases.Future):
    """The object that the caller of an RPC gets. It is a `grpc.Call` and a `grpc.Future`."""

    _rpc: Rpc

    def running(self) -> bool:
        """True until the RPC is over."""
        return not self.done()

    def is_active(self) -> bool:
        """True until the RPC is over."""
        return not self.done()

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
        return self._rpc.error()

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """Wait for the end, and return the traceback of the error, or None."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[grpc.Future[Any]], None]) -> None:
        """Call `fn` with this object at the end of the RPC, or now if the RPC is over."""
        self._call_at_end(fn)

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
    """The object that the caller of an RPC with a stream of responses gets. It is also an iterator
    over the responses."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        rpc = self._rpc
        while (inner := rpc.current()) is not None:
            try:
                message = next(inner)
            except StopIteration:
                if rpc.stands(inner):
                    break
            except grpc.RpcError as error:
                error.__traceback__ = None  # it refers to this frame, and gRPC's call is the error
                if is_of_the_caller(error):
                    rpc.failed_here(inner)
                if rpc.stands(inner):
                    break
            else:
                if rpc.commit(inner, self):
                    return message
        raise rpc.error() or StopIteration

    next = __next__
