"""Whose fault it is that an instance cannot be reached.

It is the instance's fault only if others can be reached: otherwise the network is down, every
instance would leave the rotation, and none would be in it when the network is back. The proof is an
attempt that was sent after such a failure and reached its instance: its answer, or its refusal. So
the first failure is neutral, and each later one is a fault if there is a proof since the last that
counted. "After" is counted in epochs, not in time: a failure that starts the wait for a proof
begins a new epoch, and an attempt remembers the epoch in which it was sent.
"""

from __future__ import annotations

from collections.abc import Callable

from lbclient.core.picker import Pick
from lbclient.core.pool import Pool
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["Reachability"]


class Reachability:
    """Which attempts of one balancer reached their instances. Hold the balancer's lock."""

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._clock = clock
        self.epoch: int = 0
        self.proved: int = 0
        """The last epoch in which an attempt was sent that reached its instance."""

    def record_failure(self, pick: Pick) -> bool:
        """An attempt found no way to its instance. True if that is the instance's fault."""
        endpoint = pick.endpoint
        if endpoint.gone or pick.breaker is not endpoint.breaker:
            return False
        fault = 0 < endpoint.unreached <= self.proved
        if fault or not endpoint.unreached:
            self.epoch += 1
            endpoint.unreached = self.epoch
        return fault

    def record_success(self, pick: Pick) -> None:
        """An attempt has reached its instance, whatever the instance said."""
        endpoint = pick.endpoint
        if 0 < endpoint.unreached <= pick.epoch:
            self._reached_again(endpoint)
        self.proved = max(self.proved, pick.epoch)

    def _reached_again(self, endpoint: Endpoint) -> None:
        """There is a way again, so other endpoints that had none may be probed at once.

        Those that were unreachable with no proof since were so in the same outage. It is over, and
        says nothing about the next one.
        """
        endpoint.unreached = 0
        now = self._clock()
        for other in self._pool.endpoints:
            if other.unreached:
                other.breaker.at_once(now)
            if other.unreached > self.proved:
                other.unreached = 0
