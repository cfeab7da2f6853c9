"""The errors of lbclient as errors of gRPC, so that existing `except` clauses of callers work."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from lbclient import errors
from lbclient.grpc import bases

__all__ = ["CANCELLED", "TOO_LATE", "AioBalancingError", "BalancingError"]

CANCELLED = "Locally cancelled by application!"
"""gRPC's own text for an RPC that was cancelled in this process, not by a server."""
TOO_LATE = "the first message did not arrive within attempt_timeout"

_CODES: Sequence[tuple[type[Exception], grpc.StatusCode]] = (
    (errors.Throttled, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.BalancerClosed, grpc.StatusCode.CANCELLED),
    (errors.LoadBalancingError, grpc.StatusCode.UNAVAILABLE),
)


def _code_of(error: BaseException) -> grpc.StatusCode:
    """Return the status for an error of lbclient."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)


class _FromBalancing(grpc.RpcError):
    """Creates gRPC errors from errors of lbclient, for both kinds of channel."""

    @classmethod
    @abstractmethod
    def with_code(cls, code: grpc.StatusCode, details: str) -> Self:
        """Return an error with this status."""

    @classmethod
    def cancelled_by_caller(cls) -> Self:
        """Return the error of an RPC that the caller has cancelled."""
        return cls.with_code(grpc.StatusCode.CANCELLED, CANCELLED)

    @classmethod
    def closed(cls, error: Exception) -> Self:
        """Return the error of an RPC under way that could not go on, since the channel was closed.
        `error` says so, and becomes its cause."""
        made = cls.with_code(grpc.StatusCode.CANCELLED, str(error))
        made.__cause__ = error
        return made

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return the gRPC error for an error of lbclient, which becomes its cause."""
        made = cls.with_code(_code_of(error), str(error))
        vars(made).update(vars(error))  # its notes and its attempts
        made.__cause__ = error
        return made


class BalancingError(_FromBalancing, grpc.Call, bases.Future):
    """The error of an RPC that lbclient itself has ended, for example since no instance was
    available or a deadline has expired. Its cause is an exception of lbclient.

    Like every error of a blocking RPC, it is also a `grpc.Call` and a `grpc.Future` that has ended.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code = code
        self._details = details

    @classmethod
    def with_code(cls, code: grpc.StatusCode, details: str) -> Self:
        """Return an error with this status."""
        return cls(code, details)

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._code

    def details(self) -> str:
        """The details of the status."""
        return self._details

    def debug_error_string(self) -> str:
        """The same as `details`."""
        return str(self)

    def initial_metadata(self) -> tuple[Any, ...]:
        """Empty, since no server has sent any metadata."""
        return ()

    def trailing_metadata(self) -> tuple[Any, ...]:
        """Empty, since no server has sent any metadata."""
        return ()

    def is_active(self) -> bool:
        """False, since the RPC is over."""
        return False

    def time_remaining(self) -> Any:
        """None, since the RPC is over."""
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:  # noqa: ARG002  # it never runs
        """Return False, since the RPC is over."""
        return False

    def cancel(self) -> bool:
        """Return False, since the RPC is over."""
        return False

    def cancelled(self) -> bool:
        """True if the caller has cancelled the RPC."""
        return self._code is grpc.StatusCode.CANCELLED and self._details == CANCELLED

    def running(self) -> bool:
        """False, since the RPC is over."""
        return False

    def done(self) -> bool:
        """True, since the RPC is over."""
        return True

    def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002  # it is over
        """Raise the error itself."""
        raise self

    def exception(self, timeout: float | None = None) -> Exception | None:  # noqa: ARG002  # as above
        """Return the error itself."""
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:  # noqa: ARG002  # as above
        """Return the traceback of the error."""
        return self.__traceback__

    def add_done_callback(self, fn: Callable[[grpc.Future[Any]], None]) -> None:
        """Call `fn` at once."""
        fn(self)


class AioBalancingError(_FromBalancing, grpc.aio.AioRpcError):
    """A `BalancingError` for asyncio."""

    @classmethod
    def with_code(cls, code: grpc.StatusCode, details: str) -> Self:
        """Return an error with this status."""
        nothing = grpc.aio.Metadata()
        return cls(code, nothing, nothing, details=details, debug_error_string=details)
