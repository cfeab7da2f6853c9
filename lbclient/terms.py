"""What one call asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lbclient import checks

__all__ = ["Terms", "terms"]


class Terms(NamedTuple):
    """The caller's word on one call.

    - `idempotent`: it may be repeated though an attempt may have been carried out.
    - `key`: for strategies that pick by it.
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


def terms(*, idempotent: bool, key: object, deadline: float | None) -> Terms:
    """Checked. Raises ValueError or TypeError, naming the argument."""
    if not isinstance(idempotent, bool):
        raise TypeError(f"idempotent must be True or False, not {idempotent!r}")
    if deadline is not None:
        checks.seconds("deadline", deadline)
    elif key is None and not idempotent:
        return _NOTHING_ASKED
    return Terms(idempotent, key, deadline)


_NOTHING_ASKED = Terms()
