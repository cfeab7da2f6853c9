"""One call: its attempts, one after another or two beside each other, until one outcome stands."""

from __future__ import annotations

from lbclient.call.attempt import Attempt
from lbclient.call.call import Call
from lbclient.call.hedge import Hedge
from lbclient.call.race import Race

__all__ = ["Attempt", "Call", "Hedge", "Race"]
