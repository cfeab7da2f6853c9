"""What an error says of the connection that it came from."""

from __future__ import annotations

from .body import is_callers_own
from .flavour import httpcore

__all__ = ["confused", "spoils", "turned_away"]

_HARMLESS = (
    httpcore.ConnectionNotAvailable,
    httpcore.NetworkError,
    httpcore.RemoteProtocolError,
    httpcore.TimeoutException,
)
"""After these httpcore itself knows whether it can be used."""


def turned_away(error: BaseException) -> bool:
    """True where nothing of the request was sent, and another connection must take it: HTTP/2 with
    as many streams as it may have. To the other end those of cancelled requests count until they
    are answered; httpcore forgets them at once."""
    if isinstance(error, httpcore.LocalProtocolError):
        return any(type(one).__name__ == "TooManyStreamsError" for one in error.args)
    return isinstance(error, httpcore.ConnectionNotAvailable)


def spoils(error: BaseException) -> bool:
    """True where a connection is confused, however idle it may look: it knows of other streams than
    the other end, or counts them wrong, which httpcore does if its set-up is cancelled."""
    return isinstance(error, Exception) and not isinstance(error, _HARMLESS)


def confused(error: BaseException) -> bool:
    """True for what such a connection raises at the requests of others: h2's own exceptions, and
    the ValueError of a semaphore that was released too often."""
    miscounted = isinstance(error, ValueError) and str(error).startswith("semaphore released")
    raw = miscounted or type(error).__module__ == "h2.exceptions"
    return raw and not is_callers_own(error)
