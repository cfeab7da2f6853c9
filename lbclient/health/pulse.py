"""What the checks of one instance add up to."""

from __future__ import annotations

from lbclient.endpoint import Endpoint
from lbclient.health.policy import HealthCheck

__all__ = ["Pulse"]


class Pulse:
    """Counts the checks in a row that came out alike.

    It belongs to the machine that `breaker` stands for: another breaker is another machine.
    """

    __slots__ = ("_good", "_run", "breaker", "endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.breaker = endpoint.breaker
        self._good = True
        self._run = 0

    @property
    def stale(self) -> bool:
        """True where it says nothing of the endpoint any more."""
        return self.endpoint.gone or self.endpoint.breaker is not self.breaker

    def count(self, *, good: bool, policy: HealthCheck) -> bool:
        """Count one check. True where it is now enough for `endpoint.healthy` to change."""
        self._run = self._run + 1 if good is self._good else 1
        self._good = good
        enough = self._run >= (policy.up if good else policy.down)
        return enough and good is not self.endpoint.healthy
