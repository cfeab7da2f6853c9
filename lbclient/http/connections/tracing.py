"""The `trace` extension: a function of the caller's that is told each step, in httpcore's words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .._compat import httpx

__all__ = ["AsyncTrace", "Trace"]


class _Steps:
    """The step under way, and what is told of it."""

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
    """For threads."""

    _tell: Callable[[str, Mapping[str, object]], object]

    @classmethod
    def of(cls, extensions: Mapping[str, Any], request: httpx.Request) -> Trace | None:
        """The one that the request asks for."""
        tell = extensions.get("trace")
        return None if tell is None else cls(tell, request)

    def begin(self, step: str) -> None:
        """A step begins."""
        self._tell(*self._started(step))

    def end(self, result: object = None) -> None:
        """The step under way has ended well."""
        self._tell(*self._ended("complete", {"return_value": result}))

    def next(self, step: str) -> None:
        """The step under way has ended well, and another begins."""
        self.end()
        self.begin(step)

    def fail(self, error: BaseException) -> None:
        """The step under way has failed."""
        if self._step:
            self._tell(*self._ended("failed", {"exception": error}))

    def whole(self, *steps: str) -> None:
        """Steps that take no time."""
        for step in steps:
            self.begin(step)
            self.end()


class AsyncTrace(_Steps):
    """For event loops."""

    _tell: Callable[[str, Mapping[str, object]], Awaitable[object]]

    @classmethod
    def of(cls, extensions: Mapping[str, Any], request: httpx.Request) -> AsyncTrace | None:
        """The one that the request asks for."""
        tell = extensions.get("trace")
        return None if tell is None else cls(tell, request)

    async def begin(self, step: str) -> None:
        """A step begins."""
        await self._tell(*self._started(step))

    async def end(self, result: object = None) -> None:
        """The step under way has ended well."""
        await self._tell(*self._ended("complete", {"return_value": result}))

    async def next(self, step: str) -> None:
        """The step under way has ended well, and another begins."""
        await self.end()
        await self.begin(step)

    async def fail(self, error: BaseException) -> None:
        """The step under way has failed."""
        if self._step:
            await self._tell(*self._ended("failed", {"exception": error}))

    async def whole(self, *steps: str) -> None:
        """Steps that take no time."""
        for step in steps:
            await self.begin(step)
            await self.end()
