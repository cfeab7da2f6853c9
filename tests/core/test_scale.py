"""Many instances: the subset of a client, the cost of a change, and what stays in memory."""

import logging
import random
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

import lbclient
from lbclient import Answer, Balancer, BreakerPolicy, Instance, Weighted
from lbclient.core.pool import EndpointSetUpdate, Pool, Subset
from lbclient.endpoint.endpoint import Endpoint
from tests.support.http import says
from tests.support.slow import slow_rows

MANY = 10_000


def named(*numbers: int, priority: int = 0) -> list[Instance]:
    return [Instance(f"i{number}.test", 80, priority=priority) for number in numbers]


class Scripted:
    """A resolver that returns the instances it is given."""

    def __init__(self, instances):
        self.instances = instances

    def resolve(self):
        return Answer(self.instances, 3600)


# A subset for each client


def test_subset_is_stable():
    """D15: a client keeps the same few of many instances while others come and go."""
    subset = Subset(10, random.Random(1))
    first = subset.of(named(*range(1000)))
    assert len(set(first)) == 10
    assert subset.of(named(*reversed(range(1000)))) == list(reversed(first))
    gone = first[3]
    rest = [one for one in named(*range(1000)) if one != gone]
    assert len(set(subset.of(rest)) & set(first)) == 9
    assert len(set(subset.of(named(*range(1100)))) & set(first)) >= 7


def test_subsets_of_clients_differ():
    """D15: a thousand clients that keep ten of a hundred instances spread evenly over all."""
    seen = Counter()
    dice = random.Random(1)
    for _ in range(1000):
        seen.update(Subset(10, dice).of(named(*range(100))))
    assert len(seen) == 100
    assert 60 < min(seen.values()) <= max(seen.values()) < 145  # 100 expected, sigma 9.5


def test_subset_keeps_every_tier():
    """D10, D15: a fail-over must find an instance, so the subset has one of each tier; the best
    tier gets the rest."""
    instances = [*named(*range(10)), *named(*range(10, 1000), priority=7)]
    for seed in range(20):
        kept = Subset(5, random.Random(seed)).of(instances)
        assert len(kept) == 5
        assert sorted(one.priority for one in kept) == [0, 0, 0, 0, 7]
        assert [one.priority for one in Subset(1, random.Random(seed)).of(instances)] == [0]


def test_small_set_is_kept_whole():
    """D15: if there are no more instances than the limit, or no limit, all are kept."""
    assert Subset(10, random.Random(1)).of(named(1, 2)) == named(1, 2)
    assert len(Subset(None, random.Random(1)).of(named(*range(100)))) == 100


def test_forked_client_draws_anew():
    """C8, D15: a forked child draws its own subset."""
    subset = Subset(10, random.Random(1))
    before = subset.of(named(*range(1000)))
    other = subset.after_fork()
    assert other != before
    assert len(other) == 10
    assert subset.of(named(*range(1000))) != before


def test_a_forked_child_brings_back_none_that_left():
    """C8, D15: if the instances are now so few that all are kept, a forked child draws nothing from
    an earlier answer."""
    subset = Subset(2, random.Random(1))
    subset.of(named(*range(10)))
    subset.of(named(1, 2))
    assert subset.after_fork() is None


def test_child_forked_during_an_update(monkeypatch):
    """C8: a child forked in the middle of an update knows that it may have lost it, and picks from
    the endpoints that are known by then."""
    pool = Pool(BreakerPolicy())
    pool.update(named(1))
    pool.candidates(0.0)
    seen = []

    def changes(_):  # asked as soon as the new endpoints are known
        seen.append((pool.after_fork(), [one.instance for one in pool.candidates(0.0)]))
        return True

    monkeypatch.setattr(EndpointSetUpdate, "__bool__", changes)
    pool.update(named(2, 3))
    assert seen == [(True, named(2, 3))]
    monkeypatch.undo()
    pool.update(named(4))
    assert not pool.after_fork()


@pytest.mark.parametrize("metadata", [{}, {"zone": "a"}])
def test_the_same_answer_changes_nothing(metadata):
    """A strategy gets the same candidates object as before a refresh that returned the same
    records, so that it may keep what it has computed from them."""
    seen = []

    class Keeps:
        def pick(self, candidates, _):
            seen.append(candidates)
            return candidates[0]

    instances = [Instance("10.0.0.1", port, metadata=metadata) for port in (1, 2)]
    with Balancer(Scripted(instances), strategy=Keeps()) as balancer:
        for _ in range(2):
            balancer.refresh()
            balancer.call(str)
    assert seen[0] is seen[1]


@pytest.mark.parametrize("service", ["list", "resolver"])
def test_max_instances(service):
    """D15: `max_instances` limits the instances of a balancer, from a list and from discovery."""
    instances = named(*range(100))
    given = instances if service == "list" else Scripted(instances)
    balancer = Balancer(given, max_instances=7)
    balancer.call(str)
    assert len(balancer.instances()) == 7
    assert {balancer.call(lambda one: one) for _ in range(70)} == set(balancer.instances())
    balancer.close()


def test_max_instances_over_http(servers):
    """D15: a client keeps its subset over real sockets too."""
    urls = [server.url for server in servers(*[says(200)] * 4)]
    with lbclient.Client(urls, max_instances=2) as client:
        for _ in range(20):
            assert client.get("/").status_code == 200
        counts = sorted(one.attempts for one in client.balancer.snapshot().instances)
    assert counts == [10, 10]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3"])
def test_max_instances_is_checked(wrong):
    """K: an invalid count is refused at construction by an error that names it."""
    with pytest.raises((TypeError, ValueError), match="max_instances"):
        Balancer(named(1), max_instances=wrong)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "1", True, 3601])
def test_min_refresh_is_checked(wrong):
    """K4, D11: `min_refresh` is a time in seconds, at most an hour."""
    with pytest.raises((TypeError, ValueError), match="min_refresh"):
        Balancer(named(1), min_refresh=wrong)


# What a change costs the calls


def test_plan_changes_nothing():
    """D21: what a new answer changes is computed without changing anything that calls read."""
    pool = Pool(BreakerPolicy())
    pool.update([Instance("a.test", 80, weight=1), Instance("b.test", 80)])
    before = [(one, one.weight, one.instance) for one in pool.endpoints]
    change = pool.plan([Instance("a.test", 80, weight=5, addresses=("192.0.2.1",))])
    assert [(one, one.weight, one.instance) for one in pool.endpoints] == before
    assert not any(one.gone for one, *_ in before)
    pool.take(change)
    (a,) = pool.endpoints
    assert a is before[0][0]
    assert (a.weight, a.instance.addresses) == (5, ("192.0.2.1",))
    assert before[1][0].gone


def test_record_that_says_nothing_new_stands():
    """D21: an equal record does not change the candidates; new metadata is applied."""
    pool = Pool(BreakerPolicy())
    pool.update(named(1, 2))
    candidates = pool.candidates(0.0)
    assert not pool.update(named(1, 2))
    assert pool.candidates(0.0) is candidates
    pool.update([Instance("i1.test", 80, metadata={"zone": "a"}), *named(2)])
    assert pool.candidates(0.0)[0].instance.metadata == {"zone": "a"}


class Asked:
    rng, now, key = random.Random(1), 0.0, None


def test_thousands_join_a_few_hundred_at_a_time():
    """D15: of ten thousand instances that join at once, each is picked within about a round, but no
    single pick processes them all."""
    pool, strategy = Pool(BreakerPolicy()), Weighted()
    pool.update(named(*range(MANY)))
    candidates = pool.candidates(0.0)
    strategy.pick(candidates, Asked())
    assert len(strategy._heap) < MANY / 10
    seen = Counter(strategy.pick(candidates, Asked()) for _ in range(3 * MANY))
    assert len(seen) == MANY
    assert max(seen.values()) - min(seen.values()) <= 2


def test_first_picks_of_many_differ():
    """D25: clients that start together do not begin with the same few of thousands."""
    pool = Pool(BreakerPolicy())
    pool.update(named(*range(MANY)))
    candidates = pool.candidates(0.0)
    firsts = {Weighted().pick(candidates, Asked()) for _ in range(100)}
    assert len(firsts) > 90


def test_weighted_forgets_who_left():
    """S7: whatever the churn, a strategy stores no more about instances that left than about those
    in use."""
    pool, strategy = Pool(BreakerPolicy()), Weighted()
    for turn in range(30):
        pool.update(named(*range(turn * 1000, (turn + 1) * 1000)))
        for _ in range(20):
            picked = strategy.pick(pool.candidates(0.0), Asked())
            assert isinstance(picked, Endpoint)
            assert not picked.gone
    assert len(strategy._heap) <= 2 * 1000 + 20 * 256 + 256


def test_only_who_fails_is_looked_at():
    """D15: in a large pool a breaker that opens and closes is noticed at once, by its own tier."""
    pool = Pool(BreakerPolicy())
    pool.update([*named(*range(50)), *named(*range(50, 60), priority=1)])
    first = pool.candidates(0.0)
    victim = first[7]
    victim.backing_off_until = 10.0
    pool.changed(victim)
    assert victim not in pool.candidates(0.0)
    assert len(pool.candidates(0.0)) == 49
    assert pool.candidates(10.0) == first


# What is told of a change


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        (range(10), range(1), logging.WARNING),
        (range(10), range(10, 20), logging.WARNING),
        (range(10), range(5), logging.INFO),
        (range(3), range(1), logging.INFO),
        (range(3), range(4), logging.INFO),
    ],
    ids=["nine of ten left", "all replaced", "half left", "two of three left", "one joined"],
)
def test_mass_exodus_is_told(caplog, before, after, level):
    """D28, S12: a change is applied and logged; as a warning if most of a set leave at once."""
    caplog.set_level(logging.INFO, "lbclient")
    resolver = Scripted(named(*before))
    balancer = Balancer(resolver, name="orders.test")
    balancer.refresh()
    resolver.instances = named(*after)
    caplog.clear()
    balancer.refresh()
    assert set(balancer.instances()) == set(named(*after))
    (record,) = caplog.records
    assert record.levelno == level
    assert "orders.test" in record.getMessage()
    caplog.clear()
    balancer.refresh()
    assert caplog.records == []
    balancer.close()


# A churn of everything, over and over

CHURN = """
    import asyncio, gc, logging, sys, threading
    from pathlib import Path
    import lbclient
    logging.disable()
    port, kind, many = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    class Churned:
        turn = 0
        def resolve(self):
            self.turn += 1
            return lbclient.Answer(
                [lbclient.Instance(f"i{self.turn}-{number}.test", port, addresses=("127.0.0.1",))
                 for number in range(many)], 3600)

    def left_over():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    def sync(rounds):
        for _ in range(rounds):
            client.balancer.refresh()
            for _ in range(10):
                assert client.get("/").status_code == 200

    async def tasks(rounds):
        for _ in range(rounds):
            await client.balancer.arefresh()
            for _ in range(10):
                assert (await client.get("/")).status_code == 200

    if kind == "sync":
        client, run = lbclient.Client(Churned(), name="orders.test"), sync
    else:
        client = lbclient.AsyncClient(Churned(), name="orders.test")
        run = lambda rounds: asyncio.run(tasks(rounds))
    run(20)
    before = left_over()
    run(80)
    after = left_over()
    print(*before, *after)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "many"), [("sync", MANY), ("asyncio", 1000)])
def test_churn_leaves_nothing(servers, kind, many):
    """S7, D15: replacing thousands of instances a hundred times keeps memory within 5 %, and adds
    no thread, socket or descriptor."""
    (server,) = servers(says(200))
    command = [sys.executable, "-c", textwrap.dedent(CHURN), str(server.port), kind, str(many)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pages, threads, files, *after = map(int, done.stdout.split())
    assert after[0] <= 1.05 * pages
    assert (after[1], after[2]) <= (threads, files)


# Starts


START = """
    import os, sys, lbclient
    instances = [lbclient.Instance("10.0.0.1", port) for port in range(1, 21)]
    made = lbclient.Balancer(instances, strategy=sys.argv[2])
    for _ in range(200):
        if os.fork() == 0:
            if sys.argv[1] == "fresh":
                made = lbclient.Balancer(instances, strategy=sys.argv[2])
            print(made.call(lambda one: one.port), flush=True)
            os._exit(0)
        os.wait()
"""


@pytest.mark.parametrize("client", ["inherited", *slow_rows("fresh")])
@pytest.mark.parametrize(
    "strategy", ["weighted", *slow_rows("round-robin", "random", "least-busy")]
)
def test_processes_started_together_do_not_begin_alike(client, strategy):
    """D25, C8: 200 processes are started in pairs, each with its own client or with that of the
    process it was forked from. The two of a pair pick the same first of twenty instances no more
    often than by chance."""
    command = [sys.executable, "-c", textwrap.dedent(START), client, strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    picks = done.stdout.split()
    assert len(picks) == 200
    alike = sum(a == b for a, b in zip(picks[::2], picks[1::2], strict=True))
    # 100 pairs, chance 1 in 20: more than 20 alike happens once in ten million runs.
    assert alike <= 20
    assert len(set(picks)) >= 15
