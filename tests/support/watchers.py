"""Watchers that do what a test says."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from lbclient import Answer, Instance
from lbclient.discovery.watched import BackgroundWatcher

LIMIT = 20
"""Seconds that nothing takes if all is well, even on a busy machine."""


def several(*ports: int) -> Answer:
    """An answer with an instance at each of these ports."""
    return Answer([Instance("127.0.0.1", port) for port in ports])


def until(true: Callable[[], object]) -> None:
    """Wait for a state that no signal tells."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Registry:
    """A watcher on a thread. Each watch sends `answer` first, or raises it if it is an exception,
    unless it is None."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.started_at: list[float] = []
        self.entered = threading.Semaphore(0)
        """Released when a watch has begun, and has sent its first answer."""
        self.closed = threading.Event()
        self.left = threading.Semaphore(0)
        """Released when a watch has returned."""
        self.update: Callable[[object], None] = lambda _: None
        self.alive: Callable[[], None] = lambda: None
        self._failures: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def watch(self, update, alive) -> None:
        self.update, self.alive = update, alive
        self.started_at.append(time.monotonic())
        try:
            if isinstance(self.answer, BaseException):
                raise self.answer
            if self.answer is not None:
                update(self.answer)
            self.entered.release()
            if (failure := self._failures.get()) is not None:
                raise failure
        finally:
            self.left.release()

    def close(self) -> None:
        self.closed.set()
        self._failures.put(None)

    def wait(self) -> None:
        """Wait until a watch has begun."""
        assert self.entered.acquire(timeout=LIMIT)

    def end(self, error: BaseException | None) -> None:
        """End the watch with an exception; without one, it returns."""
        self._failures.put(error)


class Scripted(BackgroundWatcher):
    """A watcher without threads. Each start calls `script` with the functions of that watch."""

    def __init__(self, script: Callable[..., None], name: str = "orders.test") -> None:
        self.name = name
        self.script = script
        self.stopped = 0
        self.watches: list[tuple] = []

    def start(self, update, alive, ended):
        self.watches.append((update, alive, ended))
        self.script(update, alive, ended)
        return self._stop

    def _stop(self) -> None:
        self.stopped += 1
