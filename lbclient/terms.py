"""What one call asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lbclient import checks

__all__ = ["NOTHING_ASKED", "Terms", "caller_of", "terms"]


class Terms(NamedTuple):
    """The caller's word on one call.

    - `idempotent`: it may be repeated though an attempt may have been carried out.
    - `key`: for strategies that pick by it.
    - `caller`: the hash of what names the caller: in line, callers take turns. None for no caller.
    - `deadline`: seconds for the whole call; None for the policy's.
    - `since`: when the deadline began to run, by the balancer's clock; None for now.
    - `patience`: seconds to wait in turn where every instance is at its limit.
    - `replayable`: whether the body can be sent once more, asked after a failure; None for always.
    """

    idempotent: bool = False
    key: object = None
    deadline: float | None = None
    patience: float = 5.0
    replayable: Callable[[], bool] | None = None
    since: float | None = None
    caller: int | None = None


def caller_of(name: str, caller: object) -> int | None:
    """What the line knows of a caller: its hash; None for no caller.

    Raises TypeError, naming the argument, for what has no hash.
    """
    if caller is None:
        return None
    try:
        return hash(caller)
    except TypeError as error:
        kind = type(caller).__name__  # the value may be a secret
        raise TypeError(f"{name} must give something hashable, not {kind}") from error


def terms(*, idempotent: bool, key: object, deadline: float | None, caller: object = None) -> Terms:
    """Checked. Raises ValueError or TypeError, naming the argument."""
    if not isinstance(idempotent, bool):
        raise TypeError(f"idempotent must be True or False, not {idempotent!r}")
    if deadline is not None:
        checks.seconds("deadline", deadline)
    return Terms(idempotent, key, deadline, caller=caller_of("caller", caller))


NOTHING_ASKED = Terms()
