"""The entries of a file or a registry. Each entry describes one instance: `host:port`, or an
object.

An entry that cannot be used becomes a RejectedRecord. It shows the host and port, and the content
of a field that is not allowed, but no values of headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from lbclient.endpoint.instance import Instance, RejectedRecord

__all__ = [
    "LONGEST",
    "distinct_keys",
    "from_object",
    "from_text",
    "host_and_port",
    "no_number",
    "parsed",
    "short",
    "sorted_out",
    "unknown_key",
]

T = TypeVar("T")
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]+)):([0-9]{1,5})")
_KEYS = (
    "host",
    "port",
    "weight",
    "priority",
    "metadata",
    "addresses",
    "scheme",
    "path",
    "headers",
    "tls_name",
)
LONGEST = 300
"""The maximum length of a text entry, in characters. Texts about an entry have the same maximum
length."""
_MOST = 100
"""At most this many refused entries are listed one by one."""


def sorted_out(
    entries: Iterable[Instance | RejectedRecord],
) -> tuple[list[Instance], list[RejectedRecord]]:
    """Separate the instances from the refused entries, of which only the first are listed one by
    one."""
    instances: list[Instance] = []
    refused: list[RejectedRecord] = []
    more = 0
    for one in entries:
        if isinstance(one, Instance):
            instances.append(one)
        elif len(refused) < _MOST:
            refused.append(one)
        else:
            more += 1
    if more:
        refused.append(RejectedRecord(f"{more} more", "not listed one by one"))
    return instances, refused


def parsed(
    where: str, shown: str, make: Callable[[T], Instance], given: T
) -> Instance | RejectedRecord:
    """Make an instance from an entry. The text about a refused entry shows its host and port,
    and the reason.

    The text after the port, or before an `@`, may be secret, so it is not shown.
    """
    try:
        return make(given)
    except (ValueError, TypeError, RecursionError) as error:
        return RejectedRecord(
            f"{where} {short(shown.rpartition('@')[2])}".rstrip(), short(str(error))
        )


def from_text(text: str, weight: float = 1, priority: float = 0) -> Instance:
    """Parse `host:port` or `[address]:port`."""
    if len(text) > LONGEST or (match := _HOST_AND_PORT.fullmatch(text)) is None:
        raise ValueError("must be host:port or [address]:port")
    six, host, port = match.groups()
    return Instance(six or host, int(port), weight, priority)  # type: ignore[arg-type]  # it checks


def from_object(entry: object) -> Instance:
    """Make an instance from a JSON object, whose keys are the fields of `Instance`."""
    if not isinstance(entry, dict):
        raise TypeError('must be "host:port", or an object with host and port')
    if reason := unknown_key(entry, _KEYS):
        raise ValueError(reason)
    if missing := [key for key in ("host", "port") if key not in entry]:
        raise ValueError(f"must have {' and '.join(missing)}")
    return Instance(**entry)


def host_and_port(entry: object) -> str:
    """Return the host and port of a JSON object, for texts about it."""
    if not isinstance(entry, dict):
        return ""
    values = (entry.get("host"), entry.get("port"))
    return ":".join(str(one) for one in values if isinstance(one, str | int))


def unknown_key(keys: Iterable[str], known: tuple[str, ...]) -> str | None:
    """Return an error text if an object has an unknown key."""
    strange = next((key for key in keys if key not in known), None)
    return None if strange is None else f"unknown key {strange!r}; the keys are {', '.join(known)}"


def distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object while JSON is parsed. Raises ValueError if it has a key twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has the same key twice")
    return made


def no_number(text: str) -> object:
    """Refuse NaN and Infinity while JSON is parsed."""
    raise ValueError(f"{text} is not a number")


def short(text: str) -> str:
    """Return the text, shortened and in one line, for a log or a screen."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return cut if cut.isprintable() else repr(cut)[1:-1]
