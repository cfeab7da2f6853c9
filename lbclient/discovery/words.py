"""What discovery says in logs and errors about what it was given."""

from __future__ import annotations

from collections.abc import Iterable

from lbclient.errors import LoadBalancingError
from lbclient.instance import Refusal
from lbclient.interruption import is_interruption

__all__ = ["listed", "text_of"]

_SHOWN = 5


def listed(refused: Iterable[Refusal]) -> str:
    """In an order of their own, so that the same ones make the same text, and not all of many."""
    shown = sorted({f"{one.record}: {one.reason}" for one in refused})
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more


def text_of(error: BaseException | None) -> str:
    """What it says, in one line. It may be the caller's own, and say nothing, or fail to say it."""
    try:
        kind, text = type(error).__name__, str(error)
        if not text or not isinstance(error, LoadBalancingError | OSError):
            text = f"{kind}: {text}" if text else kind  # that of a KeyError is but the key
        return text if text.isprintable() else repr(text)[1:-1]
    except Exception as failure:  # no error of an error's text may end discovery
        if is_interruption(failure):
            raise
        return type(error).__name__
