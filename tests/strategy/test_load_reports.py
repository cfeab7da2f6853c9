"""Load reports of instances: what counts as a report, how `Prequal` uses it, fleets in which some
instances do not report, and the benefit."""

import math
import random

import pytest

from lbclient import Prequal, RetryPolicy
from lbclient.http.probes import load_of
from lbclient.simulation import Open, Scenario, Server, answers, exponential, queued, simulate
from lbclient.strategy.prequal import Reports
from lbclient.strategy.protocol import LoadAware, LoadProbe, LoadReport, Probing
from lbclient.strategy.zone import Zone
from tests.strategy.test_learning import answered, picked
from tests.support.slow import slow_rows
from tests.support.strategies import Asked, candidates

PROBE = LoadProbe("/load")


def said(strategy, endpoint, in_flight, latency=None, *, now=0.0):
    strategy.reported(endpoint, LoadReport(in_flight, latency), now=now)


# What a report may be


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TEXT named_metrics.in_flight=7", LoadReport(7.0)),
        ("TEXT named_metrics.in_flight=7,named_metrics.latency=0.02", LoadReport(7.0, 0.02)),
        ("TEXT cpu_utilization=0.3, in_flight=7, latency=2e-2", LoadReport(7.0, 0.02)),
        ('JSON {"named_metrics": {"in_flight": 7, "latency": 0.02}}', LoadReport(7, 0.02)),
        ('JSON {"cpu_utilization": 0.3, "named_metrics": {"in_flight": 0}}', LoadReport(0)),
        (
            "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2",
            LoadReport(2.0, None, 0.4),
        ),
        (
            "TEXT kv_cache_usage_perc=0, num_requests_waiting=2, num_requests_running=5",
            LoadReport(7.0, None, 0.0),
        ),
        (
            'JSON {"named_metrics": {"kv_cache_usage_perc": 1, "num_requests_waiting": 0}}',
            LoadReport(0, None, 1),
        ),
        ("TEXT in_flight=3, num_requests_waiting=2", LoadReport(3.0)),
        ("TEXT kv_cache_usage_perc=0.4", None),
        ("TEXT cpu_utilization=0.3", None),
        ("TEXT named_metrics.latency=0.3", None),
        ("JSON {}", None),
        ('JSON {"named_metrics": {}}', None),
        ("BIN CgVoZWxsbw==", None),
        ("in_flight=7", None),
        ("", None),
    ],
)
def test_what_a_header_says(text, expected):
    """The header of ORCA is parsed as text and as JSON; without these metrics there is no
    report."""
    assert load_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "TEXT in_flight=",
        "TEXT in_flight=-1",
        "TEXT in_flight=nan",
        "TEXT in_flight=inf",
        "TEXT in_flight=1e300",
        "TEXT in_flight=many",
        "TEXT in_flight=7,latency=-0.1",
        "TEXT in_flight=7,latency=1e9",
        "TEXT in_flight=7,latency=soon",
        "TEXT in_flight=7" + ",x=1" * 5_000_000,
        "TEXT num_requests_waiting=-1",
        "TEXT num_requests_waiting=9, num_requests_running=-1",
        "TEXT num_requests_waiting=2, kv_cache_usage_perc=40",
        "TEXT num_requests_waiting=2, kv_cache_usage_perc=nan",
        'JSON {"named_metrics": {"num_requests_waiting": true}}',
        "JSON",
        "JSON {",
        "JSON []",
        "JSON 7",
        'JSON {"named_metrics": 7}',
        'JSON {"named_metrics": {"in_flight": true}}',
        'JSON {"named_metrics": {"in_flight": [7]}}',
        'JSON {"named_metrics": {"in_flight": NaN}}',
        'JSON {"named_metrics": {"in_flight": -7}}',
        'JSON {"named_metrics": {"in_flight": 1' + "0" * 3000 + "}}",
        "JSON " + "[" * 4000,
    ],
    ids=lambda text: text[:40],
)
def test_what_no_load_can_be(text):
    """I9: a number that is negative, infinite or absurd, a text that is too long, or one that is
    not a number raises ValueError, and nothing else."""
    with pytest.raises(ValueError):
        load_of(text)


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ((-1,), ValueError, "in_flight"),
        ((math.nan,), ValueError, "in_flight"),
        ((1e7,), ValueError, "in_flight"),
        (("7",), TypeError, "in_flight"),
        ((True,), TypeError, "in_flight"),
        ((1, -0.1), ValueError, "latency"),
        ((1, 1e4), ValueError, "latency"),
        ((1, "soon"), TypeError, "latency"),
        ((1, None, 1.1), ValueError, "utilization"),
        ((1, None, True), TypeError, "utilization"),
    ],
)
def test_what_a_report_may_hold(arguments, kind, named):
    """K4: an impossible report is refused by an error that names the argument."""
    with pytest.raises(kind, match=f"^{named} "):
        LoadReport(*arguments)


def test_the_most_that_a_report_may_hold():
    """A report may have up to 1,000,000 requests in flight and up to one hour of latency."""
    most = LoadReport(1e6, 3600.0)
    assert (most.in_flight, most.latency) == (1e6, 3600.0)


@pytest.mark.parametrize(
    ("wrong", "kind", "named"),
    [
        ({"path": "load"}, ValueError, "path"),
        ({"path": "/a b"}, ValueError, "path"),
        ({"path": None}, TypeError, "path"),
        ({"rate": 0}, ValueError, "rate"),
        ({"rate": "3"}, TypeError, "rate"),
        ({"interval": 0}, ValueError, "interval"),
        ({"timeout": math.inf}, ValueError, "timeout"),
    ],
)
def test_arguments_of_a_probe(wrong, kind, named):
    """K4: an invalid argument is refused at construction by an error that names it and shows no
    secret."""
    with pytest.raises(kind, match=f"^{named} "):
        LoadProbe(**{"path": "/load", **wrong})
    with pytest.raises(TypeError, match=r"^probe "):
        Prequal(probe="/load")
    assert "secret" not in repr(Prequal(probe=LoadProbe("/load?token=secret")))


# What Prequal makes of it


def test_a_report_stands_for_what_was_seen():
    """The instance that reports that it is idle is picked, even if this client has more in flight
    there and has seen slower answers than from the busy one."""
    endpoints, strategy = candidates(1, 1), Prequal()
    endpoints[0].in_flight = 2
    answered(strategy, endpoints[0], 0.5)
    answered(strategy, endpoints[1], 0.1)
    assert picked(strategy, endpoints, times=1) == {1: 1}
    said(strategy, endpoints[0], 2, 0.01)
    said(strategy, endpoints[1], 40, 0.4)
    assert picked(strategy, endpoints, times=1) == {0: 1}


@pytest.mark.parametrize("why", ["reported nothing", "fork"])
def test_a_report_that_is_withdrawn_does_not_count(why):
    """A report is dropped if its instance was probed again and reported nothing, and in a forked
    child: what this client has seen counts again."""
    endpoints, strategy = candidates(1, 1), Prequal()
    answered(strategy, endpoints[0], 0.5)
    answered(strategy, endpoints[1], 0.1)
    said(strategy, endpoints[0], 0, 0.01)
    if why == "fork":
        strategy.after_fork()
    else:
        strategy.reported(endpoints[0], None, now=0.0)
    assert picked(strategy, endpoints, times=1) == {1: 1}


def test_reports_are_compared_by_weight():
    """What is hot among reporting instances is decided by requests in flight for one unit of
    weight."""
    endpoints, strategy = candidates(4, 4, 4, 1), Prequal(choices=4)
    for one, in_flight, latency in zip(
        endpoints, (8, 20, 8, 2), (0.2, 0.01, 0.1, 0.3), strict=True
    ):
        said(strategy, one, in_flight, latency)
    assert picked(strategy, endpoints, times=1) == {2: 1}


@pytest.mark.parametrize(("in_flight", "expected"), [(13, 1), (15, 0)])
def test_hot_ones_of_both_kinds_are_compared_by_their_limits(in_flight, expected):
    """If an instance that reports and one that does not are both hot, the one is picked that
    exceeds the limit of its kind by the smaller factor."""
    endpoints, strategy = candidates(1, 1), Prequal(choices=2, quantile=0.0)
    for one in endpoints:
        one.in_flight = 1
    picked(strategy, endpoints, times=1)
    endpoints[0].in_flight, endpoints[1].in_flight = 2, 0
    said(strategy, endpoints[1], 9)
    said(strategy, endpoints[1], in_flight)
    assert picked(strategy, endpoints, times=1) == {expected: 1}


def test_what_was_sent_since_is_added():
    """What this client has sent since then is added to the load that an instance reported."""
    (one,) = candidates(1)
    one.in_flight = 3
    reports = Reports(1.0)
    reports.take(one, LoadReport(10.0), 0.0)
    assert [reports.of(one).in_flight(own) for own in (3, 5, 0)] == [10.0, 12.0, 7.0]
    reports.take(one, LoadReport(0.0), 0.0)  # it cannot be true: three are ours
    assert reports.of(one).in_flight(3) == 3.0


def test_a_report_is_good_for_one_pick_and_for_a_second():
    """To avoid herds, a report is used once; after a second it is not used at all, and this
    client's own observations count again."""
    endpoints = candidates(1, 1)
    for now, times, expected in ((0.5, 1, {0: 1}), (0.5, 200, {1: 200}), (1.5, 200, {1: 200})):
        strategy = Prequal()
        answered(strategy, endpoints[0], 0.5)
        answered(strategy, endpoints[1], 0.1)
        said(strategy, endpoints[0], 0, 0.01)
        said(strategy, endpoints[1], 0, 0.4)
        if times > 1 and now < 1.0:
            assert picked(strategy, endpoints, now=now, times=1) == {0: 1}
        assert picked(strategy, endpoints, now=now, times=times) == expected


def test_sixteen_wait():
    """Of more than sixteen reports the oldest is dropped, and there is one for each instance."""
    endpoints, reports = candidates(*[1] * 20), Reports(1.0)
    for turn, one in enumerate([*endpoints, endpoints[10]]):
        reports.take(one, LoadReport(turn), turn / 100)
    assert reports.fresh(0.2) == [*endpoints[4:10], *endpoints[11:], endpoints[10]]
    assert reports.of(endpoints[10]).in_flight(0) == 20.0
    assert reports.fresh(1.1) == [*endpoints[11:], endpoints[10]]


def test_a_report_without_latency():
    """Without a latency the least busy is picked, unless this client has seen latencies."""
    endpoints, strategy = candidates(1, 1, 1), Prequal()
    for one, in_flight in zip(endpoints, (3, 1, 2), strict=True):
        said(strategy, one, in_flight)
    assert picked(strategy, endpoints, times=1) == {1: 1}


def test_who_fails_is_left_whatever_it_says():
    """I14: an instance that reports that it is idle, but fails, gets no more traffic for it."""
    endpoints, strategy = candidates(1, 1, 1), Prequal()
    for turn in range(20):
        now = turn / 100
        answered(strategy, endpoints[0], 0.001, now=now, failed=True)
        for one in endpoints:
            said(strategy, one, 0 if one is endpoints[0] else 8, 0.1, now=now)
            if one is not endpoints[0]:
                answered(strategy, one, 0.1, now=now)
    assert picked(strategy, endpoints, now=0.2, times=1)[0] == 0


def test_who_is_no_candidate_is_not_taken_from_the_pool():
    """S7: an instance that has left, or is out of rotation, is not picked because of its report."""
    endpoints, strategy = candidates(*[1] * 5), Prequal()
    for one in endpoints:
        said(strategy, one, 0 if one is endpoints[0] else 9, 0.1)
    assert endpoints[0] not in {strategy.pick(endpoints[1:], Asked()) for _ in range(50)}
    endpoints[4].gone = True
    said(strategy, endpoints[4], 0, 0.1)
    assert len(strategy._history) == 5


def test_who_is_not_known_has_its_turn():
    """In a fleet where others report and would always be picked, an instance without calls is
    tried, at random."""
    endpoints, strategy = candidates(1, 1, 1), Prequal()
    call, picks = Asked(), []
    for turn in range(1000):
        call.now = turn / 1000
        for one in endpoints[:2]:
            said(strategy, one, 0, 0.1, now=call.now)
            answered(strategy, one, 0.1, now=call.now)
        picks.append(strategy.pick(endpoints, call))
    assert endpoints[2] in picks
    assert picks.count(endpoints[2]) < 200


def test_who_is_not_known_is_taken_for_what_the_others_are():
    """Without probes, an instance without calls is taken to report its load with the chance that
    others do: with two of three, it is tried at every third pick."""
    endpoints, strategy, call = candidates(1, 1, 1, 1), Prequal(choices=4), Asked()
    picks = []
    for turn in range(1100):
        call.now = turn / 1000
        for one in endpoints[:3]:
            if one is not endpoints[2]:
                said(strategy, one, 0, 0.1, now=call.now)
            answered(strategy, one, 0.1, now=call.now)
        if turn >= 100:
            picks.append(strategy.pick(endpoints, call))
    assert picks.count(endpoints[3]) / 1000 == pytest.approx(1 / 3, abs=0.06)


def test_who_is_not_known_is_probed_first():
    """With probes, an instance without calls waits for its own probe; if that has no report, it is
    tried."""
    endpoints, strategy = candidates(1, 1, 1), Prequal(probe=PROBE)

    def picks():
        for _ in range(50):
            for one in endpoints[:2]:
                said(strategy, one, 0, 0.1)
            yield strategy.pick(endpoints, Asked())

    assert endpoints[2] not in set(picks())
    strategy.reported(endpoints[2], None, now=0.0)
    assert set(picks()) == {endpoints[2]}


def test_zones_hand_reports_on():
    """`Zone` passes reports to the strategy of each side, and has the probes that they want."""
    zone = Zone("here", lambda: Prequal(probe=PROBE))
    assert isinstance(zone, LoadAware)
    assert isinstance(zone, Probing)
    assert zone.probe is PROBE
    (one,) = candidates(1)
    said(zone, one, 3)
    assert zone._remote._strategy._reports.of(one).in_flight(0) == 3
    assert not zone._local._strategy._reports
    plain = Zone("here")
    said(plain, one, 3)
    assert plain.probe is None


# What it is worth


def slowed(number, seed):
    """A quarter of the servers, changing each second, runs at half speed."""

    def speed(now):
        return 0.5 if random.Random(f"{seed} {number} {int(now)}").random() < 0.25 else 1.0

    return speed


def tail(strategy, seed, *, reports, many=100):
    """The 99th percentile with as many clients as servers, at 90 % of the capacity."""
    servers = [
        Server(f"s{n}", queued(exponential(0.1), 2, slowed(n, seed)), reports=reports)
        for n in range(many)
    ]
    scenario = Scenario(servers, Open(0.9 * 17.5 * many, 4, poisson=True), clients=many)
    report = simulate(
        scenario,
        seed=seed,
        strategy=strategy,
        checked=False,
        retry=RetryPolicy(attempts=1, deadline=4.0),
        breaker=None,
    )
    return report.percentile(99)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reports_cut_the_tail(seed):
    """If a client sees a hundredth of an instance's load, the 99th percentile is lower with reports
    in answers than without, and much lower with probes (NSDI '24)."""
    alone = tail("prequal", seed, reports=False)
    assert tail("prequal", seed, reports=True) < 0.95 * alone
    assert tail(lambda: Prequal(probe=PROBE), seed, reports=True) < 0.8 * alone


@pytest.mark.parametrize("strategy", ["prequal", lambda: Prequal(probe=PROBE)])
@pytest.mark.parametrize("clients", [20, *slow_rows(1)])
def test_a_mixed_fleet_shares_alike(strategy, clients):
    """If every other instance reports its load, each kind gets half of the calls under load, within
    a tenth."""
    servers = [Server(f"s{n}", queued(exponential(0.05), 4), reports=n % 2 == 0) for n in range(20)]
    scenario = Scenario(servers, Open(20 * 64, 8, poisson=True), clients=clients)
    report = simulate(scenario, strategy=strategy, checked=False, retry=None, breaker=None)
    shares = report.shares(2.0)
    assert sum(shares[f"s{n}"] for n in range(0, 20, 2)) == pytest.approx(0.5, abs=0.05)


def test_a_report_changes_nothing_for_others():
    """A strategy without reports makes exactly the same decisions if there are some."""

    def traced(reports):
        servers = [Server(f"s{n}", answers(exponential(0.1)), reports=reports) for n in range(3)]
        return simulate(Scenario(servers, Open(100, 5)), strategy="peak-ewma").trace

    assert traced(True) == traced(False)
    with pytest.raises(TypeError, match=r"^reports "):
        Server("s", answers(exponential(0.1)), reports=1)
