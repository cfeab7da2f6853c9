"""The classifier for gRPC: it says what a status means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import grpc

from lbclient._internal import validation
from lbclient.endpoint.classifier import FAULT_NAME
from lbclient.grpc.errors import CANCELLED
from lbclient.protocol import Classifier, Verdict

__all__ = [
    "Answered",
    "Code",
    "GrpcClassifier",
    "classified",
    "codes_of",
    "is_of_the_caller",
    "mark_expired",
    "never_sent",
    "was_unsent",
]

_Status = grpc.StatusCode
_FAULTS = frozenset(
    {
        _Status.UNAVAILABLE,
        _Status.UNKNOWN,
        _Status.INTERNAL,
        _Status.DATA_LOSS,
        _Status.DEADLINE_EXCEEDED,
    }
)
_NEUTRAL = frozenset({_Status.OK, _Status.CANCELLED})
_FINE = Verdict(fault=False)
_CLIENT_ERROR = Verdict(fault=False, client_error=True)
_FAULT = Verdict(fault=True, again="idempotent")
_NEVER_SENT = Verdict(fault=True, again="always")
_UNREACHABLE = Verdict(fault=False, again="always", unreachable=True)
_EXHAUSTED_HERE = Verdict(fault=False, again="always", backoff=True)

_UNSENT, _EXPIRED = "_lbclient_unsent", "_lbclient_expired"
_NOT_CONNECTED = "failed to connect to all addresses", "DNS resolution failed", "Name resolution"
"""If gRPC had no connection for an RPC, the details of its status begin with one of these texts. A
server may send the same text about an RPC that it has made itself. But then there is a connection
to this server."""
_NO_ROUTE = "Network is unreachable", "No route to host", "Operation not permitted"
_EXHAUSTED = "Too many open files", "Cannot allocate memory", "No buffer space available"
_OF_THE_CALLER = {
    "Exception serializing request!",
    "Exception deserializing response!",
    "Exception iterating requests!",
    "Invalid metadata",
}
"""The details of the status if gRPC itself has ended the RPC because a function of the caller
raised an exception, or because the caller's metadata is invalid."""
_PUSHBACK = "grpc-retry-pushback-ms"


class Answered(NamedTuple):
    """The result of an attempt that ended with OK: its response, and the call of gRPC."""

    response: Any
    call: Any


class Code(int):
    """The number of a status. `str()` of it is the name of the status."""

    def __new__(cls, code: grpc.StatusCode) -> Self:
        """Create the number from a `grpc.StatusCode`."""
        made = super().__new__(cls, code.value[0])
        made._name = code.name
        return made

    _name: str

    def __str__(self) -> str:
        return self._name


def codes_of(codes: Collection[str | grpc.StatusCode]) -> frozenset[grpc.StatusCode]:
    """Check and return the statuses that are retried. Raises ValueError or TypeError."""
    found = set[grpc.StatusCode]()
    for code in validation.several("codes", codes, "names of statuses such as 'UNAVAILABLE'"):
        named = code if isinstance(code, grpc.StatusCode) else _Status.__members__.get(str(code))
        if named is None or named in _NEUTRAL:  # `CANCELLED` is the caller's wish
            raise ValueError(
                f"codes must contain names of statuses such as 'UNAVAILABLE', not {code!r}"
            )
        found.add(named)
    return frozenset(found)


def never_sent(error: grpc.RpcError, *, connected: Callable[[], bool]) -> bool:
    """True if an RPC was certainly not sent. Then the error is marked for the classifier, and the
    name of its fault is its status.

    Only the text of gRPC's error shows this, and a server may have sent the same text. So
    `connected` says whether there is a connection now.
    """
    setattr(error, FAULT_NAME, error.code().name)
    if error.code() is not _Status.UNAVAILABLE:
        return False
    if not (error.details() or "").startswith(_NOT_CONNECTED) or connected():
        return False
    setattr(error, _UNSENT, True)
    return True


def mark_expired(error: grpc.RpcError, *, begun: bool = False) -> None:
    """Mark the error of an attempt that a deadline of lbclient has ended, and name its fault by its
    status.

    `begun` is True if the caller had received a part of the response. Then the instance is not at
    fault: a stream may last until its deadline although every message arrives in time.
    """
    setattr(error, FAULT_NAME, error.code().name)
    setattr(error, _EXPIRED, _FINE if begun else _FAULT)


def is_of_the_caller(error: grpc.RpcError) -> bool:
    """True if a function of the caller, such as a deserializer, has raised an exception, or if the
    caller's metadata is invalid."""
    return (error.details() or "") in _OF_THE_CALLER


def _ended_here(error: grpc.RpcError) -> bool:
    """True if the caller, or its code, has ended the RPC."""
    return is_of_the_caller(error) or (
        error.code() is _Status.CANCELLED and error.details() == CANCELLED
    )


def was_unsent(error: object) -> bool:
    """True if `never_sent` has marked this outcome."""
    return getattr(error, _UNSENT, False)


def _expired(error: grpc.RpcError) -> Verdict | None:
    """Return the verdict on an error that `mark_expired` has marked."""
    verdict: Verdict | None = getattr(error, _EXPIRED, None)
    return verdict


class GrpcClassifier:
    """Classifies the status of an attempt. `codes` are the statuses that are retried if the method
    may be repeated."""

    def __init__(self, codes: Collection[grpc.StatusCode]) -> None:
        self._codes = codes

    def __call__(self, outcome: object) -> Verdict:
        """Classify a `grpc.RpcError` by its status. Anything else is good."""
        if not isinstance(outcome, grpc.RpcError):
            return _FINE
        if was_unsent(outcome):
            return _never_sent(outcome.details() or "")
        if (expired := _expired(outcome)) is not None:
            return expired
        return self._status(outcome)

    def _status(self, error: grpc.RpcError) -> Verdict:
        code = error.code()
        if code in _NEUTRAL or is_of_the_caller(error):
            return _FINE  # the caller, or its code, has ended the RPC
        again: Literal["never", "idempotent"] = "idempotent" if code in self._codes else "never"
        fault = code in _FAULTS
        rejected = code is _Status.RESOURCE_EXHAUSTED
        if not fault and not rejected and again == "never":
            return _CLIENT_ERROR
        rejected = rejected or (again == "idempotent" and not fault)
        return _pushed_back(Verdict(fault, again, rejected=rejected), error)


def _never_sent(details: str) -> Verdict:
    if any(text in details for text in _EXHAUSTED):
        return _EXHAUSTED_HERE
    return _UNREACHABLE if any(text in details for text in _NO_ROUTE) else _NEVER_SENT


def _pushback(metadata: Iterable[Any] | None) -> float | None:
    """Return the seconds for which the server asks the client to wait before a retry. The result is
    below 0 if the server asks for no retry, and None if the server asks for nothing. A value that
    is not a number asks for no retry (gRPC's A6)."""
    for key, value in metadata or ():
        if key == _PUSHBACK:
            text = value if isinstance(value, str) else bytes(value).decode("ascii", "replace")
            return int(text[:12]) / 1000 if text.isascii() and text.isdigit() else -1.0
    return None


def classified(classify: Classifier, outcome: object) -> Verdict:
    """Call a user's classifier with the response or the `grpc.RpcError`.

    The user's classifier is not called for the messages of a stream, since these cannot be taken
    back. It is not called either for an RPC that was never sent, or that a deadline of lbclient,
    the caller or its code has ended. If the server sends `grpc-retry-pushback-ms`, this is
    respected in addition to the verdict.
    """
    if isinstance(outcome, Answered):
        return _FINE if outcome.response is None else classify(outcome.response)
    if not isinstance(outcome, grpc.RpcError):
        return classify(outcome)
    if was_unsent(outcome):
        return _never_sent(outcome.details() or "")
    if (expired := _expired(outcome)) is not None:
        return expired
    if _ended_here(outcome):
        return _FINE
    return _pushed_back(classify(outcome), outcome)


def _pushed_back(verdict: Verdict, error: grpc.RpcError) -> Verdict:
    if (pushback := _pushback(error.trailing_metadata())) is None:
        return verdict
    return replace(verdict, again="never") if pushback < 0 else replace(verdict, rest=pushback)
