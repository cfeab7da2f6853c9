"""One RPC with all its attempts: the part that threads and event loops share.

Each attempt is a gRPC call. When gRPC reports the end of an attempt, a callback decides whether
another attempt follows. Code that reads responses never decides this: it reads from the current
attempt. It passes on the first message of an attempt only if no other attempt has replaced this
attempt meanwhile. So no message is delivered twice.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import grpc

from lbclient import protocol
from lbclient._internal.deadline import STOOD_STILL
from lbclient.errors import (
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
    Throttled,
)
from lbclient.grpc.adapter import Adapter, MethodCalls
from lbclient.grpc.classifier import Answered, Code, mark_expired, never_sent, was_unsent
from lbclient.grpc.errors import TOO_LATE, AioBalancingError, BalancingError
from lbclient.grpc.replay import Message
from lbclient.grpc.subchannels import Method, SubChannel

if TYPE_CHECKING:
    from lbclient.balancer.callbacks import Alarm
    from lbclient.grpc.aio_replay import Requests
    from lbclient.grpc.load_reports import LoadReports
    from lbclient.grpc.replay import Replay

__all__ = [
    "IS_CLOSED",
    "Arguments",
    "BaseCall",
    "BaseMultiCallable",
    "BaseRpc",
    "is_from_server",
    "is_waited_for",
    "pause_until",
    "time_for",
    "with_trace",
]

Arguments = tuple[Any, Any, Any]
"""Metadata, credentials and compression of one RPC."""
AGAIN = 0.1
"""Seconds after which a call with `wait_for_ready` looks for an instance again."""
IS_CLOSED = ValueError, grpc.aio.UsageError
"""What lbclient and gRPC raise if an attempt begins on a closed channel."""
_LOOK = 0.05
"""After the process was suspended, an RPC waits this number of seconds for messages that are
late."""
_EARLY = 0.005
"""gRPC's timers may fire this many seconds earlier than lbclient's."""

_logger = logging.getLogger(__name__)


def with_trace(metadata: Any) -> Any:
    """Add the trace headers of the current span to the metadata of an RPC."""
    headers = protocol.propagation()
    return (*(metadata or ()), *headers.items()) if headers else metadata


def is_waited_for(outcome: object) -> bool:
    """Return True if an RPC with `wait_for_ready` waits for an instance after this outcome, instead
    of ending with it."""
    if isinstance(outcome, BalancingError | AioBalancingError):
        outcome = outcome.__cause__
    if isinstance(outcome, Throttled | DeadlineExceeded):
        return False
    return isinstance(outcome, DiscoveryError | NoInstanceAvailable) or was_unsent(outcome)


def pause_until(ends: float | None) -> protocol.Pause:
    """Return the pause after which an RPC with `wait_for_ready` looks for an instance again. Raises
    DeadlineExceeded if its deadline has passed."""
    left = AGAIN if ends is None else ends - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("no instance was ready in time")
    return protocol.Pause(min(AGAIN, left))


def time_for(attempt: protocol.Attempt[Any]) -> float | None:
    """The time limit of an attempt in seconds; None if there is no limit."""
    if attempt.expiry is None or (left := attempt.expiry.left()) == math.inf:
        return None
    return left


def is_from_server(
    attempt: protocol.Attempt[Any], error: grpc.RpcError, subchannel: SubChannel
) -> bool:
    """Return True if the status of an attempt comes from the server. It does not if the attempt was
    never sent, or if a deadline of lbclient has ended it. Then the error is marked for the
    classifier."""
    attempt.status = Code(error.code())
    if never_sent(error, connected=subchannel.connected):
        subchannel.failed = True
        return False
    if not _ended_by_deadline(attempt, error):
        return True
    if attempt.expiry is not None:
        attempt.expiry.noticed()
    mark_expired(error)
    return False


def _ended_by_deadline(attempt: protocol.Attempt[Any], error: grpc.RpcError) -> bool:
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or attempt.expiry is None:
        return False
    return attempt.expiry.left() < _EARLY


class BaseMultiCallable:
    """The RPCs of one method."""

    rpc: ClassVar[type[BaseRpc]]
    kind: Any = None
    """The class of the objects that callers get."""

    def __init__(
        self, adapter: Adapter, subchannel: Callable[[Any], SubChannel], method: Method
    ) -> None:
        self.begin: Callable[[float | None, Callable[[], bool] | None], protocol.Call[Any]] = (
            MethodCalls(adapter, method).begin
        )
        self.closed: Callable[[], bool] = lambda: adapter.binding.closed
        self.serializer: Callable[[Any], bytes] | None = method.serializer
        self.streams_requests: bool = method.kind.startswith("stream_")
        self.streams_responses: bool = method.kind.endswith("_stream")
        if self.streams_requests:
            method = replace(method, serializer=Message.serialized)
        self.method: Method = method
        self.subchannel = subchannel
        """A function that returns the sub-channel of an instance."""
        self.load_reports: LoadReports | None = adapter.load_reports
        self.hedged: bool = adapter.hedged and method.kind == "unary_unary"
        self.classifies_responses: bool = adapter.classifies_responses
        self.message_timeout: float | None = None
        """An attempt is ended if its first message has not arrived after this number of seconds.
        None for RPCs with one response: to these, gRPC applies `attempt_timeout`."""
        if self.streams_responses:
            self.message_timeout = adapter.binding.retry.attempt_timeout

    def started(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,  # as in gRPC
        compression: Any = None,
    ) -> Any:
        """Begin an RPC, and return its call."""
        arguments = metadata, credentials, compression
        rpc = self.rpc(self, request, timeout, arguments, wait_for_ready=bool(wait_for_ready))
        call = self.kind(rpc)
        rpc.start()
        return call


class BaseRpc:
    """One RPC with all its attempts. The caller gets only a `BaseCall`. If this object is garbage
    collected, the RPC is cancelled."""

    _errors: ClassVar[type[BalancingError | AioBalancingError]]
    _rest: Callable[[protocol.Pause, Callable[[], None]], Alarm]
    """`sleep_until` or `asleep_until`: how the RPC waits between attempts."""

    def __init__(
        self,
        owner: BaseMultiCallable,
        request: Any,
        timeout: float | None,
        arguments: Arguments,
        *,
        wait_for_ready: bool,
    ) -> None:
        self._owner = owner
        self._request = request
        self._arguments = arguments
        self._wait_for_ready = wait_for_ready
        self.requests: Replay | Requests | None = None
        """The requests of a stream. Each attempt reads them from the beginning."""
        self._call: protocol.Call[Any] | None = None
        self._run: protocol.CallbackRun[Any] | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._current: tuple[protocol.Attempt[Any], Any, SubChannel] | None = None
        """The current attempt, its gRPC call and its sub-channel. The current attempt is under way,
        or is the outcome of the RPC."""
        self._committed = False
        self._timed: Any = None
        """The gRPC call for which the timer of `attempt_timeout` was last started."""
        self._timed_out: Any = None
        """The last gRPC call that this timer has cancelled."""
        self._pause: Alarm | None = None
        """The pause of `wait_for_ready`."""
        self.inner: Any = None
        """The gRPC call of the current attempt."""
        self.ends: float | None = None if timeout is None else time.monotonic() + timeout
        """The time of the deadline."""
        self.final: Any = None
        """The gRPC call or the error that is the outcome of the RPC, once it is known."""
        self.over: bool = False
        self.cancelled: bool = False

    def start(self) -> None:
        """Begin the RPC, or begin it again."""
        replayable = None if self.requests is None else self.requests.replayable
        try:
            call = self._call = self._owner.begin(self._left(), replayable)
            self._carry_out(call)
        except LoadBalancingError as error:
            self._conclude(self._errors.of(error))

    def _carry_out(self, call: protocol.Call[Any]) -> None:
        # Stored before it begins, since the RPC may begin again before `run` returns.
        self._run = run = protocol.CallbackRun(call, self._begin, self._decided, self._rest)
        if self.cancelled:  # `cancel` may not have seen this run
            run.cancel(self._errors.cancelled_by_caller())
        run.run()

    def _left(self) -> float | None:
        return None if self.ends is None else self.ends - time.monotonic()

    def _restart(self) -> None:
        """Begin the RPC again, after a pause. This method handles every exception, since no other
        code would."""
        self._pause = None
        if self.cancelled:
            self._conclude(self._errors.cancelled_by_caller())
            return
        try:
            self.start()
        except Exception as error:  # noqa: BLE001  # the channel was closed
            self._conclude(self._errors.closed(error))

    @abstractmethod
    def _begin(self, attempt: protocol.Attempt[Any]) -> None:
        """Begin an attempt."""

    def _time_for(self, attempt: protocol.Attempt[Any]) -> float | None:
        """The time limit that gRPC applies to an attempt. A stream of responses may take the time
        of the whole call, since `attempt_timeout` limits only the wait for its first message."""
        if self._owner.streams_responses and attempt.expiry is not None and self._call is not None:
            deadline = self._call.deadline
            attempt.expiry.at = math.inf if deadline is None else deadline
        return time_for(attempt)

    def _became(self, attempt: protocol.Attempt[Any], inner: Any, subchannel: SubChannel) -> None:
        """Make an attempt that has just begun the current attempt."""
        self._current = attempt, inner, subchannel
        self.inner = inner
        self._wake()
        if self.cancelled:
            inner.cancel()

    def _time_message(self, inner: Any) -> None:
        """Start the timer of `attempt_timeout`, since a reader waits for the first message. Before
        that, gRPC passes on no message, and a slow reader must not count as a failure of the
        instance."""
        seconds = self._owner.message_timeout
        if seconds is not None and not self._committed and self._timed is not inner:
            self._timed = inner
            if not self.over:
                self._set_timer(inner, seconds)

    @abstractmethod
    def _set_timer(self, inner: Any, seconds: float) -> None:
        """Call `_time_out` in `seconds`, with this attempt and the time at which the timer is
        due."""

    def _time_out(self, inner: Any, due: float) -> None:
        """Cancel the gRPC call of an attempt whose first message is late. gRPC then reports the end
        of the attempt."""
        if self.inner is not inner:  # the timer is now that of a later attempt
            return
        if time.monotonic() - due > STOOD_STILL:
            # After a process was suspended, timers fire before messages arrive. So check once more.
            self._set_timer(inner, _LOOK)
        elif self._is_late(inner):
            inner.cancel()

    def _is_late(self, inner: Any) -> bool:
        """Return True if this attempt is the current one and has no message yet. After that, its
        messages are not passed on."""
        if self._committed or self.over or self.inner is not inner:
            return False
        self._timed_out = inner
        return True

    def _failed(
        self, attempt: protocol.Attempt[Any], inner: Any, subchannel: SubChannel, error: Any
    ) -> bool:
        """End an attempt that has failed. Returns False if the caller has received a part of its
        response."""
        if inner is self._timed_out and error.code() is grpc.StatusCode.CANCELLED:
            error = self._errors.with_code(grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LATE)
            mark_expired(error)
            attempt.status = Code(error.code())
            answered = False
        else:
            answered = is_from_server(attempt, error, subchannel) and not self.cancelled
        if self._run is None:
            return False
        return self._run.finish(attempt, *((error,) if answered else (None, error)))

    def _complete(self, attempt: protocol.Attempt[Any], inner: Any, error: Any) -> None:
        """End an attempt, perhaps with an error, after the caller has received a part of its
        response."""
        try:
            if self._run is not None:
                self._run.finish(attempt, Answered(None, inner))  # if `commit` was interrupted
            if error is not None:
                self.final = error
                attempt.status = Code(error.code())
                if _ended_by_deadline(attempt, error):
                    mark_expired(error, begun=True)
                if self._call is not None:
                    records = *self._call.info().attempts[:-1], attempt.info()
                    protocol.explain(error, protocol.CallInfo(records, "streaming"))
            attempt.finish(error)
        finally:
            self._end()

    def _decided(self, result: Callable[[], Any]) -> None:
        """Handle the outcome of the RPC. It is known at the end of the RPC or, for a stream, at the
        first message."""
        try:
            outcome = result()
        except LoadBalancingError as error:
            outcome = self._errors.of(error)
        except grpc.RpcError as error:
            # The frames may refer to the caller's objects, and the error may be gRPC's call.
            outcome = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001  # raised to the caller
            closed = isinstance(error, IS_CLOSED) and self._owner.closed()
            outcome = self._errors.closed(error) if closed else error
        if isinstance(outcome, Answered):
            self.final = self.inner = outcome.call
            if self._committed:
                self._wake()
            else:
                self._end()
        elif self.cancelled:
            self._conclude(self._errors.cancelled_by_caller())
        elif self._wait_for_ready and is_waited_for(outcome) and self._can_be_sent_again():
            self._wait_for_instance()
        else:
            if isinstance(outcome, grpc.RpcError) and self._call is not None:
                info = self._call.info()
                if info.attempts and not hasattr(outcome, "__notes__"):
                    protocol.explain(outcome, info)
            self._conclude(outcome)

    def _can_be_sent_again(self) -> bool:
        return self.requests is None or self.requests.replayable()

    def _wait_for_instance(self) -> None:
        """Begin the RPC again after a pause, if its deadline allows it."""
        try:
            between = pause_until(self.ends)
        except DeadlineExceeded as over:
            self._conclude(self._errors.of(over))
            return
        self._pause = pause = self._rest(between, self._restart)
        if self.cancelled:  # `cancel` may not have seen the pause
            pause.ring()

    def _conclude(self, error: Any) -> None:
        self.final = error
        self._end()

    @abstractmethod
    def _end(self) -> None:
        """End the RPC, and tell all code that waits for its end."""

    @abstractmethod
    def _wake(self) -> None:
        """Wake all code that waits for a change of the RPC."""

    def _notify(self, callbacks: list[Callable[[], object]]) -> None:
        self._wake()
        for callback in callbacks:
            try:
                callback()
            except Exception:  # an exception would end a thread of gRPC
                _logger.exception("a callback of an RPC failed")

    def _commits(self, inner: Any, holder: object) -> bool:
        """Decide that no other attempt follows, unless this attempt has ended. Returns True if it
        was decided."""
        current, run = self._current, self._run
        if current is None or run is None or current[1] is not inner or inner is self._timed_out:
            return False
        self._committed = True
        if run.finish(current[0], Answered(None, inner), holder=holder):
            if self.requests is not None:
                self.requests.commit()
            return True
        self._committed = False
        return False

    def _came_in_time(self, inner: Any) -> bool:
        """Return True if the caller may get the messages of an attempt after which no other attempt
        follows."""
        return inner is not self._timed_out or self.final is inner

    def cancel(self) -> bool:
        """Cancel the RPC. Returns False if it is over."""
        if self.over or self.cancelled:
            return False
        self.cancelled = True
        if self._run is not None:
            self._run.cancel(self._errors.cancelled_by_caller())
        if self.inner is not None:
            self.inner.cancel()
        if (pause := self._pause) is not None:
            pause.ring()
        return True

    @abstractmethod
    def drop(self) -> None:
        """Like `cancel`, but for a finalizer, which must not take the balancer's lock."""

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call `callback` at the end of the RPC. Returns False if the RPC is over."""
        if self.over:
            return False
        self._callbacks.append(callback)
        return True


class BaseCall:
    """The object that the caller of an RPC gets."""

    def __init__(self, rpc: BaseRpc) -> None:
        self._rpc = rpc

    def __del__(self) -> None:
        rpc = getattr(self, "_rpc", None)
        if rpc is not None and not rpc.over:
            rpc.drop()  # gRPC, too, cancels an RPC whose call is garbage collected

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

    def time_remaining(self) -> Any:
        """The seconds until the deadline; None if there is no deadline."""
        ends = self._rpc.ends
        return None if ends is None else max(0.0, ends - time.monotonic())

    def _call_at_end(self, fn: Callable[[Any], Any]) -> None:
        if not self._rpc.add_callback(partial(fn, self)):
            fn(self)
