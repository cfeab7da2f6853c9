"""Decides whether to retry a call, and after what delay. The only file that uses tenacity.

The decisions are made by the stop, wait and retry objects of tenacity. The loop of tenacity is not
used, for three reasons: a `Retrying` that several tasks share mixes up their state
(jd/tenacity#93), tenacity's `with attempt` swallows cancellations, and the loop would include the
sleep and the I/O.
"""

from __future__ import annotations

import random
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
    "ONE_ATTEMPT",
    "RetryController",
    "RetryPolicy",
    "RetryRules",
    "RetryState",
    "Stopped",
]

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""The idempotent methods of RFC 9110, section 9.2.2."""

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
"""The reason why a call with a bad outcome was not retried:

- `"attempts"`: the policy allows no more attempts.
- `"deadline"`: the deadline has passed, or would pass before the next attempt.
- `"budget"`: the retry budget is empty.
- `"method"`: the request may have been carried out, and may not be repeated.
- `"body"`: the request's body cannot be sent a second time.
- `"instances"`: no instance was free for another attempt.
- `"closed"`: the balancer, client or transport was closed.
- `"verdict"`: an outcome of this kind is never retried.
- `"streaming"`: part of the response had already been passed on to the caller.
"""

_MOST_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Defines which calls are retried, how often, and how long a call may take.

    - `attempts`: the maximum number of attempts, including the first one.
    - `methods`: HTTP methods that may be retried even if the server may have carried out the first
      attempt.
    - `statuses`: HTTP statuses that are retried, for these methods.
    - `backoff`, `backoff_max`: the delay in seconds is random, from 0 to min(`backoff_max`,
      `backoff` * 2**n) ("full jitter").
    - `attempt_timeout`: seconds for one attempt. If the body is streamed, this is the time up to
      the headers.
    - `deadline`: seconds for the whole call: attempts, delays and the body.
    - `budget`: a `RetryBudget`, which limits the retries of all calls together; None means no
      limit.
    - `unprocessed`: HTTP statuses (400 to 599) by which this service says that it did not start to
      process the request, such as 429 of an LLM endpoint. Such requests are retried on another
      instance for any method, if the number of attempts, the budget and the deadline allow it.
    - `retry_after_max`: the maximum seconds for which an instance backs off because of
      `Retry-After`, or of a rate limit that is used up; with 0, both are ignored.

    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
    """

    attempts: int = 3
    methods: Collection[str] = IDEMPOTENT_METHODS
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    backoff: float = 0.025
    backoff_max: float = 1.0
    attempt_timeout: float | None = None
    deadline: float | None = None
    budget: RetryBudget | None = field(default_factory=RetryBudget)
    unprocessed: Collection[int] = frozenset()
    retry_after_max: float = 30.0

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "methods", _methods(self.methods))
        put(self, "statuses", _statuses("statuses", self.statuses, least=100))
        put(self, "unprocessed", _statuses("unprocessed", self.unprocessed, least=400))
        if validation.count("attempts", self.attempts) > _MOST_ATTEMPTS:
            raise ValueError(f"attempts must be {_MOST_ATTEMPTS} or fewer, not {self.attempts!r}")
        validation.number("backoff (seconds)", self.backoff)
        validation.number("backoff_max (seconds)", self.backoff_max)
        validation.number("retry_after_max (seconds)", self.retry_after_max)
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
    if not all(map(validation.token, names)):
        raise TypeError(f"methods must contain HTTP method names such as 'GET', not {methods!r}")
    return frozenset(str(name).upper() for name in names)


def _statuses(name: str, statuses: Collection[int], *, least: int) -> frozenset[int]:
    for status in (given := validation.several(name, statuses, "HTTP statuses such as 503")):
        if validation.count(f"{name} (each of them)", status, least=least) > 599:
            raise ValueError(
                f"{name} must contain HTTP statuses from {least} to 599, not {status!r}"
            )
    return frozenset(cast("list[int]", given))


ONE_ATTEMPT = RetryPolicy(attempts=1)
"""The policy for `retry=None`."""


@dataclass(slots=True)
class RetryState:
    """The state of a call when an attempt has failed. tenacity's objects read it.

    If all instances back off, `pause` is the seconds until the first back-off ends. `rested` is the
    time for which the call has waited for such a back-off so far. `unsent` is True if the attempt
    was never sent: then the next attempt does not need the retry budget. `alone` is True if no
    other instance is known.
    """

    verdict: Verdict
    now: float
    repeatable: bool
    replayable: bool
    deadline: float | None
    pause: float
    unsent: bool = False
    alone: bool = False
    rested: float = 0.0
    stopped: Stopped | None = None
    """The reason why this outcome is final; set when `RetryController.delay` returns None."""


class RetryRules:
    """The retry rules of one balancer, shared by all its calls.

    A `RetryController` contains the state of one call.
    """

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self.policy = policy
        self.budget: Budget | None = Budget(policy.budget) if policy.budget is not None else None
        stop = tenacity.stop_after_attempt(policy.attempts)
        self.rules: tenacity.Retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(_may_repeat),
            wait=_FullJitter(policy, rng),
            stop=tenacity.stop_any(stop, _AtDeadline(), _NoBudget(self.budget)),
        )


class RetryController:
    """Decides about the retries of one call. It is created only when an attempt has failed, so
    other calls take no time for it."""

    __slots__ = ("_rested", "_retry_rules", "_state")

    def __init__(self, retry_rules: RetryRules) -> None:
        self._retry_rules = retry_rules
        self._state: tenacity.RetryCallState | None = None
        self._rested = 0.0

    def delay(self, retry_state: RetryState) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the outcome is final."""
        rules = self._retry_rules.rules
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
    """The delay before a retry, with full jitter (AWS, "Exponential Backoff And Jitter"). It uses
    the balancer's random number generator."""

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._rng = rng
        self._most = policy.backoff_max
        self._bound = tenacity.wait_exponential(multiplier=policy.backoff, max=policy.backoff_max)

    def __call__(self, state: tenacity.RetryCallState) -> float:
        retry_state = _retry_state(state)
        verdict = retry_state.verdict
        jitter = self._rng.random() * self._bound(state)
        waits = verdict.backoff or (verdict.rejected and retry_state.alone)
        if verdict.again == "always" and not waits and state.attempt_number == 1:
            jitter = 0.0
        return max(jitter, min(retry_state.pause, self._most - retry_state.rested))


class _AtDeadline(stop_base):
    """Stops if the delay would pass the deadline."""

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
    """Stops if the budget is empty. This condition is checked last. If the budget is not empty, one
    retry is taken from it.

    A retry after an attempt that was never sent takes nothing from the budget, like a transparent
    retry in gRPC (proposal A6). The unsent attempt caused no load. So a call may try a working
    instance even if the budget is empty.
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
    """The state that `RetryController.delay` has stored."""
    retry_state = state.outcome and state.outcome.result()
    return cast("RetryState", retry_state)
