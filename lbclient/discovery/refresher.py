"""The control plane's threads: one daemon scheduler for every service of the process.

The scheduler only waits and starts; each round, which may block in a resolver for seconds, runs on
a daemon thread of its own, so that ten silent names do not delay an eleventh. A service has at most
one round under way. Nothing here holds a client alive, delays the interpreter's exit or starts
before it is needed; after a fork the child begins anew, and its clients register again.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref

from lbclient import forking
from lbclient.discovery.watch import Watch

__all__ = ["REFRESHER", "Refresher"]

_LONGEST_SLEEP = 3600.0


class Refresher:
    """Runs the rounds of many watches, each when it is due."""

    def __init__(self) -> None:
        self.generation = object()
        """Another object in a forked child: whoever registered with the old one registers anew."""
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, weakref.ref[Watch]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def schedule(self, watch: Watch) -> None:
        """Run the next round of `watch` at its `next_at`; replaces what was scheduled before."""
        at = time.monotonic() + min(watch.next_at - watch.clock(), _LONGEST_SLEEP)
        with self._condition:
            watch.turn = next(self._order)
            heapq.heappush(self._heap, (at, watch.turn, weakref.ref(watch)))
            if self._thread is None:
                self._thread = _daemon(self._loop, "lbclient-refresher")
            self._condition.notify()

    def _loop(self) -> None:
        while True:
            turn, ref = self._next()
            if (watch := ref()) is None or watch.turn != turn:
                continue
            if not watch.claim():
                self.schedule(watch)
            else:
                self._begin(watch)
            del watch  # while this thread waits for the next it must hold none of them alive

    def _next(self) -> tuple[int, weakref.ref[Watch]]:
        with self._condition:
            while not self._heap or self._heap[0][0] > time.monotonic():
                wait = self._heap[0][0] - time.monotonic() if self._heap else None
                self._condition.wait(wait)
            _, turn, ref = heapq.heappop(self._heap)
            return turn, ref

    def _begin(self, watch: Watch) -> None:
        try:
            _daemon(lambda: self._round(watch), "lbclient-lookup")
        except RuntimeError:  # no more threads to be had: late is better than never
            self._round(watch)

    def _round(self, watch: Watch) -> None:
        watch.run()
        if watch.next_at < float("inf"):
            self.schedule(watch)

    def after_fork(self) -> None:
        """In a child: the threads are gone, and the locks may be held by nobody."""
        self.__init__()  # type: ignore[misc]  # everything as new is what a child needs


def _daemon(run: object, name: str) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


REFRESHER = Refresher()
forking.track(REFRESHER)
