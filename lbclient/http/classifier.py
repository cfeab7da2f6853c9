"""The classifier for HTTP: it says what a response or an error of httpx means."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from operator import itemgetter
from typing import Literal

from lbclient.endpoint.classifier import (
    CLIENT_ERROR,
    FAULT,
    FINE,
    NEVER_SENT,
    Verdict,
    classify_network_error,
    local_origin,
)

from ._compat import httpx
from .connections.connection import PeerLeft
from .connections.instance_transport import CLOSED_WHILE_IDLE
from .rate_limits import UNRELATED, seconds_to_reset
from .request_body import is_callers_own
from .shortcuts import response_fields

__all__ = ["HttpClassifier", "rest_asked"]

_NOT_PROCESSED = Verdict(fault=False, again="always", unsent=True)
_MAYBE_PROCESSED = Verdict(fault=False, again="idempotent")
_LOCAL_LIMIT = Verdict(fault=False, again="always", backoff=True)
_CALLERS_FAULT = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_TIMEOUT, _TOO_MANY = 408, 429
_NAME = itemgetter(1)
_HTTPCORE = frozenset({"httpcore", "httpcore2"})
_NO_ERROR, _REFUSED_STREAM = 0, 7  # error codes of RFC 9113, section 7
_AFTER_GOAWAY = re.compile(r"Invalid input ConnectionInputs\.RECV_\w+ in state .*CLOSED")


class HttpClassifier:
    """Classifies the outcomes of HTTP attempts. `statuses` are the statuses that are retried if the
    request may be repeated. `unprocessed` are the statuses that are always retried.
    """

    def __init__(self, statuses: Collection[int], unprocessed: Collection[int] = ()) -> None:
        self._statuses = statuses
        self._unprocessed = unprocessed

    def __call__(self, result: object) -> Verdict:
        """Classify a response by its status. Classify an httpx error by whether the request may
        have been processed.

        Any other exception is classified as an error of the network.
        """
        if isinstance(result, httpx.Response):
            unlimited = UNRELATED.issuperset(map(_NAME, response_fields(result)))
            verdict = FINE if result.status_code < 400 else self._status(result)
            return verdict if unlimited or verdict.rest else _limited(result, verdict)
        if isinstance(result, Exception) and is_callers_own(result):
            return FINE
        if isinstance(result, httpx.TransportError):
            return _error(result)
        return classify_network_error(result)

    def _status(self, response: httpx.Response) -> Verdict:
        status = response.status_code
        if status == _TIMEOUT and CLOSED_WHILE_IDLE in response.extensions:
            return _NOT_PROCESSED
        fault = 500 <= status <= 599
        again: Literal["idempotent", "always"] = "idempotent"
        if status in self._unprocessed:
            again = "always"
        elif status not in self._statuses:
            return CLIENT_ERROR if status < 500 else Verdict(fault=fault)
        return Verdict(fault, again, rest_asked(response.headers), rejected=True)


def _limited(response: httpx.Response, verdict: Verdict) -> Verdict:
    """If a rate limit is used up, add the back-off to the verdict. A back-off from `Retry-After`
    takes precedence."""
    rest = seconds_to_reset(
        response_fields(response), lambda: _sent_at(response.headers, time.time)
    )
    return replace(verdict, rest=rest) if rest else verdict


def _error(error: httpx.TransportError) -> Verdict:
    if (unprocessed := _peer_left(error.__cause__)) is not None:
        return _NOT_PROCESSED if unprocessed else _MAYBE_PROCESSED
    if isinstance(error, _CALLERS_FAULT):
        return FINE
    if isinstance(error, httpx.PoolTimeout):
        return _LOCAL_LIMIT
    if isinstance(error, _NEVER_SENT):
        return local_origin(error) or NEVER_SENT
    return FAULT


def _peer_left(cause: BaseException | None) -> bool | None:
    """Return True if an HTTP/2 server ended a request with GOAWAY or RST_STREAM (RFC 9113, 6.8) and
    says that it did not process the request. Return False if it ended the request without saying
    this. Return None for an error with another cause.

    lbclient's own connections report this as `PeerLeft`. In a caller's own transport, the error of
    httpcore's connections contains an event of h2.
    """
    if isinstance(cause, PeerLeft):
        return cause.unprocessed
    if cause is None or type(cause).__module__ not in _HTTPCORE or not cause.args:
        return None
    code: int | None = getattr(cause.args[0], "error_code", None)
    last_begun: int | None = getattr(cause.args[0], "last_stream_id", None)
    if last_begun == 0 or (last_begun is None and code == _REFUSED_STREAM):
        return True
    orderly = last_begun is not None and code == _NO_ERROR
    return False if orderly or _AFTER_GOAWAY.match(str(cause)) else None


def rest_asked(headers: httpx.Headers, wall_clock: Callable[[], float] = time.time) -> float:
    """Return the seconds that the header `Retry-After` asks for; 0 if it is missing or invalid. Its
    value is a number or a date.

    A date is compared with the `Date` header of the response, since the clocks of client and server
    may differ. If `Date` is missing or invalid, it is compared with the time of receipt (RFC 9110,
    section 6.6.1). If there are several values, the longest time is used.
    """
    asked = [
        text.strip() for line in headers.get_list("retry-after") for text in _VALUES.findall(line)
    ]
    seconds = [float(text[:9]) for text in asked if _SECONDS.fullmatch(text)]
    dates = [date for text in asked if (date := _date(text)) is not None]
    if dates:
        now = _sent_at(headers, wall_clock)
        seconds += [(date - now).total_seconds() for date in dates]
    return max(0.0, *seconds) if seconds else 0.0


def _sent_at(headers: httpx.Headers, wall_clock: Callable[[], float]) -> datetime:
    """Return the time of a response, from its `Date` header or from this host's clock."""
    sent = next(map(_date, headers.get_list("date")), None)
    return datetime.fromtimestamp(wall_clock(), UTC) if sent is None else sent


_VALUES = re.compile(r"[A-Za-z]+, *[0-9]{1,2}[ -][A-Za-z]{3}[^,]*|[^,]+")
"""Matches one value: a date, which contains a comma after its weekday, or the text between two
commas. Several values may be separated by commas, since proxies join header lines in this way."""

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
"""Matches a number of seconds. RFC 9110 does not allow a fraction, but some services send one."""


def _date(text: str) -> datetime | None:
    """Parse a date in one of HTTP's three formats. A date in asctime's format has no time zone (RFC
    9110, section 5.6.7)."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
