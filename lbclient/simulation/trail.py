"""One call as it is seen from outside: what was sent for it, and what came of that."""

from __future__ import annotations

import dataclasses
import math

from lbclient.call import Attempt, Call
from lbclient.endpoint import Endpoint
from lbclient.simulation.reply import Reply

__all__ = ["Trail"]

_SLACK = 1e-6


class Trail:
    """Kept by the simulator, which trusts no count of the call's own.

    `patience` is how many seconds the call waits for a place if it has no deadline.
    """

    __slots__ = ("_held", "_patience", "attempts", "call", "lost", "unsure")

    def __init__(self, call: Call[Reply], patience: float = math.inf) -> None:
        self.call = call
        self._patience = patience
        self.attempts: list[Attempt[Reply]] = []
        """All that were sent, in order; who is `open` counts as in flight."""
        self.unsure = False
        """True once one may have been carried out."""
        self.lost = False
        """True once one waits for what never comes."""
        self._held: list[tuple[Reply, Attempt[Reply]]] = []

    @property
    def tried(self) -> list[Endpoint]:
        """Whom they were sent to."""
        return [one.endpoint for one in self.attempts]

    @property
    def unsent(self) -> bool:
        """True if the call's own last attempt, which was no hedge, was never sent."""
        last = self._own_last()
        return last is not None and isinstance(last.error, ConnectionRefusedError)

    def may_settle_at(self) -> float:
        """When a retry may ask an instance again at the earliest, though one that it has not tried
        is only full: it waits as long as any call waits for a place."""
        last, deadline = self._own_last(), self.call.deadline
        ended = 0.0 if last is None else last.started + last.elapsed
        until = ended + self._patience if deadline is None else (ended + deadline) / 2
        return until - _SLACK

    def comes(self, reply: Reply, left: float) -> None:
        """What an attempt with so many seconds left will come to."""
        self.unsure |= reply.seconds > left or not isinstance(reply.error, ConnectionRefusedError)
        self.lost |= reply.seconds == left == math.inf

    def hold(self, attempt: Attempt[Reply], reply: Reply) -> Reply:
        """Its headers have come, its body has not. Returns a reply that stands for no other."""
        attempt.hold()
        own = dataclasses.replace(reply)
        self._held.append((own, attempt))
        return own

    def holder(self, reply: Reply) -> Attempt[Reply] | None:
        """The attempt whose body is still to be read."""
        return next((attempt for own, attempt in self._held if own is reply), None)

    def close(self, reply: Reply) -> None:
        """Its body is read, or nobody wants it."""
        if (attempt := self.holder(reply)) is not None:
            attempt.finish()

    def _own_last(self) -> Attempt[Reply] | None:
        own = (one for one in reversed(self.attempts) if one.reason != "hedge")
        return next(own, None)

    def close_all(self) -> None:
        """Whatever became of the call, no body stays open."""
        for _, attempt in self._held:
            attempt.finish()
