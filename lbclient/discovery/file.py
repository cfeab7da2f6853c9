"""A file with a list of instances, which is read periodically, such as a Kubernetes ConfigMap.

The entries are lines, or JSON. Calls continue while a large file is parsed, so no single step may
occupy the interpreter for long. Lines are read one by one, and the JSON parser returns to Python
code at each object.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes

from lbclient._internal import validation
from lbclient.discovery.entries import (
    LONGEST,
    distinct_keys,
    from_object,
    from_text,
    host_and_port,
    no_number,
    parsed,
    short,
    sorted_out,
    unknown_key,
)
from lbclient.discovery.resolver import listed, text_of
from lbclient.discovery.service_url import ParsedService, Sources, shown
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError

__all__ = ["FileResolver"]

_JSON = re.compile(r"""\s*(\{|\[\s*(["{\[\]]|\Z))""")
"""Matches the start of JSON, but not `[::1]:80`."""
_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], float]]] = {
    "weight": (re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?"), float),
    "priority": (re.compile(r"[0-9]{1,9}"), int),
}
_INTERVAL = 1.0
_LARGEST = 4 << 20
"""The maximum size of a file in bytes. Ten thousand instances with metadata need a quarter of this
size. A ConfigMap has at most 1 MiB."""


class Malformed(Exception):
    """Raised for a file that contains nothing that can be used. The text is the reason."""


def is_cut(data: bytes) -> bool:
    """True if the last line has no newline, so that the text may be cut off. For JSON this is not
    needed: JSON that is cut off is invalid."""
    return bool(data) and not data.endswith(b"\n") and not _JSON.match(_text(data))


def parse(data: bytes, ttl: float) -> Answer:
    """Parse the instances of a file, valid for `ttl` seconds. Raises Malformed if the file contains
    none."""
    text = _text(data)
    instances, refused = sorted_out(_of_json(text) if _JSON.match(text) else _of_lines(text))
    if not instances:
        raise Malformed(f"it lists no instance{f'; refused {listed(refused)}' if refused else ''}")
    return Answer(instances, ttl, refused)


def _text(data: bytes) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"it is not UTF-8: {error.reason} at byte {error.start}") from None


def _of_lines(text: str) -> Iterator[Instance | RejectedRecord]:
    for number, line in enumerate(io.StringIO(text), 1):
        if entry := line.partition("#")[0].strip():
            yield parsed(f"line {number}", entry.split(maxsplit=1)[0], _from_line, entry)


def _of_json(text: str) -> Iterator[Instance | RejectedRecord]:
    try:
        found = json.loads(text, object_pairs_hook=distinct_keys, parse_constant=no_number)
    except RecursionError:
        raise Malformed("it is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"it is not valid JSON: {short(str(error))}") from None
    if isinstance(found, dict):
        if unknown := unknown_key(found, ("instances",)):
            raise Malformed(short(unknown))
        found = found.get("instances")
    if not isinstance(found, list):
        raise Malformed('it must contain a list, or {"instances": [...]}')
    for place, one in enumerate(found):
        if isinstance(one, str):
            yield parsed(f"[{place}]", one, from_text, one)
        else:
            yield parsed(f"[{place}]", host_and_port(one), from_object, one)


def _from_line(entry: str) -> Instance:
    if len(entry) > LONGEST:
        raise ValueError(f"must be at most {LONGEST} characters long")
    place, *options = re.split("[ \t]+", entry)
    found: dict[str, float] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in _NUMBERS:
            raise ValueError(f"unknown option {key!r}; the options are {', '.join(_NUMBERS)}")
        if key in found:
            raise ValueError(f"{key} is given twice")
        pattern, number = _NUMBERS[key]
        if not pattern.fullmatch(value):
            raise ValueError(f"{key} must be a plain number, not {value!r}")
        found[key] = number(value)
    return from_text(place, **found)


class FileResolver:
    """The instances listed in a file, as text or as JSON. The file is read every `interval`
    seconds.

    Text has one instance per line: `host:port` or `[address]:port`, and optionally `weight=3` and
    `priority=1`. Text after `#` is a comment. JSON is a list, alone or as `{"instances": [...]}`.
    Each entry is a text `"host:port"`, or an object with `host`, `port`, and optionally `weight`,
    `priority`, `metadata`, `addresses`, `scheme`, `path`, `headers`, `tls_name`, as in `Instance`.
    The format is detected from the content.

    An entry that cannot be used is left out, and the answer contains the reason. All other entries
    are used. If the file cannot be read, or lists no instance, DiscoveryError is raised, so the
    last good set stays in use. Replace the file as a whole (with `mv`, or as a ConfigMap does by
    changing a link). A file that is rewritten in place may be read while it is incomplete. If this
    can be detected (JSON that does not end, text without a final newline), the content is not used,
    unless it is still the same when the file is read again.

    The file is trusted, like a list in code: its addresses are not filtered. So everyone who may
    write to the file decides where calls are sent.

    Raises ValueError or TypeError if `path` is not a path, or `interval` is not a time above zero.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = _INTERVAL) -> None:
        given = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(given, str):
            raise TypeError(f"path must be a str or a pathlib.Path, not {type(given).__name__}")
        if not _is_path(given):
            raise ValueError(f"path must name a file, not {given!r}")
        self._path = Path(given).absolute()
        self._interval = validation.seconds("interval", interval)
        self._seen: bytes | None = None
        self._good: tuple[bytes, Answer] | None = None

    def __repr__(self) -> str:
        return f"<FileResolver {self if hasattr(self, '_path') else ''}>"

    def __str__(self) -> str:
        path = str(self._path)
        return path if path.isprintable() else repr(path)[1:-1]

    def resolve(self) -> Answer:
        """Return the instances that the file lists now. The same answer is returned while the bytes
        of the file are the same.

        Raises DiscoveryError, naming the path, if the file contains nothing that can be used.
        """
        try:
            data = self._read()
            answer = self._answer(data)
        except OSError as error:
            raise DiscoveryError(f"{self}: {error.strerror or text_of(error)}") from error
        except Malformed as error:
            raise DiscoveryError(f"{self}: {error}") from error
        self._good = data, answer
        return answer

    def _answer(self, data: bytes) -> Answer:
        before, self._seen = self._seen, data
        if self._good is not None:
            if data == self._good[0]:
                return self._good[1]
            if data != before and is_cut(data):
                raise Malformed("its last line has no newline, so it may be half-written")
        return parse(data, self._interval)

    def _read(self) -> bytes:
        with open(self._path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Malformed("it is not a regular file")
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise Malformed(f"it is larger than {_LARGEST >> 20} MiB")
        return data


def _is_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeError:
        return False


def _open(path: str, flags: int) -> int:
    """Open the file without blocking: if it is a pipe without a writer, the thread must not be
    blocked."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def from_url(url: SplitResult, scheme: str, _sources: Sources) -> ParsedService:
    """Parse a URL such as `http+file:///etc/orders/instances`: the file with this path lists the
    instances."""
    if url.netloc not in ("", "localhost") or not url.path:
        raise ValueError(
            "service must name a file by its absolute path, "
            f"as in {scheme}+file:///etc/orders/instances; not {shown(url)!r}"
        )
    resolver = FileResolver(os.fsdecode(unquote_to_bytes(url.path)))
    return ParsedService(resolver, str(resolver), scheme)
