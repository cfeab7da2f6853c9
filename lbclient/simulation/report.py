"""The results of a simulated run, and the journal that is kept while it runs."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lbclient._internal import validation

__all__ = ["Journal", "Outcome", "Report", "Slice"]

_SHOWN = (50, 90, 99, 99.9)
_ROUNDING = 1e-9
"""Allows for rounding: 0.3 / 0.1 is a little less than 3."""


class Outcome(NamedTuple):
    """The outcome of one request: the time at which it `arrived`, the seconds `elapsed` until its
    end (including waiting), the final `status` or the name of the `error`, the number of
    `attempts`, and the number of its `client`, from 0."""

    arrived: float
    elapsed: float
    status: int | None
    error: str | None
    attempts: int
    client: int = 0


class Slice(NamedTuple):
    """The requests that arrived from `start` (seconds) until the next slice."""

    start: float
    requests: int
    success: float
    mean: float
    p99: float
    sent: Mapping[str, int]
    """The number of attempts that were sent in this slice, by server."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run. The figures depend only on the scenario of the run, its options and its
    `seed`.

    `sent` lists the attempts, as (time, server). `answered` contains, for each server, how often it
    gave each response. `trace` is a hash of all decisions, which is the same on every machine.
    `breaches` are the invariants that were violated; the list must be empty.
    """

    seed: int
    outcomes: Sequence[Outcome]
    sent: Sequence[tuple[float, str]]
    answered: Mapping[str, Mapping[int | str, int]]
    trace: str
    breaches: Sequence[str] = ()

    @property
    def success(self) -> float:
        """The share of requests that ended with a status below 400."""
        return _success(self.outcomes)

    @property
    def mean(self) -> float:
        """The mean time from the arrival of a request to its end, in seconds."""
        return _mean(self.outcomes)

    @property
    def mean_answered(self) -> float:
        """The mean time of the requests that ended with a response of any status."""
        return _mean([outcome for outcome in self.outcomes if outcome.status is not None])

    def percentile(self, percent: float) -> float:
        """Return the seconds within which `percent` per cent (0 to 100) of the requests ended, by
        nearest rank.

        Raises ValueError for any other percentage.
        """
        if validation.number("percent", percent) > 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent!r}")
        return _percentile(sorted(outcome.elapsed for outcome in self.outcomes), percent)

    @property
    def responses(self) -> int:
        """The number of responses that servers gave, to first attempts and to other attempts."""
        return sum(
            many
            for answers in self.answered.values()
            for answer, many in answers.items()
            if isinstance(answer, int)
        )

    @property
    def amplification(self) -> float:
        """The number of attempts per request."""
        return len(self.sent) / max(1, len(self.outcomes))

    def shares(self, since: float = 0.0, until: float = math.inf) -> dict[str, float]:
        """Return, for each server, its share of the attempts that were sent between the times
        `since` and `until` (seconds)."""
        sent = Counter(server for time, server in self.sent if since <= time < until)
        total = max(1, sent.total())
        return {server: sent[server] / total for server in self.answered}

    def endings(self) -> Counter[int | str]:
        """Return the number of requests that ended with each status or error."""
        return Counter(
            outcome.status if outcome.status is not None else str(outcome.error)
            for outcome in self.outcomes
        )

    def over_time(self, seconds: float) -> list[Slice]:
        """Return the results in slices of `seconds` each. Raises ValueError if `seconds` is not a
        positive number."""
        validation.seconds("seconds", seconds)
        requests: dict[int, list[Outcome]] = {}
        for outcome in self.outcomes:
            requests.setdefault(_place(outcome.arrived, seconds), []).append(outcome)
        sent: dict[int, Counter[str]] = {}
        for time, server in self.sent:
            sent.setdefault(_place(time, seconds), Counter())[server] += 1
        return [
            _slice(place * seconds, requests.get(place, []), sent.get(place, Counter()))
            for place in range(max([*requests, *sent, -1]) + 1)
        ]

    def __str__(self) -> str:
        """Return the results as text."""
        percentiles = ", ".join(f"p{p:g} {self.percentile(p):.3f} s" for p in _SHOWN)
        lines = [
            f"{len(self.outcomes)} requests, {100 * self.success:.2f} % successful",
            f"mean {self.mean:.3f} s; {percentiles}",
            f"{len(self.sent)} attempts, {self.amplification:.3f} for each request",
            "ended: " + ", ".join(f"{key} {many}" for key, many in self.endings().most_common()),
        ]
        for server, share in self.shares().items():
            answers = ", ".join(f"{key} {n}" for key, n in self.answered[server].items())
            lines.append(f"  {server:<20} {100 * share:6.2f} %   {answers}")
        return "\n".join([*lines, *self.breaches, f"seed {self.seed}, trace {self.trace}"])


def _place(time: float, seconds: float) -> int:
    return int(time / seconds + _ROUNDING)


def _slice(start: float, outcomes: Sequence[Outcome], sent: Mapping[str, int]) -> Slice:
    p99 = _percentile(sorted(outcome.elapsed for outcome in outcomes), 99)
    return Slice(start, len(outcomes), _success(outcomes), _mean(outcomes), p99, sent)


def _success(outcomes: Sequence[Outcome]) -> float:
    good = sum(outcome.status is not None and outcome.status < 400 for outcome in outcomes)
    return good / len(outcomes) if outcomes else math.nan


def _mean(outcomes: Sequence[Outcome]) -> float:
    if not outcomes:
        return math.nan
    return math.fsum(outcome.elapsed for outcome in outcomes) / len(outcomes)


def _percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the percentile of sorted values, by nearest rank."""
    if not ordered:
        return math.nan
    rank = math.ceil(percent * len(ordered) / 100 - _ROUNDING)
    return ordered[max(0, rank - 1)]


class Journal:
    """The journal of one run: every attempt and every outcome, in order, and a hash of them."""

    def __init__(self) -> None:
        self.waiting: int = 0
        """The number of active requests."""
        self.outcomes: list[Outcome] = []
        self.sent: list[tuple[float, str]] = []
        self._trace = hashlib.blake2b(digest_size=16)

    @property
    def trace(self) -> str:
        """The hash of all decisions so far. It is the same on every machine."""
        return self._trace.hexdigest()

    def began(self) -> None:
        """Record that a request has arrived."""
        self.waiting += 1

    def sending(self, now: float, client: int, server: str, reason: str) -> None:
        """Record an attempt that is sent."""
        self.sent.append((now, server))
        self._trace.update(repr((now, client, server, reason)).encode())

    def ended(self, outcome: Outcome) -> None:
        """Record that a request has ended."""
        self.waiting -= 1
        self.outcomes.append(outcome)
        self._trace.update(repr((outcome.client, *outcome[:-1])).encode())
