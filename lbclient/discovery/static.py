"""A static list as a resolver."""

from __future__ import annotations

from collections.abc import Iterable

from lbclient.instance import Answer, Instance

__all__ = ["StaticResolver"]


class StaticResolver:
    """The caller's own word: always the same instances, never asked again."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._answer = Answer(instances)

    def resolve(self) -> Answer:
        """The list."""
        return self._answer
