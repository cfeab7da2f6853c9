"""The simulator: requests, loads, timeouts, state of behaviours, and waits that are not polled."""

import itertools
import math
import random
import threading

import pytest

from lbclient import Answer, BreakerPolicy, DiscoveryError, Instance, RetryPolicy, ServiceAbsent
from lbclient._internal.signals import Pause
from lbclient.core.call import CallOptions
from lbclient.core.engine import Engine
from lbclient.protocol import bind
from lbclient.simulation import (
    Closed,
    Load,
    Open,
    Outcome,
    Reply,
    Report,
    Scenario,
    Server,
    SimulatedRequest,
    World,
    answers,
    carry_out,
    constant,
    judge_of,
    mixed,
    per_run,
    phases,
    queued,
    rate_limited,
    refuses,
    silent,
    simulate,
    simulated,
    until_capacity,
)
from lbclient.telemetry.semantics import Semantics

FAST = answers(constant(0.1))
ONE = RetryPolicy(attempts=1)


def run(servers, load, *, seed=0, **options):
    """The report of a run in which no invariant was broken."""
    of_scenario = {"clients", "idempotent", "until", "patience", "ttl", "timeout"}
    scenario = {name: options.pop(name) for name in of_scenario & set(options)}
    report = simulate(Scenario(servers, load, **scenario), seed=seed, **options)
    assert list(report.breaches) == []
    return report


class TestRequests:
    def test_a_fourth_parameter_is_the_request(self):
        """A behaviour with a fourth parameter gets the request; without `request=` a load sends GET
        / without a key, and the caller is the number of the client."""
        seen = []

        def behave(_, __, ___, request):
            seen.append(request)
            return Reply(0.1)

        run([Server("a", behave)], Open(10, 0.3), clients=2)
        assert seen == [SimulatedRequest("GET", "/", None, number) for number in (0, 1, 0)]

    @pytest.mark.parametrize(
        "around",
        [
            lambda inner: mixed(1.0, inner, FAST),
            lambda inner: mixed(0.0, FAST, inner),
            lambda inner: phases((0, inner)),
            lambda inner: phases((0, mixed(0.5, phases((0, inner)), inner))),
            lambda inner: per_run(lambda: inner),
            lambda inner: mixed(1.0, per_run(lambda: mixed(1.0, inner, FAST)), FAST),
        ],
    )
    def test_combinators_pass_it_on(self, around):
        """A behaviour inside another gets the request too."""
        seen = []

        def behave(_, __, ___, request):
            seen.append(request.path)
            return Reply(0.1)

        asked = SimulatedRequest(path="/orders")
        run([Server("a", around(behave))], Open(10, 0.2, request=asked))
        assert seen == ["/orders", "/orders"]

    def test_a_default_is_no_request(self):
        """A fourth parameter with a default keeps it, unless it is called `request`."""
        seen = []
        for value in (1, 2):

            def bound(_, __, ___, value=value):
                seen.append(value)
                return Reply(0.1)

            run([Server("a", bound)], Open(10, 0.1))

        def asked(_, __, ___, request=None):
            seen.append(request.method)
            return Reply(0.1)

        run([Server("a", asked)], Open(10, 0.1))
        assert seen == [1, 2, "GET"]

    def test_all_forms_of_a_function(self):
        """Objects with `__call__`, bound methods, and functions with any arguments are called as
        their parameters require."""

        class Whole:
            def __call__(self, _, __, ___, request):
                return Reply(0.1, 201 if request.path == "/" else 500)

            def three(self, _, __, ___):
                return Reply(0.1, 202)

        def any_number(*given):
            return Reply(0.1, 200 + len(given))

        for behaviour, status in ((Whole(), 201), (Whole().three, 202), (any_number, 203)):
            assert run([Server("a", behaviour)], Open(10, 0.1)).endings() == {status: 1}

    def test_a_function_makes_the_requests(self):
        """`request=` of a load may be a function of the request's number in the load."""
        seen = []

        def behave(_, __, ___, request):
            seen.append(request)
            return Reply(0.1)

        def asked(number):
            return SimulatedRequest("POST", f"/{number}", caller="me")

        run([Server("a", behave)], Open(10, 0.3, request=asked))
        assert seen == [SimulatedRequest("POST", f"/{n}", None, "me") for n in range(3)]
        seen.clear()
        run([Server("a", behave)], Closed(2, 0.25, request=asked), clients=2)
        assert sorted(one.path for one in seen) == sorted(f"/{n}" for n in range(12))

    def test_keys_reach_the_strategy(self):
        """Requests of one key go to one server by `consistent-hash`."""
        servers = [Server(name, FAST) for name in "abc"]
        for key in ("x", "y", "z"):
            load = Open(5, 2, request=SimulatedRequest(key=key))
            shares = run(servers, load, strategy="consistent-hash").shares()
            assert max(shares.values()) == 1.0

    @pytest.mark.parametrize(
        ("method", "methods", "attempts"),
        [
            ("GET", None, 2),
            ("get", None, 2),
            ("POST", None, 1),
            ("POST", ["POST"], 2),
            ("GET", ["POST"], 1),
        ],
    )
    def test_the_method_decides_what_is_repeated(self, method, methods, attempts):
        """A request that may have been carried out is repeated only if its method is in the retry
        policy's `methods`."""
        policy = RetryPolicy() if methods is None else RetryPolicy(methods=methods)
        servers = [Server(name, answers(constant(0.1), 503)) for name in "ab"]
        load = Open(1, 1, request=SimulatedRequest(method))
        (one,) = run(servers, load, retry=RetryPolicy(2, policy.methods)).outcomes
        assert one.attempts == attempts

    @pytest.mark.parametrize("make", [Open, Closed])
    def test_what_is_no_request_is_refused(self, make):
        """The error about an invalid `request=` of a load names it, or what its function
        returned."""
        with pytest.raises(TypeError, match="request"):
            make(1, 1, request="/orders")
        with pytest.raises(TypeError, match=r"request\(0\) of the load .* not '/0'"):
            run([Server("a", FAST)], make(1, 1, request=lambda number: f"/{number}"))
        with pytest.raises(TypeError, match="method must be text, not 5"):
            SimulatedRequest(5)
        with pytest.raises(TypeError, match="path must be text, not None"):
            SimulatedRequest("GET", None)


class Bursts:
    """A load of the user's own: this many requests at once, at each of these times."""

    def __init__(self, times, many):
        self.times = times
        self.many = many

    def start(self, world, clients, request, _):
        def arrive():
            for time in self.times:
                yield Pause(time - world.clock())
                for number in range(self.many):
                    world.spawn(request(number % clients))
            yield Pause(0.0)

        return [world.spawn(arrive())]


class TestLoads:
    def test_several(self):
        """All loads of a list run from 0 on, and the run ends after the last."""
        load = [Open(10, 0.5), Closed(1, 2.0, think=0.4), Open(1, 3)]
        report = run([Server("a", FAST)], load)
        arrived = sorted(one.arrived for one in report.outcomes)
        assert len(arrived) == 5 + 4 + 3
        assert arrived[-1] == 2.0
        assert arrived[:2] == [0.0, 0.0]

    def test_another_load_changes_nobody_elses_dice(self):
        """The first load of a list arrives as it does alone."""
        first = Open(10, 2, poisson=True, request=SimulatedRequest(caller="first"))
        other = Open(10, 2, poisson=True, request=SimulatedRequest(caller="other"))

        def times(load):
            seen = []

            def behave(now, _, __, request):
                seen.append((request.caller, now))
                return Reply(0.1)

            run([Server("a", behave)], load)
            return seen

        alone, both = times(first), times([first, other])
        assert [one for one in both if one[0] == "first"] == alone
        assert [now for who, now in both if who == "other"] != [now for _, now in alone]

    def test_an_own_load(self):
        """Any object with `start` is a load, alone and in a list."""
        load = Bursts([0.5, 2.0], 3)
        assert isinstance(load, Load)
        for given, more in ((load, 0), ([load, Open(1, 1)], 1), ((load,), 0)):
            report = run([Server("a", FAST)], given)
            assert len(report.outcomes) == 6 + more
        assert [one.arrived for one in report.outcomes] == [0.5] * 3 + [2.0] * 3

    def test_start_by_hand(self):
        """`Open.start` accepts a function of the client's number alone, as before."""
        world, seen = World(), []

        def request(client):
            seen.append(client)
            yield Pause(0.1)

        parts = Open(10, 0.4).start(world, 3, request, random.Random(1))
        assert parts == [[]]
        world.run()
        assert (seen, parts) == ([0, 1, 2, 0], [[None]])

    @pytest.mark.parametrize("load", [[], 5, [Open(1, 1), 5], "ab", None, object()])
    def test_what_is_no_load_is_refused(self, load):
        """A load without `start`, or an empty list, is refused by an error that names it."""
        with pytest.raises(TypeError, match="load must be"):
            Scenario([Server("a", FAST)], load)

    def test_a_start_without_result(self):
        """A `start` that returns no list is an error that names it, since the end of the load would
        be unknown."""

        class Silent:
            def start(self, world, clients, request, rng):
                pass

        with pytest.raises(TypeError, match="load must have a method start that returns a list"):
            run([Server("a", FAST)], Silent())


class TestRateLimited:
    def test_a_token_bucket(self):
        """`burst` requests at once are served, then `rate` a second; others get the status, and
        take no token."""
        behave, rng = rate_limited(2.0, 3, 0.25, 503), random.Random(1)
        times = [0.0, 0.0, 0.0, 0.0, 0.4, 0.5, 0.9, 1.0, 60.0, 60.0, 60.0, 60.0]
        replies = [behave(now, 1, rng) for now in times]
        statuses = [200, 200, 200, 503, 503, 200, 503, 200, 200, 200, 200, 503]
        assert [one.status for one in replies] == statuses
        assert {one.seconds for one in replies} == {0.25}

    def test_a_tenth_ten_times_is_one(self):
        """Rounding of floats loses no token."""
        behave, rng = rate_limited(10.0, 1, 0.0), random.Random(1)
        assert all(behave(n / 10, 1, rng).status == 200 for n in range(1000))

    def test_each_server_and_each_run_has_its_own(self):
        """One object for three servers and two runs: each server has a full bucket in each run."""
        limited = rate_limited(1.0, 2, 0.1)
        servers = [Server(name, limited) for name in "abc"]
        reports = [run(servers, Open(60, 0.5), retry=None, strategy="round-robin") for _ in "12"]
        assert reports[0] == reports[1]
        assert reports[0].answered == {name: {200: 2, 429: 8} for name in "abc"}

    @pytest.mark.parametrize(
        ("values", "word"),
        [
            ((0, 1, 0.1), "rate"),
            ((math.nan, 1, 0.1), "rate"),
            ((1, 0, 0.1), "burst"),
            ((1, 1.5, 0.1), "burst"),
            ((1, 1, -1), "seconds"),
            ((1, 1, 0.1, 99), "status"),
        ],
    )
    def test_a_bad_argument_is_named(self, values, word):
        """An invalid rate limit is refused at construction by an error that names the argument."""
        with pytest.raises((TypeError, ValueError), match=word):
            rate_limited(*values)


@pytest.mark.parametrize("status", [99, 1000, "200", True])
@pytest.mark.parametrize(
    "make",
    [
        lambda status: answers(constant(0.1), status),
        lambda status: until_capacity(constant(0.1), 1, status),
        lambda status: rate_limited(1, 1, 0.1, status),
    ],
)
def test_a_status_is_checked_at_once(make, status):
    """A status outside 100 to 999 is refused when the behaviour is made, not during the run."""
    with pytest.raises((TypeError, ValueError), match=r"^status must be"):
        make(status)


class TestTimeout:
    def test_none_unless_asked_for(self):
        """Without `timeout=` a response may take any time."""
        report = run([Server("a", answers(constant(10_000.0)))], Open(1, 1))
        assert report.endings() == {200: 1}
        assert report.mean == 10_000.0

    def test_headers_that_take_too_long(self):
        """With `timeout=` an attempt fails with TimeoutError after that time, and counts as a fault
        of its instance."""
        servers = [Server("a", silent())]
        report = run(servers, Open(1, 7), timeout=0.5, retry=ONE, breaker=BreakerPolicy(5, 20.0))
        assert report.endings() == {"TimeoutError": 5, "NoInstanceAvailable": 2}
        assert [one.elapsed for one in report.outcomes] == [0.5] * 5 + [0.0] * 2

    @pytest.mark.parametrize(("idempotent", "status"), [(True, 200), (False, None)])
    def test_it_may_have_been_carried_out(self, idempotent, status):
        """A request that timed out is retried elsewhere only if it may be repeated."""
        servers = [Server("a", silent(), priority=0), Server("b", FAST, priority=1)]
        load = Open(1, 1)
        (one,) = run(servers, load, timeout=0.5, idempotent=idempotent, strategy="random").outcomes
        assert one.status == status

    def test_a_shorter_time_of_the_policy_stands(self):
        """The deadline and the attempt timeout of the retry policy end an attempt earlier."""
        for retry in (RetryPolicy(1, deadline=0.25), RetryPolicy(1, attempt_timeout=0.25)):
            (one,) = run([Server("a", silent())], Open(1, 1), timeout=9.0, retry=retry).outcomes
            assert one.elapsed == 0.25

    def test_a_body_comes_bit_by_bit(self):
        """A body may take longer than the timeout."""
        report = run([Server("a", answers(constant(0.1), body=5.0))], Open(1, 1), timeout=0.5)
        assert report.endings() == {200: 1}

    @pytest.mark.parametrize("timeout", [0, -1, math.nan, "5", True])
    def test_what_is_no_time_is_refused(self, timeout):
        """A timeout is a number of seconds above 0."""
        with pytest.raises((TypeError, ValueError), match="timeout"):
            Scenario([Server("a", FAST)], Open(1, 1), timeout=timeout)


class TestReports:
    def test_an_outcome_names_its_client(self):
        """`Outcome.client` is the number of the client, also for a request without a response."""
        report = run([Server("a", silent())], Open(10, 0.5), clients=3, until=9, patience=1)
        assert sorted(one.client for one in report.outcomes) == [0, 0, 1, 1, 2]
        report = run([Server("a", FAST)], Open(10, 0.5), clients=2)
        assert [one.client for one in report.outcomes] == [0, 1, 0, 1, 0]

    def test_the_client_is_no_decision(self):
        """The trace includes the client of each outcome only once, so earlier traces are
        unchanged."""
        assert Outcome(0.0, 1.0, 200, None, 1) == (0.0, 1.0, 200, None, 1, 0)

    def test_mean_answered(self):
        """The mean of the requests that ended with any status; NaN if there were none."""
        outcomes = [
            Outcome(0.0, 1.0, 200, None, 1),
            Outcome(0.0, 3.0, 503, None, 1),
            Outcome(0.0, 50.0, None, "TimeoutError", 1),
        ]
        assert Report(0, outcomes, [], {}, "").mean_answered == 2.0
        assert Report(0, outcomes, [], {}, "").mean == 18.0
        assert math.isnan(Report(0, outcomes[2:], [], {}, "").mean_answered)


class Weary:
    """Answers 200 this many times, and 500 from then on."""

    def __init__(self, often):
        self.left = often

    def __call__(self, _, __, ___):
        self.left -= 1
        return Reply(0.1, 200 if self.left >= 0 else 500)


class Slower:
    """A latency: each response takes a second longer."""

    def __init__(self):
        self.last = 0.0

    def __call__(self, _, __):
        self.last += 1.0
        return self.last


def weary(often):
    """The same as `Weary`, as a closure."""
    left = often

    def behave(_, __, ___):
        nonlocal left
        left -= 1
        return Reply(0.1, 200 if left >= 0 else 500)

    return behave


class TestState:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Weary(3),
            lambda: Weary(3).__call__,
            lambda: per_run(lambda: weary(3)),
            lambda: mixed(1.0, Weary(3), FAST),
            lambda: phases((0, mixed(0.0, FAST, phases((0, Weary(3)))))),
            lambda: phases((0, per_run(lambda: weary(3)))),
            lambda: per_run(lambda: phases((0, weary(3)))),
        ],
    )
    def test_of_an_object(self, make):
        """Each server of each run begins with the state that the behaviour had when it was
        passed."""
        behaviour = make()
        servers = [Server(name, behaviour) for name in "ab"]
        first, second = (run(servers, Open(20, 0.5), retry=None, breaker=None) for _ in "12")
        assert first.trace == second.trace
        assert first.answered == {name: {200: 3, 500: 2} for name in "ab"}

    @pytest.mark.parametrize(
        "around",
        [
            answers,
            lambda latency: queued(latency, 100),
            lambda latency: phases((0, answers(latency))),
        ],
    )
    def test_of_a_latency(self, around):
        """The state of a latency, which is part of a behaviour, is handled in the same way."""
        servers = [Server("a", around(Slower()))]
        first, second = (run(servers, Open(10, 0.3)) for _ in "12")
        assert [one.elapsed for one in first.outcomes] == [1.0, 2.0, 3.0]
        assert first.trace == second.trace

    def test_the_given_object_stays_as_it_was(self):
        """A run works on a copy of the behaviour."""
        behaviour = Weary(3)
        run([Server("a", behaviour)], Open(10, 1))
        assert behaviour.left == 3

    def test_what_cannot_be_copied_is_named(self):
        """An object that cannot be copied is refused by an error that names its server, and an
        alternative."""

        class Locked(Weary):
            def __init__(self):
                super().__init__(1)
                self.lock = threading.Lock()

        with pytest.raises(ValueError, match=r"server 'a' cannot be copied .* per_run"):
            run([Server("a", Locked())], Open(1, 1))
        run([Server("a", per_run(Locked))], Open(1, 1))

    def test_what_per_run_cannot_use(self):
        """`per_run` takes a function that returns a behaviour."""
        with pytest.raises(TypeError, match="make"):
            per_run(5)
        with pytest.raises(ValueError, match=r"'a'.*per_run .* must be callable"):
            run([Server("a", per_run(lambda: 5))], Open(1, 1))

    def test_outside_of_a_run(self):
        """What `per_run` returns can be called like any behaviour."""
        behave = per_run(lambda: weary(1))
        assert [behave(0.0, 1, random.Random(1)).status for _ in "12"] == [200, 200]


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (None, TypeError, "None"),
        (200, TypeError, "200"),
        ((0.1, 200), TypeError, r"\(0.1, 200\)"),
        (Reply(-1.0), ValueError, "seconds.*-1.0"),
        (Reply(math.nan), ValueError, "seconds.*nan"),
        (Reply(-math.inf), ValueError, "seconds.*-inf"),
        (Reply("1"), TypeError, "seconds.*'1'"),
        (Reply(0.1, 99), ValueError, "status.*99"),
        (Reply(0.1, 1000), ValueError, "1000.*status"),
        (Reply(0.1, 200.5), TypeError, "status.*200.5"),
        (Reply(0.1, None), TypeError, "status.*None"),
        (Reply(0.1, error=ValueError("x")), TypeError, "ValueError.*error"),
        (Reply(0.1, error=ConnectionResetError), TypeError, "ConnectionResetError.*error"),
        (Reply(0.1, rest=-1), ValueError, "rest.*-1"),
        (Reply(0.1, rest=math.nan), ValueError, "rest.*nan"),
        (Reply(0.1, body=-0.5), ValueError, "body.*-0.5"),
        (Reply(0.1, body=math.inf), ValueError, "body.*inf"),
    ],
)
@pytest.mark.parametrize("around", [lambda one: one, lambda one: mixed(1.0, one, FAST)])
def test_an_invalid_reply_is_refused_by_name(reply, kind, words, around):
    """An invalid reply of a behaviour ends the run, and the error names the server and the
    value."""
    with pytest.raises(kind, match=f"server 'bad-one' returned.*{words}"):
        run([Server("bad-one", around(lambda *_: reply))], Open(1, 1))


def test_what_a_behaviour_raises_names_the_server():
    """An exception of a behaviour is raised by the run, with a note that names the server."""

    def behave(now, _, __):
        raise LookupError(now)

    with pytest.raises(LookupError) as caught:
        run([Server("bad-one", phases((0, FAST), (0.05, behave)))], Open(10, 1))
    assert caught.value.__notes__ == ["raised by the behaviour of server 'bad-one' at 0.1 s"]


class TestInLine:
    """In virtual time waiting calls check again when they are woken, and at no other time."""

    def test_nothing_polls(self, monkeypatch):
        """Each of 2,000 waiting calls checks at most three times: as it arrives, as the first in
        the queue, and as it gets a slot."""
        looks, real = itertools.count(), Engine.admit

        def admit(*arguments):
            next(looks)
            return real(*arguments)

        monkeypatch.setattr(Engine, "admit", admit)
        servers = [Server("a", answers(constant(1.0)))]
        report = run(servers, Open(2000, 1), max_in_flight=10, patience=1e6)
        assert report.endings() == {200: 2000}
        assert next(looks) <= 3 * 2000

    def test_the_end_of_a_rest(self):
        """The first call in the queue is sent at the moment when an instance's back-off ends."""

        def asks_for_rest(_, __, ___, request):
            return Reply(0.0, 429 if request.path == "/first" else 200, rest=1.03)

        servers = [Server("a", asks_for_rest), Server("b", answers(constant(50.0)))]
        load = [
            Open(1, 1, request=SimulatedRequest(path="/first")),
            Open(100, 0.03, request=SimulatedRequest(path="/later")),
        ]
        retry = RetryPolicy(1)
        report = run(
            servers, load, max_in_flight=1, patience=30, retry=retry, strategy="round-robin"
        )
        assert sorted(one.elapsed for one in report.outcomes if one.elapsed < 30) == pytest.approx(
            [0.0, 1.01, 1.02]
        )

    @pytest.mark.parametrize("idempotent", [True, False])
    def test_a_probe_that_is_due(self, idempotent):
        """The first call in the queue is sent as a probe as soon as one is due."""
        servers = [
            Server("a", phases((0, refuses()), (0.1, FAST)), weight=50),
            Server("b", answers(constant(50.0)), weight=1),
        ]
        policy = BreakerPolicy(1, 1.0)
        report = run(
            servers,
            Open(5, 1),
            max_in_flight=1,
            patience=30,
            breaker=policy,
            retry=None,
            idempotent=idempotent,
        )
        probes = [time for time, name in report.sent if name == "a"]
        assert 0.5 <= probes[1] <= 1.0 + (0 if idempotent else 1.0)
        assert probes[1] * 4 % 1 != pytest.approx(0)  # no look each quarter of a second
        assert report.endings()[200] == 4


class Told:
    """A resolver that does what the test says."""

    def __init__(self, answer):
        self.resolve = lambda: answer


def failing(error):
    def resolve():
        raise error

    return resolve


def in_line(answer, **options):
    """A world, its discovery, a balancer with one slot that is in use for 100 s, and a function
    that sends a call and returns a list for (time, answer or error)."""
    world, source = World(), Told(answer)
    balancer = simulated(
        world, source, name="x.test", judge=judge_of(()), max_in_flight=1, retry=ONE, **options
    )

    def send(_):
        yield Pause(20.0)
        return Reply(0.0)

    def call(patience=60.0):
        def process():
            one = bind(balancer).begin(CallOptions(patience=patience), Semantics())
            try:
                reply = yield from carry_out(one, send)
            except DiscoveryError as error:
                return world.clock(), error
            return world.clock(), reply.status

        return world.spawn(process())

    return world, source, balancer, call


def test_what_is_known_grows_too_old_for_those_in_line():
    """A waiting call fails as soon as the known set is older than `max_stale`."""
    known = Answer([Instance("a", 80)], 1.0)
    world, source, balancer, call = in_line(known, max_stale=7.3)
    first = call()
    world.run(until=0.5)
    source.resolve = failing(DiscoveryError("gone"))
    second = call()
    world.run(until=30.0)
    balancer.close()
    ((time, error),) = second
    assert isinstance(error, DiscoveryError)
    assert "max_stale" in str(error)
    assert time == pytest.approx(7.3, abs=0.01)
    assert first == [(20.0, 200)]


def test_a_service_that_is_absent_for_a_while_stops_no_line():
    """If a waiting call must wait for discovery, since the service was declared absent and is being
    looked up, it leaves the queue: those behind it are served."""
    known = Answer([Instance("a", 80)], 1.0)
    world, source, balancer, call = in_line(known)
    watch = balancer._engine.subscription
    first, second = call(), call()
    world.run(until=0.5)

    def ask_again():
        watch.next_at = world.clock()
        assert watch.claim()
        source.resolve = lambda: known
        world.at(world.clock() + 0.5, watch.run)

    def vanish():
        world.at(world.clock(), ask_again)
        raise ServiceAbsent("absent")

    source.resolve = vanish
    world.run(until=21.0)
    third = call()
    world.run(until=90.0)
    balancer.close()
    assert not balancer._engine.queue
    assert [status for (_, status) in first + second + third] == [200, 200, 200]
