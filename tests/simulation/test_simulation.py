"""The simulator: its parts, the dependence of a run on its seed, and the detection of breaches."""

import itertools
import math
import os
import random
import re
import subprocess
import sys

import pytest
import tenacity

from lbclient import (
    AdaptiveLimit,
    Balancer,
    BreakerPolicy,
    HealthCheck,
    HedgePolicy,
    Instance,
    LeastBusy,
    NoInstanceAvailable,
    RetryBudget,
    RetryPolicy,
)
from lbclient._internal.deadline import Expiry
from lbclient._internal.signals import Pause, Signal
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.engine import Engine
from lbclient.core.picker import Pick, Picker
from lbclient.core.pool import Pool
from lbclient.core.wait_queue import WaitQueue
from lbclient.core.waiting import Wait
from lbclient.endpoint.breaker import Breaker
from lbclient.resilience.concurrency_limit import Limits
from lbclient.resilience.retry_budget import Budget
from lbclient.simulation import (
    Closed,
    Open,
    Outcome,
    Reply,
    Report,
    Scenario,
    Server,
    World,
    answers,
    breaks,
    constant,
    exponential,
    fails,
    judge_of,
    linear,
    mixed,
    phases,
    queued,
    refuses,
    silent,
    simulate,
    until_capacity,
)

SICK = phases((0, fails(constant(0.1))), (2.0, answers(constant(0.1))))
FAST = answers(constant(0.1))
ONE = RetryPolicy(attempts=1)


def named(*behaviours, **options):
    """Servers s0, s1, ..."""
    return [Server(f"s{n}", one, **options) for n, one in enumerate(behaviours)]


def run(servers, load=None, *, seed=0, clients=1, idempotent=True, until=math.inf, **options):
    scenario = Scenario(
        servers, load or Open(10, 2), clients=clients, idempotent=idempotent, until=until
    )
    return simulate(scenario, seed=seed, **options)


def sound(report):
    assert list(report.breaches) == []
    return report


class TestWorld:
    def test_time_jumps_from_event_to_event(self):
        """Events happen in the order of their times, and at the same time in the order of
        scheduling."""
        world, seen = World(), []

        def notes(name):
            return lambda: seen.append((name, world.clock()))

        for name, time in [("a", 2.0), ("b", 1.0), ("c", 2.0), ("d", 0.0)]:
            world.at(time, notes(name))
        world.run()
        assert seen == [("d", 0.0), ("b", 1.0), ("a", 2.0), ("c", 2.0)]

    def test_nothing_happens_in_the_past(self):
        """An event in the past happens now."""
        world, seen = World(), []
        world.run(until=5.0)
        world.at(1.0, lambda: seen.append(world.clock()))
        world.run()
        assert seen == [5.0]

    def test_a_process_yields_pauses_and_returns(self):
        """A pause ends after its time, or by its signal if that is set earlier."""
        world, signal = World(), Signal()

        def waits():
            yield Pause(1.0)
            yield Pause(math.inf, signal)
            yield Pause(1.0, signal)
            return world.clock()

        result = world.spawn(waits())
        world.at(3.0, signal.set)
        world.run(until=2.5)
        assert result == []
        world.run()
        assert result == [3.0]

    def test_run_stops_at_its_time(self):
        """`until` is included, and is the time afterwards."""
        world, seen = World(), []
        for time in (1.0, 2.0, 3.0):
            world.at(time, lambda: seen.append(world.clock()))
        world.run(until=2.0)
        assert (seen, world.clock()) == ([1.0, 2.0], 2.0)

    def test_an_exception_of_a_process_leaves_the_run(self):
        """An exception of a process is raised."""
        world = World()

        def breaks_down():
            yield Pause(1.0)
            raise LookupError

        world.spawn(breaks_down())
        with pytest.raises(LookupError):
            world.run()

    def test_a_process_that_waits_for_ever_is_kept(self):
        """A process without other references is not collected, since it would be closed at a random
        moment."""
        world, closed = World(), []

        def waits():
            try:
                yield Pause(math.inf)
            finally:
                closed.append(True)

        world.spawn(waits())
        world.run()
        assert closed == []

    def test_idle_but_for_the_background(self):
        """A world in which only background events are left is idle."""
        world = World()
        world.at(1.0, lambda: None)
        world.at(2.0, lambda: None, background=True)
        assert not world.idle
        world.step()
        assert world.idle
        assert world.step()
        assert not world.step()


class TestBehaviours:
    dice = random.Random(1)

    def test_constant(self):
        """`constant` takes the same time for any number in flight."""
        assert [constant(0.2)(n, self.dice) for n in (1, 9)] == [0.2, 0.2]

    def test_linear(self):
        """`linear` takes twice as long at the capacity, and five times as long above it."""
        assert [linear(1.0, 4)(n, self.dice) for n in (1, 2, 4, 5)] == [1.25, 1.5, 2.0, 5.0]

    def test_exponential(self):
        """`exponential` draws a new value each time, with the given mean."""
        drawn = [exponential(0.5)(1, self.dice) for _ in range(5000)]
        assert len(set(drawn)) == 5000
        assert sum(drawn) / 5000 == pytest.approx(0.5, rel=0.05)

    def test_answers(self):
        """`answers` returns the given status, Retry-After and body."""
        reply = answers(constant(0.1), 503, rest=2.0, body=0.3)(0.0, 1, self.dice)
        assert reply == Reply(0.1, 503, None, 2.0, 0.3)

    def test_until_capacity(self):
        """The request itself counts: one more than the capacity gets the other status."""
        behave = until_capacity(constant(0.1), 2, 503)
        assert [behave(0.0, n, self.dice).status for n in (1, 2, 3)] == [200, 200, 503]

    def test_mixed(self):
        """The given share of the requests gets the first behaviour."""
        behave = mixed(0.25, refuses(), FAST)
        refused = sum(behave(0.0, 1, self.dice).error is not None for _ in range(4000))
        assert refused / 4000 == pytest.approx(0.25, abs=0.03)

    def test_phases(self):
        """Each behaviour is used from its time on, inclusive."""
        behave = phases((0, answers(constant(0), 200)), (1.0, answers(constant(0), 500)))
        assert [behave(now, 1, self.dice).status for now in (0, 0.99, 1.0, 9)] == [
            200,
            200,
            500,
            500,
        ]

    def test_queued(self):
        """The third of three requests at once waits for the first of two workers."""
        behave = queued(constant(1.0), 2)
        assert [behave(0.0, n, self.dice).seconds for n in (1, 2, 3)] == [1.0, 1.0, 2.0]

    def test_faults(self):
        """A reset may have been carried out; a refusal was not; a broken body comes after the
        headers."""
        reset = fails(constant(0.1))(0.0, 1, self.dice)
        refused = refuses(0.2)(0.0, 1, self.dice)
        broken = breaks(constant(0.1), 0.5)(0.0, 1, self.dice)
        assert (type(reset.broken), reset.seconds) == (ConnectionResetError, 0.1)
        assert (type(refused.broken), refused.seconds) == (ConnectionRefusedError, 0.2)
        assert (broken.broken, type(broken.error)) == (None, ConnectionResetError)
        assert silent()(0.0, 1, self.dice).seconds == math.inf

    @pytest.mark.parametrize(
        ("make", "word"),
        [
            (lambda: constant(-1), "seconds"),
            (lambda: constant("1"), "seconds"),
            (lambda: linear(1, 0), "capacity"),
            (lambda: exponential(0), "mean"),
            (lambda: answers(0.1), "latency"),
            (lambda: answers(constant(1), 99), "status"),
            (lambda: answers(constant(1), rest=-1), "rest"),
            (lambda: answers(constant(1), body=math.inf), "body"),
            (lambda: breaks(constant(1), 0), "body"),
            (lambda: breaks(1, 1), "latency"),
            (lambda: until_capacity(constant(1), 0, 503), "capacity"),
            (lambda: until_capacity(constant(1), 1, "503"), "status"),
            (lambda: fails(0.1), "latency"),
            (lambda: refuses(-1), "seconds"),
            (lambda: mixed(2, FAST, FAST), "share"),
            (lambda: mixed(0.5, 1, FAST), "some"),
            (lambda: mixed(0.5, FAST, 1), "others"),
            (phases, "phases"),
            (lambda: phases((1, FAST)), "phases"),
            (lambda: phases((0, FAST), (2, FAST), (1, FAST)), "phases"),
            (lambda: phases((0, 1)), "phases"),
        ],
    )
    def test_a_bad_argument_is_named(self, make, word):
        """K4, K8: an invalid behaviour is refused when it is made, by an error that names the
        argument."""
        with pytest.raises((TypeError, ValueError), match=word):
            make()


def test_replies_are_judged_as_http_judges():
    """Retried statuses are retried for idempotent calls only; 5xx is a fault, 429 is not."""
    judge = judge_of({429, 503})
    assert judge(Reply(0, 200)) == judge(Reply(0, 404))
    assert (judge(Reply(0, 500)).fault, judge(Reply(0, 500)).again) == (True, "never")
    assert (judge(Reply(0, 503)).fault, judge(Reply(0, 503)).again) == (True, "idempotent")
    assert (judge(Reply(0, 429, rest=2)).fault, judge(Reply(0, 429, rest=2)).rest) == (False, 2)
    assert judge(Reply(0, 500, rest=2)).rest == 0
    assert judge(ConnectionRefusedError()).again == "always"
    assert judge(ConnectionResetError()).again == "idempotent"


class TestServers:
    def test_it_serves_while_it_is_known(self):
        """A server gets attempts only from when it joins until it leaves, up to the next lookup."""
        servers = [Server("s0", FAST), Server("s1", FAST, joins=2.0, leaves=4.0)]
        report = sound(run(servers, Open(50, 6)))
        times = [time for time, server in report.sent if server == "s1"]
        assert 2.0 <= times[0] < 3.2
        assert 4.0 - 0.1 < times[-1] < 5.2
        assert report.endings() == {200: 300}

    def test_who_leaves_finishes_what_it_has(self):
        """I30: requests in flight at a server that leaves are answered."""
        servers = [Server("s0", FAST), Server("s1", answers(constant(3.0)), leaves=1.0)]
        report = sound(run(servers, Open(10, 1)))
        assert report.endings() == {200: 10}
        assert report.answered["s1"] == {200: 5}

    def test_before_the_first_joins(self):
        """A request fails with the error of discovery while no server is known, and is served
        later."""
        report = sound(run([Server("s0", FAST, joins=1.5)], Open(4, 4), retry=ONE))
        assert report.endings()["DiscoveryError"] > 0
        assert report.outcomes[-1].status == 200

    def test_the_zone_is_metadata(self):
        """Strategies get the zone of a server as discovery would report it."""
        assert Server("s0", FAST, zone="a").instance.metadata == {"zone": "a"}
        assert Server("s0", FAST).instance.metadata == {}

    def test_weight_and_priority_count(self):
        """D10: a better tier gets everything, and weights divide it."""
        servers = [
            Server("s0", FAST, weight=3),
            Server("s1", FAST, weight=1),
            Server("s2", FAST, priority=1),
        ]
        shares = sound(run(servers, Open(100, 4))).shares()
        assert shares == pytest.approx({"s0": 0.75, "s1": 0.25, "s2": 0.0}, abs=0.01)

    @pytest.mark.parametrize("deadline", [None, 0.2])
    def test_it_counts_what_it_has_in_flight(self, deadline):
        """A request is in flight until its body ends, even if its caller has given up."""
        seen = []

        def behave(_, in_flight, __):
            seen.append(in_flight)
            return Reply(0.375, body=0.25)

        retry = RetryPolicy(attempts=1, deadline=deadline)
        sound(run(named(behave), Open(4, 2), retry=retry, breaker=None))
        assert seen == [1, 2, 3, 3, 3, 3, 3, 3]

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"name": "a b"}, "name"),
            ({"behaviour": 1}, "behaviour"),
            ({"joins": -1}, "joins"),
            ({"leaves": 0}, "leaves"),
            ({"leaves": "1"}, "leaves"),
            ({"joins": 2, "leaves": 2}, "leaves"),
            ({"weight": -1}, "weight"),
            ({"priority": "a"}, "priority"),
        ],
    )
    def test_a_bad_argument_is_named(self, options, word):
        """K2, K4: an invalid server is refused by an error that names the argument."""
        with pytest.raises((TypeError, ValueError), match=word):
            Server(**{"name": "s0", "behaviour": FAST, **options})


class TestLoad:
    def test_open_is_even(self):
        """This many a second, evenly, each at its exact multiple, however many there are."""
        report = sound(run(named(FAST), Open(10, 3)))
        assert [one.arrived for one in report.outcomes] == [n / 10 for n in range(30)]

    def test_open_waits_for_nobody(self):
        """Requests arrive even if none is answered."""
        report = run(named(silent()), Open(10, 1), until=5)
        assert [one.arrived for one in report.outcomes] == [n / 10 for n in range(10)]

    def test_open_at_random(self):
        """With `poisson` the gaps have the right mean and variance, and another seed gives other
        gaps."""
        arrived = [one.arrived for one in run(named(FAST), Open(100, 50, poisson=True)).outcomes]
        gaps = [after - before for before, after in itertools.pairwise(arrived)]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(0.01, rel=0.05)
        assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(1e-4, rel=0.15)
        other = run(named(FAST), Open(100, 1, poisson=True), seed=1).outcomes
        assert other[0].arrived != arrived[0]

    def test_clients_take_turns(self):
        """Each of three clients gets every third request."""
        seen = []

        class Notes(LeastBusy):
            def pick(self, candidates, call):
                seen.append((call.now, id(self)))
                return super().pick(candidates, call)

        run(named(FAST), Open(10, 1), clients=3, strategy=Notes)
        assert [seen[n][1] == seen[n + 3][1] for n in range(7)] == [True] * 7
        assert len({client for _, client in seen}) == 3

    def test_closed_waits_for_the_answer(self):
        """A worker has one request at a time, and pauses between two."""
        report = sound(run(named(FAST), Closed(1, 2.0, think=0.3)))
        arrived = [one.arrived for one in report.outcomes]
        assert 0 <= arrived[0] < 0.3
        gaps = [after - before for before, after in itertools.pairwise(arrived)]
        assert gaps == pytest.approx([0.4] * len(gaps))
        assert arrived[-1] < 2.0 <= arrived[-1] + 0.4

    def test_closed_has_so_many_workers(self):
        """As many requests are in flight as each client has workers."""
        report = sound(run(named(answers(constant(0.125))), Closed(3, 1.0), clients=2))
        assert len(report.outcomes) == 2 * 3 * 8

    def test_workers_that_fail_at_once_let_time_pass(self):
        """A request that takes no time does not stop the world."""
        report = run(named(answers(constant(0), 404)), Closed(2, 0.05))
        assert len(report.outcomes) == pytest.approx(100, abs=2)

    @pytest.mark.parametrize(
        ("make", "word"),
        [
            (lambda: Open(0, 1), "rate"),
            (lambda: Open(1, 0), "seconds"),
            (lambda: Open(math.nan, 1), "rate"),
            (lambda: Closed(0, 1), "workers"),
            (lambda: Closed(1, 0), "seconds"),
            (lambda: Closed(1, 1, -1), "think"),
        ],
    )
    def test_a_bad_argument_is_named(self, make, word):
        """K4: an invalid load is refused by an error that names the argument."""
        with pytest.raises((TypeError, ValueError), match=word):
            make()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"servers": []}, "servers"),
        ({"servers": named(FAST) * 2}, "servers"),
        ({"servers": ["s0"]}, "servers"),
        ({"servers": "s0"}, "servers"),
        ({"servers": 1}, "servers"),
        ({"load": 5}, "load"),
        ({"clients": 0}, "clients"),
        ({"clients": 1.5}, "clients"),
        ({"idempotent": 1}, "idempotent"),
        ({"until": 0}, "until"),
        ({"until": math.nan}, "until"),
        ({"until": "1"}, "until"),
        ({"patience": -1}, "patience"),
        ({"ttl": 0}, "ttl"),
    ],
)
def test_a_scenario_names_its_bad_argument(options, word):
    """K4: an invalid scenario is refused when it is made, by an error that names the argument."""
    with pytest.raises((TypeError, ValueError), match=word):
        Scenario(**{"servers": named(FAST), "load": Open(1, 1), **options})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"strategy": "best"}, "strategy"),
        ({"strategy": LeastBusy()}, "strategy"),
        ({"retry": 3}, "retry"),
        ({"breaker": 3}, "breaker"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"clock": 3}, "clock"),
        ({"unheard": 3}, "unheard"),
    ],
)
def test_a_run_names_its_bad_option(options, word):
    """K3, K4: options are refused as by a balancer, before anything runs."""
    with pytest.raises((TypeError, ValueError), match=word):
        run(named(FAST), **options)


def test_a_scenario_is_no_other_thing():
    """Only a `Scenario` can be run."""
    with pytest.raises(TypeError, match="scenario"):
        simulate(named(FAST))


class TestRuns:
    def test_each_error_is_an_outcome(self):
        """A request ends with the status of its last answer, or with the name of its error."""
        for behaviour, ending in [
            (answers(constant(0), 404), 404),
            (answers(constant(0), 500), 500),
            (fails(constant(0)), "ConnectionResetError"),
            (refuses(), "ConnectionRefusedError"),
            (breaks(constant(0), 0.1), "ConnectionResetError"),
        ]:
            report = sound(run(named(behaviour), Open(1, 1), retry=ONE))
            assert report.endings() == {ending: 1}

    def test_a_mistake_in_a_behaviour_is_not_an_outcome(self):
        """An exception that no instance can cause ends the run."""
        with pytest.raises(ZeroDivisionError):
            run(named(lambda *_: 1 / 0))

    def test_unanswered_at_the_end(self):
        """Unanswered requests at the end of the run have failed, after the time that they
        waited."""
        report = sound(run(named(silent()), Open(2, 1), until=5.0))
        assert report.outcomes == [
            Outcome(0.0, 5.0, None, "unanswered", 1),
            Outcome(0.5, 4.5, None, "unanswered", 1),
        ]
        assert report.success == 0.0

    @pytest.mark.parametrize("joins", [0.0, 1.0])
    def test_silence_ends_the_run(self, joins):
        """A run without `until` ends if only discovery and health checks would continue."""
        servers = [Server("s0", silent()), Server("s1", FAST, joins=joins)]
        health = HealthCheck(path=None, check=lambda _: True)
        report = sound(run(servers, Open(10, 2), health=health))
        assert set(report.endings()) == {200, "unanswered"}

    def test_attempts_end_with_their_time(self):
        """I5: a silent instance costs an attempt its timeout, and a call its deadline."""
        report = sound(run(named(silent()), Open(1, 1), retry=RetryPolicy(attempt_timeout=0.2)))
        assert report.endings() == {"TimeoutError": 1}
        assert report.mean == pytest.approx(0.6, abs=0.1)
        report = sound(run(named(silent()), Open(1, 1), retry=RetryPolicy(deadline=0.5)))
        assert report.outcomes == [Outcome(0.0, 0.5, None, "DeadlineExceeded", 1)]

    def test_the_deadline_covers_the_body(self):
        """I6: a body that would outlive the deadline ends with it."""
        slow = named(answers(constant(0.1), body=5.0))
        report = sound(run(slow, Open(1, 1), retry=RetryPolicy(deadline=1.0)))
        assert report.outcomes == [Outcome(0.0, 1.0, None, "TimeoutError", 1)]

    def test_an_instance_is_busy_until_its_body_ends(self):
        """With one slot, the next request begins when the body of the previous one ends."""
        report = sound(
            run(named(answers(constant(0.1), body=0.4)), Open(100, 0.02), max_in_flight=1)
        )
        assert [time for time, _ in report.sent] == pytest.approx([0.0, 0.5])

    def test_an_answer_that_is_retried_gives_up_its_place(self):
        """An instance at its limit can be its own retry: the slot of the unread answer is passed
        on."""
        busy = phases(
            (0, answers(constant(0.1), 503, body=9.0)), (0.05, answers(constant(0.1), body=0.1))
        )
        report = sound(run(named(busy), Open(1, 1), max_in_flight=1))
        assert report.endings() == {200: 1}
        assert report.mean < 1.0

    def test_hedges(self):
        """The faster of two attempts is the outcome, and the slower one is cancelled."""
        servers = named(answers(constant(1.0)), answers(constant(0.1)))
        report = sound(run(servers, Open(1, 10), hedge=HedgePolicy(delay=0.2)))
        assert report.endings() == {200: 10}
        assert report.percentile(100) == pytest.approx(0.3)
        assert report.amplification == 1.5

    def test_hedges_at_once(self):
        """A delay of 0 sends both at the same moment."""
        servers = named(answers(constant(1.0)), answers(constant(0.1)))
        report = sound(run(servers, Open(1, 4), hedge=HedgePolicy(delay=0.0)))
        assert report.percentile(100) == pytest.approx(0.1)
        assert len(report.sent) == 8

    @pytest.mark.parametrize("body", [0.0, 0.2])
    def test_a_hedged_call_may_end_with_a_bad_answer(self, body):
        """If no attempt has a good answer, the call's own last one is the outcome."""
        servers = named(*[answers(constant(0.1), 503, body=body)] * 2)
        report = sound(run(servers, Open(1, 1), hedge=HedgePolicy(delay=0.05), retry=ONE))
        assert report.endings() == {503: 1}

    def test_a_late_answer_is_closed(self):
        """A bad answer of the first attempt is closed, including its body, if the hedge's is
        good."""
        servers = named(
            answers(constant(0.1), 503, body=30.0), answers(constant(0.1), 503, body=30.0)
        )
        servers.append(Server("s2", FAST, priority=1))
        report = sound(run(servers, Open(1, 1), hedge=HedgePolicy(delay=0.05)))
        assert report.mean < 5.0

    def test_a_line_is_served_in_turn(self):
        """I24: waiting calls get a slot in turn, and give up after their patience."""
        servers, load = named(answers(constant(1.0))), Open(10, 0.4)
        scenario = Scenario(servers, load, patience=2.5)
        report = sound(simulate(scenario, max_in_flight=1))
        assert [time for time, _ in report.sent] == [0.0, 1.0, 2.0]
        assert report.endings() == {200: 3, "NoInstanceAvailable": 1}


class First:
    """Picks the first candidate."""

    def pick(self, candidates, _):
        return candidates[0]


class TestFound:
    """Failures found by random scenarios, made as small as possible."""

    def test_a_retry_is_paid_for_a_whole_window(self):
        """A retry late in a slice of the budget's window still counts for about one window."""
        budget = Budget(RetryBudget(ratio=0.0, reserve=1.0, window=1.0))
        budget.deposit(0.0)
        assert budget.withdraw(0.99)
        assert not budget.withdraw(1.5)
        assert budget.withdraw(2.0)

    def test_who_waits_hears_of_a_rest(self):
        """If headers say that an instance backs off, waiting calls use the next tier at once, not
        at the end of the body."""
        rests = answers(constant(0.1), 429, rest=5.0, body=3.0)
        servers = [Server("s0", rests), Server("s1", FAST, priority=1)]
        report = sound(run(servers, Open(100, 0.02), max_in_flight=1, retry=ONE))
        assert report.sent == [(0.0, "s0"), (0.1, "s1")]

    @pytest.mark.parametrize("seed", range(5))
    def test_a_retry_does_not_join_its_own_hedge(self, seed):
        """A retry does not use an endpoint where another attempt of its call is in flight."""
        servers = named(fails(constant(0.1)), answers(constant(1.0)))
        options = {"seed": seed, "strategy": First, "hedge": HedgePolicy(delay=0.05)}
        report = sound(run(servers, Open(1, 1), **options))
        assert [server for _, server in report.sent] == ["s0", "s1", "s0", "s0"]
        assert report.endings() == {200: 1}

    def test_a_retry_waits_for_its_own_hedge(self):
        """If there is no other endpoint, the hedge's outcome is waited for."""
        servers = named(fails(constant(0.1)), answers(constant(1.0)))
        options = {"strategy": First, "hedge": HedgePolicy(delay=0.05)}
        report = sound(run(servers, Open(1, 1), breaker=BreakerPolicy(fail_max=1), **options))
        assert [server for _, server in report.sent] == ["s0", "s1"]
        assert report.endings() == {200: 1}

    def test_who_is_ejected_and_broken_is_not_back_soon(self):
        """I16: `retry_in` includes the breaker of an endpoint whose ejection ends first."""
        instances = [Instance("10.0.0.1", 1), Instance("10.0.0.1", 2)]
        breaker = BreakerPolicy(fail_max=1, reset_timeout=10.0)
        with Balancer(instances, clock=World().clock, breaker=breaker, retry=ONE) as balancer:
            for _ in instances:
                with pytest.raises(ConnectionRefusedError):
                    balancer.call(refused)
            balancer.eject(instances[0], 0.5)
            with pytest.raises(NoInstanceAvailable) as caught:
                balancer.call(refused)
        assert caught.value.retry_in >= 5.0


def refused(_):
    raise ConnectionRefusedError


RICH = """
from lbclient import *
from lbclient.simulation import *
from lbclient.strategy.registry import BY_NAME

FAST = answers(exponential(0.1))
servers = [
    Server("s0", mixed(0.8, answers(exponential(0.05), body=0.02), fails(constant(0.1)))),
    Server("s1", until_capacity(linear(0.02, 3), 3, 503), weight=2),
    Server("s2", mixed(0.5, answers(constant(0.1), 429, rest=0.5), silent()), joins=0.5),
    Server("s3", phases((0, FAST), (1, refuses()), (2, breaks(constant(0.1), 0.1)))),
    Server("s4", answers(constant(0.1)), priority=1, leaves=2.0),
]

def checked(instance):
    return instance.host != "s1"

def trace(seed, strategy, **options):
    return simulate(
        Scenario(servers, Open(60, 3, poisson=True), clients=3),
        seed=seed,
        strategy=strategy,
        retry=RetryPolicy(attempt_timeout=0.3, deadline=2.0),
        breaker=BreakerPolicy(fail_max=2, failure_rate=0.5),
        max_in_flight=3,
        limit=AdaptiveLimit(initial=3),
        throttle=ThrottlePolicy(window=2.0),
        hedge=HedgePolicy(delay=0.08),
        outliers=OutlierPolicy(interval=0.5, minimum_calls=3),
        slow_start=SlowStart(window=1.0),
        health=HealthCheck(path=None, interval=0.5, timeout=0.1, check=checked),
        max_instances=4,
        **options,
    )

if __name__ == "__main__":
    print([trace(seed, name).trace for name in sorted(BY_NAME) for seed in (1, 2)])
"""


def rich(*arguments, **options):
    names = {"__name__": "rich"}
    exec(RICH, names)
    return names["trace"](*arguments, **options)


class TestDeterminism:
    def test_the_same_in_another_process(self):
        """With every rule and each strategy, the same seed gives the same decisions in two
        processes with different hash seeds, and another seed gives others."""
        printed = [self.process(hashes) for hashes in ("0", "1")]
        assert printed[0] == printed[1]
        traces = eval(printed[0])
        assert len(set(traces)) == len(traces)

    def process(self, hashes):
        done = subprocess.run(
            [sys.executable, "-c", RICH],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def test_the_same_again(self):
        """Two runs in one process are equal: nothing depends on an earlier run."""
        first, second = rich(3, "weighted"), rich(3, "weighted")
        assert first == second
        assert rich(4, "weighted").trace != first.trace

    def test_to_look_changes_nothing(self):
        """A run makes the same decisions, checked or not."""
        assert rich(3, "least-busy", checked=False).trace == rich(3, "least-busy").trace

    def test_the_trace_covers_decisions(self):
        """Another time, another choice or another outcome gives another trace."""
        base = run(named(FAST, FAST)).trace
        assert run(named(FAST, FAST), Open(10, 2.1)).trace != base
        assert run(named(FAST, FAST), strategy="random").trace != base
        assert run(named(FAST, answers(constant(0.1), 404))).trace != base

    def test_another_server_changes_nobody_elses_dice(self):
        """The random numbers of a server do not depend on other servers."""
        alone, beside = [], []
        for drawn, count in ((alone, 1), (beside, 3)):
            servers = named(self.notes(drawn), *[FAST] * (count - 1))
            run(servers, Open(30, 1), strategy="random")
        assert beside == alone[: len(beside)]
        assert len(beside) > 3

    def notes(self, drawn):
        def behave(_, __, rng):
            drawn.append(rng.random())
            return Reply(0.1)

        return behave

    def test_another_client_changes_nobody_elses_dice(self):
        """The random numbers of a client, and the times of the load, are the same with more
        clients."""
        firsts = []
        for clients in (1, 3):

            class Notes(LeastBusy):
                states = {}  # noqa: RUF012  # of this loop

                def pick(self, candidates, call, states=states):
                    states.setdefault(id(self), call.rng.getstate())
                    return super().pick(candidates, call)

            report = run(
                named(FAST, FAST), Open(5, 2, poisson=True), clients=clients, strategy=Notes
            )
            state = next(iter(Notes.states.values()))
            firsts.append((state, [one.arrived for one in report.outcomes]))
        assert firsts[0] == firsts[1]


class TestReport:
    report = Report(
        seed=7,
        outcomes=(
            Outcome(0.0, 1.0, 200, None, 1),
            Outcome(0.3, 2.0, 404, None, 1),
            Outcome(0.5, 3.0, 302, None, 2),
            Outcome(1.0, 4.0, None, "TimeoutError", 0),
        ),
        sent=[(0.0, "a"), (0.3, "b"), (0.5, "a"), (1.2, "a")],
        answered={"a": {200: 1, "ConnectionResetError": 2}, "b": {404: 1}, "c": {}},
        trace="abc",
        breaches=["BREACH: x"],
    )

    def test_figures(self):
        """Success is a status below 400; amplification is the number of attempts per request."""
        assert self.report.success == 0.5
        assert self.report.mean == 2.5
        assert self.report.amplification == 1.0
        assert self.report.responses == 2
        assert self.report.endings() == {200: 1, 404: 1, 302: 1, "TimeoutError": 1}

    @pytest.mark.parametrize(
        ("percent", "rank"), [(0, 1), (25, 1), (26, 2), (50, 2), (75, 3), (99.9, 4), (100, 4)]
    )
    def test_percentiles_are_the_nearest_rank(self, percent, rank):
        """The smallest value that this percentage of values does not exceed."""
        assert self.report.percentile(percent) == float(rank)

    @pytest.mark.parametrize("number", [10, 100, 1000, 2000])
    def test_percentiles_are_exact(self, number):
        """No rounding of floats moves a rank: 99.9 % of 1000 is the 999th, not the 1000th."""
        outcomes = [Outcome(0.0, float(n + 1), 200, None, 1) for n in range(number)]
        report = Report(0, outcomes, [], {}, "")
        for tenths in range(1001):
            rank = max(1, -(-tenths * number // 1000))
            assert report.percentile(tenths / 10) == float(rank)

    @pytest.mark.parametrize("percent", [-1, 101, math.nan, "50"])
    def test_no_such_percentile(self, percent):
        """K4: a percentage is from 0 to 100."""
        with pytest.raises((TypeError, ValueError), match="percent"):
            self.report.percentile(percent)

    def test_shares(self):
        """The share of the attempts in a period, including its start; a server without any has
        none."""
        assert self.report.shares() == {"a": 0.75, "b": 0.25, "c": 0.0}
        assert self.report.shares(since=0.3, until=1.2) == {"a": 0.5, "b": 0.5, "c": 0.0}
        assert self.report.shares(since=9) == {"a": 0.0, "b": 0.0, "c": 0.0}

    def test_over_time(self):
        """Slices count requests by arrival, and attempts by sending; a time on the boundary belongs
        to the later slice."""
        first, second, third = self.report.over_time(0.5)
        assert (first.start, first.requests, first.success, first.mean) == (0.0, 2, 0.5, 1.5)
        assert first.sent == {"a": 1, "b": 1}
        assert (second.start, second.requests, second.p99) == (0.5, 1, 3.0)
        assert (third.start, third.requests, third.sent) == (1.0, 1, {"a": 1})
        assert [one.requests for one in self.report.over_time(0.1)][3] == 1

    @pytest.mark.parametrize("seconds", [0, -1, math.inf])
    def test_no_such_slice(self, seconds):
        """K4: the length of a slice must be a valid time."""
        with pytest.raises(ValueError, match="seconds"):
            self.report.over_time(seconds)

    def test_an_empty_report(self):
        """Without requests there are no numbers, and no error."""
        empty = Report(0, [], [], {"a": {}}, "")
        assert math.isnan(empty.success)
        assert math.isnan(empty.mean)
        assert math.isnan(empty.percentile(50))
        assert (empty.amplification, empty.over_time(1.0)) == (0.0, [])
        assert "0 requests" in str(empty)

    def test_as_text(self):
        """The text has the figures, a line for each server, breaches, and what is needed to run it
        again."""
        text = str(self.report)
        for part in (
            "4 requests, 50.00 % successful",
            "mean 2.500 s; p50 2.000 s",
            "4 attempts, 1.000 for each request",
            "TimeoutError 1",
            "75.00 %   200 1, ConnectionResetError 2",
            "BREACH: x",
            "seed 7, trace abc",
        ):
            assert part in text


BREAKAGES = {}
"""What the run says where the core is broken in one place, and how it is broken."""


def breach(text):
    def register(function):
        BREAKAGES[function.__name__] = text, function
        return function

    return register


@breach(r"is open")
def everybody_is_admissible(patch):
    patch(Pool, "candidates", lambda pool, _: tuple(pool.endpoints))
    return run(named(SICK, FAST), retry=None, breaker=BreakerPolicy(fail_max=1))


@breach(r"picked as resting: its status is resting; the serving tier is .*s1:80")
def nobody_is_admissible(patch):
    real = Pool.candidates
    patch(Pool, "candidates", lambda pool, now: [] if pool.backing_off(now) else real(pool, now))
    rests = answers(constant(0.1), 429, rest=5.0)
    return run(named(rests, FAST), Open(10, 2), strategy="round-robin")


@breach(r"a call found no instance, but these have room")
def nobody_is_picked(patch):
    patch(Picker, "pick", lambda *_: None)
    return run(named(FAST))


@breach(r"picked as Random: its status is serving; .*s0:80")
def a_worse_tier_is_picked(patch):
    patch(Pool, "candidates", lambda pool, _: list(pool.endpoints)[1:])
    servers = [Server("s0", FAST), Server("s1", FAST, priority=1)]
    return run(servers, strategy="random")


@breach(r"it is no longer in the pool")
def one_who_has_left_is_picked(patch):
    kept = []

    def pick(_, candidates, __):
        kept.extend(candidates[:1])
        return kept[0]

    patch(Picker, "_ask", pick)
    return run([Server("s0", FAST, leaves=1.0), Server("s1", FAST)], Open(10, 4))


@breach(r"picked as probe: the serving tier is better: .*s0:80")
def a_worse_tier_is_probed(patch):
    patch(Pool, "probe_due", lambda pool, _: next(iter(pool.open_breakers), None))
    servers = [Server("s0", FAST), Server("s1", SICK, priority=1), Server("s2", SICK)]
    breaker = BreakerPolicy(fail_max=1, reset_timeout=0.1)
    servers[0] = Server("s0", phases((0, fails(constant(0))), (1, FAST)))
    return run(servers, Open(20, 4), breaker=breaker, retry=RetryPolicy(budget=None))


@breach(r"picked as probe: it is already being probed")
def two_probes_at_a_time(patch):
    patch(Breaker, "probing", lambda *_: False)
    slow = phases((0, fails(constant(0.1))), (1.0, answers(constant(1.0))))
    breaker = BreakerPolicy(fail_max=1, reset_timeout=0.1)
    return run(named(slow, FAST), breaker=breaker, retry=ONE)


@breach(r"still probed at the end")
def a_probe_is_never_given_back(patch):
    patch(Breaker, "cancel", lambda *_: None)
    breaker = BreakerPolicy(fail_max=1, reset_timeout=0.1, success_threshold=2)
    return run(named(SICK), Open(10, 4), breaker=breaker, retry=ONE)


@breach(r"is probed while its breaker is (closed|open)")
def a_probe_outlives_its_breaker_s_state(patch):
    real = Breaker._turned

    def turned(breaker):
        probe = breaker.probe_permit
        real(breaker)
        breaker.probe_permit = probe

    patch(Breaker, "cancel", lambda *_: None)
    patch(Breaker, "_turned", turned)
    breaker = BreakerPolicy(fail_max=1, reset_timeout=0.1)
    return run(named(SICK), Open(10, 4), breaker=breaker, retry=ONE)


@breach(r"picked as probe: its breaker is open")
def a_probe_is_not_half_open(patch):
    patch(Breaker, "probe", lambda breaker, _: breaker.permit)
    breaker = BreakerPolicy(fail_max=1, reset_timeout=0.1)
    return run(named(SICK), breaker=breaker, retry=ONE)


@breach(r"counts 2 in flight, but there are 1|still in flight at the end")
def places_are_kept(patch):
    patch(Engine, "release", lambda *_: None)
    return run(named(FAST))


@breach(r"counts \d in flight, but there are \d")
def places_are_given_back_twice(patch):
    real = Engine.release

    def release(engine, pick):
        real(engine, pick)
        pick.taken = True
        real(engine, pick)

    patch(Engine, "release", release)
    return run(named(answers(constant(0.3))))


@breach(r"still in flight in total at the end")
def a_place_is_lost(patch):
    patch(Engine, "release", lambda _, pick: setattr(pick, "taken", False))
    return run(named(answers(constant(0.01))))


@breach(r"a call has ended, but is still in flight at")
def a_body_is_never_closed(patch):
    patch(Attempt, "finish", lambda *_: None)
    return run(named(answers(constant(0.1), body=0.1)))


@breach(r"it is above its limit: 2 in flight")
def no_limit_holds(patch):
    patch(Limits, "full", lambda *_: False)
    return run(named(answers(constant(0.3))), max_in_flight=1)


@breach(r"it is above its limit: 2 in flight, learned limit None")
def no_learned_limit_holds(patch):
    patch(Limits, "full", lambda *_: False)
    return run(named(answers(constant(0.3))), limit=AdaptiveLimit(initial=1))


@breach(r"has a learned limit of 9")
def a_limit_is_learned_beyond_bounds(patch):
    patch(AdaptiveLimit, "grown", lambda *_: 9.0)
    return run(named(FAST), limit=AdaptiveLimit(initial=1, most=2))


@breach(r"2 in flight at all instances together")
def no_total_holds(patch):
    patch(Picker, "in_flight", property(lambda _: 0, lambda *_: None), raising=False)
    return run(named(answers(constant(0.3))), max_in_flight_total=1)


@breach(r"picked as retry: it has tried .*s0:80.*; .*s1:80.* have room")
def the_tried_are_tried_again(patch):

    def another(_, call, *__):
        return Pick(call.tried[0], call.tried[0].breaker.permit, "retry")

    patch(Picker, "_another", another)
    return run(named(fails(constant(0)), FAST), retry=RetryPolicy(budget=None))


@breach(r"picked as retry, others full: .*s1.* are only full, it should wait .* s more")
def a_retry_waits_for_nobody(patch):
    real = Picker._another

    def another(picker, call, *rest):
        call.accepts_tried = True
        return real(picker, call, *rest)

    patch(Picker, "_another", another)
    servers = named(fails(constant(0)), answers(constant(1.0)))
    return run(servers, Open(10, 1), max_in_flight=1, breaker=None)


@breach(r"another attempt of the call is already in flight there")
def the_hedge_goes_to_the_same(patch):

    def beside(_, call, __):
        return Pick(call.tried[0], call.tried[0].breaker.permit, "hedge")

    patch(Picker, "pick_hedge", beside)
    return run(named(FAST, FAST), hedge=HedgePolicy(delay=0.05))


@breach(r"hedges: 1, idempotent: False")
def everything_is_hedged(patch):
    real = Call.hedge_after

    def after(call):
        call.idempotent = True
        seconds = real(call)
        call.idempotent = False
        return seconds

    patch(Call, "hedge_after", after)
    return run(named(FAST, FAST), hedge=HedgePolicy(delay=0.05), idempotent=False)


@breach(r"the call may not be repeated, and an earlier attempt may have been carried out")
def everything_is_repeated(patch):
    patch("lbclient.resilience.retry._may_repeat", lambda _: True)
    return run(named(fails(constant(0)), FAST), idempotent=False)


@breach(r"it is attempt 3")
def attempts_are_not_counted(patch):
    real = tenacity.stop_after_attempt
    patch(tenacity, "stop_after_attempt", lambda _: real(3))
    retry = RetryPolicy(attempts=2, budget=None)
    return run(named(fails(constant(0))), retry=retry, breaker=None)


@breach(r"retries and hedges so far, but 0 were earned")
def the_budget_is_endless(patch):
    patch(Budget, "withdraw", lambda *_: True)
    retry = RetryPolicy(budget=RetryBudget(ratio=0.0, reserve=0.0))
    return run(named(fails(constant(0))), retry=retry)


@breach(r"a call ended 4 s past its deadline")
def time_does_not_run_out(patch):
    patch(Expiry, "left", lambda _: math.inf)
    return run(named(answers(constant(5.0))), retry=RetryPolicy(deadline=1.0))


@breach(r"it begins 1 s after its deadline")
def an_attempt_begins_too_late(patch):
    patch(Call, "expiry", lambda call, now: Expiry(now - 1.0, call.engine.clock))
    return run(named(FAST), retry=RetryPolicy(deadline=1.0))


@breach(r"wait and are not woken, but these have room: .*s0")
def who_gives_up_stays_in_line(patch):
    real = Engine.leave

    def leave(engine, signal):
        if signal.is_set:
            real(engine, signal)

    patch(Engine, "leave", leave)
    return crowd()


@breach(r"wait and are not woken, but these have room: .*s0")
def nobody_in_line_is_woken(patch):
    patch(WaitQueue, "wake", lambda *_: None)
    return crowd()


@breach(r"a waiting call was overtaken")
def who_comes_last_is_served_first(patch):

    real = WaitQueue.join

    def join(line, signal, caller):
        joins = signal not in line.waiting
        signal = real(line, signal, caller)
        if joins:
            line._turns[caller].move_to_end(signal, last=False)
        return signal

    patch(WaitQueue, "join", join)
    return crowd()


@breach(r"a call waits forever")
def somebody_waits_for_ever(patch):
    patch(WaitQueue, "wake", lambda *_: None)
    patch(Wait, "_look_again", lambda *_: math.inf)
    patch(Wait, "_until", lambda _: math.inf)
    return crowd()


def crowd():
    """More calls than slots: some are served, others give up."""
    scenario = Scenario(named(answers(constant(1.0))), Open(10, 1.5), patience=1.5)
    return simulate(scenario, max_in_flight=1)


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_breach_is_seen(name, monkeypatch):
    """If one part of the core is broken, the run reports the broken invariant; once it is restored,
    it reports none."""
    text, broken = BREAKAGES[name]
    assert list(broken(lambda *_, **__: None).breaches) == []
    breaches = broken(monkeypatch.setattr).breaches
    assert any(re.search(text, one) for one in breaches), breaches[:3]
    assert all(one.startswith("BREACH at ") and ", client 0: " in one for one in breaches)


def lined_up(deadline, patience):
    """Ten requests a second for one slot, where each takes a second."""
    scenario = Scenario([Server("a", answers(constant(1.0)))], Open(10, 4), patience=patience)
    retry = RetryPolicy(attempts=1, deadline=deadline)
    report = simulate(scenario, retry=retry, max_in_flight=1, breaker=None)
    assert not report.breaches
    return [one for one in report.outcomes if one.error is not None]


def test_who_has_too_little_time_left_leaves_the_line():
    """K: K: a waiting call needs three times the usual latency, but at most half of its time; while
    that is unknown, it waits until its deadline. The pool timeout does not matter then."""
    for deadline, waits in ((4.0, 2.0), (10.0, 7.0)):
        gone = lined_up(deadline, patience=0.1)
        assert {one.error for one in gone} == {"DeadlineExceeded"}
        early = [one.elapsed for one in gone if one.arrived < 0.9]
        late = [one.elapsed for one in gone if one.arrived > 1.1]
        assert early == pytest.approx([deadline] * len(early), abs=0.01)
        assert late == pytest.approx([waits] * len(late), abs=0.01)
        assert early or deadline > 9  # there is time for all of them then
        assert late


def test_who_has_no_deadline_waits_for_the_pool_timeout():
    """Without a deadline a call waits for the pool timeout, and then raises NoInstanceAvailable."""
    gone = lined_up(None, patience=2.5)
    assert {one.error for one in gone} == {"NoInstanceAvailable"}
    assert [one.elapsed for one in gone] == pytest.approx([2.5] * len(gone), abs=0.01)


def test_a_hedged_call_without_an_answer():
    """A run ends although neither attempt of a hedged call is ever answered: nothing is left that
    happens."""
    servers = [Server("a", silent()), Server("b", silent())]
    report = simulate(
        Scenario(servers, Open(1.0, 1.0)), retry=None, breaker=None, hedge=HedgePolicy(delay=0.1)
    )
    assert report.endings() == {"unanswered": 1}
    assert len(report.sent) == 2
