"""Plain text in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["columns"]


def columns(rows: Iterable[Sequence[str]], shape: str, indent: str = "  ") -> str:
    """The rows as aligned lines; `shape` has `<` or `>` for each column, as in a format string."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        (
            indent
            + "  ".join(
                f"{cell:{side}{width}}"
                for cell, side, width in zip(row, shape, widths, strict=True)
            )
        ).rstrip()
        for row in table
    )
