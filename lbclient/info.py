"""What became of one call, attempt by attempt, for whoever wants to know afterwards."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lbclient.errors import DeadlineExceeded
from lbclient.instance import Instance

__all__ = ["AttemptInfo", "CallInfo", "attach", "call_info", "concluded", "record"]

_KEY = "lbclient"
_ATTRIBUTE = "_lbclient_attempts"
_ENDED = "_lbclient_ended_the_last"


class Finished(Protocol):
    """What is asked of an attempt."""

    @property
    def instance(self) -> Instance: ...
    @property
    def reason(self) -> str: ...

    status: int | None
    error: Exception | None
    elapsed: float


class AttemptInfo(NamedTuple):
    """One attempt: its `instance`, HTTP `status` or None, `error` or None, `elapsed` in seconds
    (to the headers, or through the body where that was read at once), and the `reason` for which
    this instance was chosen."""

    instance: Instance
    status: int | None
    error: BaseException | None
    elapsed: float
    reason: str


class CallInfo(NamedTuple):
    """The attempts of one call, in order."""

    attempts: tuple[AttemptInfo, ...]


def call_info(outcome: object) -> CallInfo:
    """What became of the call that gave this response or exception.

    An exception that ended no attempt has none. Raises ValueError for a response of somebody else.
    """
    if isinstance(outcome, BaseException):
        return CallInfo(_of(outcome))
    info = getattr(outcome, "extensions", {}).get(_KEY)
    if not isinstance(info, CallInfo):
        raise ValueError(f"{outcome!r} did not come out of an lbclient call")
    return info


def record(attempt: Finished) -> AttemptInfo:
    """What became of one attempt."""
    return AttemptInfo(
        attempt.instance, attempt.status, attempt.error, attempt.elapsed, attempt.reason
    )


def concluded(
    error: Exception, records: tuple[AttemptInfo, ...], cut_after: float | None
) -> Exception:
    """The error that ends a call, with what was tried: as a note, and for `call_info`.

    `cut_after` is the time in seconds after which our own deadline cut it; then the error is its
    cause.
    """
    if cut_after is not None:
        over = DeadlineExceeded(
            f"the deadline is over after {cut_after:.2f} s; attempts made: {len(records)}"
        )
        over.__cause__ = error
        error = over
    attach(error, records)
    tried = (f"{one.instance}: {_outcome(one)}" for one in records)
    error.add_note("lbclient tried " + "; ".join(tried))
    return error


def attach(error: BaseException, records: tuple[AttemptInfo, ...]) -> None:
    """Keep the records with the error, without a cycle through it."""
    last = records[-1]
    ended = last.error is error
    setattr(error, _ATTRIBUTE, ((*records[:-1], last._replace(error=None)) if ended else records))
    setattr(error, _ENDED, ended)


def _of(error: BaseException) -> tuple[AttemptInfo, ...]:
    records: tuple[AttemptInfo, ...] = getattr(error, _ATTRIBUTE, ())
    if records and getattr(error, _ENDED, False):
        return (*records[:-1], records[-1]._replace(error=error))
    return records


def _outcome(one: AttemptInfo) -> object:
    return one.status if one.error is None else type(one.error).__name__
