"""The circuit breaker of one instance, as permits. The only room with pybreaker.

Admission and outcome are apart, so that nothing is held while the I/O runs:

- A closed breaker hands its `permit` to everybody. Half-open it has one permit, the `probe`.
- `settle` tells how it ended, at zero length. A permit from before the last change of state is
  stale: it moves nothing. `cancel` hands one back without an outcome.

Rules learned from Nygard's "Release It!" (the states), Envoy (longer ejection each time, decaying
when healthy), AWS ("equal jitter" of the open period), resilience4j (rates of faults and of slow
calls, in a sliding window of time) and Hystrix (that window in ten slices).
"""

from lbclient.breaker.permits import Breaker, Permit, State
from lbclient.breaker.policy import DISABLED, BreakerPolicy

__all__ = ["DISABLED", "Breaker", "BreakerPolicy", "Permit", "State"]
