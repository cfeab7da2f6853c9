"""Traffic: threads that call through a client, and the count of what became of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Self

import httpx

import lbclient

__all__ = ["Load", "Tally"]


@dataclass(frozen=True, slots=True)
class Tally:
    """Calls made, calls `failed` for good, and attempts beyond each call's first."""

    calls: int = 0
    failed: int = 0
    retries: int = 0


class Load:
    """`threads` threads, each calling again as soon as its last call is over, within a `with`."""

    def __init__(self, client: lbclient.Client, threads: int = 12) -> None:
        self.tally = Tally()
        self.last_failure = ""
        """What the last failed call came to."""
        self._client = client
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._count(self._call())

    def _call(self) -> httpx.Response | Exception:
        try:
            return self._client.get("/orders/42")
        except Exception as error:  # noqa: BLE001  # whatever it was, the call has failed
            return error

    def _count(self, outcome: httpx.Response | Exception) -> None:
        failed = isinstance(outcome, Exception) or outcome.is_error
        retries = max(0, len(lbclient.call_info(outcome).attempts) - 1)
        with self._lock:
            old = self.tally
            self.tally = Tally(old.calls + 1, old.failed + failed, old.retries + retries)
            self.last_failure = repr(outcome) if failed else self.last_failure
