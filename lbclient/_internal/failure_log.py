"""Logs failures of user code, but not each of them, since user code may fail in every call."""

from __future__ import annotations

import logging
import math
from logging import ERROR, INFO
from typing import Protocol

from lbclient._internal.interruption import is_interruption

__all__ = ["Complaint", "Log", "log_now"]

logger = logging.getLogger("lbclient")
_QUIET = 60.0
_KINDS = 8


class Log(Protocol):
    """A function that takes a log message: `Outbox.add`, or a function that logs at once."""

    def __call__(
        self, level: int, text: str, *values: object, error: BaseException | None = None
    ) -> None:
        """Log `text`. `error` is logged with its traceback."""
        ...


class Complaint:
    """Logs failures of user code, such as a strategy, without a log message for each of them.

    The first failure of each type is logged with its traceback. After that, only the number of
    failures is logged, at the 10th, 100th, 1000th... When the code works again, the number of
    failures is logged. If the code keeps alternating between failing and working, only the 1st,
    2nd, 4th, 8th... of these changes are logged, until there has been no failure for a minute.

    - `log`: takes the message.
    - `subject`, `failure`: the parts of the message, such as "orders: the listener" and "failed".
    - `level`: the level of messages about failures.
    """

    __slots__ = (
        "_changes",
        "_failure",
        "_failures",
        "_kinds",
        "_last",
        "_level",
        "_log",
        "_logged",
        "_subject",
        "failing",
    )

    def __init__(self, log: Log, subject: str, failure: str, level: int = ERROR) -> None:
        self.failing: bool = False
        """True after a failure, until `recovered` is called. When the code has worked, call
        `recovered` only if this is True."""
        self._subject = subject
        self._failure = failure
        self._level = level
        self._log = log
        self._failures = 0
        self._changes = 0
        self._kinds: set[object] = set()
        self._last = -math.inf
        self._logged = False

    def failed(
        self, now: float, error: BaseException | None = None, *, detail: str = "", times: int = 1
    ) -> None:
        """Record a failure at the time `now` (seconds). `error` is its exception, or `detail`
        describes it."""
        if not self.failing:
            self._begin(now)
        self._last = now
        before, self._failures = self._failures, self._failures + times
        subject, failure = self._subject, self._failure
        if self._logged and type(error) not in self._kinds and len(self._kinds) < _KINDS:
            self._kinds.add(type(error))
            self._log(
                self._level, "%s %s%s", subject, failure, detail and f": {detail}", error=error
            )
        elif len(str(before)) < len(str(self._failures)) and before:
            self._log(self._level, "%s %s (%d times by now)", subject, failure, self._failures)

    def recovered(self) -> None:
        """Record that the code works again."""
        self.failing = False
        if self._logged:
            failures, self._failures = self._failures, 0
            self._log(INFO, "%s works again; failures: %d", self._subject, failures)

    def tolerate(self, now: float, what: object = None) -> _Tolerance:
        """Return a context manager that records and suppresses the exceptions of the code in its
        block. An exception from outside (`is_interruption`) is not suppressed. The message shows
        `what`."""
        return _Tolerance(self, now, what)

    def _begin(self, now: float) -> None:
        self.failing = True
        self._changes = 1 if now - self._last > _QUIET else self._changes + 1
        self._logged = not self._changes & (self._changes - 1)  # 1, 2, 4, 8...
        if self._logged:
            self._kinds.clear()


class _Tolerance:
    """The context manager that `Complaint.tolerate` returns."""

    __slots__ = ("_complaint", "_now", "_what")

    def __init__(self, complaint: Complaint, now: float, what: object) -> None:
        self._complaint = complaint
        self._now = now
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is None:
            if self._complaint.failing:
                self._complaint.recovered()
            return False
        if not isinstance(error, Exception) or is_interruption(error):
            return False
        detail = "" if self._what is None else repr(self._what)
        self._complaint.failed(self._now, error, detail=detail)
        return True


def log_now(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log at once. Call this only where no lock of lbclient is held."""
    logger.log(level, text, *values, exc_info=error)
