"""Calls a listener on a thread of its own, isolated from the calls of the balancer.

No call waits for a listener. So a listener may be slow, may raise an exception, and may itself make
calls. Events are delivered in order. If the listener is too slow, events are dropped, and the log
says how many.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from logging import WARNING

from lbclient._internal import fork, validation
from lbclient._internal.failure_log import Complaint, log_now
from lbclient._internal.fork import Lazy
from lbclient._internal.interruption import block_signals, unblocked
from lbclient.telemetry.events import Event

__all__ = ["Listener", "Listening"]

Listener = Callable[[Event], object]
_MOST = 10_000


class Listening:
    """Delivers events to `listener` on a thread. The thread starts with the first event, and ends
    with `stop`, or when this object is garbage collected. A process that ends does not wait for the
    thread.

    Raises TypeError for a listener that is not callable.
    """

    def __init__(self, listener: Listener) -> None:
        validation.function("listener", listener)
        self._listener = listener
        fork.track(self)

    def deliver(self, event: Event) -> None:
        """Queue an event, without waiting."""
        box = self._box
        if box.closed:
            return
        if box.queue.qsize() >= _MOST:
            box.dropped += 1
            return
        box.queue.put(event)
        if not box.started:
            self._start(box)

    def stop(self) -> None:
        """Deliver the events that are already queued, and no more events after them."""
        self._box.close()

    def after_fork(self) -> None:
        """In a forked child: forget the thread and the queue, which are the parent's."""
        closed = self._box.closed
        del self._box
        if closed:
            self._box.close()

    @Lazy
    def _box(self) -> _Box:
        """The queue and its thread. They are created at the first event, since gevent may replace
        the type of the queue before that.
        """
        box = _Box()
        weakref.finalize(self, box.close).atexit = False
        return box

    def _start(self, box: _Box) -> None:
        try:
            threading.Thread(
                target=_listen, args=(box, self._listener), name="lbclient-listener", daemon=True
            ).start()
        except RuntimeError:  # no more threads can be started: the next event tries again
            return
        box.started = True


class _Box:
    """The queue and the thread of a `Listening`. The thread refers only to this object, so the
    `Listening` can be garbage collected."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.started = False
        self.running = threading.Lock()
        """The thread that delivers events holds this lock, since several threads may be started at
        the same time."""
        self.dropped = 0
        self.closed = False

    def close(self) -> None:
        """End the thread after it has delivered the events that are in the queue."""
        if not self.closed:
            self.closed = True
            self.queue.put(None)


def _listen(box: _Box, listener: Listener) -> None:
    if not box.running.acquire(blocking=False):
        return
    blocked = block_signals()
    failing: Complaint | None = None
    slow: Complaint | None = None
    while (event := box.queue.get()) is not None:
        if failing is None or slow is None:
            told = partial(Complaint, log_now, f"{event.service}: the listener")
            failing, slow = told("failed"), told("is too slow; events were dropped", WARNING)
        dropped, box.dropped = box.dropped, 0
        if dropped:
            slow.failed(time.monotonic(), detail=str(dropped), times=dropped)
        elif slow.failing:
            slow.recovered()
        try:
            with unblocked(blocked):
                listener(event)
        except Exception as error:  # noqa: BLE001  # a user's function may raise anything
            failing.failed(time.monotonic(), error, detail=f"at {event!r}")
        else:
            if failing.failing:
                failing.recovered()
