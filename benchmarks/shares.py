"""Whose code the processor is in during a call, by a profile."""

from __future__ import annotations

import cProfile
import pstats
import re
from collections import Counter

from crowd import AsyncCall, Effort, of_tasks

_PACKAGE = re.compile(r"site-packages/([a-z0-9_]+)/|/(lbclient|benchmarks)/")


async def shares(call: AsyncCall, at_once: int, effort: Effort) -> Counter[str]:
    """Per cent of the profiled time that each package's own functions take. A profiler slows small
    functions down more than large ones, so read them as rough."""
    profile = cProfile.Profile()
    with profile:
        await of_tasks(call, at_once, effort)
    spent: Counter[str] = Counter()
    for (file, _, name), (_, _, own, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if "select" not in name and "epoll" not in name and "gc.collect" not in name:
            spent[_package(file)] += own
    whole = sum(spent.values())
    found = Counter({one: 100 * own / whole for one, own in spent.items() if own > 0.02 * whole})
    found["others"] = 100 - sum(found.values())
    return found


def _package(file: str) -> str:
    if file == "~":
        return "Python's own, in C"
    named = _PACKAGE.search(file)
    return (named[1] or named[2]) if named else "Python's library"
