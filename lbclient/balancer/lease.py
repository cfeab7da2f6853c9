"""A pick that is held during a `with` or `async with` block."""

from __future__ import annotations

import sys

from lbclient._internal.signals import Pause
from lbclient.balancer.event_loops import asleep
from lbclient.balancer.threads import sleep
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.engine import SlotOwner
from lbclient.endpoint.instance import Instance

__all__ = ["Lease"]


class Lease:
    """The context manager that `Balancer.acquire` returns. Entering it picks an instance, and
    leaving it records the outcome. Each lease is used once.

    A network error in the block is recorded as a fault of the instance, and is raised to the
    caller.
    """

    __slots__ = ("__weakref__", "_attempt", "_call", "_owner", "_steps")

    def __init__(self, call: Call[None]) -> None:
        self._call = call
        self._steps = iter(call)
        self._attempt: Attempt[None] | None = None
        self._owner: SlotOwner | None = None

    def __enter__(self) -> Instance:
        self._call.__enter__()
        try:
            self._owner = self._call.engine.owned(self, self._call.drop)
            while isinstance(step := next(self._steps), Pause):
                sleep(step)
            return self._begin(step)
        except BaseException:
            self._call.__exit__(*sys.exc_info())
            raise

    async def __aenter__(self) -> Instance:
        self._call.__enter__()
        try:
            self._owner = self._call.engine.owned(self, self._call.drop)
            while isinstance(step := next(self._steps), Pause):
                await asleep(step)
            return self._begin(step)
        except BaseException:
            self._call.__exit__(*sys.exc_info())
            raise

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if self._attempt is not None:
                self._attempt.__exit__(kind, error, traceback)
        except BaseException:
            self._call.__exit__(*sys.exc_info())
            raise
        self._call.__exit__(kind, error, traceback)
        self._call.engine.owners.discard(self._owner)
        self._owner = None

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.__exit__(kind, error, traceback)

    def _begin(self, attempt: Attempt[None]) -> Instance:
        self._attempt = attempt
        attempt.result = None
        attempt.__enter__()
        return attempt.instance
