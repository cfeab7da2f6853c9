"""Balancer, and how calls are carried out: on threads, on event loops, in the background.

Both drivers are the same lines, one with `await`; a property test drives them, and virtual
time, through the same script and compares every decision. Where a call may be hedged, two
sequences of steps are carried out beside each other, each by those same lines.
"""

from __future__ import annotations

from lbclient.balancer.balancer import Balancer

__all__ = ["Balancer"]
