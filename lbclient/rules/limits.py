"""How much may be under way: at one instance, fixed or learned, and at all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from lbclient import checks
from lbclient.endpoint import Endpoint
from lbclient.rules.adaptive import AdaptiveLimit

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """`fixed` (`max_in_flight`) is the most attempts in flight at one instance, `total`
    (`max_in_flight_total`) at all of them together; `adaptive` learns what each can bear.

    Raises ValueError or TypeError, naming the argument.
    """

    fixed: int | None = None
    total: int | None = None
    adaptive: AdaptiveLimit | None = None

    def __post_init__(self) -> None:
        checks.limit("max_in_flight", self.fixed)
        checks.limit("max_in_flight_total", self.total)
        checks.kind("limit", self.adaptive, AdaptiveLimit)

    @property
    def each(self) -> bool:
        """True where an instance may be at its limit."""
        return self.fixed is not None or self.adaptive is not None

    def full(self, endpoint: Endpoint) -> bool:
        """True for one at its limit."""
        if self.fixed is not None and endpoint.in_flight >= self.fixed:
            return True
        rule = self.adaptive
        return rule is not None and rule.full(endpoint.limit, endpoint.in_flight)
