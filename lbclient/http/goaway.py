"""What the end of a connection says: of the requests on it, and of the other connections."""

from __future__ import annotations

import re
from typing import Literal

from .flavour import httpcore, httpx

__all__ = ["Ear", "Liveness", "unasked", "went_away"]

_REQUEST_TIMEOUT = 408
_NO_ERROR, _REFUSED_STREAM = 0, 7  # RFC 9113, section 7
_AFTER_GOAWAY = re.compile(r"Invalid input ConnectionInputs\.RECV_\w+ in state .*CLOSED")


def went_away(error: httpx.TransportError) -> Literal["unprocessed", "unknown"] | None:
    """Whether an HTTP/2 peer ended the connection or the stream without a fault of its own
    (RFC 9113, 6.8).

    "unprocessed" where it says that it has not begun the request: by REFUSED_STREAM, or by a GOAWAY
    that names no stream. (For one that names an earlier stream httpcore opens a new connection.)
    "unknown" for any other orderly GOAWAY: h2 takes in no frame after it, not even the answer.
    """
    cause = error.__cause__
    if not isinstance(cause, httpcore.ProtocolError) or not cause.args:
        return None
    code: int | None = getattr(cause.args[0], "error_code", None)
    last_begun: int | None = getattr(cause.args[0], "last_stream_id", None)
    if last_begun == 0 or (last_begun is None and code == _REFUSED_STREAM):
        return "unprocessed"
    orderly = last_begun is not None and code == _NO_ERROR
    return "unknown" if orderly or _AFTER_GOAWAY.match(str(cause)) else None


class Liveness:
    """What the connections to one instance, together, have shown of the way there."""

    __slots__ = ("generation", "heard")

    def __init__(self) -> None:
        self.heard = 0
        """Grows with whatever any of them brings."""
        self.generation = 0
        """Connections of an earlier one take no other request."""


class Ear:
    """Listens to one connection: whether it answers, and whether it can be trusted with more.

    One that has served before and ends in silence was dead while it was idle: the process is
    another, or what stood between has forgotten it. So may those be that were opened before it
    ended, and a request that is sent again must not go to the next of them (urllib3, Go's
    net/http: again on a fresh connection). Where the silence is a timeout that holds only if all
    of them were silent as long: else it is the request that is slow.
    """

    __slots__ = ("_generation", "_heard", "_liveness", "answers", "silent")

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._generation, self._heard = liveness.generation, liveness.heard
        self.answers = 0
        """So many it has brought."""
        self.silent = True
        """True from a write until something is read."""

    @property
    def stale(self) -> bool:
        """True where the next request must go on another connection."""
        return self._generation != self._liveness.generation

    def asked(self) -> None:
        """Something is about to be written."""
        self.silent, self._heard = True, self._liveness.heard

    def told(self, data: bytes) -> bytes:
        """It has brought something; or nothing, which is its end."""
        if data:
            self.silent = False
            self._liveness.heard += 1
        else:
            self.ended()
        return data

    def ended(self, error: Exception | None = None) -> None:
        """It was closed by the other end, or reading ended with an error."""
        slow = isinstance(error, httpcore.ReadTimeout) and self._heard != self._liveness.heard
        if self.answers and self.silent and not slow:
            self._liveness.generation += 1


def unasked(answer: httpcore.Response) -> bool:
    """True for an HTTP/1 answer that was there before its request, which it cannot belong to.

    A peer that sends two answers for one request would else have the second taken for the next
    caller's. A 408 is what may come unasked: the judge knows it.
    """
    ear = getattr(answer.extensions.get("network_stream"), "ear", None)
    http1 = answer.extensions.get("http_version") != b"HTTP/2"
    return isinstance(ear, Ear) and ear.silent and http1 and answer.status != _REQUEST_TIMEOUT
