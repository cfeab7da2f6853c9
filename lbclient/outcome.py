"""What a finished attempt means: for the breaker, for the load, and for trying again.

A judge is a function of the result, or of the exception, of one attempt. The default below
knows the operating system's network errors only; the HTTP binding brings its own.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lbclient import checks

__all__ = ["FAULT", "FINE", "NEVER_SENT", "Judge", "Verdict", "fault_name", "judge", "own_fault"]


_AGAIN = ("always", "idempotent", "never")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of one attempt.

    - `fault`: the instance is to blame; its breaker counts it, its load is raised for a while.
    - `again`: `"never"`; `"idempotent"`: it may have been carried out, so only a call that may be
      repeated is; `"always"`: it was certainly not carried out, so any call may be.
    - `rest`: seconds for which this instance asked to be left alone (`Retry-After`).
    - `backoff`: wait before the next attempt even if nothing was sent.
    - `rejected`: the instance answered that it does not serve this call now (HTTP's 429). Set it
      for a result that is neither a fault nor asks for a `rest`, and is to be tried again.
    - `unsent`: the result says that the instance did not read the call (408 on a connection that
      was used before).

    A good result is never repeated: for a result (not an exception), `again` counts only if
    `fault`, `rest`, `rejected` or `unsent` says that it is not good.

    An attempt that was never sent is replaced even if the retry budget is empty. That is an
    exception with `again="always"` (unless `rest` or `rejected` says that the instance answered),
    and a result with `unsent`.

    An exception without fault is neutral: it neither harms nor heals the instance.
    """

    fault: bool
    again: Literal["never", "idempotent", "always"] = "never"
    rest: float = 0.0
    backoff: bool = False
    rejected: bool = False
    unsent: bool = False
    good: bool = field(init=False, repr=False, compare=False)
    """True for an answer that nothing speaks against."""

    def of_result(self) -> Verdict:
        """The same for a result: `again` alone does not repeat one that is good otherwise."""
        bad = self.fault or self.rest or self.rejected or self.unsent
        return self if bad or self.again == "never" else FINE

    def never_sent(self, error: BaseException | None) -> bool:
        """True if the attempt, which ended with `error` or with a result, sent nothing."""
        if error is None:
            return self.unsent
        return self.again == "always" and not self.rest and not self.rejected

    @property
    def turned_away(self) -> bool:
        """True where the instance did not serve the call: a fault, or an answer such as 429."""
        return self.fault or self.again == "idempotent"

    def __post_init__(self) -> None:
        checks.one_of("again", self.again, _AGAIN)
        checks.number("rest (seconds)", self.rest)
        object.__setattr__(self, "good", not self.fault and self.again == "never")


Judge = Callable[[object], Verdict]
"""Takes the result of an attempt, or the exception (an `Exception`) that ended it."""

FINE = Verdict(fault=False)
FAULT = Verdict(fault=True, again="idempotent")
NEVER_SENT = Verdict(fault=True, again="always")

_OUT_OF_DESCRIPTORS = Verdict(fault=False, again="always", backoff=True)
_NO_WAY_OUT = Verdict(fault=False, again="always")
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_LOCAL = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT}
_NEVER_SENT_ERRORS = (socket.gaierror, ConnectionRefusedError)
_UNREACHED = {errno.EHOSTUNREACH, errno.EHOSTDOWN}


def own_fault(error: BaseException) -> Verdict | None:
    """The verdict on an error of this machine's own making (Envoy: local origin), else None."""
    if isinstance(error, ssl.SSLError):
        return None  # its numbers are OpenSSL's, and mean other things
    number = error.errno if isinstance(error, OSError) else None
    if number in _EXHAUSTED:
        return _OUT_OF_DESCRIPTORS
    return _NO_WAY_OUT if number in _LOCAL else None


def judge(result: object) -> Verdict:
    """Judge by the operating system's network errors; any other result or exception is fine."""
    if not isinstance(result, OSError):
        return FINE
    if (own := own_fault(result)) is not None:
        return own
    if isinstance(result, _NEVER_SENT_ERRORS) or result.errno in _UNREACHED:
        return NEVER_SENT
    return FAULT if isinstance(result, ConnectionError | TimeoutError) else FINE


def fault_name(status: int | None, error: BaseException | None) -> str:
    """What a fault is called where people read of it."""
    if error is not None:
        return type(error).__name__
    return "a fault" if status is None else str(status)
