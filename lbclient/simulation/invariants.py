"""What must hold at every step of every run, whatever happens."""

from __future__ import annotations

from lbclient.balancer import Balancer
from lbclient.call import Attempt
from lbclient.simulation.reply import Reply

__all__ = ["Invariants"]

_NOT_ASKED = ("probe", "resting")
_SLACK = 1e-6


class Invariants:
    """Looks at one balancer each time an attempt begins, and when the run is over."""

    def __init__(self, balancer: Balancer, name: str, *, panics: bool) -> None:
        self._balancer = balancer
        self._name = name
        self._panics = panics
        self._calls = 0
        self._repeats = 0
        self.breaches: list[str] = []

    def sending(self, attempt: Attempt[Reply], now: float, *, first: bool) -> None:
        """Just before an attempt is sent."""
        self._calls += first
        self._repeats += not first
        endpoint = attempt.endpoint
        standing = endpoint.standing(now)
        observed = endpoint.breaker.observes
        if standing == "ejected" or not (
            standing == "serving" or attempt.reason in _NOT_ASKED or self._panics or observed
        ):
            self._breach(now, f"{endpoint.instance} was picked ({attempt.reason}): {standing}")
        if attempt.expiry is not None and attempt.expiry.at < now:
            self._breach(now, f"an attempt began {now - attempt.expiry.at:g} s past its time")
        self._look(now)

    def ended(self, now: float, late: float) -> None:
        """A request is over, `late` seconds past its deadline."""
        if late > _SLACK:
            self._breach(now, f"a call ended {late:g} s past its deadline")

    def over(self, now: float) -> None:
        """Nothing is under way any more."""
        self._look(now)
        self._count(now)
        busy = [one for one in self._balancer.snapshot().instances if one.in_flight]
        if busy:
            self._breach(now, f"still in flight at the end: {busy}")

    def _count(self, now: float) -> None:
        """No more was repeated than the budget can have earned."""
        budget = self._balancer.budget
        if budget is None:
            return
        policy = budget.policy
        earned = policy.ratio * self._calls + policy.reserve * (now + policy.window)
        if self._repeats > earned + _SLACK:
            self._breach(now, f"{self._repeats} retries and hedges, {earned:g} were earned")

    def _look(self, now: float) -> None:
        budget = self._balancer.budget
        if budget is not None and not budget.balance(now) >= -_SLACK:
            self._breach(now, f"the retry budget is {budget.balance(now):g}")
        for one in self._balancer.pool.endpoints:
            if one.in_flight < 0:
                self._breach(now, f"{one.instance} has {one.in_flight} in flight")
            if one.breaker.state != "half-open" and one.breaker.probing(now):
                self._breach(now, f"{one.instance} is probed while {one.breaker.state}")

    def _breach(self, now: float, text: str) -> None:
        self.breaches.append(f"BREACH at {now:.6f} s, {self._name}: {text}")
