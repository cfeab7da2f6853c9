"""Active health checks: the requests, their interval, their effect, and their threads."""

from __future__ import annotations

import copy
import errno
import gc
import math
import pickle
import random
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import anyio
import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context

import lbclient
from lbclient import Instance
from lbclient._internal.deadline import Expiry
from lbclient.balancer.health_monitor import CheckFailed, Monitor, Threads, in_turn, plain_check
from lbclient.discovery.scheduler import ThreadScheduler
from lbclient.endpoint.breaker import Breaker, BreakerPolicy
from lbclient.endpoint.endpoint import Endpoint
from lbclient.http.connections.custom_transport import AsyncCustomTransport, CustomTransport
from lbclient.http.connections.instance_transport import Http1Transport
from lbclient.http.probes import checked
from lbclient.resilience.health_check import HealthCheck, HealthTally
from lbclient.simulation import World
from lbclient.simulation.run import Rounds
from tests.http.test_tls import TlsServer
from tests.support.http import (
    Gate,
    dies_in_body,
    drips,
    drips_headers,
    hangs_up,
    head,
    resets,
    says,
    tells_port,
)
from tests.support.interpreter import ended_soon

BREAKER = BreakerPolicy()
SOON = 10
"""Seconds within which what should happen at once has happened, on any machine."""


def endpoints(number=1):
    return [Endpoint(Instance(f"10.0.0.{place}", 80), BREAKER) for place in range(1, number + 1)]


def in_time(seconds=SOON):
    return Expiry(time.monotonic() + seconds, time.monotonic)


# What may be asked


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"path": "healthz"}, ValueError, "path must begin with '/'"),
        ({"path": "healthz?full=1"}, ValueError, "not 'healthz'$"),
        ({"path": ""}, ValueError, "path must begin with '/'"),
        ({"path": "/a b"}, ValueError, "path must begin with '/'"),
        ({"path": "/a\r\nX: y"}, ValueError, "path must begin with '/'"),
        ({"path": "/ä"}, ValueError, "percent-encode"),
        ({"path": "/a#b"}, ValueError, "without spaces or '#'"),
        ({"path": "http://10.0.0.1/"}, ValueError, "path must begin with '/'"),
        ({"path": b"/"}, TypeError, "path must be text"),
        ({"interval": 0}, ValueError, r"interval \(seconds\)"),
        ({"interval": math.inf}, ValueError, r"interval \(seconds\)"),
        ({"interval": "10"}, TypeError, r"interval \(seconds\)"),
        ({"timeout": -1}, ValueError, r"timeout \(seconds\)"),
        ({"timeout": math.nan}, ValueError, r"timeout \(seconds\)"),
        ({"timeout": True}, TypeError, r"timeout \(seconds\)"),
        ({"timeout": 2, "interval": 1}, ValueError, r"timeout \(2 s\) must not be above interval"),
        ({"up": 0}, ValueError, "up must be 1 or more"),
        ({"down": 1.5}, TypeError, "down must be a whole number"),
        ({"statuses": 200}, TypeError, "statuses must be a collection"),
        ({"statuses": []}, ValueError, "statuses must contain at least one"),
        ({"statuses": range(0)}, ValueError, "statuses must contain at least one"),
        ({"statuses": ["200"]}, TypeError, "statuses"),
        ({"statuses": [99]}, ValueError, "statuses"),
        ({"statuses": range(500, 700)}, ValueError, "from 100 to 599, not 699"),
        ({"headers": "Host: a"}, TypeError, "headers must be a collection"),
        ({"headers": {"X": 1}}, TypeError, "headers must contain names and values"),
        ({"headers": {"X y": "1"}}, ValueError, "header names, not 'X y'"),
        ({"headers": {"X": "a\nb"}}, ValueError, "the value of X must be printable"),
        ({"headers": {"X": "1"}, "path": None}, ValueError, "headers are sent only with a path"),
        ({"check": True}, TypeError, "check must be callable"),
        ({"check": print, "path": "/healthz"}, ValueError, "path and check exclude each other"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, kind, words):
    """K4, S4: each error names the argument, is one line, and is raised at construction."""
    with pytest.raises(kind, match=words) as caught:
        HealthCheck(**arguments)
    assert str(caught.value).isprintable()


def test_a_check_at_its_bounds():
    """K8: any HTTP status from 100 to 599 may pass, and a check may take a whole interval."""
    policy = HealthCheck(statuses=[100, 599], timeout=2.0, interval=2.0)
    assert set(policy.statuses) == {100, 599}


def test_check_that_is_a_coroutine_is_refused():
    """K4: a coroutine function is refused, since its result would always be true."""

    async def check(_):
        return True

    with pytest.raises(TypeError, match="check must be a plain function"):
        HealthCheck(check=check)


def test_what_is_asked_is_a_value():
    """A policy is frozen, hashable, can be copied and pickled, and equals one with the same
    values."""
    headers = {"X-Token": "1"}
    policy = HealthCheck("/healthz?full=1", statuses={200, 204}, headers=headers)
    headers["X-Token"] = "2"
    assert policy == HealthCheck("/healthz?full=1", statuses=[204, 200], headers={"X-Token": "1"})
    assert policy == copy.deepcopy(policy) == pickle.loads(pickle.dumps(policy))
    assert len({policy, copy.copy(policy), HealthCheck()}) == 2
    with pytest.raises(AttributeError):
        policy.path = "/"


def test_no_secret_is_shown():
    """S5: neither repr nor error shows a query or the value of a header."""
    policy = HealthCheck("/healthz?token=secret", headers={"Authorization": "secret"})
    assert "secret" not in repr(policy)
    assert "statuses=range(200, 400)" in repr(policy)
    for arguments in ({"path": "bad?token=secret"}, {"headers": {"Authorization": "secret\n"}}):
        with pytest.raises(ValueError) as caught:
            HealthCheck(**arguments)
        assert "secret" not in str(caught.value)


# What the answers add up to


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_up_and_down(results, up, down):
    """The health of an instance changes exactly when the last `down` checks failed, or the last
    `up` passed, since it last changed (HAProxy's rise and fall)."""
    policy = HealthCheck(up=up, down=down)
    (endpoint,) = endpoints()
    pulse, since = HealthTally(endpoint), []
    for good in results:
        since.append(good)
        needed = down if endpoint.healthy else up
        turns = len(since) >= needed and set(since[-needed:]) == {not endpoint.healthy}
        assert pulse.count(good=good, policy=policy) is turns
        if turns:
            endpoint.healthy, since = good, []


def test_checks_that_begin_again_count_from_zero():
    """C8: if the checks of an unhealthy instance begin again, as in a forked child, it takes `up`
    good ones until it is healthy."""
    (endpoint,) = endpoints()
    endpoint.healthy = False
    pulse, policy = HealthTally(endpoint), HealthCheck(up=3)
    assert [pulse.count(good=True, policy=policy) for _ in range(3)] == [False, False, True]


def test_a_report_that_was_lost_is_made_again():
    """C8: if a fork comes between the count and the report, the next check reports."""
    (endpoint,) = endpoints()
    pulse, policy = HealthTally(endpoint), HealthCheck(down=2)
    assert [pulse.count(good=False, policy=policy) for _ in range(4)] == [False, True, True, True]


# When: in virtual time


class Clinic:
    """A monitor in a world, whose check fails for an instance as `ills` says."""

    def __init__(self, number=1, *, seed=1, world=None, check=None, **policy):
        self.world = world or World()
        self.known = endpoints(number)
        self.ills = {}
        self.asked = []
        self.turns = []
        self.policy = HealthCheck(check=check or bool, **policy)
        self.monitor = Monitor(
            self.policy,
            plain_check(self.policy) if check else self.check,
            endpoints=lambda: self.known,
            report=self.report,
            clock=self.world.clock,
            rng=random.Random(seed),
            executor=in_turn,
        )
        self.rounds = Rounds(self.world)

    def check(self, endpoint, _):
        self.asked.append((self.world.clock(), endpoint))
        if (ill := self.ills.get(endpoint)) is not None:
            raise ill

    def report(self, endpoint, breaker, *, healthy, why):
        assert breaker is endpoint.breaker
        endpoint.healthy = healthy
        self.turns.append((endpoint, healthy, why))

    def begin(self):
        self.monitor.begin()
        self.rounds.schedule(self.monitor)
        return self

    def some_rounds(self, number):
        """Run this many rounds."""
        for _ in range(number):
            self.world.run(until=self.monitor.next_at)

    @property
    def times(self):
        return sorted({at for at, _ in self.asked})


def test_a_round_about_every_interval():
    """C21: rounds follow each other at the interval, plus or minus a tenth."""
    clinic = Clinic(interval=10).begin()
    clinic.world.run(until=10_000)
    waits = [
        later - expedite_probe
        for expedite_probe, later in zip(clinic.times, clinic.times[1:], strict=False)
    ]
    assert len(waits) > 900
    assert 9 <= min(waits) < 9.1
    assert 10.9 < max(waits) <= 11


def test_first_rounds_are_spread():
    """C21: clients that begin together have their first rounds at times spread over the first
    interval."""
    world = World()
    clinics = [Clinic(world=world, seed=seed, interval=10).begin() for seed in range(200)]
    world.run(until=10)
    firsts = [clinic.times[0] for clinic in clinics]
    assert [sum(part <= one < part + 2.5 for one in firsts) > 30 for part in (0, 2.5, 5, 7.5)]
    assert len(set(firsts)) == 200


def test_everybody_is_asked_once_a_round():
    """A round checks each known instance once."""
    clinic = Clinic(5).begin()
    clinic.some_rounds(3)
    assert [one for _, one in clinic.asked] == clinic.known * 3


def test_nothing_before_it_begins():
    """A monitor that has not begun has no rounds, however often it is scheduled."""
    clinic = Clinic()
    clinic.rounds.schedule(clinic.monitor)
    clinic.world.run(until=1e9)
    assert not clinic.monitor.claim()
    assert clinic.asked == []


def test_turns_are_reported_with_their_reason():
    """An instance that fails `down` checks is reported, with the last reason, and so is one that
    passes `up`; no other is reported, and none twice."""
    clinic = Clinic(2, up=2, down=3).begin()
    sick = clinic.known[0]
    clinic.ills[sick] = CheckFailed("status 503")
    clinic.some_rounds(2)
    assert clinic.turns == []
    clinic.some_rounds(8)
    assert clinic.turns == [(sick, False, "status 503")]
    clinic.ills.clear()
    clinic.some_rounds(1)
    assert len(clinic.turns) == 1
    clinic.some_rounds(8)
    assert clinic.turns[1:] == [(sick, True, "")]


def test_who_left_is_forgotten():
    """S7, D21: nothing is stored about an instance that left; if it comes back its counts start at
    zero."""
    clinic = Clinic(3, down=3).begin()
    sick = clinic.known[0]
    clinic.ills[sick] = CheckFailed("status 503")
    clinic.some_rounds(2)
    known, clinic.known = clinic.known, clinic.known[1:]
    clinic.some_rounds(1)
    assert set(clinic.monitor._tallies) == set(clinic.known)
    clinic.known = known
    clinic.some_rounds(2)
    assert clinic.turns == []
    clinic.some_rounds(1)
    assert clinic.turns == [(sick, False, "status 503")]


def test_result_for_who_left_meanwhile_is_dropped():
    """D21: an instance that left while it was checked is not reported."""
    clinic = Clinic(down=1)

    def check(endpoint, _):
        endpoint.gone = True
        raise CheckFailed("status 503")

    clinic.monitor._check = check
    clinic.begin().some_rounds(3)
    assert clinic.turns == []


def test_a_moved_instance_counts_from_zero():
    """D21: a new breaker means another machine: it starts healthy, without the failures of the old
    one."""
    clinic = Clinic(down=3).begin()
    (moved,) = clinic.known
    clinic.ills[moved] = CheckFailed("status 503")
    clinic.some_rounds(2)
    moved.renew(Breaker(BREAKER, "moved"))
    clinic.some_rounds(2)
    assert clinic.turns == []
    clinic.some_rounds(1)
    assert clinic.turns == [(moved, False, "status 503")]


def test_result_of_the_machine_before_is_dropped():
    """D21: a check of the old machine says nothing about the one that has replaced it meanwhile."""
    clinic = Clinic(down=1)

    def check(endpoint, _):
        endpoint.renew(Breaker(BREAKER, "moved"))
        raise CheckFailed("status 503")

    clinic.monitor._check = check
    clinic.begin().some_rounds(3)
    assert clinic.turns == []


def test_stop_is_the_end():
    """C20: after `stop` there are no more rounds, and the results of the current one are
    ignored."""
    clinic = Clinic(3, down=1)
    asked = []

    def check(endpoint, _):
        asked.append(endpoint)
        if len(asked) == 2:
            clinic.monitor.stop()
        raise CheckFailed("status 503")

    clinic.monitor._check = check
    clinic.begin()
    clinic.world.run(until=1000)
    assert asked == clinic.known[:2]
    assert clinic.turns == [(clinic.known[0], False, "status 503")]


def test_stop_between_two_rounds():
    """C20: a round that is due when the monitor is stopped does not run."""
    clinic = Clinic().begin()
    clinic.some_rounds(2)
    clinic.monitor.stop()
    clinic.world.run(until=1000)
    assert len(clinic.times) == 2


def test_a_machine_out_of_descriptors_is_nobodys_fault():
    """I22, I23: if this host has no descriptor left, a check counts neither as passed nor as
    failed."""
    clinic = Clinic(down=2).begin()
    (one,) = clinic.known
    wrapped = httpx.ConnectError("no more")
    wrapped.__cause__ = OSError(errno.EMFILE, "Too many open files")
    clinic.ills[one] = wrapped
    clinic.some_rounds(5)
    assert clinic.turns == []


def test_an_instance_without_a_route_fails_its_checks():
    """I23: an instance without a route from this host fails its checks while another one can be
    reached, and passes again once there is a route."""
    clinic = Clinic(2, down=2, up=2).begin()
    one, other = clinic.known
    no_route = httpx.ConnectError("no way there")
    no_route.__cause__ = OSError(errno.ENETUNREACH, "no way there")
    clinic.ills[one] = no_route
    clinic.ills[other] = CheckFailed("status 503")
    clinic.some_rounds(1)
    clinic.ills.pop(other)
    clinic.some_rounds(1)
    assert [turn[:2] for turn in clinic.turns] == [(one, False)]
    clinic.ills.pop(one)
    clinic.some_rounds(2)
    assert [turn[:2] for turn in clinic.turns] == [(one, False), (one, True)]


def test_no_check_fails_while_no_instance_has_a_route():
    """I23: while no instance can be reached from this host, no check counts, so that all are in
    rotation when the network is back."""
    clinic = Clinic(3, down=2).begin()
    for one in clinic.known:
        clinic.ills[one] = OSError(errno.ENETUNREACH, "no way there")
    clinic.some_rounds(5)
    assert clinic.turns == []


def test_no_local_port_fails_no_check():
    """I23: a check that gets no local port (EADDRNOTAVAIL although there is a route) does not
    count, even if other instances are reached."""
    clinic = Clinic(2, down=2).begin()
    clinic.ills[clinic.known[0]] = OSError(errno.EADDRNOTAVAIL, "no port")
    clinic.some_rounds(5)
    assert clinic.turns == []


# The caller's own check


def raising(error):
    def check(_):
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (lambda _: False, "check returned False"),
        (lambda _: None, "check returned NoneType, not True"),
        (lambda _: 1, "check returned int, not True"),
        (raising(KeyError("db")), "KeyError: 'db'"),
        (raising(SystemExit(1)), "check was ended by SystemExit"),
        (raising(KeyboardInterrupt()), "check was ended by KeyboardInterrupt"),
    ],
)
def test_what_fails_a_callers_check(check, why):
    """C18: any result except True is a failed check, and ends no round."""
    clinic = Clinic(2, check=check, down=2).begin()
    clinic.some_rounds(3)
    assert clinic.turns == [(one, False, why) for one in clinic.known]


def test_callers_check_is_told_whom_and_how_long():
    """A user's check gets the instance, and `time_left()` returns what is left of `timeout`."""
    told = []

    def check(instance):
        told.append((instance, lbclient.time_left()))
        return True

    clinic = Clinic(2, check=check, timeout=0.75).begin()
    clinic.some_rounds(1)
    assert told == [(one.instance, 0.75) for one in clinic.known]
    assert lbclient.time_left() is None
    assert clinic.turns == []


# Many at once, on threads


def results_of(executor, check, subjects, seconds=SOON):
    return [
        (one, None if error is None else str(error))
        for one, error in executor(check, subjects, seconds)
    ]


def test_silent_ones_delay_nobody():
    """I2: while ten checks do not answer, all other instances are checked, and their results are
    applied."""
    others, results = threading.Event(), []

    def check(subject, _):
        if subject < 10 and not others.wait(SOON / 2):
            raise CheckFailed("it was waited for")

    for result in Threads()(check, range(25), SOON):
        results.append(result)
        if len(results) == 15:
            others.set()
    assert {one for one, _ in results[:15]} == set(range(10, 25))
    assert {error for _, error in results} == {None}


def test_so_many_at_once():
    """S7: of a hundred instances, at most thirty-two are checked at the same time, and all in the
    end."""
    entered, go = threading.Semaphore(0), threading.Event()

    def check(_, __):
        entered.release()
        assert go.wait(SOON)

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(results_of, Threads(), check, range(100))
        assert all(entered.acquire(timeout=SOON) for _ in range(32))
        assert not entered.acquire(timeout=0.1)
        go.set()
        assert sorted(results.result()) == [(one, None) for one in range(100)]


def test_check_that_never_returns():
    """S7: a check that exceeds its time has failed, and no other of its subject begins until it has
    returned; other instances are checked as usual."""
    executor, go, begun = Threads(), threading.Event(), []

    def check(subject, _):
        begun.append(subject)
        if subject == "stuck":
            assert go.wait(SOON)

    first = results_of(executor, check, ["stuck", "well"], 0.5)
    assert first == [("well", None), ("stuck", "it took longer than 0.5 s")]
    for _ in range(3):
        again = dict(results_of(executor, check, ["stuck", "well"]))
        assert again == {"stuck": "the previous check has not ended yet", "well": None}
    assert begun.count("stuck") == 1
    go.set()
    executor._threads["stuck"].join(SOON)
    assert dict(results_of(executor, check, ["stuck", "well"])) == {"stuck": None, "well": None}


def test_late_is_late():
    """A check that passes, but too late, has failed."""

    def check(_, expiry):
        expiry.at -= 100

    assert results_of(Threads(), check, [1]) == [(1, "it took longer than 10 s")]


def test_where_there_are_no_threads(monkeypatch):
    """I22: if no thread can be started, no instance fails its check."""

    def start(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert results_of(Threads(), lambda *_: None, range(3)) == []
    assert len(results_of(Threads(), lambda *_: None, range(3))) == 3


def test_no_span_of_a_call_is_inherited(monkeypatch):
    """S10: a check belongs to no call, although threads may inherit the context of the thread that
    starts them (as in Python without a GIL)."""

    class Heir(threading.Thread):
        def start(self):
            self.inherited = copy_context()
            super().start()

        def run(self):
            self.inherited.run(super().run)

    monkeypatch.setattr(threading, "Thread", Heir)
    token = context.attach(context.set_value("span", "a call's"))
    try:
        seen = []
        results_of(Threads(), lambda *_: seen.append(context.get_value("span")), [1])
    finally:
        context.detach(token)
    assert seen == [None]


# On the control plane


class Ward:
    """A monitor as a balancer has it, in real time, on its own scheduler."""

    def __init__(self, check, **policy):
        self.known = endpoints()
        self.asked = threading.Semaphore(0)
        self.refresher = ThreadScheduler()

        def asked(endpoint, expiry):
            self.asked.release()
            check(endpoint, expiry)

        known = self.known
        self.monitor = Monitor(
            HealthCheck(**{"interval": 0.02, "timeout": 0.02, **policy}),
            asked,
            endpoints=lambda: known,
            report=lambda *_, **__: None,
            clock=time.monotonic,
            rng=random.Random(1),
            executor=Threads(),
        )
        self.monitor.begin()
        self.refresher.schedule(self.monitor)


def well(*_):
    """Answer for any instance."""


def test_rounds_on_the_refreshers_threads():
    """Checks continue round after round until they are stopped."""
    ward = Ward(well)
    for _ in range(5):
        assert ward.asked.acquire(timeout=SOON)
    ward.monitor.stop()
    assert not ward.monitor.claim()


def test_a_monitor_that_nobody_holds_is_collected():
    """S7: the control plane keeps no monitor alive, nor anything that its check references."""

    class Held:
        pass

    held = Held()
    ward = Ward(lambda *_, _held=held: None)
    assert ward.asked.acquire(timeout=SOON)
    gone = weakref.ref(held), weakref.ref(ward.monitor)
    del held, ward
    ended = time.monotonic() + SOON
    while any(one() for one in gone) and time.monotonic() < ended:
        gc.collect()  # a round under way may hold it for a moment
    assert [one() for one in gone] == [None, None]


def script(text, *arguments):
    """Run code in its own interpreter. Returns its status and its output."""
    command = [sys.executable, "-W", "error", "-W", "ignore:.*fork:", "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


WARD = """
    import os, sys, threading, time
    from tests.resilience.test_health_check import Ward
"""


def test_checks_go_on_in_a_forked_child():
    """C8: a child of a process in the middle of a round, with a check under way, has its own rounds
    once it begins, and checks the same instance."""
    text = """
    go, parent = threading.Event(), os.getpid()
    def check(*_):
        if os.getpid() == parent:
            go.wait(30)
    ward = Ward(check, timeout=30, interval=30)
    ward.monitor.next_at = 0
    ward.refresher.schedule(ward.monitor)
    assert ward.asked.acquire(timeout=30)
    assert ward.monitor.busy
    if (child := os.fork()) == 0:
        status = 1
        try:
            ward.refresher.after_fork()
            ward.asked = threading.Semaphore(0)
            ward.monitor.begin()
            assert 0 <= ward.monitor.next_at - time.monotonic() < 30
            ward.monitor.next_at = 0
            ward.refresher.schedule(ward.monitor)
            assert ward.asked.acquire(timeout=30)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go.set()
    """
    assert script(WARD + text) == (0, "", "")


def test_interpreter_ends_in_the_middle_of_a_check():
    """C10: a check that never returns does not delay the exit of the interpreter."""
    text = """
    ward = Ward(lambda *_: threading.Event().wait())
    assert ward.asked.acquire(timeout=30)
    print(time.time())
    """
    status, said, errors = script(WARD + text)
    assert (status, errors) == (0, "")
    assert ended_soon(said)


# A TCP connection


def test_a_connection_is_enough(dead_port):
    """I1: without a path the check only connects, and sends nothing."""
    connects = plain_check(HealthCheck(path=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connects(Endpoint(Instance(*listener.getsockname()), BREAKER), in_time())
        with listener.accept()[0] as connection:
            assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connects(Endpoint(Instance("127.0.0.1", dead_port), BREAKER), in_time())


def test_a_connection_to_vetted_addresses_only(servers):
    """S1, D19: all addresses of an instance are tried in turn, and its name is never used."""
    (server,) = servers(tells_port)
    connects = plain_check(HealthCheck(path=None))
    good = Instance("orders.invalid", server.port, addresses=("127.0.0.2", "127.0.0.1"))
    connects(Endpoint(good, BREAKER), in_time())
    bad = Instance("localhost", server.port, addresses=("127.0.0.2",))
    with pytest.raises(ConnectionRefusedError):
        connects(Endpoint(bad, BREAKER), in_time())


def test_a_silent_address_leaves_time_for_the_next():
    """D19: one silent address does not use up all the time of the check."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        with (
            socket.create_server(("127.0.0.2", port)) as listener,
            socket.create_connection(("127.0.0.1", port)),
        ):
            both = Instance("a.invalid", port, addresses=("127.0.0.1", "127.0.0.2"))
            expiry = in_time(1)
            plain_check(HealthCheck(path=None))(Endpoint(both, BREAKER), expiry)
            assert expiry.left()
            listener.accept()[0].close()


def test_a_connection_that_is_not_made_in_time():
    """I2: connecting, to all addresses together, ends with the time of the check."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        place = listener.getsockname()
        with socket.create_connection(place):  # nobody accepts: the next SYN is dropped
            silent = Instance("a.invalid", place[1], addresses=("127.0.0.1",) * 3)
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                plain_check(HealthCheck(path=None))(Endpoint(silent, BREAKER), in_time(0.3))
            assert 0.29 < time.monotonic() - begun < 5


# Over HTTP


class Examined:
    """One instance, checked as this client checks it."""

    def __init__(self, client, policy, make=Http1Transport, *, looped=False):
        self.check = checked(policy, client._transport._adapter, make, looped=looped)
        self.endpoint = next(iter(client.balancer._engine.pool.endpoints))

    def __call__(self, seconds=SOON):
        self.check(self.endpoint, in_time(seconds))


def examine(server, policy=None, seconds=SOON, service=None, **options):
    """Check it once. Raises the reason of a failure."""
    with lbclient.Client(service or [server.url], **options) as client:
        Examined(client, policy or HealthCheck("/healthz"))(seconds)


def test_what_is_asked(servers):
    """A check is a GET of the path as given, without base path or body, and has its own
    User-Agent."""
    (server,) = servers(says(200))
    policy = HealthCheck("/healthz?full=1", headers={"X-Probe": "1", "accept": "text/plain"})
    examine(server, policy, service=f"{server.url}/base")
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("GET", "/healthz?full=1", b"")
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"lbclient/{lbclient.__version__} health-check",
        "accept": "text/plain",
        "x-probe": "1",
    }


def test_a_service_with_a_name_is_asked_by_it(servers):
    """Host is the service's name, as in calls, unless the policy has such a header."""
    (server,) = servers(says(200))
    examine(server, name="orders.test")
    examine(server, HealthCheck(headers={"Host": "other.test"}), name="orders.test")
    assert [one.headers["host"] for one in server.requests] == ["orders.test", "other.test"]


def test_an_unnamed_list_is_asked_by_each_ones_own_name(servers):
    """Without a name each instance gets its own Host, with `Client` and with a transport alone."""
    pair = servers(says(200), says(200))
    for make in (lbclient.Client, lambda urls: httpx.Client(transport=lbclient.Transport(urls))):
        with make([one.url for one in pair]) as client:
            transport = client._transport
            check = checked(HealthCheck(), transport._adapter, Http1Transport, looped=False)
            for one in transport.balancer._engine.pool.endpoints:
                check(one, in_time())
    for server in pair:
        assert [one.headers["host"] for one in server.requests] == [f"127.0.0.1:{server.port}"] * 2


def test_only_vetted_addresses_are_asked(servers):
    """S1: a check connects to the addresses of the instance in turn, whatever its name is."""
    (server,) = servers(says(200))
    addresses = ("127.0.0.2", "127.0.0.1")
    examine(server, service=[Instance("orders.invalid", server.port, addresses=addresses)])
    assert server.hits == 1


def test_tls_name_is_the_services():
    """S6: SNI and certificate of a check are the service's, as in calls; another certificate fails
    it."""
    authority = trustme.CA()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    server = TlsServer(says(200), authority.issue_cert("orders.test"))
    try:
        examine(server, name="orders.test", verify=trust)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            examine(server, name="other.test", verify=trust)
    finally:
        server.stop()
    assert server.names == ["orders.test", "other.test"]


@pytest.mark.parametrize("status", [200, 204, 301, 399])
def test_statuses_that_pass(servers, status):
    """Statuses 2xx and 3xx pass, and a redirect is not followed."""
    (server,) = servers(says(status, location="/elsewhere"))
    examine(server)
    assert server.hits == 1


@pytest.mark.parametrize(
    ("status", "statuses"), [(404, None), (500, None), (503, None), (200, [204])]
)
def test_statuses_that_fail(servers, status, statuses):
    """I10: any other status fails, and the reason contains it."""
    (server,) = servers(says(status))
    with pytest.raises(CheckFailed, match=f"^status {status}$"):
        examine(server, HealthCheck(statuses=statuses) if statuses else None)


@pytest.mark.parametrize("behaviour", [resets, hangs_up, dies_in_body])
def test_answers_that_break_fail(servers, behaviour):
    """I3, I4, I8: an instance that resets, closes or breaks off in the body has failed."""
    (server,) = servers(behaviour)
    with pytest.raises(httpx.TransportError):
        examine(server)


def test_refused(dead_port):
    """I1: an instance that refuses connections has failed."""
    service = f"http://127.0.0.1:{dead_port}"
    with lbclient.Client(service) as client, pytest.raises(httpx.ConnectError):
        Examined(client, HealthCheck())()


@pytest.mark.parametrize("behaviour", [drips(0.02), drips_headers(0.02), Gate()])
def test_time_bounds_the_whole_check(servers, behaviour):
    """I5, I6: `timeout` covers a check from connecting to the end of the body, even if it drips."""
    (server,) = servers(behaviour)
    with lbclient.Client([server.url]) as client:
        examined, executor = Examined(client, HealthCheck()), Threads()
        begun = time.monotonic()
        results = results_of(executor, examined.check, [examined.endpoint], 0.3)
        executor._threads[examined.endpoint].join(SOON)
        assert time.monotonic() - begun < 5
    assert results == [(examined.endpoint, "it took longer than 0.3 s")]


def test_of_an_endless_body_a_part_is_read(servers):
    """S9: a check reads at most 64 KiB of a body, and then passes."""

    def endless(connection, _):
        connection.send(head(200, {"Content-Length": str(10**12)}))
        while not connection.server.stopping.is_set():
            connection.send(b"x" * 10_000)

    (server,) = servers(endless)
    with lbclient.Client([server.url]) as client:
        examined = Examined(client, HealthCheck())
        results = results_of(Threads(), examined.check, [examined.endpoint])
    assert results == [(examined.endpoint, None)]


def test_connection_of_its_own(servers):
    """Each check opens and closes its own connection; those of calls are not used."""
    closed = threading.Semaphore(0)

    def behaviour(connection, request):
        connection.answer()
        if request.target == "/healthz":
            connection.sock.settimeout(SOON)
            if connection.sock.recv(1) == b"":
                closed.release()

    (server,) = servers(behaviour)
    with lbclient.Client([server.url]) as client:
        client.get("/")
        examined = Examined(client, HealthCheck("/healthz"))
        for _ in range(3):
            examined()
            assert closed.acquire(timeout=SOON)
        client.get("/")
        assert server.accepted == 4
        (one,) = client.balancer.snapshot().instances
        assert (one.attempts, one.in_flight, one.failures) == (2, 0, 0)


def test_no_retries_of_connecting(dead_port):
    """`retries=` is for calls: a check connects once, and does not wait in between."""
    dialled = []

    class Counted(Http1Transport):
        def _new(self, *args):
            dialled.append(self._options.retries)
            return super()._new(*args)

    service = f"http://127.0.0.1:{dead_port}"
    with lbclient.Client(service, retries=3) as client, pytest.raises(httpx.ConnectError):
        Examined(client, HealthCheck(), Counted)()
    assert dialled == [0]


# By a caller's own transport


def foreign(behaviour):
    """A caller's transport, which records how it was used."""
    seen = []

    class Mine(httpx.MockTransport):
        def close(self):
            seen.append("closed")

        async def aclose(self):
            seen.append("closed")

    def handle(request):
        seen.append((str(request.url), request.headers["host"]))
        return behaviour()

    return Mine(handle), seen


KINDS = {
    "sync": (lbclient.Client, CustomTransport),
    "async": (lbclient.AsyncClient, AsyncCustomTransport),
}


@pytest.mark.parametrize("kind", KINDS)
def test_by_a_callers_transport(kind):
    """A check uses the caller's own transport, sync or async, which is closed after it."""
    entry, wrapper = KINDS[kind]
    status = 204
    transport, seen = foreign(lambda: httpx.Response(status, content=b"fine"))
    client = entry(["http://10.0.0.1:8080"], name="orders.test")
    make = lambda place, *_: wrapper(transport, place)  # noqa: E731
    examined = Examined(client, HealthCheck("/healthz"), make, looped=kind == "async")
    examined()
    assert seen == [("http://10.0.0.1:8080/healthz", "orders.test"), "closed"]
    status = 500
    with pytest.raises(CheckFailed, match="status 500"):
        examined()
    client.balancer.close()


@pytest.mark.parametrize("where", ["headers", "body"])
def test_time_bounds_a_callers_async_transport(where):
    """I5, I6: a caller's async transport is cancelled when the time of the check is up."""
    ended = []

    async def silence():
        try:
            await anyio.sleep(60)
        finally:
            ended.append(1)

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self):
            await silence()
            yield b""

    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _):
            if where == "headers":
                await silence()
            return httpx.Response(200, stream=Body())

    client = lbclient.AsyncClient(["http://10.0.0.1:8080"])
    make = lambda place, *_: AsyncCustomTransport(Silent(), place)  # noqa: E731
    examined, executor = (
        Examined(client, HealthCheck(), make, looped=True),
        Threads(),
    )
    results = results_of(executor, examined.check, [examined.endpoint], 0.1)
    assert results == [(examined.endpoint, "it took longer than 0.1 s")]
    executor._threads[examined.endpoint].join(SOON)
    client.balancer.close()
    assert ended == [1]
