"""Timeouts that end with the attempt.

httpx's are for one read or write each, so a server that drips outlives them. An allowance bounds
each by what is left of the attempt.
"""

from __future__ import annotations

from .connections.timeouts import DeadlineTimeout as Allowance
from .flavour import httpcore

__all__ = ["Allowance", "seconds_now"]


def seconds_now(
    timeout: float | None, over: type[httpcore.TimeoutException] = httpcore.ConnectTimeout
) -> float | None:
    """What a timeout, an allowance or not, is worth at this moment.

    Raises `over` once the attempt has ended: bytes that are there already are read without any
    wait, so a peer that floods would never see a timeout.
    """
    if not isinstance(timeout, Allowance):
        return timeout
    if timeout.over:
        timeout.noticed()
        raise over("the time of the attempt is up")
    return timeout.now()
