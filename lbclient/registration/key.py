"""How a TSIG key is named: as `nsupdate -y` has it, or by a file that `tsig-keygen` wrote."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lbclient.discovery.tsig import Tsig

__all__ = ["key_of"]

_FORMS = "'[algorithm:]name:secret', or the path of a key file as pathlib.Path"
_TOKENS = re.compile(
    r"""(?://|\#)[^\n]* | /\*.*?\*/ | "([^"]*)" | ([{};]) | ([^\s{};"]+)""", re.VERBOSE | re.DOTALL
)


def key_of(given: str | os.PathLike[str] | None) -> Tsig | None:
    """From `"hmac-sha512:name:secret"`, `"name:secret"` (HMAC-SHA256), or a path.

    Raises ValueError or TypeError, naming `key`; no part of a secret is ever in their text.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return _from_text(given)
    if isinstance(given, os.PathLike):
        return _from_file(Path(given))
    raise TypeError(f"key must be {_FORMS}; not {type(given).__name__}")


def _from_text(text: str) -> Tsig:
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"key must be {_FORMS}")
    return Tsig(parts[-2], parts[-1], *parts[:-2])


def _from_file(path: Path) -> Tsig:
    try:
        text = path.read_text()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"key must be a file that can be read, not {path}: {reason}") from None
    match [word for token in _TOKENS.findall(text) if (word := "".join(token))]:
        case ["key", name, "{", *statements, "}", ";"]:
            said = dict(zip(statements[::3], statements[1::3], strict=False))
            if said.keys() == {"algorithm", "secret"} and statements[2::3] == [";", ";"]:
                return Tsig(name, said["secret"], said["algorithm"])
    raise ValueError(
        f"key must be a file with one key as named.conf has it, which {path} is not: "
        'key "name" { algorithm hmac-sha256; secret "..."; };'
    )
