"""What a view of the demo is: the live screen, or plain lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from lbclient.cli.director import Scene
from lbclient.cli.frame import Frame
from lbclient.cli.load import Tally

__all__ = ["Playbill", "View", "summary"]


@dataclass(frozen=True, slots=True)
class Playbill:
    """What is played: the service, the strategy, for how many seconds."""

    service: str
    strategy: str
    seconds: float


class View(Protocol):
    """Shows the demo while it runs, and sums it up."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, /, *_: object) -> None: ...

    def show(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """The state now."""
        ...

    def close(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """The closing summary."""
        ...


def summary(tally: Tally) -> str:
    """What became of the calls, in one line."""
    return f"{tally.calls} calls, {tally.failed} failed, {tally.retries} retries"
