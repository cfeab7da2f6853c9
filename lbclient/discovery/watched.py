"""Turns a watcher into a resolver: runs the watch, stores the last answer, and starts a failed
watch again.

A watch ends when it fails. The next watch begins after a wait of 1 to 30 s, or within 5 s if a call
needs an answer. It begins at least one second after the previous watch began. The wait is short
again after a watch that went on for 30 s after its first answer. Meanwhile the last good set of
instances stays in use, as while lookups fail.

The subscription runs a round whenever the watch has an outcome (an answer or a failure). So an
update takes effect at once. It is applied, reported and logged like the answer of a lookup.

A watch runs in the background. It does not keep its balancer alive, and `close` does not wait for
it. Updates from an old watch are ignored.
"""

from __future__ import annotations

import contextlib
import math
import queue
import random
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from types import TracebackType
from typing import TypeAlias

from lbclient._internal import fork
from lbclient._internal.fork import Lazy
from lbclient.discovery.pushed.addresses import AddressChecker
from lbclient.discovery.resolver import Watcher
from lbclient.discovery.scheduler import THREAD_SCHEDULER, Backoff, Scheduler
from lbclient.endpoint.instance import Answer
from lbclient.errors import DiscoveryError

__all__ = ["Alive", "BackgroundWatcher", "Ended", "ThreadWatcher", "Update", "WatchedResolver"]

Update: TypeAlias = Callable[[Answer], None]
Alive: TypeAlias = Callable[[], None]
Ended: TypeAlias = Callable[[BaseException | None], None]

_FIRST_ANSWER = 5.0
"""Seconds within which a watch should send its first answer. Calls wait for this answer, but not
longer."""
_APART = 1.0
"""The minimum number of seconds from the start of a watch to the start of the next watch."""

_LASTING = 30.0
"""Seconds from the first answer of a watch to its end, after which the watch counts as a success.
If each watch answers and then fails at once, the wait between watches grows."""


class BackgroundWatcher(ABC):
    """A watcher that runs in the background by itself. It may run several watches at the same time,
    one for each balancer.
    """

    name: str
    """The name of the service, for logs and errors."""

    @property
    def kind(self) -> str:
        """The name of the watcher's class."""
        return type(self).__name__

    @abstractmethod
    def start(self, update: Update, alive: Alive, ended: Ended) -> Callable[[], None]:
        """Start a watch, without blocking. `update` and `alive` are those of `Watcher.watch`.

        When the watch has ended, it calls `ended` once, with the exception that ended it, or with
        None. Returns a function that stops the watch. A finalizer may call that function, so it
        must not block or take a lock.
        """

    def release(self) -> None:  # noqa: B027  # most watchers belong to nobody
        """Called when the balancer was closed, even if no watch is running."""


class ThreadWatcher(BackgroundWatcher):
    """Runs a user's watcher, whose `watch` blocks, on a daemon thread of its own. The watcher
    belongs to one balancer, and is closed with this balancer.

    Raises TypeError if `watch` does not block, since it is a coroutine function.
    """

    def __init__(self, watcher: Watcher) -> None:
        if iscoroutinefunction(watcher.watch):
            kind = type(watcher).__name__
            raise TypeError(f"service must not have a coroutine function watch() ({kind})")
        self.name: str = type(watcher).__name__
        self._watcher = watcher
        self._close = _Close(watcher)

    @property
    def kind(self) -> str:
        """The name of the class of the user's watcher."""
        return type(self._watcher).__name__

    def start(self, update: Update, alive: Alive, ended: Ended) -> Callable[[], None]:
        """Start the thread. Raises RuntimeError if no thread can be started."""
        run = partial(_run, self._watcher, self._close, update, alive, ended)
        THREAD_SCHEDULER.spawn(run, "lbclient-watch")
        return self._close.begin

    def release(self) -> None:
        """Close the watcher, on another thread."""
        self._close.begin()


def _run(watcher: Watcher, closing: _Close, update: Update, alive: Alive, ended: Ended) -> None:
    error: BaseException | None = None
    try:
        if not closing.begun:
            watcher.watch(update, alive)
    except BaseException as failure:  # noqa: BLE001  # a user's watcher may raise anything, on our thread
        error = failure
    ended(error)


class _Close:
    """A job that calls `close` of a user's watcher once, on a thread, since `close` may block."""

    busy: bool = False
    quick: bool = False
    _pending: set[_Close] = set()  # noqa: RUF012  # shared: the scheduler does not keep jobs alive

    def __init__(self, watcher: Watcher) -> None:
        self.ticket = -1
        self.next_at: float = math.inf
        self.begun = False
        self._watcher = watcher

    @property
    def stopped(self) -> bool:
        """True if no round follows."""
        return self.next_at == math.inf

    def clock(self) -> float:
        """Return 0, since the round is due at once."""
        return 0.0

    def begin(self) -> None:
        """Schedule the round. A finalizer may call this method."""
        if not self.begun:
            self.begun, self.next_at = True, 0.0
            self._pending.add(self)
            THREAD_SCHEDULER.schedule(self)

    def claim(self) -> bool:
        """Claim the round."""
        due, self.next_at = not self.stopped, math.inf
        return due

    def run(self) -> None:
        """Close the watcher. Errors are not reported, since the watcher is no longer used."""
        self._pending.discard(self)
        with contextlib.suppress(Exception):
            self._watcher.close()


class WatchedResolver:
    """A resolver that runs a watcher and returns its last answer. It belongs to one balancer.

    This object is also a job of the scheduler: a round starts the watch, or ends the wait for its
    first answer. The first round is due after `start`.
    """

    busy: bool = False
    quick: bool = True

    def __init__(
        self,
        watcher: BackgroundWatcher,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        scheduler: Scheduler,
    ) -> None:
        self.name: str = watcher.name
        self.kind: str = watcher.kind
        self.clock = clock
        self.ticket = -1
        self.next_at: float = math.inf
        self.heard_at: float = -math.inf
        """The time at which the watch last confirmed an answer with an instance that may be
        called."""
        self.notify: Callable[[], None] | None = None
        """Called, on any thread, when there is a new outcome."""
        self.checker: AddressChecker | None = None
        """Checks the addresses of each answer, in `resolve`. None for a user's own watcher, whose
        answers are trusted."""
        self._watcher = watcher
        self._scheduler = scheduler
        self._backoff = Backoff(rng)
        self._outcome: Answer | Exception | None = None
        self._confirmed_at = -math.inf
        """The time at which the watch last sent or confirmed an answer with an instance, which may
        be one that is refused."""
        self._good: Answer | None = None
        """The last answer with an instance that may be called."""
        self._traceback: TracebackType | None = None
        self._life: _Life | None = None
        self._answered = False
        """True once the current watch has an outcome, or has taken too long for its first
        answer."""
        self._closed = False
        self._started_at = -math.inf
        self._answered_at = math.inf
        """The time of the first answer of the current watch."""
        self._failed_at = -math.inf
        self._waiting: queue.SimpleQueue[None] | None = None
        fork.track(self)

    def __repr__(self) -> str:
        return f"<WatchedResolver of {self.name}>"

    @Lazy
    def _lock(self) -> threading.RLock:
        # The lock is re-entrant, since a finalizer or a signal handler of the user may call
        # `update`.
        return threading.RLock()

    @property
    def stopped(self) -> bool:
        """True if no round is planned."""
        return self.next_at == math.inf

    @property
    def pending(self) -> bool:
        """True while calls should wait for an outcome. This is so until the first answer of a watch
        that has begun, or that will begin at the first call."""
        return not self._answered

    @property
    def complete(self) -> bool:
        """False if further instances of the last answer may soon be usable, since a lookup of names
        is under way."""
        return self.checker is None or not self.checker.under_way

    @property
    def failed(self) -> bool:
        """True if the last outcome is no answer that can be used, or was not checked yet."""
        return self._outcome is None or self._outcome is not self._good

    def claim(self) -> bool:
        """Return True if the round is due. Only one thread runs rounds."""
        return self.clock() >= self.next_at

    def run(self) -> None:
        """Start the watch. If the watch is already running, end the wait for its first answer."""
        with self._lock:
            if self._closed or not self.claim():  # something has happened meanwhile
                return
            if self._life is not None:
                self._give_up_waiting()
                life = None
            else:
                life = self._life = _Life(self)
                self._answered = False
                self._started_at, self._answered_at = self.clock(), math.inf
                self.next_at = self._started_at + _FIRST_ANSWER
        if life is None:
            self.tell()
        else:
            life.start(self._watcher)

    def start(self) -> None:
        """Start the watch soon, unless it is running, or is already planned after a failure."""
        with self._lock:
            if self._closed or self._life is not None or not self.stopped:
                return
            self.next_at = self.clock()
        self._scheduler.schedule(self)

    def demand(self) -> None:
        """Start the watch again within 5 s of its last failure, because a call needs an answer."""
        self._expedite(self._failed_at + self._backoff.demanded)

    def expedite(self) -> bool:
        """Start the watch as soon as possible, unless it is running. Returns True if its first
        answer is expected soon."""
        self._expedite(self.clock())
        return not self._answered or self._life is None

    def resolve(self) -> Answer:
        """Return the last answer. Waits up to 5 s for the first outcome.

        Raises the exception by which the watch has ended.
        """
        if self._outcome is None:
            self.start()
            self._wait_for_outcome()
        with self._lock:
            outcome, confirmed_at = self._outcome, self._confirmed_at
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(self._traceback)
        if outcome is None:
            raise DiscoveryError(f"{self.name} has not answered within {_FIRST_ANSWER:g} s")
        if self.checker is None:
            return outcome
        answer = self.checker.check(outcome)
        with self._lock:
            if answer.instances:
                self._good = outcome
                # If the next answer has come meanwhile, this one was right until then
                self.heard_at = max(self.heard_at, confirmed_at)
                self._hear()
            elif self._good is outcome:
                self._good = None
        return answer

    def close(self) -> None:
        """Stop the watch for ever, without waiting for it."""
        with self._lock:
            self._closed, self.next_at = True, math.inf
            life, self._life = self._life, None
        if life is not None:
            life.stop()
        self._watcher.release()

    def after_fork(self) -> None:
        """In a forked child: forget the watch, which is the parent's. The first call starts
        another."""
        vars(self).pop("_lock", None)
        if self._life is not None:
            self._life.abandon()
        self._life = self._waiting = None
        self._answered = False
        self.next_at = math.inf
        self._started_at = -math.inf

    def take(self, life: _Life, outcome: Answer | Exception) -> None:
        """Store what a watch has sent: an answer, or the reason why an answer cannot be used."""
        with self._lock:
            if life is not self._life:
                return
            self._note(outcome)
            self.next_at = math.inf
            if isinstance(outcome, Answer):
                self._answered_at = min(self._answered_at, self.clock())
        self.tell()

    def confirm(self, life: _Life) -> None:
        """Record that the answer in use is still right, since the watch has called `alive`."""
        with self._lock:
            outcome = self._outcome if self._answered and life is self._life else None
            if isinstance(outcome, Answer) and outcome.instances:
                self._confirmed_at = self.clock()
                self._hear()

    def end(self, life: _Life, error: Exception) -> None:
        """Record that a watch has ended, and plan the next watch."""
        with self._lock:
            if life is not self._life:
                return
            self._life = None
            self._note(error)
            self._failed_at = self.clock()
            if self._failed_at - self._answered_at >= _LASTING:
                self._backoff.succeeded()
            wait = self._backoff.failed()
            self.next_at = max(self._failed_at + wait, self._started_at + _APART)
        self._scheduler.schedule(self)
        self.tell()

    def _give_up_waiting(self) -> None:
        self.next_at = math.inf
        if isinstance(self._outcome, Exception):
            self._answered = True  # the error of the last watch says more
        else:
            late = f"{self.name} has not answered within {_FIRST_ANSWER:g} s"
            self._note(DiscoveryError(late))

    def _note(self, outcome: Answer | Exception) -> None:
        self._answered = True
        self._outcome = outcome
        if isinstance(outcome, Exception):
            self._traceback = outcome.__traceback__
        elif outcome.instances:  # an empty answer is a failure, and the last good set stays in use
            self._confirmed_at = self.clock()
            if self.checker is None:
                self._good = outcome
            self._hear()

    def _hear(self) -> None:
        if not self.failed:
            self.heard_at = self._confirmed_at

    def tell(self) -> None:
        """Wake the round that waits for an outcome, and make another round due."""
        if (waiting := self._waiting) is not None:
            waiting.put(None)
        if self.notify is not None:
            self.notify()

    def _expedite(self, at: float) -> None:
        with self._lock:
            at = max(at, self._started_at + _APART)
            if self._closed or self._life is not None or at >= self.next_at:
                return
            self.next_at = at
        self._scheduler.schedule(self)

    def _wait_for_outcome(self) -> None:
        waiting: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting = waiting
        if self._outcome is None and not self._closed:
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=_FIRST_ANSWER)
        self._waiting = None


class _Life:
    """One watch, from its start to its end. It does not keep the resolver alive. If the resolver is
    garbage collected, the watch is stopped.
    """

    def __init__(self, resolver: WatchedResolver) -> None:
        self._resolver = weakref.ref(resolver, self._orphaned)
        self._name = resolver.name
        self._stop: Callable[[], None] | None = None
        self._stopped = False

    def start(self, watcher: BackgroundWatcher) -> None:
        """Start the watch."""
        try:
            self._stop = watcher.start(self.update, self.alive, self.ended)
        except Exception as error:  # noqa: BLE001  # no more threads, for example
            self.ended(error)
            return
        if self._stopped:  # meanwhile
            self._stop()

    def stop(self) -> None:
        """Stop the watch, which may already have ended."""
        self._stopped = True
        if (stop := self._stop) is not None:
            stop()

    def abandon(self) -> None:
        """In a forked child: forget the watch, which belongs to the parent."""
        self._stop = None

    def update(self, answer: Answer) -> None:
        """Called by the watch, on any thread, with an answer."""
        if (resolver := self._resolver()) is None:
            return
        if isinstance(answer, Answer):
            resolver.take(self, answer)
            return
        kind = type(answer).__name__  # type: ignore[unreachable]  # callers may be untyped
        resolver.take(
            self,
            DiscoveryError(
                f"update() of {self._name} must be called with an lbclient.Answer, not {kind}"
            ),
        )

    def alive(self) -> None:
        """Called by the watch, on any thread, if nothing has changed."""
        if (resolver := self._resolver()) is not None:
            resolver.confirm(self)

    def ended(self, error: BaseException | None) -> None:
        """Called by the watch when it has ended."""
        if (resolver := self._resolver()) is None:
            return
        if error is None:
            error = DiscoveryError(f"watch() of {self._name} returned")
        elif not isinstance(error, Exception):
            failure = DiscoveryError(f"watch() was ended by {type(error).__name__}")
            failure.__cause__ = error
            error = failure
        resolver.end(self, error)

    def _orphaned(self, _: object) -> None:
        self.stop()
