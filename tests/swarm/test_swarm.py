"""A thousand random services, in virtual time: whatever is asked of them, no rule is broken.

Each is a line of Python, which Hypothesis makes as short as it can where it finds a fault. To run
one again: `check("simulate(...)")`.
"""

import itertools
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lbclient
from lbclient import simulation
from lbclient.strategy.registry import BY_NAME


def down(*names):
    """A health check that these instances fail."""
    return lambda instance: instance.host not in names


def flapping(*results):
    """A health check with these results, repeated."""
    result = itertools.cycle(results)
    return lambda _: next(result)


def call(name, *values, **named):
    """The text of a call, from strategies that draw its arguments' text; an argument that is None
    is left out."""
    keys = list(named)

    def text(drawn):
        pairs = zip(keys, drawn[len(values) :], strict=True)
        said = [f"{key}={value}" for key, value in pairs if value is not None]
        return f"{name}({', '.join([*drawn[: len(values)], *said])})"

    return st.tuples(*values, *named.values()).map(text)


def some(*values):
    """One of these, as text; None leaves it out."""
    return st.sampled_from([value if value is None else repr(value) for value in values])


def maybe(strategy):
    """Left out half of the time."""
    return st.none() | strategy


latencies = st.one_of(
    call("constant", some(0.0, 0.01, 0.1, 0.5)),
    call("linear", some(0.05), some(1, 3)),
    call("exponential", some(0.02, 0.2)),
)
bodies = some(None, None, 0.05, 0.3)
good = call("answers", latencies, body=bodies)
plain = st.one_of(
    good,
    good,
    good,
    call("answers", latencies, some(200, 404, 429, 500, 502, 503), body=bodies),
    call("answers", latencies, some(429, 503), rest=some(0.1, 1.0, 40.0), body=bodies),
    call("until_capacity", latencies, some(1, 4), some(429, 503)),
    call("fails", latencies),
    call("breaks", latencies, some(0.1)),
    call("refuses", some(0.0, 0.05)),
    st.just("silent()"),
)
behaviours = st.one_of(
    plain,
    call("mixed", some(0.1, 0.5, 0.9), plain, plain),
    call("phases", plain.map("(0, {})".format), plain.map("(1.0, {})".format)),
    call(
        "phases",
        plain.map("(0, {})".format),
        plain.map("(0.3, {})".format),
        plain.map("(2.0, {})".format),
    ),
)
times = st.sampled_from([(None, None)] * 12 + [("0.5", None), (None, "1.0"), ("0.2", "1.5")])


@st.composite
def servers(draw):
    """One to five."""
    made = []
    for number in range(draw(st.integers(1, 5))):
        joins, leaves = draw(times)
        server = call(
            "Server",
            st.just(repr(f"s{number}")),
            behaviours,
            joins=st.just(joins),
            leaves=st.just(leaves),
            weight=some(None, None, 0, 1, 5),
            priority=some(None, None, None, 1, 2),
        )
        made.append(draw(server))
    return f"[{', '.join(made)}]"


@st.composite
def loads(draw):
    """20 to 200 requests, open or closed."""
    if draw(st.booleans()):
        rate, requests = draw(st.sampled_from([5, 40, 400])), draw(st.integers(20, 200))
        return f"Open({rate}, {requests / rate!r}, {draw(st.booleans())})"
    workers, think = draw(st.integers(2, 10)), draw(st.sampled_from([0.02, 0.1, 0.5]))
    return f"Closed({workers}, {10 * think!r}, {think!r})"


scenarios = call(
    "Scenario",
    servers(),
    loads(),
    clients=some(None, None, 2, 3, 4),
    idempotent=some(None, None, False),
    patience=some(None, 0.0, 0.3, 2.0),
    ttl=some(None, 3.0),
)
budgets = call("RetryBudget", some(0.0, 0.2, 1.0), some(0.0, 1.0, 10.0), some(1.0, 10.0))
retries = call(
    "RetryPolicy",
    attempts=some(None, 1, 2, 5),
    statuses=some(None, (), (429, 500, 503)),
    backoff=some(None, 0.0, 0.1),
    attempt_timeout=some(None, 0.05, 0.3),
    deadline=some(0.3, 1.0, 3.0, None),
    budget=st.none() | budgets | st.just("None"),
)
breakers = call(
    "BreakerPolicy",
    fail_max=some(None, 1, 2, 1000),
    reset_timeout=some(None, 0.1, 0.5),
    reset_timeout_max=some(None, 2.0),
    success_threshold=some(None, 2),
    panic_threshold=some(None, None, 0.5, 1.0),
    failure_rate=some(None, None, 0.5),
    minimum_calls=some(None, 5),
    window=some(None, 1.0),
    observe=some(None, None, None, True),
)
slow = call("BreakerPolicy", slow_rate=some(0.3, 1.0), slow_after=some(0.05), minimum_calls=some(3))
limits = call(
    "AdaptiveLimit",
    initial=some(2),
    least=some(None, 2),
    most=some(2, 10),
    backoff=some(None, 0.5),
    tolerance=some(None, 2.0),
)
outliers = call(
    "OutlierPolicy",
    interval=some(0.2, 1.0),
    margin=some(0.1, 0.3),
    minimum_calls=some(1, 5),
    ejection=some(0.5, 2.0),
    max_ejected=some(None, 0.5, 1.0),
)
healths = call(
    "HealthCheck",
    path=st.just("None"),
    interval=some(0.2, 0.7),
    timeout=some(0.1),
    up=some(None, 1),
    down=some(None, 1),
    check=call("down", some("s0", "s1"))
    | st.just("down('s0', 's1', 's2', 's3', 's4')")
    | call("flapping", some(True), some(False), some(True, False)),
)
runs = call(
    "simulate",
    scenarios,
    seed=st.integers(0, 9).map(repr),
    strategy=some(*sorted(BY_NAME)),
    retry=st.one_of(retries, retries, st.none(), st.just("None")),
    breaker=st.one_of(breakers, breakers, slow, st.none(), st.just("None")),
    max_in_flight=some(None, None, 1, 2),
    max_in_flight_total=some(None, None, None, 1, 3),
    limit=maybe(limits),
    throttle=maybe(
        call("ThrottlePolicy", k=some(None, 1.0), window=some(1.0), minimum_calls=some(None, 2))
    ),
    hedge=maybe(call("HedgePolicy", delay=some(None, 0.0, 0.05, 0.1))),
    outliers=maybe(outliers),
    slow_start=maybe(call("SlowStart", window=some(0.5, 3.0), aggression=some(None, 2.0))),
    health=maybe(healths),
    max_instances=some(None, None, None, 1, 2),
)


def callers(*names):
    """A `fair_by` with which these callers take turns."""
    caller = itertools.cycle(names)
    return lambda _: next(caller)


OURS = {"down": down, "flapping": flapping, "callers": callers}
NAMES = {name: getattr(lbclient, name) for name in lbclient.__all__}
NAMES |= {**vars(simulation), **OURS}
ERRORS = {
    "ConnectionRefusedError",
    "ConnectionResetError",
    "DeadlineExceeded",
    "DiscoveryError",
    "NoInstanceAvailable",
    "Throttled",
    "TimeoutError",
    "unanswered",
}


class Errors(logging.Handler):
    """Log lines that no run may cause: a strategy or a judge that failed."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.logger = logging.getLogger("lbclient")
        self.texts = []

    def emit(self, record):
        self.texts.append(self.format(record))

    def __enter__(self):
        self.logger.addHandler(self)
        self.logger.propagate = False
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.propagate = True


def simulated(run):
    return eval(run, dict(NAMES))


def check(run):
    """Run a line, and check everything that results."""
    with Errors() as errors:
        report = simulated(run)
    assert errors.texts == []
    assert list(report.breaches) == []
    assert report.outcomes
    endings = report.endings()
    assert {one for one in endings if isinstance(one, str)} <= ERRORS
    if "silent()" not in run or "attempt_timeout" in run or "deadline" in run:
        assert "unanswered" not in endings
    adds_up(report)


def adds_up(report):
    """Each request is counted exactly once."""
    assert sum(one.attempts for one in report.outcomes) == len(report.sent)
    assert sum(sum(many.values()) for many in report.answered.values()) == len(report.sent)
    assert sum(report.endings().values()) == len(report.outcomes)
    slices = report.over_time(0.25)
    assert sum(one.requests for one in slices) == len(report.outcomes)
    assert sum(sum(one.sent.values()) for one in slices) == len(report.sent)
    if report.sent:
        assert sum(report.shares().values()) == pytest.approx(1)


@pytest.mark.slow
@settings(
    max_examples=1000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(runs)
def test_no_run_breaks_a_rule(run):
    """For any service, load and rules: no invariant is broken, every request is answered, no
    strategy fails, and the report adds up."""
    check(run)


@pytest.mark.slow
@settings(max_examples=200)
@given(runs, some((), (1, 2), (1, 1, 1, 2), (None, 1, 2, 3, 4, 5)))
def test_no_run_breaks_a_rule_where_callers_take_turns(run, names):
    """The same if callers take turns."""
    check(f"{run[:-1]}, fair_by=callers(*{names}))" if names != "()" else run)


@pytest.mark.slow
@settings(max_examples=50)
@given(runs)
def test_a_run_is_a_function_of_its_seed(run):
    """A run makes the same decisions again, even if the invariants are not checked."""
    with Errors():
        trace = simulated(run).trace
        assert simulated(run).trace == trace
        assert simulated(f"{run[:-1]}, checked=False)").trace == trace


@settings(max_examples=20)
@given(runs)
def test_some_runs_break_no_rule(run):
    """The first of a thousand services."""
    check(run)


@pytest.mark.parametrize(
    "run",
    [
        (  # a streamed body of a hedged call has the time of its call
            "simulate(Scenario([Server('s0', answers(constant(0.0))), Server('s1', "
            "fails(linear(0.05, 1))), Server('s2', silent()), Server('s3', answers(linear(0.05, "
            "1), body=0.3))], Closed(2, 0.2, 0.02)), seed=0, strategy='consistent-hash', "
            "retry=RetryPolicy(deadline=0.3), hedge=HedgePolicy(delay=0.0))"
        ),
        (
            "simulate(Scenario([Server('s0', fails(constant(0.1)), joins=0.5, weight=0, "
            "priority=2), Server('s1', until_capacity(constant(0.0), 2, 503), weight=0, "
            "priority=2), Server('s2', mixed(0.3, answers(constant(0.01)), answers(linear(0.05, "
            "1), body=0.3)), leaves=1.5, priority=1), Server('s3', refuses(0.0), weight=3, "
            "priority=1), Server('s4', refuses(0.0), joins=0.2, weight=3)], Closed(20, 1.5, "
            "0.02), patience=2.0), seed=0, strategy='prequal', retry=RetryPolicy(attempts=5, "
            "statuses=(429, 502, 503), backoff=0.0, attempt_timeout=0.3, deadline=0.3, "
            "budget=RetryBudget(1.0, 10.0, 10.0)), breaker=BreakerPolicy(reset_timeout=0.1, "
            "reset_timeout_max=2.0, failure_rate=0.5, minimum_calls=5, window=1.0, observe=True),"
            " max_in_flight_total=2, limit=AdaptiveLimit(initial=2, most=4), "
            "fair_by=callers(1,1,1,2))"
        ),
        (
            "simulate(Scenario([Server('s0', answers(linear(0.05, 1), 429, rest=1.0), joins=0.5, "
            "weight=0, priority=2), Server('s1', answers(constant(0.0), 429, body=0.05), "
            "priority=1), Server('s2', fails(constant(0.1)), joins=0.2), Server('s3', "
            "refuses(0.0), leaves=1.5)], Open(100, 1.0, True), clients=2, patience=2.0, ttl=0.3),"
            " seed=7, strategy='prequal', retry=RetryPolicy(attempts=5, statuses=(429, 502, 503),"
            " backoff=0.1, attempt_timeout=0.05, deadline=3.0, budget=None), "
            "breaker=BreakerPolicy(fail_max=1000, reset_timeout=0.5, reset_timeout_max=2.0, "
            "panic_threshold=0.5, minimum_calls=5, window=1.0), max_in_flight_total=3, "
            "limit=AdaptiveLimit(initial=2, most=4), hedge=HedgePolicy(delay=0.0), "
            "outliers=OutlierPolicy(interval=0.2,margin=0.1,minimum_calls=1,ejection=0.5), "
            "slow_start=SlowStart(window=0.5))"
        ),
    ],
    ids=["hedged-body", "one-place-in-all", "three-places-in-all"],
)
def test_a_place_in_all_wakes_a_retry(run):
    """If the limit of all instances together delays a retry, any slot that is released is for
    it."""
    check(run)


def test_the_end_of_a_pause_is_noted_in_line():
    """Calls that waited before an instance was paused check again when the pause ends."""
    run = (
        "simulate(Scenario([Server('s0', answers(constant(0.0)), joins=0.2, weight=3, "
        "priority=2), Server('s1', answers(constant(0.1), body=0.05), joins=0.2), "
        "Server('s2', until_capacity(constant(0.1), 1, 429), priority=1), Server('s3', "
        "refuses(0.0), joins=0.2), Server('s4', phases((0, fails(linear(0.05, 1))), (0.7, "
        "answers(constant(0.1))), (1.5, answers(exponential(0.05)))), weight=0, priority=1)],"
        " Open(40, 1.0, False), clients=2, ttl=3.0), seed=2, strategy='random', "
        "retry=RetryPolicy(attempts=8, statuses=(429, 502, 503), backoff=0.1, "
        "attempt_timeout=0.05, budget=None), breaker=BreakerPolicy(fail_max=1000, "
        "reset_timeout=0.5, reset_timeout_max=2.0, minimum_calls=5, window=1.0), "
        "max_in_flight=1, max_in_flight_total=3, limit=AdaptiveLimit(initial=2, most=4), heal"
        "th=HealthCheck(path=None,interval=0.2,timeout=0.1,up=1,down=1,check=down('s0','s1'))"
        ", max_instances=2, fair_by=callers(None,1,2,3,4,5))"
    )
    check(run)
