"""`with` and `async with` for whatever has a `close` that does not block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

__all__ = ["Closing"]


class Closing(ABC):
    """Closed at the end of the block."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is held; more than once does no harm."""

    async def aclose(self) -> None:
        """The same as `close`, which does not block."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
