"""The `trace` extension: a caller's function that is called for each step, as in httpcore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .._compat import httpx

__all__ = ["AsyncTrace", "Trace"]


class _Steps:
    """The current step of a request, and the events about it for the trace function."""

    def __init__(self, tell: Callable[[str, Mapping[str, object]], Any], request: object) -> None:
        self._tell = tell
        self._request = request
        self._step = ""

    def _started(self, step: str) -> tuple[str, Mapping[str, object]]:
        self._step = step
        return f"{step}.started", {"request": self._request}

    def _ended(self, outcome: str, about: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
        step, self._step = self._step, ""
        return f"{step}.{outcome}", about


class Trace(_Steps):
    """Calls the trace function for each step, on threads."""

    _tell: Callable[[str, Mapping[str, object]], object]

    @classmethod
    def of(cls, extensions: Mapping[str, Any], request: httpx.Request) -> Trace | None:
        """Return the trace that the request asks for, if any."""
        tell = extensions.get("trace")
        return None if tell is None else cls(tell, request)

    def begin(self, step: str) -> None:
        """Begin a step."""
        self._tell(*self._started(step))

    def end(self, result: object = None) -> None:
        """End the current step, which has succeeded."""
        self._tell(*self._ended("complete", {"return_value": result}))

    def next(self, step: str) -> None:
        """End the current step, which has succeeded, and begin another."""
        self.end()
        self.begin(step)

    def fail(self, error: BaseException) -> None:
        """End the current step, which has failed."""
        if self._step:
            self._tell(*self._ended("failed", {"exception": error}))

    def whole(self, *steps: str) -> None:
        """Begin and end steps that take no time."""
        for step in steps:
            self.begin(step)
            self.end()


class AsyncTrace(_Steps):
    """Calls the trace function for each step, on event loops."""

    _tell: Callable[[str, Mapping[str, object]], Awaitable[object]]

    @classmethod
    def of(cls, extensions: Mapping[str, Any], request: httpx.Request) -> AsyncTrace | None:
        """Return the trace that the request asks for, if any."""
        tell = extensions.get("trace")
        return None if tell is None else cls(tell, request)

    async def begin(self, step: str) -> None:
        """Begin a step."""
        await self._tell(*self._started(step))

    async def end(self, result: object = None) -> None:
        """End the current step, which has succeeded."""
        await self._tell(*self._ended("complete", {"return_value": result}))

    async def next(self, step: str) -> None:
        """End the current step, which has succeeded, and begin another."""
        await self.end()
        await self.begin(step)

    async def fail(self, error: BaseException) -> None:
        """End the current step, which has failed."""
        if self._step:
            await self._tell(*self._ended("failed", {"exception": error}))

    async def whole(self, *steps: str) -> None:
        """Begin and end steps that take no time."""
        for step in steps:
            await self.begin(step)
            await self.end()
