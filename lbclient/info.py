"""What became of one call, attempt by attempt, for whoever wants to know afterwards."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lbclient.instance import Instance

__all__ = ["AttemptInfo", "CallInfo", "attach", "call_info", "record"]

_KEY = "lbclient"
_ATTRIBUTE = "_lbclient_attempts"


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

    Raises ValueError for one that did not come out of a call of ours.
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


def attach(error: BaseException, records: tuple[AttemptInfo, ...]) -> None:
    """Keep the records with the error that ends the call, without a cycle through it."""
    last = records[-1]
    if last.error is error:
        last = last._replace(error=None)
    setattr(error, _ATTRIBUTE, (*records[:-1], last))


def _of(error: BaseException) -> tuple[AttemptInfo, ...]:
    records: tuple[AttemptInfo, ...] = getattr(error, _ATTRIBUTE, ())
    if records and records[-1].error is None and records[-1].status is None:
        return (*records[:-1], records[-1]._replace(error=error))
    return records
