"""Tests that take long: `-m slow` runs them, and CI does."""

from __future__ import annotations

import pytest


def slow_rows(*rows):
    """These rows of a sweep are slow; the others run with the other tests."""
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.slow)
        for row in rows
    ]


shares = pytest.mark.parametrize("share", [0.05, *slow_rows(1)], ids=["some", "all"])
"""A storm or a search of random inputs: a twentieth of it runs with the other tests."""
