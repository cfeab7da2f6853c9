"""Whether to try again, and after how long. The only file with tenacity.

tenacity's stop, wait and retry objects decide; its own loop is not used, since one `Retrying`
shared between tasks mixes up their turns (jd/tenacity#93), its `with attempt` swallows
cancellation, and here neither the sleep nor the I/O belongs to the decision.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, cast

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from lbclient._internal import validation
from lbclient.endpoint.classifier import Verdict
from lbclient.resilience.retry_budget import Budget, RetryBudget

__all__ = [
    "IDEMPOTENT_METHODS",
    "RetryController",
    "RetryPolicy",
    "RetryRules",
    "RetryState",
    "Stopped",
]

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2."""

Stopped = Literal[
    "attempts",
    "deadline",
    "budget",
    "method",
    "body",
    "instances",
    "closed",
    "verdict",
    "streaming",
]
"""Why a call whose outcome is bad was not tried again:

- `"attempts"`: there were as many as the policy allows.
- `"deadline"`: it is over, or would be before the next attempt.
- `"budget"`: the retry budget is empty.
- `"method"`: the request may have been carried out, and may not be repeated.
- `"body"`: the request's body cannot be sent a second time.
- `"instances"`: no instance was free for another attempt.
- `"closed"`: the balancer, client or transport was closed.
- `"verdict"`: such an outcome is never tried again.
- `"streaming"`: part of the response had already been passed on.
"""

_MOST_ATTEMPTS = 100
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110, section 5.6.2."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which calls are tried again, how often, and how long a call may take.

    - `attempts`: at most so many sends, the first one included.
    - `methods`: HTTP methods that may be repeated though the first send may have been carried out.
    - `statuses`: HTTP statuses that are tried again, for those methods.
    - `backoff`, `backoff_max`: full jitter over min(`backoff_max`, `backoff` * 2**n), seconds.
    - `attempt_timeout`: seconds for one attempt, up to its headers where the body is streamed.
    - `deadline`: seconds for the whole call: attempts, delays and the body.
    - `budget`: see `RetryBudget`; None for no limit.
    """

    attempts: int = 3
    methods: Collection[str] = IDEMPOTENT_METHODS
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    backoff: float = 0.025
    backoff_max: float = 1.0
    attempt_timeout: float | None = None
    deadline: float | None = None
    budget: RetryBudget | None = field(default_factory=RetryBudget)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "methods", _methods(self.methods))
        put(self, "statuses", _statuses(self.statuses))
        if validation.count("attempts", self.attempts) > _MOST_ATTEMPTS:
            raise ValueError(f"attempts must be {_MOST_ATTEMPTS} or fewer, not {self.attempts!r}")
        validation.number("backoff (seconds)", self.backoff)
        validation.number("backoff_max (seconds)", self.backoff_max)
        for name in ("attempt_timeout", "deadline"):
            if getattr(self, name) is not None:
                validation.seconds(name, getattr(self, name))
        if self.backoff > self.backoff_max:
            raise ValueError(
                f"backoff ({self.backoff:g} s) must not be above "
                f"backoff_max ({self.backoff_max:g} s)"
            )
        if self.attempt_timeout and self.deadline and self.attempt_timeout > self.deadline:
            raise ValueError(
                f"attempt_timeout ({self.attempt_timeout:g} s) must not be above "
                f"deadline ({self.deadline:g} s)"
            )
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            raise TypeError(f"budget must be a RetryBudget or None, not {self.budget!r}")


def _methods(methods: Collection[str]) -> frozenset[str]:
    names = validation.several("methods", methods, "HTTP method names such as 'GET'")
    if not all(isinstance(name, str) and _TOKEN.fullmatch(name) for name in names):
        raise TypeError(f"methods must hold HTTP method names such as 'GET', not {methods!r}")
    return frozenset(str(name).upper() for name in names)


def _statuses(statuses: Collection[int]) -> frozenset[int]:
    for status in (given := validation.several("statuses", statuses, "HTTP statuses such as 503")):
        if validation.count("statuses (each of them)", status, least=100) > 599:
            raise ValueError(f"statuses must hold HTTP statuses from 100 to 599, not {status!r}")
    return frozenset(cast("list[int]", given))


@dataclass(slots=True)
class RetryState:
    """What is known when one attempt has failed; tenacity's objects read it.

    `pause` is how long all instances want to rest, `rested` how long the call has waited for that;
    `unsent` is True if the attempt was never sent, so that its replacement costs no budget.
    """

    verdict: Verdict
    now: float
    repeatable: bool
    replayable: bool
    deadline: float | None
    pause: float
    unsent: bool = False
    rested: float = 0.0
    stopped: Stopped | None = None
    """Why this outcome stands, once `RetryController.delay` has said that it does."""


class RetryRules:
    """The rules of one balancer, shared by all its calls; `RetryController` is the state of one
    call."""

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self.policy = policy
        self.budget = Budget(policy.budget) if policy.budget is not None else None
        stop = tenacity.stop_after_attempt(policy.attempts)
        self.rules = tenacity.Retrying(
            retry=tenacity.retry_if_result(_may_repeat),
            wait=_FullJitter(policy, rng),
            stop=tenacity.stop_any(stop, _AtDeadline(), _NoBudget(self.budget)),
        )


class RetryController:
    """The retries of one call. Costs nothing until an attempt has failed."""

    __slots__ = ("_rested", "_retries", "_state")

    def __init__(self, retries: RetryRules) -> None:
        self._retries = retries
        self._state: tenacity.RetryCallState | None = None
        self._rested = 0.0

    def delay(self, retry_state: RetryState) -> float | None:
        """Seconds to wait before the next attempt, or None: this outcome stands."""
        rules = self._retries.rules
        if self._state is None:
            self._state = tenacity.RetryCallState(rules, None, (), {})
        state = self._state
        retry_state.rested = self._rested
        state.set_result(retry_state)
        if not rules.retry(state):
            retry_state.stopped = "method" if retry_state.replayable else "body"
            return None
        state.upcoming_sleep = rules.wait(state)
        if rules.stop(state):
            retry_state.stopped = retry_state.stopped or "attempts"
            return None
        delay = state.upcoming_sleep
        self._rested += min(delay, retry_state.pause)
        state.prepare_for_next_attempt()
        return delay


def _may_repeat(retry_state: RetryState) -> bool:
    if not retry_state.replayable:
        return False
    return retry_state.verdict.again == "always" or (
        retry_state.verdict.again == "idempotent" and retry_state.repeatable
    )


class _FullJitter(wait_base):
    """Full jitter (AWS, "Exponential Backoff And Jitter"), by the balancer's own dice."""

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._rng = rng
        self._most = policy.backoff_max
        self._bound = tenacity.wait_exponential(multiplier=policy.backoff, max=policy.backoff_max)

    def __call__(self, state: tenacity.RetryCallState) -> float:
        retry_state = _retry_state(state)
        verdict = retry_state.verdict
        jitter = self._rng.random() * self._bound(state)
        if verdict.again == "always" and not verdict.backoff and state.attempt_number == 1:
            jitter = 0.0
        return max(jitter, min(retry_state.pause, self._most - retry_state.rested))


class _AtDeadline(stop_base):
    """A delay that would overrun the deadline is not slept."""

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        retry_state = _retry_state(state)
        if (
            retry_state.deadline is None
            or retry_state.now + state.upcoming_sleep < retry_state.deadline
        ):
            return False
        retry_state.stopped = "deadline"
        return True


class _NoBudget(stop_base):
    """Asked last, and before any sleep: a yes takes one retry out of the budget.

    The replacement of an attempt that was never sent costs nothing, as a transparent retry in gRPC
    (its proposal A6): no instance works for it, and no budget must keep a call from a live one.
    """

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        retry_state = _retry_state(state)
        if retry_state.unsent or self._budget is None:
            return False
        if self._budget.withdraw(retry_state.now):
            return False
        retry_state.stopped = "budget"
        return True


def _retry_state(state: tenacity.RetryCallState) -> RetryState:
    """What `RetryController.delay` has put in."""
    retry_state = state.outcome and state.outcome.result()
    return cast("RetryState", retry_state)
