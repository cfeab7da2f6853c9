"""Who may be picked, worked out anew from what each instance is at one moment.

The pool keeps account of that from change to change; here nothing is kept, so both can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from lbclient.endpoint import Endpoint, Standing
from lbclient.pool import Pool
from lbclient.rules import Limits

__all__ = ["Moment"]


class Moment:
    """The admissible endpoints of each tier in `open`, best tier first; `serving` is the tier that
    serves, empty if none does. `panic` is the breaker's `panic_threshold`."""

    __slots__ = ("_blind", "_limits", "_now", "open", "serving")

    def __init__(self, pool: Pool, limits: Limits, panic: float, now: float) -> None:
        self._limits = limits
        self._now = now
        self._blind = not any(one.healthy for one in pool.endpoints)
        tiers = _tiers(pool.endpoints)
        self.open = [[one for one in tier if self.standing(one) == "serving"] for tier in tiers]
        place = next((place for place, tier in enumerate(self.open) if tier), 0)
        if tiers and len(self.open[place]) < panic * len(tiers[place]):
            self.open[place] = [one for one in tiers[place] if self.standing(one) != "ejected"]
        self.serving: Sequence[Endpoint] = next((tier for tier in self.open if tier), ())

    def standing(self, one: Endpoint) -> Standing:
        """What it is, active checks disregarded where they call everybody down."""
        return one.standing(self._now, blind=self._blind)

    def roomy(self, tier: Iterable[Endpoint], but: Collection[object] = ()) -> list[Endpoint]:
        """Those of a tier that are below their limit, but for some."""
        limits, now = self._limits, self._now
        ready = [one for one in tier if one not in but and one.paused_until <= now]
        return [one for one in ready if not (limits.each and limits.full(one))]

    def crowded(self, one: Endpoint) -> bool:
        """True for one with more in flight than its limit allows."""
        fixed, rule = self._limits.fixed, self._limits.adaptive
        if fixed is not None and one.in_flight > fixed:
            return True
        return rule is not None and rule.full(one.limit, one.in_flight - 1)


def _tiers(endpoints: Iterable[Endpoint]) -> list[list[Endpoint]]:
    tiers: dict[int, list[Endpoint]] = {}
    for one in endpoints:
        tiers.setdefault(one.instance.priority, []).append(one)
    return [tiers[priority] for priority in sorted(tiers)]
