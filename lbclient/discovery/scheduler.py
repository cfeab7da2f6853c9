"""The scheduler of background work: runs each job when it is due, and owns the threads for this.

One daemon thread schedules the jobs of all services of the process. This thread only waits, and
starts the rounds of the jobs. A round may block in a resolver for seconds. So each round runs on a
daemon thread of its own, and ten names without an answer do not delay another name. (Idle
connections are closed on the scheduler's thread, since closing never blocks.) A service has at most
one round under way. The scheduler does not keep a client alive, does not delay the exit of the
interpreter, and starts only when it is needed. In a forked child, the scheduler starts again, and
the clients register their jobs again.

The caller of `schedule` may hold a lock. A finalizer that needs this lock may run at any time, on
any thread, also on the scheduler's thread. So callers and the scheduler share only a queue, whose
methods never block. Only the scheduler's thread uses the other attributes. The queue and the locks
are created when they are first needed, since gevent and eventlet replace the types in `queue` and
`threading`, possibly after this module was imported.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import queue
import random
import signal
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Protocol

from lbclient._internal import fork
from lbclient._internal.fork import Lazy
from lbclient._internal.interruption import block_signals, unblocked

__all__ = [
    "THREAD_SCHEDULER",
    "Backoff",
    "PeriodicJob",
    "ScheduledJob",
    "Scheduler",
    "ThreadScheduler",
    "jittered",
]

_LONGEST_SLEEP = 3600.0
_CROWDED = 64
_FIRST, _MOST = 1.0, 30.0
_DEMANDED = 5.0
_JITTER = 0.1

_logger = logging.getLogger(__name__)


def jittered(seconds: float, rng: random.Random) -> float:
    """Change `seconds` by up to a tenth, at random."""
    return seconds * (1 + _JITTER * (2 * rng.random() - 1))


class Backoff:
    """Computes the wait after a failure: 1 s, then twice as long each time, up to 30 s.

    Up to a tenth is subtracted at random. `demanded` is the wait if a call needs an answer: it is
    shorter, at most 5 s.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next = _FIRST
        self.demanded: float = 0.0

    def failed(self) -> float:
        """Return the wait after one more failure."""
        seconds, self._next = self._next, min(2 * self._next, _MOST)
        less = 1 - _JITTER * self._rng.random()
        self.demanded = less * min(seconds, _DEMANDED)
        return less * seconds

    def succeeded(self) -> None:
        """Start again at the shortest wait."""
        self._next = _FIRST


class ScheduledJob(Protocol):
    """A job of the scheduler, such as the discovery of a service, its health checks, or the renewal
    of a registration. Its rounds may block."""

    ticket: int
    """The scheduler's ticket for the next round."""

    @property
    def next_at(self) -> float:
        """The time when the next round is due, by `clock`."""
        ...

    @property
    def stopped(self) -> bool:
        """True if no round follows."""
        ...

    @property
    def busy(self) -> bool:
        """True while a round is under way."""
        ...

    @property
    def quick(self) -> bool:
        """True if a round never takes long, so that it runs on the scheduler's thread."""
        ...

    def clock(self) -> float:
        """Monotonic seconds."""
        ...

    def claim(self) -> bool:
        """Claim the round that is due. Returns False if no round is due, or a round is under
        way."""
        ...

    def run(self) -> None:
        """Run one round, after `claim`."""
        ...


class PeriodicJob(ABC):
    """A job that runs a round about every `interval` seconds, and never two rounds at the same
    time.

    Rounds may block. A subclass does its work in `work`. There are no rounds before `begin`.
    """

    quick = False

    def __init__(self, interval: float, *, clock: Callable[[], float], rng: random.Random) -> None:
        self.clock = clock
        self.ticket = -1
        self.next_at: float = math.inf
        self.stopped: bool = False
        self._interval = interval
        self._rng = rng
        self._round = threading.Lock()

    @property
    def busy(self) -> bool:
        """True while a round is under way."""
        return self._round.locked()

    def begin(self) -> None:
        """Start the job. The first round begins at a random time, so that the rounds of many
        clients are spread out.

        A forked child calls this method too, since the threads of the parent do not exist in the
        child.
        """
        self._round = threading.Lock()
        self.next_at = self.clock() + self._rng.random() * self._interval

    def stop(self) -> None:
        """Stop: no round follows."""
        self.stopped = True

    def claim(self) -> bool:
        """Claim the round that is due. Returns False if no round is due, or a round is under
        way."""
        due = not self.stopped and self.clock() >= self.next_at
        return due and self._round.acquire(blocking=False)

    def run(self) -> None:
        """Run one round, after `claim`. It may block."""
        began = self.clock()
        try:
            self.work()
        finally:
            self.next_at = self._next(began)
            self._round.release()

    @abstractmethod
    def work(self) -> None:
        """Do the work of one round."""

    def _next(self, began: float) -> float:
        """Return the time when the next round is due. This method is called at the end of a round
        that began at `began`."""
        return began + jittered(self._interval, self._rng)


class Scheduler(Protocol):
    """Runs the rounds of jobs: on background threads, or in virtual time."""

    generation: object
    """An object that identifies this scheduler. A forked child has another object here."""

    def schedule(self, job: ScheduledJob) -> None:
        """Run the next round of `job` at the time `job.next_at`."""
        ...


class ThreadScheduler:
    """Runs the rounds of many jobs on daemon threads, each when it is due."""

    def __init__(self) -> None:
        self.generation: object = object()
        """An object that identifies this scheduler. A forked child has another object here, so that
        jobs know that they must register again."""
        self.started: bool = False
        """True once the scheduler's thread runs. From then on a finalizer may call `schedule`."""
        self._lock_type: object = None
        """`threading.Lock` as it was when the scheduler's thread started."""
        self._warned = False
        self._blocked: set[signal.Signals] = set()
        """The signals that the scheduler's thread blocks. The threads of its rounds do not block
        them."""
        self._heap: list[tuple[float, int, weakref.ref[ScheduledJob]]] = []
        self._crowded = _CROWDED
        self._order = itertools.count()

    @Lazy
    def _inbox(self) -> queue.SimpleQueue[weakref.ref[ScheduledJob]]:
        return queue.SimpleQueue()

    @Lazy
    def _running(self) -> threading.Lock:
        """The lock that the scheduler's thread holds while it runs."""
        return threading.Lock()

    def schedule(self, job: ScheduledJob) -> None:
        """Run the next round of `job` at the time `job.next_at`. This replaces a round that was
        scheduled before."""
        self._inbox.put(weakref.ref(job))
        if not self.started:
            # This line may raise an exception (no more threads can be started, or a signal handler
            # raises). Then the next call tries again. If several threads are started, all but one
            # end at once.
            _daemon(self._loop, "lbclient-refresher")
            self.started = True

    def _loop(self) -> None:
        # This thread must not keep a job alive while it waits.
        if not self._running.acquire(blocking=False):
            return
        self._lock_type = threading.Lock
        self._blocked = block_signals()
        while True:
            try:
                self._step()
            except Exception:  # for example from a user's clock; other services need this thread
                _logger.exception("a service could not be scheduled")

    def _step(self) -> None:
        try:
            ref = self._inbox.get(timeout=self._pause())
        except queue.Empty:
            _, ticket, ref = heapq.heappop(self._heap)
            self._begin(ticket, ref)
        else:
            self._note(ref)

    def _pause(self) -> float | None:
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def _note(self, ref: weakref.ref[ScheduledJob]) -> None:
        job = ref()
        if job is None or job.stopped:
            return
        job.ticket = next(self._order)
        at = time.monotonic() + min(job.next_at - job.clock(), _LONGEST_SLEEP)
        heapq.heappush(self._heap, (at, job.ticket, ref))
        if len(self._heap) > self._crowded:
            self._sweep()

    def _sweep(self) -> None:
        """Drop the entries that are out of date, if they may be half of all entries."""
        self._heap = [(at, ticket, ref) for at, ticket, ref in self._heap if _its(ticket, ref)]
        heapq.heapify(self._heap)
        self._crowded = max(_CROWDED, 2 * len(self._heap))

    def _begin(self, ticket: int, ref: weakref.ref[ScheduledJob]) -> None:
        if (job := _its(ticket, ref)) is None:
            return
        if job.quick:
            self._round(job)
        else:
            self.start(lambda: self._slow_round(job), "lbclient-lookup")

    def start(self, run: Callable[[], None], name: str = "lbclient-question") -> None:
        """Run a function on a daemon thread of its own, or on this thread if no thread can be
        started."""
        if self._lock_type not in (None, threading.Lock):
            # Now `threading` would start a green thread, which this real thread would never run.
            self._warn_of_late_patch()
            run()
            return
        try:
            _daemon(run, name)
        except RuntimeError:  # no more threads can be started: run it on this thread
            run()

    def spawn(self, run: Callable[[], None], name: str) -> None:
        """Run a function of the user, which may block for ever, on a daemon thread of its own.

        Raises RuntimeError if no thread can be started.
        """
        if self._lock_type not in (None, threading.Lock):
            raise RuntimeError(
                "threading was patched (by gevent or eventlet) after lbclient had started its "
                "background thread; call monkey.patch_all() before the first call of a client"
            )
        _daemon(partial(_unblocked, self._blocked, run), name)

    def _slow_round(self, job: ScheduledJob) -> None:
        """Run a round that may call a user's resolver."""
        with unblocked(self._blocked):
            self._round(job)

    def _round(self, job: ScheduledJob) -> None:
        try:
            if job.claim():
                job.run()
        finally:
            if not job.busy:  # a round under way schedules the next one itself
                self.schedule(job)

    def _warn_of_late_patch(self) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "threading was patched (by gevent or eventlet) after lbclient had started its "
                "background thread; lookups and health checks now run one after another. "
                "Call monkey.patch_all() before the first call of a client"
            )

    def after_fork(self) -> None:
        """In a forked child: start again, since the threads do not exist and their locks would
        never be released."""
        vars(self).clear()
        self.__init__()  # type: ignore[misc]  # the child needs the initial state


def _its(ticket: int, ref: weakref.ref[ScheduledJob]) -> ScheduledJob | None:
    """Return the job if it is alive and `ticket` is still valid."""
    job = ref()
    return job if job is not None and job.ticket == ticket else None


def _unblocked(signals: set[signal.Signals], run: Callable[[], None]) -> None:
    with unblocked(signals):
        run()


def _daemon(run: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


THREAD_SCHEDULER = ThreadScheduler()
fork.track(THREAD_SCHEDULER)
