"""What an HTTP/2 peer that ends a connection says of the requests on it (RFC 9113, 6.8)."""

from __future__ import annotations

import re
from typing import Literal

import httpcore
import httpx

__all__ = ["went_away"]

_NO_ERROR, _REFUSED_STREAM = 0, 7  # RFC 9113, section 7
_AFTER_GOAWAY = re.compile(r"Invalid input ConnectionInputs\.RECV_\w+ in state .*CLOSED")


def went_away(error: httpx.TransportError) -> Literal["unprocessed", "unknown"] | None:
    """Whether an HTTP/2 peer ended the connection or the stream without a fault of its own.

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
