"""What the checks of one instance add up to."""

from __future__ import annotations

from lbclient.endpoint import Endpoint
from lbclient.health.policy import HealthCheck

__all__ = ["Pulse"]


class Pulse:
    """Counts the checks in a row that speak against what `endpoint.healthy` says.

    It belongs to the machine that `breaker` stands for: another breaker is another machine.
    """

    __slots__ = ("_against", "breaker", "endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.breaker = endpoint.breaker
        self._against = 0

    @property
    def stale(self) -> bool:
        """True where it says nothing of the endpoint any more."""
        return self.endpoint.gone or self.endpoint.breaker is not self.breaker

    def count(self, *, good: bool, policy: HealthCheck) -> bool:
        """Count one check. True where it is now enough for `endpoint.healthy` to change."""
        if good is self.endpoint.healthy:
            self._against = 0
            return False
        self._against += 1
        return self._against >= (policy.up if good else policy.down)
