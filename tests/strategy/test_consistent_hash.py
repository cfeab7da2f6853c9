"""Consistent hashing with bounded loads: where keys go, what moves them, how evenly they spread."""

import heapq
import json
import logging
import math
import os
import random
import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from struct import Struct

import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, Instance
from lbclient.core.pool import Pool
from lbclient.strategy.consistent_hash import ConsistentHash, Ring, hashed
from lbclient.strategy.protocol import Learning
from lbclient.strategy.registry import BY_NAME, strategy_of
from tests.support.http import tells_port
from tests.support.strategies import Asked

KEYS = [f"user-{number}" for number in range(3000)]


def instances(number, weights=None):
    return [
        Instance(f"10.0.{place // 250}.{place % 250}", 80, weight=weight)
        for place, weight in enumerate(weights or [1] * number)
    ]


def candidates(number, weights=None):
    pool = Pool(BreakerPolicy())
    pool.update(instances(number, weights))
    return pool.candidates(0.0)


def settled(strategy, endpoints):
    """Pick until it has processed all candidates, a few hundred at a time."""
    for _ in range(1 + len(endpoints) // 128):
        strategy.pick(endpoints, Asked(key="any"))
    return strategy


def owners(strategy, endpoints, keys=KEYS):
    """The instance of each key, while nothing is in flight."""
    settled(strategy, endpoints)
    call = Asked()
    found = {}
    for key in keys:
        call.key = key
        found[key] = strategy.pick(endpoints, call).instance
    return found


def shares(strategy, endpoints, keys=KEYS):
    seen = Counter(owners(strategy, endpoints, keys).values())
    return [seen[one.instance] / len(keys) for one in endpoints]


def moved(before, after):
    return {key for key in before if before[key] != after[key]}


def points(one):
    """The first forty points of an endpoint, as every release has computed them."""
    blocks = (hashed(f"{one.instance} {block}".encode(), Struct("<8Q")) for block in range(5))
    return [point for block in blocks for point in block]


# What it takes


@pytest.mark.parametrize(
    ("wrong", "kind", "named"),
    [
        ({"load": 1.0}, ValueError, "load"),
        ({"load": 0}, ValueError, "load"),
        ({"load": math.nan}, ValueError, "load"),
        ({"load": math.inf}, ValueError, "load"),
        ({"load": "1.25"}, TypeError, "load"),
        ({"load": True}, TypeError, "load"),
        ({"key": "user"}, TypeError, "key"),
        ({"key": 5}, TypeError, "key"),
    ],
)
def test_arguments_are_checked(wrong, kind, named):
    """K4: an invalid argument is refused at construction by an error that names it."""
    with pytest.raises(kind, match=f"^{named} "):
        ConsistentHash(**wrong)


def test_name():
    """It can be chosen by name, with a new object for each balancer; its `repr` shows its
    arguments."""
    made = strategy_of("consistent-hash")
    assert type(made) is ConsistentHash is BY_NAME["consistent-hash"]
    assert strategy_of("consistent-hash") is not made
    assert not isinstance(made, Learning)
    assert repr(made) == "ConsistentHash(key=None, load=1.25)"


@pytest.mark.parametrize(
    "key", ["", "user-42", "größe", "\ud800", b"", b"\xff", 0, -5, 10**5000], ids=range(9)
)
def test_keys(key):
    """Text, bytes and whole numbers of any kind are keys; each has its own place."""
    endpoints, strategy = candidates(20), ConsistentHash()
    assert len({strategy.pick(endpoints, Asked(key=key)) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    "key", [1.5, ("a", 1), object(), uuid.UUID(int=1), ["a"]], ids=lambda one: type(one).__name__
)
def test_what_is_no_key(key):
    """A key of another type is refused, and the error names the alternative; `key=` can make a key
    from it."""
    endpoints = candidates(20)
    with pytest.raises(TypeError, match=r"key must be text.*not \w+; pass ConsistentHash\(key="):
        ConsistentHash().pick(endpoints, Asked(key=key))
    strategy = ConsistentHash(key=lambda _: "one")
    assert len({strategy.pick(endpoints, Asked(key=key)) for _ in range(20)}) == 1


def test_a_function_may_choose_the_part_that_counts():
    """`key=` gets what the caller passed, never None, and may return None for no key."""
    endpoints, strategy = candidates(20), ConsistentHash(key=lambda key: key[0])
    assert len({strategy.pick(endpoints, Asked(key=("tenant", n))) for n in range(50)}) == 1
    strategy, call = (
        ConsistentHash(key=lambda key: None if key == "none" else key),
        Asked(key="none"),
    )
    assert len({strategy.pick(endpoints, call) for _ in range(200)}) == 20
    assert strategy.pick(endpoints, Asked())


def test_without_a_key_the_dice_pick_by_weight():
    """A call without a key goes to a random instance, in proportion to the weights."""
    endpoints = candidates(3, [60, 20, 20])
    strategy, call = ConsistentHash(load=None), Asked()
    seen = Counter(strategy.pick(endpoints, call) for _ in range(10_000))
    assert [seen[one] / 10_000 for one in endpoints] == pytest.approx([0.6, 0.2, 0.2], abs=0.06)
    first = Counter(
        ConsistentHash().pick(endpoints, Asked(rng=random.Random(n))) for n in range(300)
    )
    assert len(first) == 3


# Where keys go


def test_a_key_has_one_place():
    """The same key goes to the same instance, for any order of instances and any client."""
    endpoints = candidates(50)
    found = owners(ConsistentHash(), endpoints)
    assert owners(ConsistentHash(), endpoints) == found
    pool, shuffled = Pool(BreakerPolicy()), instances(50)
    random.Random(1).shuffle(shuffled)
    pool.update(shuffled)
    assert owners(ConsistentHash(), pool.candidates(0.0)) == found


PLACES = """
    import json, sys
    sys.path.insert(0, sys.argv[1])
    from tests.strategy.test_consistent_hash import ConsistentHash, candidates, owners
    found = owners(ConsistentHash(), candidates(300), [f"user-{n}" for n in range(200)])
    print(json.dumps([one.host for one in found.values()]))
"""


def test_processes_agree():
    """A key has the same place in every process, with any PYTHONHASHSEED, and in every release,
    since caches must survive an update."""
    runs = []
    for seed in ("0", "1"):
        command = [sys.executable, "-c", textwrap.dedent(PLACES), os.path.realpath(".")]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        runs.append(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    assert runs[0] == runs[1]
    assert json.loads(runs[0])[:5] == [
        "10.0.0.208",
        "10.0.0.159",
        "10.0.1.43",
        "10.0.0.34",
        "10.0.0.59",
    ]


@pytest.mark.parametrize("number", [3, 10, 100])
def test_shares_are_about_equal(number):
    """Keys spread over equal instances; differences of a tenth are usual, of a half are not."""
    got = shares(ConsistentHash(), candidates(number), [f"key {n}" for n in range(200 * number)])
    assert all(0.55 < share * number < 1.5 for share in got)
    spread = math.sqrt(sum((share * number - 1) ** 2 for share in got) / number)
    assert spread < 0.16


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((10, 1), (10 / 11, 1 / 11)),
        ((60, 20, 20), (0.6, 0.2, 0.2)),
        ((3, 1), (0.75, 0.25)),
        ((0, 1), (1 / 11, 10 / 11)),
        ((0, 0), (0.5, 0.5)),
        ((0.003, 0.001), (0.75, 0.25)),
    ],
)
def test_weights_are_kept(weights, expected):
    """D9, K2: keys are spread by weight; 0 counts as 0.1; if all are 0, all are equal."""
    got = shares(ConsistentHash(), candidates(len(weights), weights))
    assert got == pytest.approx(expected, abs=0.08)


# What moves them


@pytest.mark.parametrize("number", [10, 100])
def test_who_leaves_moves_its_own_keys_only(number):
    """D21: when one of n instances leaves, its keys move, about 1/n of all, to many others; no
    other key moves."""
    pool, everybody, strategy = Pool(BreakerPolicy()), instances(number), ConsistentHash()
    pool.update(everybody)
    before = owners(strategy, pool.candidates(0.0))
    pool.update(everybody[1:])
    after = owners(strategy, pool.candidates(0.0))
    gone = {key for key, one in before.items() if one == everybody[0]}
    assert moved(before, after) == gone
    assert 0.4 / number < len(gone) / len(KEYS) < 1.8 / number
    assert len({after[key] for key in gone}) > 5


@pytest.mark.parametrize("number", [10, 100])
def test_who_joins_gets_keys_and_moves_no_others(number):
    """D21: when one instance joins n, it gets about 1/n of the keys, and no other key moves."""
    pool, everybody, strategy = Pool(BreakerPolicy()), instances(number + 1), ConsistentHash()
    pool.update(everybody[1:])
    before = owners(strategy, pool.candidates(0.0))
    pool.update(everybody)
    after = owners(strategy, pool.candidates(0.0))
    came = moved(before, after)
    assert {after[key] for key in came} == {everybody[0]}
    assert 0.4 / number < len(came) / len(KEYS) < 1.8 / number


def test_one_with_another_weight_moves_few():
    """With unequal weights a change also moves the shares of others a little: about 1/n more
    keys."""
    pool, strategy = Pool(BreakerPolicy()), ConsistentHash()
    everybody = instances(20, [1, 2, 3, 4, 5] * 4)
    pool.update(everybody)
    before = owners(strategy, pool.candidates(0.0))
    heavier = [Instance(everybody[0].host, 80, weight=6), *everybody[1:]]
    pool.update(heavier)
    after = owners(strategy, pool.candidates(0.0))
    fresh = Pool(BreakerPolicy())
    fresh.update(heavier)
    assert after == owners(ConsistentHash(), fresh.candidates(0.0))
    assert len(moved(before, after)) / len(KEYS) < 0.2
    assert Counter(after.values())[heavier[0]] > 2 * Counter(before.values())[everybody[0]]


def test_who_is_out_for_a_while_gets_its_keys_back():
    """I18: keys of an instance that is out of rotation go elsewhere, and return with it."""
    pool, strategy = Pool(BreakerPolicy()), ConsistentHash()
    pool.update(instances(10))
    before = owners(strategy, pool.candidates(0.0))
    out = pool.find(instances(10)[3])
    out.ejected_until = 5.0
    pool.changed(out)
    during = owners(strategy, pool.candidates(1.0))
    assert out.instance not in during.values()
    assert moved(before, during) == {key for key, one in before.items() if one == out.instance}
    assert owners(strategy, pool.candidates(6.0)) == before


def test_history_leaves_no_trace():
    """After any churn keys are where they would be for a new client."""
    pool, strategy, dice = Pool(BreakerPolicy()), ConsistentHash(), random.Random(3)
    everybody = instances(60, [dice.choice([1, 2, 5]) for _ in range(60)])
    for _ in range(200):
        pool.update(dice.sample(everybody, dice.randrange(1, 60)))
        for _ in range(dice.randrange(4)):
            assert strategy.pick(pool.candidates(0.0), Asked(key=dice.random().hex())).gone is False
    fresh = Pool(BreakerPolicy())
    fresh.update([one.instance for one in pool.candidates(0.0)])
    expected = owners(ConsistentHash(), fresh.candidates(0.0))
    assert owners(strategy, pool.candidates(0.0)) == expected


def test_churn_leaves_nothing_behind():
    """S7: instances that have left are removed, a few at each pick."""
    pool, strategy = Pool(BreakerPolicy()), ConsistentHash()
    for turn in range(20):
        pool.update(Instance("10.0.0.1", 1 + turn * 500 + port) for port in range(1000))
        for pick in range(150):
            strategy.pick(pool.candidates(0.0), Asked(key=pick))
    assert len(strategy._ring.owners) == 1000
    assert sum(map(len, strategy._ring._arcs)) == 16 * 1000
    assert max(map(len, strategy._ring._arcs)) < 256
    assert len(strategy._ring._here) <= 1500 + 128


def test_an_outage_leaves_the_circle_as_it_is_cut():
    """If one instance serves alone for a while, the ring of all is not built again, twice."""
    pool, strategy = Pool(BreakerPolicy()), ConsistentHash()
    pool.update(instances(100))
    settled(strategy, pool.candidates(0.0))
    before = strategy._ring._arcs
    for out in list(pool.endpoints)[1:]:
        out.ejected_until = 5.0
        pool.changed(out)
    assert len(pool.candidates(1.0)) == 1
    assert {strategy.pick(pool.candidates(1.0), Asked(key=key)) for key in KEYS[:50]} == {
        *pool.candidates(1.0)
    }
    assert strategy._ring._arcs is before


def test_one_that_left_while_it_was_out_is_removed_too():
    """S7: an instance may be out of rotation first, and then leave."""
    pool, strategy = Pool(BreakerPolicy()), ConsistentHash()
    pool.update(instances(10))
    settled(strategy, pool.candidates(0.0))
    out = pool.find(instances(10)[3])
    out.ejected_until = 5.0
    pool.changed(out)
    settled(strategy, pool.candidates(1.0))
    pool.update([one for one in instances(10) if one != out.instance])
    settled(strategy, pool.candidates(1.0))
    assert len(strategy._ring.owners) == 9


def test_of_thousands_few_join_at_a_pick():
    """D15: no single call processes all candidates; in the end all are included, and each has its
    keys."""
    endpoints, strategy = candidates(5000), ConsistentHash()
    known = [0]
    while known[-1] < 5000:
        strategy.pick(endpoints, Asked(key="any"))
        known.append(len(strategy._ring.owners))
        assert 0 < known[-1] - known[-2] <= 128
    assert owners(strategy, endpoints, KEYS[:200]) == owners(
        ConsistentHash(), candidates(5000), KEYS[:200]
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_ring_finds_what_a_naive_search_finds(seed):
    """However the ring was cut and changed, the next point after a spot is the one that a search
    through all points of all candidates finds."""
    dice, ring, everybody = random.Random(seed), Ring(), candidates(40)
    wanted, out = {}, set()
    for _ in range(80):
        one, change = dice.choice(everybody), dice.random()
        if one in wanted and change < 0.25:
            ring.remove(one)
            del wanted[one]
            out.discard(one)
        elif one in wanted and change < 0.5:
            out ^= {one}
            ring.show(one, here=one not in out)
        else:
            wanted[one] = dice.randrange(1, 40)
            ring.give(one, wanted[one])
        if change < 0.1:
            ring.expect(dice.randrange(60))
        naive = {
            point & ~(2**24 - 1) | ring.owners[one][0]: one
            for one in wanted.keys() - out
            for point in points(one)[: wanted[one]]
        }
        for spot in [dice.randrange(2**64) for _ in range(5)] if naive else ():
            nearest = min((point - spot) % 2**64 for point in naive)
            assert ring.after(spot) == (nearest, naive[(spot + nearest) % 2**64])


# Bounded loads


def in_flight(endpoints, strategy, keys, *, calls, together):
    """The most that any instance had in flight, as a multiple of the mean, with this many calls at
    a time."""
    ends, most, dice = [], 0.0, random.Random(5)
    spread = Counter()
    for turn in range(calls):
        if len(ends) == together:
            heapq.heappop(ends)[2].in_flight -= 1
        key = keys(dice)
        one = strategy.pick(endpoints, Asked(key=key))
        one.in_flight += 1
        heapq.heappush(ends, (turn + dice.expovariate(1 / together), turn, one))
        spread[key, one] += 1
        if turn > together:
            most = max(most, one.in_flight * len(endpoints) / len(ends))
    return most, spread


@pytest.mark.parametrize("number", [10, 100])
def test_a_hot_key_spreads(number):
    """No instance has more than 1.25 times the mean in flight, even if half of all calls have one
    key; without a bound its instance has half."""

    def keys(dice):
        return "hot" if dice.random() < 0.5 else dice.randrange(1000)

    many = {"calls": 60 * number, "together": 20 * number}
    most, spread = in_flight(candidates(number), ConsistentHash(), keys, **many)
    assert most <= 1.25 * 1.06
    assert len([one for key, one in spread if key == "hot"]) > number / 3
    most, spread = in_flight(candidates(number), ConsistentHash(load=None), keys, **many)
    assert most > 0.4 * number
    assert len([one for key, one in spread if key == "hot"]) == 1


def test_at_little_load_keys_keep_their_place():
    """One call at a time is always allowed: with fewer calls than instances no key moves because of
    its own load."""
    endpoints, strategy = candidates(100), ConsistentHash()
    expected = owners(strategy, endpoints)
    for key in KEYS:
        one = strategy.pick(endpoints, Asked(key=key))
        assert one.instance == expected[key]
        one.in_flight += 1
        strategy.pick(endpoints, Asked(key="another"))
        one.in_flight -= 1


@pytest.mark.parametrize(("place", "held"), [(0, 375), (1, 125)])
def test_the_bound_is_one_of_weight(place, held):
    """Of 400 calls with one key its instance has 1.25 times the share of its weight."""
    endpoints, strategy = candidates(2, [3, 1]), ConsistentHash()
    found = owners(strategy, endpoints)
    key = next(key for key in KEYS if found[key] == endpoints[place].instance)
    for _ in range(400):
        strategy.pick(endpoints, Asked(key=key)).in_flight += 1
    assert endpoints[place].in_flight == pytest.approx(held, abs=2)


def test_the_bound_is_exact():
    """With m calls of one key in flight, its instance has 1.25 times its share of m, rounded up;
    this holds too after the set and what is in flight have changed."""
    pool, strategy = Pool(BreakerPolicy()), ConsistentHash()
    for number in (4, 8, 2, 4):
        pool.update(instances(number))
        endpoints = pool.candidates(0.0)
        for one in endpoints:
            one.in_flight = 0
        own = strategy.pick(endpoints, Asked(key="user"))
        for calls in range(1, 50):
            strategy.pick(endpoints, Asked(key="user")).in_flight += 1
            assert own.in_flight == math.ceil(1.25 * calls / number)


def test_where_nobody_seems_to_have_room_weights_count():
    """If all exceed the bound, because a change of load was not seen yet, the least busy for its
    weight is picked."""
    for key in range(20):
        endpoints, strategy = candidates(40, [1] + [4] * 39), ConsistentHash(load=1.0001)
        settled(strategy, endpoints)
        for one in endpoints:
            one.in_flight = 5 if one.weight == 1 else 8
        assert strategy.pick(endpoints, Asked(key=key)).weight == 4


def test_faults_take_room():
    """I14: an instance that fails fast counts as full for some seconds, and its keys go
    elsewhere."""
    endpoints, strategy = candidates(10), ConsistentHash()
    own = strategy.pick(endpoints, Asked(key="user"))
    for _ in range(5):
        own.record_fault(now=0.0)
    assert strategy.pick(endpoints, Asked(key="user")) is not own
    assert strategy.pick(endpoints, Asked(key="user", now=30.0)) is own


def test_where_nobody_has_room_somebody_is_picked():
    """If all instances exceed the bound, the least busy of those that were checked is picked."""
    endpoints, strategy = candidates(10), ConsistentHash(load=1.0001)
    settled(strategy, endpoints)
    for place, one in enumerate(endpoints):
        one.in_flight = 5 + (place != 4)
    strategy._mean_load = lambda _: 0.0
    assert strategy.pick(endpoints, Asked(key="user")) is endpoints[4]


# In a balancer


@pytest.mark.parametrize("strategy", ["consistent-hash", ConsistentHash(load=2.0)], ids=str)
def test_calls_of_one_key_meet_one_instance(strategy):
    """`key=` of a call decides the instance, also for requests of clients."""
    urls = [f"http://10.0.0.{n}:80" for n in range(1, 9)]
    with Balancer(urls, strategy=strategy) as balancer:
        met = {key: {balancer.call(str, key=key) for _ in range(10)} for key in range(50)}
    assert all(len(places) == 1 for places in met.values())
    assert len(set().union(*met.values())) > 5


def test_a_bad_key_is_logged_and_the_dice_pick(caplog):
    """C18: a key of another type fails no call; the log names the alternative."""
    caplog.set_level(logging.ERROR, "lbclient")
    with Balancer(["http://10.0.0.1:80", "http://10.0.0.2:80"], strategy="consistent-hash") as made:
        assert {made.call(str, key=("a", 1)) for _ in range(50)} == {"10.0.0.1:80", "10.0.0.2:80"}
    assert "key must be text, bytes or a whole number, not tuple" in caplog.text


def keyed(number):
    return {"extensions": {"lbclient": {"key": f"user-{number}"}}}


def test_requests_carry_keys(servers):
    """A request's key is in its extensions, and has one instance."""
    urls = [server.url for server in servers(*[tells_port] * 4)]
    with lbclient.Client(urls, strategy="consistent-hash") as client:
        met = [{client.get("/", **keyed(n)).text for _ in range(5)} for n in range(20)]
    assert all(len(ports) == 1 for ports in met)
    assert len(set().union(*met)) > 2


@pytest.mark.anyio
async def test_requests_carry_keys_async(servers):
    """The keys of an async client have the same instances as those of a sync client."""
    urls = [server.url for server in servers(*[tells_port] * 4)]
    with lbclient.Client(urls, strategy="consistent-hash") as client:
        expected = [client.get("/", **keyed(n)).text for n in range(20)]
    async with lbclient.AsyncClient(urls, strategy="consistent-hash") as client:
        assert [(await client.get("/", **keyed(n))).text for n in range(20)] == expected
