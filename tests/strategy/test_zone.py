"""Zone: calls stay in the zone as far as the capacity of its instances allows."""

import math
import random
from collections import Counter

import pytest

from lbclient import Balancer, BreakerPolicy, Instance, LeastBusy, RoundRobin
from lbclient.core.pool import Pool
from lbclient.strategy.protocol import Learning
from lbclient.strategy.registry import BY_NAME, strategy_of
from lbclient.strategy.zone import Zone
from tests.support.strategies import Asked


def instances(zones, weights=None):
    """This many of each zone: `instances({"a": 2, "b": 1})`."""
    made, port = [], 0
    for zone, number in zones.items():
        metadata = {} if zone is None else {"zone": zone}
        for _ in range(number):
            port += 1
            weight = 1 if weights is None else weights[zone]
            made.append(Instance("10.0.0.1", port, weight=weight, metadata=metadata))
    return made


def candidates(zones, weights=None):
    pool = Pool(BreakerPolicy())
    pool.update(instances(zones, weights))
    return pool.candidates(0.0)


def zone_of(endpoint):
    return endpoint.instance.metadata.get("zone")


def staying(strategy, endpoints, *, now=0.0, picks=20_000):
    """The share of the picks that stays in zone `a`."""
    call = Asked(now=now)
    return sum(zone_of(strategy.pick(endpoints, call)) == "a" for _ in range(picks)) / picks


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "named"),
    [
        (("",), {}, ValueError, "here"),
        ((None,), {}, TypeError, "here"),
        ((b"a",), {}, TypeError, "here"),
        (("a", "fastest"), {}, ValueError, "strategy"),
        (("a", None), {}, TypeError, "inner"),
        (("a", LeastBusy()), {}, TypeError, "inner"),
        (("a", dict), {}, TypeError, "strategy"),
        (("a",), {"spill": 0.9}, ValueError, "spill"),
        (("a",), {"spill": math.nan}, ValueError, "spill"),
        (("a",), {"spill": "2"}, TypeError, "spill"),
        (("a",), {"share": 0}, ValueError, "share"),
        (("a",), {"share": 1.5}, ValueError, "share"),
        (("a",), {"share": True}, TypeError, "share"),
    ],
)
def test_arguments_are_checked(arguments, options, kind, named):
    """K4: an invalid argument is refused at construction by an error that names it."""
    with pytest.raises(kind, match=f"^{named} "):
        Zone(*arguments, **options)


def test_it_has_no_name():
    """It needs the name of its zone, so it is passed as an object; it learns; its `repr` shows its
    arguments."""
    made = Zone("a", "peak-ewma", share=0.5)
    assert "zone" not in BY_NAME
    assert strategy_of(made) is made
    assert isinstance(made, Learning)
    assert repr(made) == "Zone('a', 'peak-ewma', spill=1.4, share=0.5)"


def test_all_stay_while_there_are_enough():
    """With a third of the instances in one of three zones no call leaves the zone, and no random
    number is drawn."""
    endpoints, call = candidates({"b": 5, "a": 5, "c": 5}), Asked()
    strategy = Zone("a", "round-robin")
    strategy.pick(endpoints, call)
    before = call.rng.getstate()
    seen = Counter(strategy.pick(endpoints, call) for _ in range(100))
    assert {zone_of(one) for one in seen} == {"a"}
    assert set(seen.values()) == {20}
    assert call.rng.getstate() == before


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ({"a": 10, "b": 10, "c": 10}, 1.0),
        ({"a": 7, "b": 10, "c": 10}, 1.0),  # 1.4 x 7/27 x 3 is more than all
        ({"a": 5, "b": 10, "c": 10}, 1.4 * 3 * 5 / 25),
        ({"a": 1, "b": 10, "c": 10}, 1.4 * 3 / 21),
        ({"a": 1, "b": 1}, 1.0),
        ({"a": 1, "b": 3}, 1.4 * 2 / 4),
        ({"a": 3}, 1.0),
        ({"b": 3, "c": 3}, 0.0),
    ],
    ids=str,
)
def test_so_many_stay(zones, expected):
    """1.4 times the zone's share of the instances, divided by its share of the calls."""
    assert staying(Zone("a"), candidates(zones)) == pytest.approx(expected, abs=0.015)


def test_weights_are_the_capacity():
    """One instance of weight 10 counts as ten of weight 1."""
    endpoints = candidates({"a": 1, "b": 10}, {"a": 10, "b": 1})
    assert staying(Zone("a"), endpoints) == 1.0
    endpoints = candidates({"a": 10, "b": 1}, {"a": 1, "b": 90})
    assert staying(Zone("a"), endpoints) == pytest.approx(1.4 * 0.1 / 0.5, abs=0.015)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"spill": 1.0}, 0.3),
        ({"spill": 3.0}, 0.9),
        ({"spill": 10.0}, 1.0),
        ({"share": 0.5}, 1.4 * 0.1 / 0.5),
        ({"share": 0.1}, 1.0),
        ({"share": 1.0, "spill": 1.0}, 0.1),
    ],
    ids=str,
)
def test_how_far_it_may_go(options, expected):
    """`spill` limits how much more than its share an instance gets; `share` is the share of all
    calls that comes from this zone."""
    endpoints = candidates({"a": 2, "b": 9, "c": 9})
    assert staying(Zone("a", **options), endpoints) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("left", [1, 2, 4])
def test_a_survivor_is_not_run_over(left):
    """If most instances of one of three zones are gone, each of the rest there gets at most 1.4
    times an equal share, and the others get the remaining calls evenly."""
    endpoints = candidates({"a": left, "b": 10, "c": 10})
    seen = Counter()
    for zone in ("a", "b", "c"):
        strategy, call = Zone(zone, "random"), Asked(random.Random(zone))
        seen.update(strategy.pick(endpoints, call) for _ in range(20_000))
    fair = seen.total() / len(endpoints)
    assert max(seen[one] for one in endpoints if zone_of(one) == "a") < 1.45 * fair
    assert all(0.75 * fair < seen[one] < 1.25 * fair for one in endpoints if zone_of(one) != "a")


@pytest.mark.parametrize("zone", [None, 5, ["a"], "A"], ids=repr)
def test_who_has_no_zone_is_remote(zone):
    """Without a zone in its metadata, or with one that is not text, an instance is not in this
    zone."""
    metadata = {} if zone is None else {"zone": zone}
    others = [Instance("10.0.0.2", n, metadata=metadata) for n in range(1, 4)]
    pool = Pool(BreakerPolicy())
    pool.update([*instances({"a": 3}), *others])
    assert staying(Zone("a"), pool.candidates(0.0)) == 1.0
    pool.update(others)
    assert staying(Zone("a"), pool.candidates(0.0)) == 0.0


def told(strategy, endpoints, *, failed, now=0.0, times=100):
    for one in endpoints:
        for turn in range(times):
            strategy.ended(one, 0.01, failed=turn < failed * times, now=now)


def test_a_zone_that_turns_calls_away_is_preferred_no_more():
    """I10: if local attempts fail and remote ones do not, all instances are treated alike; some
    seconds later the zone is preferred again."""
    endpoints, strategy = candidates({"a": 5, "b": 5, "c": 5}), Zone("a")
    told(strategy, [one for one in endpoints if zone_of(one) == "a"], failed=1.0)
    told(strategy, [one for one in endpoints if zone_of(one) != "a"], failed=0.0)
    assert staying(strategy, endpoints) == pytest.approx(1 / 3, abs=0.03)
    assert staying(strategy, endpoints, now=20.0) > staying(strategy, endpoints, now=10.0)
    assert staying(strategy, endpoints, now=60.0) > 0.97


def test_the_preference_shrinks_with_the_failures():
    """I10: after two local failures in a row, a share of 0.0975, about half of the preference is
    left."""
    endpoints, strategy = candidates({"a": 5, "b": 5, "c": 5}), Zone("a")
    told(strategy, endpoints[:1], failed=1.0, times=2)
    left = 1 - (1 - 0.95**2) / 0.2
    assert staying(strategy, endpoints) == pytest.approx(1 / 3 + left * 2 / 3, abs=0.02)


def test_where_all_turn_calls_away_they_stay():
    """I19: a zone that is no worse than the others is still preferred: in an overload of all zones,
    none must load the others more."""
    endpoints, strategy = candidates({"a": 5, "b": 5, "c": 5}), Zone("a")
    told(strategy, endpoints, failed=1.0)
    assert staying(strategy, endpoints) > 0.95


def test_one_bad_instance_of_many_moves_little():
    """I14: failures of a single instance are handled by the inner strategy, and by its breaker."""
    endpoints, strategy = candidates({"a": 10, "b": 10, "c": 10}), Zone("a")
    call, rng = Asked(), random.Random(1)
    bad = next(one for one in endpoints if zone_of(one) == "a")
    stayed = 0
    for _ in range(4000):
        call.now += 0.005
        one = strategy.pick(endpoints, call)
        strategy.ended(one, 0.01, failed=one is bad and rng.random() < 0.5, now=call.now)
        if one is bad:
            bad.record_fault(call.now)
        stayed += zone_of(one) == "a"
    assert stayed / 4000 > 0.9


@pytest.mark.parametrize("inner", ["round-robin", RoundRobin], ids=repr)
def test_inner_is_a_name_or_a_maker(inner):
    """Each side has its own strategy, so that they do not disturb each other."""
    endpoints, strategy, call = candidates({"a": 2, "b": 5}), Zone("a", inner), Asked()
    picks = {"a": [], "b": []}
    for _ in range(700):
        one = strategy.pick(endpoints, call)
        picks[zone_of(one)].append(one)
    for zone, number in (("a", 2), ("b", 5)):
        got = picks[zone]
        assert all(len(set(got[n : n + number])) == number for n in range(len(got) - number))


def test_a_strategy_inside_learns():
    """The strategy of each side is told of the attempts of its side, and of no others."""

    class Pupil:
        def __init__(self):
            self.heard = []

        def pick(self, candidates, call):
            return candidates[int(call.rng.random() * len(candidates))]

        def ended(self, endpoint, elapsed, *, failed, now):
            self.heard.append((zone_of(endpoint), elapsed, failed, now))

    pupils = []
    strategy = Zone("a", lambda: pupils.append(Pupil()) or pupils[-1])
    endpoints = candidates({"a": 1, "b": 1, None: 1})
    for place, one in enumerate(endpoints):
        strategy.ended(one, 0.5, failed=place == 1, now=1.0 + place)
    assert pupils[0].heard == [("a", 0.5, False, 1.0)]
    assert pupils[1].heard == [("b", 0.5, True, 2.0), (None, 0.5, False, 3.0)]


def test_a_change_elsewhere_leaves_this_side_alone():
    """The candidates of the inner strategy are the same object while they do not change."""
    given = []

    class First:
        def pick(self, candidates, _):
            given.append(candidates)
            return candidates[0]

    pool, strategy = Pool(BreakerPolicy()), Zone("a", First)
    pool.update(instances({"a": 3, "b": 3}))
    strategy.pick(pool.candidates(0.0), Asked())
    pool.update(instances({"a": 3, "b": 2}))
    strategy.pick(pool.candidates(0.0), Asked())
    assert given[0] is given[1]


def test_the_candidates_are_read_once():
    """A pick costs O(1): candidates are divided into the two sides only when they have changed."""
    reads = []

    class Watched(tuple):
        __slots__ = ()

        def __iter__(self):
            reads.append(self)
            return super().__iter__()

    endpoints, strategy = Watched(candidates({"a": 2, "b": 2})), Zone("a")
    strategy.pick(endpoints, Asked())
    before = len(reads)
    for _ in range(50):
        strategy.pick(endpoints, Asked())
    assert len(reads) == before > 0


def test_both_sides_are_told_of_a_fork():
    """In a forked child the strategy of each side starts again, if it wants to."""
    forked = []

    class Inner(RoundRobin):
        def after_fork(self):
            forked.append(self)

    Zone("a", Inner).after_fork()
    assert len(set(forked)) == 2
    Zone("a", "least-busy").after_fork()  # which has no such method


def test_a_zone_may_change():
    """A new zone of an instance applies from the next answer on."""
    pool, strategy = Pool(BreakerPolicy()), Zone("a")
    pool.update(instances({"a": 2, "b": 2}))
    assert staying(strategy, pool.candidates(0.0)) == 1.0
    pool.update(instances({"b": 2, "a": 2}))
    assert {one.instance.port for one in pool.endpoints if zone_of(one) == "a"} == {3, 4}
    assert staying(strategy, pool.candidates(0.0)) == 1.0


def test_a_seed_gives_one_run():
    """The same seed gives the same picks."""
    endpoints = candidates({"a": 1, "b": 9})

    def run(seed):
        call, strategy = Asked(random.Random(seed)), Zone("a")
        return [strategy.pick(endpoints, call).instance.port for _ in range(200)]

    assert run(1) == run(1) != run(2)


def test_in_a_balancer_calls_leave_as_instances_do():
    """I11: when local instances leave the rotation, calls spill over, and they return with the
    instances."""
    everybody = instances({"a": 4, "b": 4})
    with Balancer(everybody, strategy=Zone("a"), rng=random.Random(1)) as balancer:

        def part():
            seen = [balancer.call(lambda one: one.metadata["zone"]) for _ in range(1000)]
            return seen.count("a") / 1000

        assert part() == 1.0
        for one in everybody[:3]:
            balancer.eject(one, 60.0)
        assert part() == pytest.approx(1.4 * 2 / 5, abs=0.05)
        balancer.eject(everybody[3], 60.0)
        assert part() == 0.0
        for one in everybody[:4]:
            balancer.admit(one)
        assert part() == 1.0
