"""Who makes the checks of one round: threads side by side, or, in virtual time, one by one."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextvars import Context
from typing import Protocol, TypeVar

from lbclient import deadline
from lbclient.deadline import Expiry
from lbclient.health.plain import CheckFailed

__all__ = ["Crew", "Threads", "in_turn", "outcome"]

_AT_ONCE = 32

S = TypeVar("S")
Results = Generator[tuple[S, Exception | None], None, None]


class Crew(Protocol):
    """Checks subjects, and yields each with what speaks against it as soon as that is known."""

    def __call__(
        self, check: Callable[[S, Expiry], None], subjects: Iterable[S], seconds: float
    ) -> Results[S]:
        """`seconds` are for each check. A subject that could not be checked is left out."""
        ...


def in_turn(
    check: Callable[[S, Expiry], None], subjects: Iterable[S], seconds: float
) -> Results[S]:
    """One after another on the calling thread: for virtual time, where a check takes none."""
    for subject in subjects:
        yield subject, outcome(check, subject, Expiry(seconds, _still))


class Threads:
    """Some at a time, each on a daemon thread of its own, so that silent ones delay nobody.

    A check that outlives its time has failed. Its thread cannot be ended, and is waited for by
    nobody; until it ends, its subject has no other and fails at once.
    """

    def __init__(self) -> None:
        self._threads: dict[object, threading.Thread] = {}

    def __call__(
        self, check: Callable[[S, Expiry], None], subjects: Iterable[S], seconds: float
    ) -> Results[S]:
        """Yields by the order in which they end."""
        self._threads = {one: its for one, its in self._threads.items() if its.is_alive()}
        stuck = set(self._threads)
        done: queue.SimpleQueue[tuple[S, Exception | None]] = queue.SimpleQueue()
        waiting, under_way = deque(subjects), dict[S, Expiry]()
        while waiting or under_way:
            if not waiting or len(under_way) == _AT_ONCE:
                yield _next(done, under_way, seconds)
            elif (subject := waiting.popleft()) in stuck:
                yield subject, CheckFailed("the check before has still not ended")
            else:
                expiry = Expiry(time.monotonic() + seconds, time.monotonic)
                try:
                    self._begin(check, subject, expiry, done)
                except RuntimeError:  # no more threads to be had: the next round may have some
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

        # In a context of its own: a thread may inherit one, with the span of some call in it.
        thread = threading.Thread(
            target=Context().run, args=(work,), name="lbclient-check", daemon=True
        )
        thread.start()
        self._threads[subject] = thread


def _next(
    done: queue.SimpleQueue[tuple[S, Exception | None]], under_way: dict[S, Expiry], seconds: float
) -> tuple[S, Exception | None]:
    """The next that ends, or whose time does: the first that began."""
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
    """What speaks against it. A caller's check may raise anything, on our thread."""
    token = deadline.enter(expiry)
    try:
        check(subject, expiry)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a failed check
        return error
    except BaseException as error:  # noqa: BLE001  # as above: it must not end the control plane
        return CheckFailed(f"check was ended by {type(error).__name__}")
    finally:
        deadline.leave(token)
    return None


def _still() -> float:
    return 0.0
