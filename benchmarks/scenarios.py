"""Eight scenarios that Palantir's Dialogue publishes results of its own client for, described anew,
and one configuration that is run through all of them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

from lbclient import RECOMMENDED, RetryPolicy
from lbclient.simulation import (
    Behaviour,
    Open,
    Report,
    Scenario,
    Server,
    answers,
    constant,
    linear,
    phases,
    simulate,
    until_capacity,
)

REFUSALS = frozenset({429, 503})
PATIENT = 1e6
"""Requests wait for a place as long as it takes, as Dialogue's do."""


class Published(NamedTuple):
    """Dialogue's results: the share of successes, and the mean in seconds."""

    pin: tuple[float, float]
    round_robin: tuple[float, float]
    unlimited: tuple[float, float]


class Case(NamedTuple):
    """A scenario, which statuses are tried again in it, and what Dialogue makes of it."""

    scenario: Scenario
    published: Published
    statuses: frozenset[int] = REFUSALS

    @property
    def success(self) -> float:
        """The best success rate that is published."""
        return max(success for success, _ in self.published)

    @property
    def mean(self) -> float | None:
        """The best mean of those that succeed always; None where none does."""
        means = [mean for success, mean in self.published if success == 1]
        return min(means, default=None)


def _case(
    servers: dict[str, Behaviour],
    load: Open,
    published: Published,
    statuses: frozenset[int] = REFUSALS,
    **more: float,
) -> Case:
    scenario = Scenario(
        [Server(name, behaviour) for name, behaviour in servers.items()],
        load,
        clients=10,
        patience=PATIENT,
    )
    return Case(dataclasses.replace(scenario, **more), published, statuses)  # type: ignore[arg-type]


def _linear(seconds: float, capacity: int, status: int = 200) -> Behaviour:
    return answers(linear(seconds, capacity), status)


_QUICK = _linear(0.06, 60)
_STEADY = answers(constant(0.12))
_HALF_DOWN = phases((0, answers(constant(0.6), 500)), (10, answers(constant(0.6))))
_OVERLOAD = {
    name: until_capacity(linear(seconds, 30), 40, 500)
    for name, seconds in (("a", 0.6), ("b", 0.8), ("c", 1.0))
}
_RELOADED = _case(
    {"a": _linear(0.6, 60), "b": _linear(0.6, 60, 500), "c": _linear(0.6, 60)},
    Open(250, 10),
    Published((0.943, 7.19), (0.929, 5.35), (0.869, 2.80)),
)
_a, _b, _c = _RELOADED.scenario.servers

CASES: dict[str, Case] = {
    "simplest_possible_case": _case(
        {name: answers(constant(s)) for name, s in (("a", 0.6), ("b", 0.8), ("c", 1.0))},
        Open(11, 1200),
        Published((1, 0.834), (1, 0.786), (1, 0.786)),
    ),
    "slowdown_and_error_thresholds": _case(
        _OVERLOAD,
        Open(500, 20),
        Published((1, 155.9), (1, 178.7), (0.036, 21.6)),
        REFUSALS | {500},
        until=600,
    ),
    "slow_503s_then_revert": _case(
        {"a": _QUICK, "b": phases((0, _QUICK), (3, _linear(1, 60, 503)), (10, _QUICK))},
        Open(200, 15),
        Published((1, 0.135), (1, 0.0888), (1, 0.0888)),
    ),
    "fast_503s_then_revert": _case(
        {"a": _STEADY, "b": phases((0, _STEADY), (3, answers(constant(1e-8), 503)), (60, _STEADY))},
        Open(500, 90),
        Published((1, 0.1200), (1, 0.1201), (1, 0.1201)),
    ),
    "drastic_slowdown": _case(
        {"a": _QUICK, "b": phases((0, _QUICK), (3, _linear(10, 60)), (10, _QUICK))},
        Open(200, 20),
        Published((1, 3.12), (1, 0.252), (1, 0.252)),
    ),
    "all_nodes_500": _case(
        {"a": _HALF_DOWN, "b": _HALF_DOWN},
        Open(100, 20),
        Published((0.739, 4.25), (0.741, 3.35), (0.5, 0.6)),
    ),
    "live_reloading": _RELOADED._replace(
        scenario=dataclasses.replace(
            _RELOADED.scenario, servers=[_a, _b, dataclasses.replace(_c, joins=5.0)]
        )
    ),
    "one_big_spike": _case(
        {name: until_capacity(constant(0.15), 100, 429) for name in ("a", "b")},
        Open(30_000, 1 / 30),
        Published((1, 2.67), (1, 1.58), (0.999, 1.22)),
        clients=1,
        until=10,
    ),
}
"""By their published names."""


def configured(case: Case, strategy: str = "least-busy", seed: int = 0) -> Report:
    """The recommended configuration in a scenario; only the retryable statuses follow that."""
    retry = cast("RetryPolicy", RECOMMENDED["retry"])
    options: dict[str, Any] = {
        **RECOMMENDED,
        "retry": dataclasses.replace(retry, statuses=case.statuses),
    }
    del options["strategy"]
    return simulate(
        case.scenario,
        seed=seed,
        strategy=strategy,
        checked=False,
        **options,
    )


def plain(case: Case, strategy: str, seed: int = 0) -> Report:
    """The defaults, but for the strategy and the retryable statuses."""
    retry = RetryPolicy(statuses=case.statuses)
    return simulate(case.scenario, seed=seed, strategy=strategy, checked=False, retry=retry)
