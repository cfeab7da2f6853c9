"""An entry put into its zone, and taken out again: which records, and on what condition.

To add a record, and to delete exactly one's own, is safe whatever others do at the same time. What
depends on others, the addresses of a target that may be shared, is deleted only while the records
that led to this are still the same (RFC 2136, 2.4.2); else it is looked at once more.
"""

from __future__ import annotations

from collections.abc import Callable

from lbclient.discovery.update import Change, Primary, Record, UpdateError
from lbclient.registration.entry import KINDS, Entry

__all__ = ["Registrar"]

_TRIES = 20
Left = Callable[[], float]


class Registrar:
    """Puts one entry. `zone` None is found by asking; `ttl` is that of the records, in seconds.

    Not for two threads at once.
    """

    def __init__(
        self,
        entry: Entry,
        primary: Primary,
        *,
        zone: str | None,
        ttl: int,
        clock: Callable[[], float],
    ) -> None:
        self.entry = entry
        self._primary = primary
        self._zone = zone
        self._ttl = ttl
        self._clock = clock

    def put(self, seconds: float) -> None:
        """Add the records, in place of what an earlier run left. Raises UpdateError."""
        left = self._patience(seconds)
        owner = self.entry.owner
        if self._zone is None:
            self._zone = self._primary.zone_of(owner, left())
        before = self._primary.records(owner, "SRV", left())
        change = Change(
            clear=[(self.entry.target, kind) for kind in KINDS] if self.entry.sole else (),
            delete=[Record(owner, "SRV", text) for text in before.texts if self._replaces(text)],
            add=[self.entry.record, *self.entry.addresses],
        )
        self._primary.change(self._zone, self._ttl, change, left())

    def remove(self, seconds: float) -> None:
        """Take the record out, then the addresses that no other needs. Raises UpdateError."""
        left = self._patience(seconds)
        self._carry_out(self._without_record, left)
        if self.entry.addresses:
            self._carry_out(self._without_addresses, left)

    def _replaces(self, text: str) -> bool:
        return self.entry.replaces(text)

    def _without_record(self, left: Left) -> Change | None:
        if not self.entry.sole:
            return Change(delete=[self.entry.record])
        held = [self._primary.records(self.entry.target, kind, left()) for kind in KINDS]
        if self.entry.is_taken(*held):
            return None  # a later run has it: what looks like our record is that one's
        return Change(provided=held, delete=[self.entry.record])

    def _without_addresses(self, left: Left) -> Change | None:
        others = self._primary.records(self.entry.owner, "SRV", left())
        if self.entry.is_named_by(others):
            return None
        return Change(provided=[others], delete=self.entry.addresses)

    def _carry_out(self, plan: Callable[[Left], Change | None], left: Left) -> None:
        for _ in range(_TRIES):
            change = plan(left)
            if change is None or self._primary.change(self._zone or "", self._ttl, change, left()):
                return
        raise UpdateError(f"others changed {self.entry.owner} {_TRIES} times meanwhile")

    def _patience(self, seconds: float) -> Left:
        until = self._clock() + seconds

        def left() -> float:
            if (rest := until - self._clock()) <= 0:
                raise UpdateError("there was no time left")
            return rest

        return left
