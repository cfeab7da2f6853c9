"""What is written down while a run goes on."""

from __future__ import annotations

import hashlib

from lbclient.simulation.report import Outcome

__all__ = ["Journal"]


class Journal:
    """Of one run: every attempt and every outcome, in order, and a hash of them."""

    def __init__(self) -> None:
        self.waiting = 0
        """Requests that are under way."""
        self.outcomes: list[Outcome] = []
        self.sent: list[tuple[float, str]] = []
        self._trace = hashlib.blake2b(digest_size=16)

    @property
    def trace(self) -> str:
        """The same for the same decisions, on every machine."""
        return self._trace.hexdigest()

    def began(self) -> None:
        """A request arrives."""
        self.waiting += 1

    def sending(self, now: float, client: int, server: str, reason: str) -> None:
        """An attempt goes out."""
        self.sent.append((now, server))
        self._trace.update(repr((now, client, server, reason)).encode())

    def ended(self, outcome: Outcome) -> None:
        """A request is over."""
        self.waiting -= 1
        self.outcomes.append(outcome)
        self._trace.update(repr((outcome.client, *outcome[:-1])).encode())
