"""Rate limits in the headers of responses. An instance whose limit is used up backs off.

Three families of headers are read, on any response:

- `x-ratelimit-remaining-requests: 0` and `x-ratelimit-reset-requests: 6m0s` (OpenAI, Azure and
  others), also for `tokens` and any other limit;
- `anthropic-ratelimit-requests-remaining: 0` and `anthropic-ratelimit-requests-reset:
  2026-11-30T09:00:00Z` (Anthropic), also for its other limits;
- `RateLimit: "default";r=0;t=30` (draft-ietf-httpapi-ratelimit-headers), with the forms of its
  earlier versions: `RateLimit: limit=10, remaining=0, reset=30`, and `RateLimit-Remaining` with
  `RateLimit-Reset`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import chain

from .shortcuts import Fields

__all__ = ["UNRELATED", "seconds_to_reset"]

UNRELATED: set[bytes] = set()
"""The names of headers that say nothing about rate limits, collected from earlier responses. If a
response has only such headers, one operation on sets is enough to know that it says nothing about
limits. This must be fast, since every response is checked."""

_log = logging.getLogger(__name__)
_MOST, _LONGEST = 1_000, 64
"""The maximum size of `UNRELATED`, and the maximum length of a name in it."""
_FAMILIES = (b"x-ratelimit-remaining-", b"x-ratelimit-reset-", b"anthropic-ratelimit-")
_DRAFT, _EARLIER = b"ratelimit", (b"ratelimit-remaining", b"ratelimit-reset")

_NONE_LEFT = re.compile(r"0+(\.0*)?")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]*)?")
"""A number with more digits is a point in time and not a duration. It is ignored, since its unit
(seconds or milliseconds) is unknown."""
_PART = r"([0-9]{1,9}(?:\.[0-9]*)?)(d|h|ms|m|s|us|ns)"
_DURATION = re.compile(rf"(?:{_PART})+")
_PARTS = re.compile(_PART)
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def seconds_to_reset(fields: Fields, sent_at: Callable[[], datetime]) -> float:
    """Return the seconds until every rate limit that is used up has been reset; 0 if none is used
    up.

    `sent_at` returns the time of the response. Invalid values are ignored, and logged at level
    DEBUG.
    """
    values: dict[bytes, str] = {}
    drafts: list[str] = []
    for _, name, value in fields:
        if name in UNRELATED:
            continue
        if name == _DRAFT:
            drafts.append(value.decode("latin-1"))
        elif name in _EARLIER or name.startswith(_FAMILIES):
            values[name] = value.decode("latin-1").strip()
        elif len(UNRELATED) < _MOST and len(name) <= _LONGEST:
            UNRELATED.add(name)
    limits = chain(_separate(values), *map(_combined, drafts))
    return max((_seconds(*limit, sent_at) for limit in limits), default=0.0)


def _separate(values: dict[bytes, str]) -> Iterator[tuple[str, str | None]]:
    """Yield two texts for each limit: the remaining number, and when the limit is reset (or None).
    They come from two separate headers."""
    for name, value in values.items():
        if b"remaining" in name:
            yield value, values.get(name.replace(b"remaining", b"reset", 1))


def _combined(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield two texts for each limit in a `RateLimit` header: the remaining number, and when the
    limit is reset (or None)."""
    plain = _QUOTED.sub("", text)
    if '"' in plain:  # a quoted name without its end
        _ignore(text)
        return
    members = [
        {key.strip(): value.strip() for key, _, value in (one.partition("=") for one in parameters)}
        for parameters in (member.split(";") for member in plain.split(","))
    ]
    for member in members:
        if "r" in member:
            yield member["r"], member.get("t")
    together = dict(chain.from_iterable(member.items() for member in members))
    if "remaining" in together:
        yield together["remaining"], together.get("reset")
    elif "r" not in together:
        _ignore(text)


def _seconds(remaining: str, reset: str | None, sent_at: Callable[[], datetime]) -> float:
    """Return the seconds until a limit is reset; 0 if the limit is not used up, or a value is
    invalid."""
    if not _NONE_LEFT.fullmatch(remaining):
        if not _NUMBER.fullmatch(remaining):
            _ignore(remaining)
        return 0.0
    seconds = None if reset is None else _until(reset, sent_at)
    if seconds is None:
        _ignore(f"{remaining}, {reset}")
    return max(0.0, seconds or 0.0)


def _until(reset: str, sent_at: Callable[[], datetime]) -> float | None:
    """Return the seconds until `reset`: a number of seconds, a duration such as `6m0s`, or a date
    of RFC 3339. Returns None if it is invalid."""
    if _SECONDS.fullmatch(reset):
        return float(reset)
    if _DURATION.fullmatch(reset):
        return sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(reset))
    try:
        return (datetime.fromisoformat(reset) - sent_at()).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
        return None


def _ignore(text: str) -> None:
    _log.debug("a rate limit in a response is ignored, since it is invalid: %.200s", ascii(text))
