"""The `trace` extension: calls a caller's function for each step, as httpcore does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._compat import httpx

__all__ = ["Trace"]


class Trace:
    """Calls the trace function for each step. On event loops, the trace function is a coroutine
    function. It is not called when a cancellation ends a step, since a coroutine cannot wait then.
    """

    def __init__(
        self, tell: Callable[[str, Mapping[str, object]], Any], request: object, *, looped: bool
    ) -> None:
        self._tell = tell
        self._request = request
        self._looped = looped
        self._step = ""

    @classmethod
    def of(
        cls, extensions: Mapping[str, Any], request: httpx.Request, *, looped: bool
    ) -> Trace | None:
        """Return the trace for the `trace` extension of the request; None without this
        extension."""
        tell = extensions.get("trace")
        return None if tell is None else cls(tell, request, looped=looped)

    async def begin(self, step: str) -> None:
        """Begin a step."""
        self._step = step
        await self._told(f"{step}.started", {"request": self._request})

    async def within(self, step: str) -> None:
        """Begin a step, unless this step has already begun."""
        if self._step != step:
            await self.begin(step)

    async def end(self) -> None:
        """End the current step, which has succeeded."""
        await self._ended("complete", {"return_value": None})

    async def next(self, step: str) -> None:
        """End the current step, which has succeeded, and begin another."""
        await self.end()
        await self.begin(step)

    async def fail(self, error: BaseException) -> None:
        """End the current step, which has failed."""
        if self._step and (isinstance(error, Exception) or not self._looped):
            await self._ended("failed", {"exception": error})

    async def whole(self, *steps: str) -> None:
        """Begin and end several steps, each of which takes no time."""
        for step in steps:
            await self.begin(step)
            await self.end()

    async def _ended(self, outcome: str, about: Mapping[str, object]) -> None:
        step, self._step = self._step, ""
        await self._told(f"{step}.{outcome}", about)

    async def _told(self, event: str, about: Mapping[str, object]) -> None:
        told = self._tell(event, about)
        if self._looped:
            await told
