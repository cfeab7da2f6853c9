"""Forked children of a process with a warm client do not act in lockstep."""

import pytest

from tests.faults.test_lifecycle import WARM, script
from tests.support.dns import Liar

CHILDREN = 8
KIT = """
    import json, logging, random, time
    logging.getLogger("lbclient").addHandler(logging.NullHandler())
    def told_by_children(work):
        '''What `work()` returns in each of several children, all forked from the same state.'''
        children = []
        for _ in range(int(sys.argv[1])):
            reading, writing = os.pipe()
            def child():
                os.write(writing, json.dumps(work()).encode())
            children.append((forked(child), reading, writing))
        told = []
        for pid, reading, writing in children:
            wait(pid)
            os.close(writing)
            with open(reading, "rb") as file:
                told.append(json.loads(file.read()))
        return told
    def hosts(number):
        return [lbclient.Instance(f"10.0.{place // 250}.{place % 250}", 80,
                metadata={"zone": "abc"[place % 3]}) for place in range(number)]
"""


def run(text, *arguments):
    done = script(WARM + KIT + text, str(CHILDREN), *arguments)
    assert done == (0, "", "")


@pytest.mark.parametrize("rng", ["None", "random.Random(1)"], ids=["own dice", "user's dice"])
def test_children_pick_differently(rng):
    """Children of a process with a warm client pick different sequences with every strategy, even
    if the caller passed the random number generator."""
    # By chance eight of a hundred starting places are fewer than four different ones once in ten
    # million runs; in lockstep they are always one.
    work = f"""
    from lbclient.strategy.registry import BY_NAME
    for strategy in [*BY_NAME, lbclient.Weighted(), lbclient.Zone("a", inner="round-robin")]:
        balancer = lbclient.Balancer(hosts(100), strategy=strategy, rng={rng})
        def picks():
            return [balancer.call(lambda one: one.host) for _ in range(20)]
        for _ in range(8):
            picks()
        for _ in range(2):
            told = set(map(tuple, told_by_children(picks)))
            assert len(told) >= 4, strategy
    """
    run(work)


def test_a_key_stays_where_it_is():
    """In a child `consistent-hash` sends a key to the same instance as in its parent."""
    work = """
    balancer = lbclient.Balancer(hosts(50), strategy="consistent-hash")
    def places():
        return [balancer.call(lambda one: one.host, key=str(key)) for key in range(100)]
    expected = places()
    assert told_by_children(places) == [expected] * int(sys.argv[1])
    """
    run(work)


def test_children_still_pick_in_proportion():
    """After a fork `weighted` picks in proportion to the weights, exact in every short window."""
    work = """
    from collections import Counter
    heavy = lbclient.Instance("10.0.0.1", 80, weight=3)
    balancer = lbclient.Balancer([heavy, lbclient.Instance("10.0.0.2", 80)])
    def picks():
        return Counter(balancer.call(lambda one: one.host) for _ in range(40))
    picks()
    for counted in told_by_children(picks):
        assert 29 <= counted["10.0.0.1"] <= 31
    """
    run(work)


def test_a_strategy_of_ones_own_is_told():
    """A caller's strategy with `after_fork` is called in each child, even inside a `Zone`; if it
    raises there, this is logged and the strategy is still used."""
    work = """
    class Mine:
        forks = 0
        def pick(self, candidates, call):
            return candidates[0]
        def after_fork(self):
            self.forks += 1
    class Failing(Mine):
        def after_fork(self):
            raise LookupError("told by a test")
    class Texts(logging.Handler):
        def __init__(self):
            super().__init__()
            self.texts = []
        def emit(self, record):
            self.texts.append(record.getMessage())
    texts = Texts()
    logging.getLogger("lbclient").addHandler(texts)
    plain, failing, made = Mine(), Failing(), []
    def inner():
        made.append(Mine())
        return made[-1]
    balancers = [lbclient.Balancer(hosts(4), strategy=one)
                 for one in (plain, lbclient.Zone("a", inner=inner), failing)]
    def work():
        for one in balancers:
            one.call(str)
        forks = [plain.forks, *(one.forks for one in made)]
        return [forks, [text for text in texts.texts if "Failing" in text and "fork" in text]]
    for forks, logged in told_by_children(work):
        assert forks == [1, 1, 1]
        assert len(logged) == 1
    assert plain.forks == 0
    """
    run(work)


def test_the_dice_of_everything_else():
    """Other random decisions (back-offs, jitter, the throttle) also differ in each child, even with
    the caller's generator, whose sequence in the parent is not changed."""
    work = """
    expected, mine = random.Random(1), random.Random(1)
    balancer = lbclient.Balancer(hosts(2), rng=mine, strategy="round-robin")
    told = told_by_children(lambda: balancer._engine.rng.random())
    assert len(set(told)) == len(told)
    assert mine.random() == expected.random()
    """
    run(work)


def test_children_keep_different_subsets():
    """With `max_instances` each child keeps its own random subset from its first call on, without
    asking discovery again."""
    work = """
    class Once:
        asked = 0
        def resolve(self):
            Once.asked += 1
            return lbclient.Answer(hosts(200), ttl=3600)
    for service in (hosts(200), Once()):
        balancer = lbclient.Balancer(service, max_instances=5, name="orders")
        balancer.call(str)
        before = sorted(map(str, balancer.instances()))
        def subset():
            balancer.call(str)
            return [sorted(map(str, balancer.instances())), Once.asked]
        told = told_by_children(subset)
        assert {asked for _, asked in told} == {Once.asked}
        subsets = {tuple(one) for one, _ in told}
        assert [len(one) for one in subsets] == [5] * len(told)
        assert tuple(before) not in subsets
        assert sorted(map(str, balancer.instances())) == before
    """
    run(work)


def test_children_refresh_and_probe_at_different_times():
    """In each child the next refresh of discovery and the next probe of an open breaker come at
    other times, and not later than in the parent."""
    with Liar() as liar:
        liar.put("_http._tcp.a.test", "SRV", "0 1 80 b.test.", ttl=3600)
        liar.put("b.test", "A", "192.0.2.1", ttl=3600)
        work = """
    breaker = lbclient.BreakerPolicy(fail_max=1, reset_timeout=20.0)
    balancer = lbclient.Balancer("http+srv://a.test", nameservers=[sys.argv[2]], breaker=breaker,
                                 retry=None)
    def fails(_):
        raise ConnectionResetError
    try:
        balancer.call(fails)
    except ConnectionResetError:
        pass
    def times():
        (one,) = balancer._engine.pool.endpoints
        return [balancer._engine.subscription.next_at, one.breaker.due]
    refresh, due = times()
    now = time.monotonic()
    for place, parents in enumerate((refresh, due)):
        told = [one[place] for one in told_by_children(times)]
        assert len(set(told)) == len(told)
        assert all(now <= one < parents for one in told)
    assert times() == [refresh, due]
    """
        run(work, liar.address)


def test_a_probe_of_the_parents_blocks_no_child():
    """A child does not wait for the outcome of a probe of its parent."""
    work = """
    clock = [0.0]
    breaker = lbclient.BreakerPolicy(fail_max=1, reset_timeout=1.0)
    balancer = lbclient.Balancer(hosts(1), breaker=breaker, retry=None, clock=lambda: clock[0])
    def fails(_):
        raise ConnectionResetError
    try:
        balancer.call(fails)
    except ConnectionResetError:
        pass
    clock[0] += 2.0
    with balancer.acquire():
        told = told_by_children(lambda: balancer.call(str))
    assert told == ["10.0.0.0:80"] * int(sys.argv[1])
    """
    run(work)
