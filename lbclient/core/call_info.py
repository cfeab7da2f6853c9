"""The public record of a finished call: its attempts, and why there were no more."""

from __future__ import annotations

from typing import NamedTuple

from lbclient.endpoint.classifier import fault_name
from lbclient.endpoint.instance import Instance
from lbclient.errors import DeadlineExceeded
from lbclient.resilience.retry import Stopped

__all__ = ["AttemptInfo", "CallInfo", "attach", "call_info", "concluded", "explain"]

_KEY = "lbclient"
_ATTRIBUTE = "_lbclient_attempts"
_ENDED = "_lbclient_ended_the_last"
_STOPPED = "_lbclient_stopped"
_WHY: dict[Stopped, str] = {
    "attempts": "no attempts are left",
    "deadline": "the deadline leaves no time",
    "budget": "the retry budget is empty",
    "method": "the call may have been carried out, and is not idempotent",
    "body": "its body cannot be sent a second time",
    "instances": "no other instance is free",
    "closed": "the balancer was closed",
    "verdict": "such an outcome is never retried",
    "streaming": "part of the response was already passed on",
}


class AttemptInfo(NamedTuple):
    """One attempt of a call.

    - `instance`: the instance that it was sent to.
    - `status`: the HTTP status, or None.
    - `error`: the exception that ended it, or None.
    - `elapsed`: the seconds to the headers, or to the end of a body that was read at once. With
      `latency="first-byte"`, the seconds to the first byte of the body.
    - `reason`: why this instance was chosen.
    """

    instance: Instance
    status: int | None
    error: BaseException | None
    elapsed: float
    reason: str


class CallInfo(NamedTuple):
    """The attempts of one call, and why there were no more.

    `attempts` are in order. `stopped` says why a bad outcome was not retried: `"attempts"`,
    `"deadline"`, `"budget"`, `"method"`, `"body"`, `"instances"`, `"closed"`, `"verdict"` or
    `"streaming"`; it is None if the outcome is good.
    """

    attempts: tuple[AttemptInfo, ...]
    stopped: Stopped | None = None


def call_info(outcome: object) -> CallInfo:
    """Return the record of the call that returned this response, or raised this exception.

    If the call made no attempt, the record is empty. Raises ValueError for a response that is not
    from lbclient.
    """
    if isinstance(outcome, BaseException):
        return CallInfo(_of(outcome), getattr(outcome, _STOPPED, None))
    info = getattr(outcome, "extensions", {}).get(_KEY)
    if not isinstance(info, CallInfo):
        raise ValueError(f"{outcome!r} is not from an lbclient call")
    return info


def concluded(
    error: Exception,
    records: tuple[AttemptInfo, ...],
    stopped: Stopped | None,
    expired_after: float | None,
) -> Exception:
    """Return the error that ends a call. The record of the attempts is added as a note, and stored
    for `call_info`.

    If a deadline ended the call, `expired_after` is the time of the call in seconds. Then the
    result is a DeadlineExceeded whose cause is `error`.
    """
    if expired_after is not None:
        over = DeadlineExceeded(
            f"the deadline is over after {expired_after:.2f} s; attempts made: {len(records)}"
        )
        over.__cause__ = error
        error = over
    explain(error, CallInfo(records, stopped))
    return error


def explain(error: BaseException, info: CallInfo) -> None:
    """Add the attempts of a call, and the reason why there were no more, to the error that is the
    outcome of the call. They are added as a note, and stored for `call_info`."""
    records, stopped = info
    attach(error, records, stopped)
    tried = "; ".join(f"{record.instance}: {_outcome(record)}" for record in records)
    why = f"; not tried again: {_WHY[stopped]}" if stopped else ""
    error.add_note(f"lbclient tried {tried}{why}")


def attach(error: BaseException, records: tuple[AttemptInfo, ...], stopped: Stopped | None) -> None:
    """Store the records in the error. The last record may contain this same error. It is then
    stored without the error, to avoid a reference cycle."""
    setattr(error, _STOPPED, stopped)
    last = records[-1]
    ended = last.error is error
    setattr(error, _ATTRIBUTE, ((*records[:-1], last._replace(error=None)) if ended else records))
    setattr(error, _ENDED, ended)


def _of(error: BaseException) -> tuple[AttemptInfo, ...]:
    records: tuple[AttemptInfo, ...] = getattr(error, _ATTRIBUTE, ())
    if records and getattr(error, _ENDED, False):
        return (*records[:-1], records[-1]._replace(error=error))
    return records


def _outcome(record: AttemptInfo) -> object:
    return record.status if record.error is None else fault_name(None, record.error)
