"""Active health checks: runs the checks of all instances, and reports the results that change.

The checks in this module do not use HTTP: they open a TCP connection, or call a function of the
user. All instances are checked in one round. The checks of a round run concurrently on threads or,
in virtual time, one by one.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextvars import Context
from typing import Protocol, TypeVar

from lbclient._internal import deadline
from lbclient._internal.deadline import Expiry
from lbclient.discovery.resolver import text_of
from lbclient.discovery.scheduler import PeriodicJob
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.classifier import lacked_port, local_origin
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.errors import LoadBalancingError
from lbclient.resilience.health_check import HealthCheck, HealthTally

__all__ = [
    "Check",
    "CheckExecutor",
    "CheckFailed",
    "Monitor",
    "Threads",
    "in_turn",
    "outcome",
    "plain_check",
]

_LEAST = 0.001
"""The shortest timeout. A socket with a timeout of 0 would not wait at all."""

Check = Callable[[Endpoint, Expiry], None]
"""A function that checks one instance before the expiry. It may block, and raises an exception if
the check fails."""

_AT_ONCE = 32

S = TypeVar("S")
Results = Generator[tuple[S, Exception | None], None, None]


class CheckFailed(LoadBalancingError):
    """The instance gave a wrong answer, or no answer in time. The text says what happened."""


def plain_check(policy: HealthCheck) -> Check | None:
    """Return the check that `policy` describes; None if this check needs HTTP or gRPC."""
    if policy.check is not None:
        return _calling(policy.check)
    return connects if policy.path is None and policy.grpc is None else None


def connects(endpoint: Endpoint, expiry: Expiry) -> None:
    """Connect to one of the addresses of the instance, as calls do. Raises OSError."""
    instance = endpoint.instance
    hosts = instance.addresses or (instance.host,)
    failure = OSError("the instance has no address")
    for place, host in enumerate(hosts):
        share = expiry.left() / (len(hosts) - place)
        try:
            socket.create_connection((host, instance.port), max(_LEAST, share)).close()
        except OSError as error:
            failure = error
        else:
            return
    raise failure


def _calling(function: Callable[[Instance], bool]) -> Check:
    def check(endpoint: Endpoint, _: Expiry) -> None:
        if (said := function(endpoint.instance)) is not True:
            shown = "False" if said is False else f"{type(said).__name__}, not True"
            raise CheckFailed(f"check returned {shown}")

    return check


class CheckExecutor(Protocol):
    """Runs checks, each of one subject such as an endpoint. As soon as a check ends, yields the
    subject with the error of the check, or None."""

    def __call__(
        self, check: Callable[[S, Expiry], None], subjects: Iterable[S], seconds: float
    ) -> Results[S]:
        """Run the checks. Each may take `seconds`. A subject that could not be checked is not
        yielded."""
        ...


def in_turn(
    check: Callable[[S, Expiry], None], subjects: Iterable[S], seconds: float
) -> Results[S]:
    """Run checks one by one on this thread: for virtual time, where a check takes no time."""
    for subject in subjects:
        yield subject, outcome(check, subject, Expiry(seconds, _still))


class Threads:
    """Runs several checks at a time, each on its own daemon thread, so that a silent instance does
    not delay other checks.

    A check that takes too long has failed. Its thread cannot be stopped, and continues in the
    background. Until it ends, further checks of the same subject fail at once.
    """

    def __init__(self) -> None:
        self._threads: dict[object, threading.Thread] = {}

    def __call__(
        self, check: Callable[[S, Expiry], None], subjects: Iterable[S], seconds: float
    ) -> Results[S]:
        """Yield the results in the order in which the checks end."""
        self._threads = {
            subject: thread for subject, thread in self._threads.items() if thread.is_alive()
        }
        stuck = set(self._threads)
        done: queue.SimpleQueue[tuple[S, Exception | None]] = queue.SimpleQueue()
        waiting, under_way = deque(subjects), dict[S, Expiry]()
        while waiting or under_way:
            if not waiting or len(under_way) == _AT_ONCE:
                yield _next(done, under_way, seconds)
            elif (subject := waiting.popleft()) in stuck:
                yield subject, CheckFailed("the previous check has not ended yet")
            else:
                expiry = Expiry(time.monotonic() + seconds, time.monotonic)
                try:
                    self._begin(check, subject, expiry, done)
                except RuntimeError:  # no more threads can be started: the next round tries again
                    waiting.clear()
                else:
                    under_way[subject] = expiry

    def _begin(
        self,
        check: Callable[[S, Expiry], None],
        subject: S,
        expiry: Expiry,
        done: queue.SimpleQueue[tuple[S, Exception | None]],
    ) -> None:
        def work() -> None:
            done.put((subject, outcome(check, subject, expiry)))

        # The thread gets a context of its own, since it may otherwise inherit a context with the
        # span of a call.
        thread = threading.Thread(
            target=Context().run, args=(work,), name="lbclient-check", daemon=True
        )
        thread.start()
        self._threads[subject] = thread


def _next(
    done: queue.SimpleQueue[tuple[S, Exception | None]], under_way: dict[S, Expiry], seconds: float
) -> tuple[S, Exception | None]:
    """Wait until a check ends, or until the time of the oldest check is up. Then this check has
    failed."""
    first = next(iter(under_way))
    while True:
        try:
            subject, error = done.get(timeout=under_way[first].left())
        except queue.Empty:
            del under_way[first]
            return first, _late(seconds)
        if (expiry := under_way.pop(subject, None)) is not None:
            return subject, error if expiry.left() else _late(seconds)


def _late(seconds: float) -> CheckFailed:
    return CheckFailed(f"it took longer than {seconds:g} s")


def outcome(check: Callable[[S, Expiry], None], subject: S, expiry: Expiry) -> Exception | None:
    """Run a check, and return its error, or None. A user's check may raise anything."""
    token = deadline.enter(expiry)
    try:
        check(subject, expiry)
    except Exception as error:  # noqa: BLE001  # any error is a failed check
        return error
    except BaseException as error:  # noqa: BLE001  # as above: it must not end the control plane
        return CheckFailed(f"check was ended by {type(error).__name__}")
    finally:
        deadline.leave(token, expiry)
    return None


def _still() -> float:
    return 0.0


class Report(Protocol):
    """Called when the health of an instance has changed. It sets `endpoint.healthy`.

    `breaker` identifies the machine that was checked. If the endpoint has another breaker now, the
    report is ignored. `why` is the error of the last check, empty if it passed.
    """

    def __call__(self, endpoint: Endpoint, breaker: Breaker, *, healthy: bool, why: str) -> None:
        """Take the lock and record the change. The same change may be reported twice."""
        ...


class Monitor(PeriodicJob):
    """A job of the scheduler that checks every known instance, about every `policy.interval`
    seconds.

    One job checks all instances: `endpoints` returns them, `check` checks a single one, and
    `executor` runs the checks. The job starts with `begin`.
    """

    def __init__(
        self,
        policy: HealthCheck,
        check: Check,
        *,
        endpoints: Callable[[], Iterable[Endpoint]],
        report: Report,
        clock: Callable[[], float],
        rng: random.Random,
        executor: CheckExecutor,
    ) -> None:
        super().__init__(policy.interval, clock=clock, rng=rng)
        self._policy = policy
        self._check = check
        self._endpoints = endpoints
        self._report = report
        self._executor = executor
        self._tallies: dict[Endpoint, HealthTally] = {}

    def work(self) -> None:
        """Check all instances.

        An instance that cannot be reached from this host fails its check. But if no instance can be
        reached, the network is down, and no check fails for this reason. An error of this host,
        such as a lack of file descriptors, says nothing about an instance.
        """
        self._tallies = {
            endpoint: self._tally_of(endpoint) for endpoint in tuple(self._endpoints())
        }
        check = self._check

        def of(tally: HealthTally, expiry: Expiry) -> None:
            check(tally.endpoint, expiry)

        results = self._executor(of, self._tallies.values(), self._policy.timeout)
        unreachable: list[tuple[HealthTally, Exception]] = []
        reached = False
        with contextlib.closing(results):
            for tally, error in results:
                if self.stopped:
                    return
                local = local_origin(error)
                if error is None or local is None:
                    reached = True
                    self._count(tally, error)
                elif local.unreachable and not lacked_port(error, tally.endpoint.instance):
                    unreachable.append((tally, error))
        if reached and not self.stopped:
            for tally, error in unreachable:
                self._count(tally, error)

    def _tally_of(self, endpoint: Endpoint) -> HealthTally:
        known = self._tallies.get(endpoint)
        return HealthTally(endpoint) if known is None or known.stale else known

    def _count(self, tally: HealthTally, error: Exception | None) -> None:
        if tally.stale:
            return
        if tally.count(good=error is None, policy=self._policy):
            why = "" if error is None else text_of(error)
            self._report(tally.endpoint, tally.breaker, healthy=error is None, why=why)
