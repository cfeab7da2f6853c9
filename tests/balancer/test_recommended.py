"""The recommended options compared with the defaults: what they gain in an overload, and that they
cost a healthy service nothing. All in virtual time."""

import dataclasses
import math

import pytest

from benchmarks.scenarios import CASES, configured, plain
from lbclient import (
    RECOMMENDED,
    AsyncClient,
    Balancer,
    BreakerPolicy,
    Client,
    RetryPolicy,
    recommended,
)
from lbclient.balancer.options import BalancerOptions
from lbclient.simulation import (
    Open,
    Reply,
    Scenario,
    Server,
    answers,
    constant,
    exponential,
    linear,
    mixed,
    phases,
    queued,
    simulate,
    until_capacity,
)
from tests.support.slow import slow_rows

QUICK_OR_SLOW = (answers(constant(0.01)), answers(constant(0.2)))
THRICE_AS_LONG = phases((0, answers(constant(0.05))), (5, answers(constant(0.15))))
WORKERS = queued(exponential(0.05), 8)
CAPACITY = 3 * 8 / 0.05


def service(behaviour, rate, clients=1):
    servers = [Server(name, behaviour) for name in "abc"]
    return Scenario(servers, Open(rate, 20), clients=clients)


WELL = {
    "quick and slow calls": service(mixed(0.5, *QUICK_OR_SLOW), 300),
    "few quick and many slow calls": service(mixed(0.4, *QUICK_OR_SLOW), 300),
    "a tenth of the calls long": service(
        mixed(0.9, answers(constant(0.01)), answers(constant(0.5))), 300
    ),
    "exponential times": service(answers(exponential(0.1)), 600),
    "90 % busy": service(WORKERS, 0.9 * CAPACITY, clients=10),
    "90 % busy, two clients": service(WORKERS, 0.9 * CAPACITY, clients=2),
    "slower for good": service(THRICE_AS_LONG, 300),
}


@pytest.mark.parametrize(
    "name",
    [
        "quick and slow calls",
        *slow_rows(*(name for name in WELL if name != "quick and slow calls")),
    ],
)
def test_they_cost_nothing_where_all_is_well(name):
    """I24: calls that differ in length, vary, or have become slower for good are not queues: no
    limit falls because of them, and calls take as long as with the defaults."""
    ours = simulate(WELL[name], checked=False, **RECOMMENDED)
    bare = simulate(WELL[name], checked=False, strategy="least-busy")
    assert ours.success == bare.success == 1
    assert ours.mean <= 1.01 * bare.mean
    assert ours.percentile(99) <= 1.01 * bare.percentile(99)


@pytest.mark.slow
def test_a_limit_that_is_too_low_is_soon_found_out():
    """A service that needs forty attempts in flight at each instance gets them within seconds,
    though the limit begins at twenty: calls wait less than a quarter longer overall."""
    scenario = service(answers(exponential(0.1)), 1200)
    ours = simulate(scenario, checked=False, **RECOMMENDED)
    bare = simulate(scenario, checked=False, strategy="least-busy")
    assert ours.success == 1
    assert ours.mean <= 1.3 * bare.mean
    late = [one.elapsed for one in ours.outcomes if one.arrived > 10]
    assert sum(late) / len(late) <= 1.05 * bare.mean


def varied(case, *, rate=1.0, clients=None):
    load = dataclasses.replace(case.scenario.load, rate=case.scenario.load.rate * rate)
    clients = clients or case.scenario.clients
    return case._replace(scenario=dataclasses.replace(case.scenario, load=load, clients=clients))


@pytest.mark.parametrize("change", [{"rate": 0.7}, {"rate": 1.3}, {"clients": 2}])
@pytest.mark.parametrize(
    "name",
    [
        "slow_503s_then_revert",
        *slow_rows("drastic_slowdown", "all_nodes_500", "live_reloading", "one_big_spike"),
    ],
)
def test_they_gain_in_neighbours_of_the_scoreboard(name, change):
    """With rates and numbers of clients other than the published ones, at least as many calls
    succeed as with the defaults, and if all do, they take no longer."""
    case = varied(CASES[name], **change)
    ours, bare = configured(case), plain(case, "weighted")
    assert ours.success >= bare.success
    if bare.success == 1:
        assert ours.mean <= 1.01 * bare.mean


@pytest.mark.parametrize("seed", [1, *slow_rows(2)])
@pytest.mark.parametrize("name", ["one_big_spike", *slow_rows("all_nodes_500", "live_reloading")])
def test_luck_has_no_part_in_it(name, seed):
    """With seeds other than the scoreboard's, the published success is reached too."""
    assert configured(CASES[name], seed=seed).success >= CASES[name].success


def flaky(share, status, needed, clients, seconds=20):
    servers = [
        Server(name, mixed(share, answers(constant(0.1), status), answers(constant(0.1))))
        for name in "abc"
    ]
    return Scenario(servers, Open(30 * needed, seconds), clients=clients)


@pytest.mark.parametrize(
    ("share", "status", "needed", "clients"),
    [
        (0.001, 500, 2, 1),
        (0.05, 500, 2, 50),
        *slow_rows(
            (0.02, 503, 20, 1),
            (0.05, 500, 20, 1),
            (0.05, 500, 50, 1),
            (0.05, 503, 50, 1),
            (0.05, 500, 20, 10),
        ),
    ],
)
def test_faults_by_dice_cost_nothing(share, status, needed, clients):
    """An instance that fails up to one call in twenty at any load is not overloaded: at least as
    many calls succeed as with the defaults, and they take no longer, with 2 to 50 in flight at each
    instance."""
    scenario = flaky(share, status, needed, clients)
    ours = simulate(scenario, seed=1, checked=False, **RECOMMENDED)
    bare = simulate(scenario, seed=1, checked=False)
    assert ours.success >= bare.success - 0.003
    assert ours.mean <= 1.05 * bare.mean


def two_places(_, in_flight, __):
    return Reply(0.15, 200 if in_flight <= 2 else 429)


@pytest.mark.parametrize(
    ("clients", "least"), [(1, 0.85), (3, 0.7), (10, 0.5), *slow_rows((100, 0.2))]
)
def test_more_clients_than_places(clients, least):
    """A server with room for two requests, which answers 429 beyond, serves many clients as well as
    chance allows: a rejected client waits, longer after each rejection."""
    load = Open(30, 60)
    scenario = Scenario([Server("a", two_places)], load, clients=clients, patience=1e6, until=120)
    report = simulate(scenario, seed=2, checked=False, **RECOMMENDED)
    assert report.success >= least
    assert report.amplification <= 2


@pytest.mark.parametrize("status", [429, 503])
def test_an_instance_that_heals_is_found(status):
    """After any period in which it refused everything, all calls succeed ten seconds after the
    service has recovered."""
    sick, well = answers(constant(0.01), status), answers(constant(0.05))
    servers = [Server(name, phases((0, well), (5, sick), (65, well))) for name in "ab"]
    scenario = Scenario(servers, Open(20, 100), clients=2)
    report = simulate(scenario, seed=1, **RECOMMENDED)
    late = [one for one in report.outcomes if one.arrived > 80]
    assert all(one.status == 200 for one in late)
    assert not report.breaches


@pytest.mark.parametrize("entry", [Balancer, Client, AsyncClient])
def test_every_entry_point_takes_them(entry):
    """The recommended options can be passed like others, more than once."""
    first, second = (entry("http://127.0.0.1:1", **RECOMMENDED) for _ in range(2))
    assert first is not second


def test_recommended_returns_them():
    """Without arguments `recommended()` equals RECOMMENDED, in a new dict."""
    options = recommended()
    assert options == RECOMMENDED
    options["strategy"] = "random"
    assert recommended() == RECOMMENDED


def test_a_deadline_goes_into_the_retry_policy():
    """`deadline` is set in the retry policy, even in one that is passed with it; without retries it
    bounds the one attempt."""
    assert recommended(2.0)["retry"] == RetryPolicy(attempts=5, deadline=2.0)
    own = RetryPolicy(attempts=2, deadline=9.0)
    assert recommended(2.0, retry=own)["retry"] == RetryPolicy(attempts=2, deadline=2.0)
    assert recommended(retry=own)["retry"] is own
    assert recommended(2.0, retry=None)["retry"] == RetryPolicy(attempts=1, deadline=2.0)
    assert recommended(retry=None)["retry"] is None


def test_changes_replace_and_add_options():
    """A change replaces the recommended option of its name, or is added to them."""
    breaker = BreakerPolicy(fail_max=2)
    changed = recommended(strategy="peak-ewma", breaker=breaker, max_in_flight=3)
    assert changed == RECOMMENDED | {
        "strategy": "peak-ewma",
        "breaker": breaker,
        "max_in_flight": 3,
    }


def test_a_change_that_is_no_option_is_refused():
    """An unknown option is a TypeError that names it and every option that there is."""
    with pytest.raises(TypeError, match="unknown argument retires") as refused:
        recommended(retires=RetryPolicy())
    assert all(name in str(refused.value) for name in BalancerOptions.__annotations__)


@pytest.mark.parametrize("deadline", [0, -1, math.inf, "2", True])
def test_a_deadline_that_is_no_time_is_refused(deadline):
    """The error of a bad deadline names it."""
    with pytest.raises((ValueError, TypeError), match="deadline"):
        recommended(deadline)


def test_a_retry_policy_of_another_type_is_refused():
    """`deadline` can only be combined with a RetryPolicy."""
    with pytest.raises(TypeError, match="retry must be"):
        recommended(2.0, retry=5)


def overloaded(patience, rate=900):
    servers = [Server(name, until_capacity(linear(0.1, 30), 40, 503)) for name in "abc"]
    return Scenario(servers, Open(rate, 10, poisson=True), clients=10, patience=patience)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "deadline", "defaults", "recommended"),
    [(5, 0.5, 11, 23), (60, None, 13, 100), (5, None, 13, 43), (5, 5.0, 13, 40), (5, 2.0, 13, 32)],
)
def test_in_line(patience, deadline, defaults, recommended):
    """K: docs/choosing.md is right about twice the possible load: whatever the duration of
    calls, more of them succeed, since no call is sent shortly before its deadline."""
    scenario = overloaded(patience)
    retry = dataclasses.replace(RECOMMENDED["retry"], deadline=deadline)
    bare = simulate(scenario, seed=1, checked=False, retry=RetryPolicy(deadline=deadline))
    ours = simulate(scenario, seed=1, checked=False, **(RECOMMENDED | {"retry": retry}))
    assert round(100 * bare.success) == defaults
    assert round(100 * ours.success) == recommended
    assert ours.amplification < 1.2
