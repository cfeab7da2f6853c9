"""Rules that a caller may add, one a file: each a policy, and what it has seen so far.

Told the time and handed the dice; not locked: their owner is.
"""

from __future__ import annotations

from lbclient.rules.adaptive import AdaptiveLimit
from lbclient.rules.guards import Guards
from lbclient.rules.hedging import HedgePolicy, Hedging
from lbclient.rules.limits import Limits
from lbclient.rules.outliers import OutlierPolicy
from lbclient.rules.slow_start import SlowStart
from lbclient.rules.throttle import ThrottlePolicy

__all__ = [
    "AdaptiveLimit",
    "Guards",
    "HedgePolicy",
    "Hedging",
    "Limits",
    "OutlierPolicy",
    "SlowStart",
    "ThrottlePolicy",
]
