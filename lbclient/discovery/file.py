"""A file of instances, read again and again: a Kubernetes ConfigMap, or a list on a laptop."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lbclient import checks
from lbclient.discovery.entries import Malformed, is_cut, parse
from lbclient.discovery.words import text_of
from lbclient.errors import DiscoveryError
from lbclient.instance import Answer

__all__ = ["FileResolver"]

_INTERVAL = 1.0
_LARGEST = 4 << 20
"""Bytes. Ten thousand instances with metadata are a quarter of it; a ConfigMap holds one MiB."""


class FileResolver:
    """The instances that a file names, as text or as JSON; it is read every `interval` seconds.

    Text has one instance a line, `host:port` or `[address]:port`, then `weight=3` and `priority=1`
    where wanted; what follows `#` is a comment. JSON is a list, alone or as
    `{"instances": [...]}`, of `"host:port"` or of objects with `host`, `port`, and where wanted
    `weight`, `priority`, `metadata`, `addresses`. Which of both it is, its content tells.

    An entry that cannot be used is left out, with the reason in the answer; the rest stands. A file
    that cannot be read, or names nobody, is a DiscoveryError, so that the last good set stands.
    Replace the file as a whole (`mv`, or a ConfigMap's swap of links): one that is rewritten in
    place may be read half-written. Where that shows (JSON that does not end, no new line at the
    end of text) it is not taken, unless it is still the same at the next reading.

    The file is the caller's own word, as a list is: its addresses are not guarded, so that whoever
    may write to it says where calls go.

    Raises ValueError or TypeError for what is no path, or an interval that is no time above zero.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = _INTERVAL) -> None:
        given = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(given, str):
            raise TypeError(f"path must be a str or a pathlib.Path, not {type(given).__name__}")
        if not _is_path(given):
            raise ValueError(f"path must name a file, not {given!r}")
        self._path = Path(given).absolute()
        self._interval = checks.seconds("interval", interval)
        self._seen: bytes | None = None
        self._good: tuple[bytes, Answer] | None = None

    def __str__(self) -> str:
        path = str(self._path)
        return path if path.isprintable() else repr(path)[1:-1]

    def resolve(self) -> Answer:
        """What the file says now; the same answer while its bytes are the same.

        Raises DiscoveryError, naming the path, where it says nothing that can be used.
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
                raise Malformed("its last line does not end, as if it were half-written")
        return parse(data, self._interval)

    def _read(self) -> bytes:
        with open(self._path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Malformed("it is no regular file")
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
    """A pipe that nobody writes to must not hold up the thread."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
