"""The library's words in those of the command line."""

from __future__ import annotations

import re

__all__ = ["as_arguments", "as_options"]

_NAMES = {
    "service": "SERVICE",
    "nameservers": "--nameserver",
    "allow": "--allow",
    "within": "--within",
    "family": "--family",
    "sticky": "--sticky",
}
_PYTHON_ONLY = re.compile(r", a list of the latter, .* -> Answer")


def as_options(text: str) -> str:
    """Why a record was refused, with the advice as an option."""
    text = re.sub(r"pass allow=\['([^']*)'\]", r"pass --allow \1", text)
    return re.sub(r"family='(\w+)'", r"--family \1", text)


def as_arguments(text: str) -> str:
    """Why an argument cannot be used: by the name it has here, without what only Python can do."""
    named = re.sub(r"^\w+", lambda name: _NAMES.get(name[0], name[0]), text)
    usable = _PYTHON_ONLY.sub(", or several of the latter", named)
    return re.sub(r"; pass (auth|params)= instead", "", usable)
