"""Checks of user input. Each error names the argument and the accepted values."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

__all__ = [
    "address",
    "bare",
    "count",
    "fraction",
    "function",
    "header",
    "host",
    "is_address",
    "kind",
    "limit",
    "number",
    "of",
    "one_of",
    "port",
    "seconds",
    "several",
    "shown",
    "token",
]

N = TypeVar("N", bound=str)

_KNOWN = 16_384
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LABELS = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)


def number(name: str, value: object, *, least: float = 0.0, above: bool = False) -> float:
    """Check for a finite number of at least `least`, or for a number above `least` if `above` is
    True.

    Raises TypeError or ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    if not _finite(value) or value < least or (above and value == least):
        bound = f"above {least:g}" if above else f"of {least:g} or more"
        raise ValueError(f"{name} must be a finite number {bound}, not {value!r}")
    return value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is too large for a float
        return False


def seconds(name: str, value: object) -> float:
    """Check for a finite time above zero, in seconds."""
    return number(f"{name} (seconds)", value, above=True)


def count(name: str, value: object, *, least: int = 1) -> int:
    """Check for a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value!r}")
    return value


def limit(name: str, value: object) -> None:
    """Check for a whole number of at least 1, or None for no limit."""
    if value is not None:
        count(name, value)


def kind(name: str, value: object, wanted: type) -> None:
    """Check for an instance of one of lbclient's classes, or None."""
    if value is not None and not isinstance(value, wanted):
        raise TypeError(f"{name} must be lbclient.{wanted.__name__}(...) or None, not {value!r}")


def of(name: str, value: object, wanted: type, shown: str) -> None:
    """Check for an instance of a class of another library, or None."""
    if value is not None and not isinstance(value, wanted):
        raise TypeError(f"{name} must be {shown} or None, not {value!r}")


def function(name: str, value: object) -> None:
    """Check for a callable."""
    if not callable(value):
        shown = "text" if isinstance(value, str) else repr(value)  # the text may be a secret
        raise TypeError(f"{name} must be callable, not {shown}")


def fraction(name: str, value: object) -> float:
    """Check for a number from 0 to 1."""
    if number(name, value) > 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value!r}")
    return float(value)  # type: ignore[arg-type]  # checked by number()


def one_of(name: str, value: object, choices: Iterable[N]) -> N:
    """Check for one of the named choices."""
    known = sorted(choices)
    for choice in known:
        if isinstance(value, str) and value == choice:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, not {shown(value)}")


def port(name: str, value: object) -> int:
    """Check for a TCP port from 1 to 65535."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number from 1 to 65535, not {shown(value)}")
    if not 1 <= value <= 65535:
        raise ValueError(f"{name} must be from 1 to 65535, not {value!r}")
    return value


def token(value: object) -> bool:
    """Return True for a token (RFC 9110, section 5.6.2): a method, or the name of a header."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def header(name: str, value: object) -> str:
    """Check for the name of a header."""
    if isinstance(value, str) and token(value):
        return value
    raise ValueError(f"{name} must be the name of a header such as 'X-Deadline-Ms', not {value!r}")


def several(name: str, value: object, of: str) -> list[object]:
    """Return a collection as a list. Raises TypeError for any other value, and for str and
    bytes."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a collection of {of}, not {value!r}")
    return list(value)


def address(name: str, value: object) -> str:
    """Check for an IP address. Returns it in normal form."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must contain IP addresses, not {shown(value)}")
    try:
        return _address(value)
    except ValueError:
        raise ValueError(f"{name} must contain IP addresses, not {value!r}") from None


@lru_cache(_KNOWN)
def _address(text: str) -> str:
    """Parse an IP address. Cached, since every refresh brings the same thousands of addresses.

    Python accepts any text as a zone. Here the zone is restricted, since it may end up in a header.
    """
    found = ipaddress.ip_address(text)
    zone = getattr(found, "scope_id", None)
    if zone is not None and not _ZONE.fullmatch(zone):
        raise ValueError("the zone of an address must be letters, digits, '.', '_' or '-'")
    return str(found)


def is_address(text: str) -> bool:
    """Return True for an IP address, False for a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def host(name: str, value: object) -> str:
    """Check for an IP address or a host name of at most 253 characters.

    Returns it in lower case and without the final dot.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a host name or an IP address, not {shown(value)}")
    if ":" in value or value[-1:].isdigit():  # other text cannot be an address
        try:
            return _address(value)
        except ValueError:
            pass
    try:
        plain = value.encode("ascii" if value.isascii() else "idna").decode().lower()
    except UnicodeError:
        plain = ""
    plain = plain.removesuffix(".")
    if len(plain) > 253 or not _LABELS.fullmatch(plain):
        raise ValueError(f"{name} must be a host name or an IP address, not {bare(value)!r}")
    return plain


def shown(value: object) -> str:
    """Return a value for use in errors. Of a dict, only the type is shown, since a dict may contain
    an instance's headers."""
    return type(value).__name__ if isinstance(value, Mapping) else repr(value)


def bare(text: str) -> str:
    """Return a URL for use in errors, without the parts that may contain a password or a secret
    query."""
    before, _, query = text.partition("?")
    return "..." if "@" in query else before.rpartition("@")[2]
