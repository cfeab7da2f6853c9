"""The shells: they carry out what a call decides, on threads and on event loops.

Both are the same lines, one with `await`; a property test drives them, and virtual time, through
the same script and compares every decision. Where a call may be hedged, two sequences of steps are
carried out beside each other, each by those same lines.
"""

from __future__ import annotations

from lbclient.shell.loops import arun
from lbclient.shell.threads import run
from lbclient.shell.waits import asleep, sleep

__all__ = ["arun", "asleep", "run", "sleep"]
