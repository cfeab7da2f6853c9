"""The wait of a call for an instance: for a slot, or for the first answer of discovery."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from lbclient._internal.signals import Pause, Signal
from lbclient.core.attempt import Attempt, CallState
from lbclient.core.picker import Pick
from lbclient.errors import (
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
)

__all__ = ["Wait"]

_FIRST_ANSWER = 10.0
_CROWD = 16


class Wait:
    """One wait of one call. It takes at most `patience` seconds. If the call has a deadline, the
    wait ends when too little time is left for an answer.

    Without this limit, only calls whose deadline is near would be sent in an overload: the queue
    would be as long as the deadline allows, and all calls would time out before they are answered.
    """

    __slots__ = ("_call", "_last", "_patience")

    def __init__(self, call: CallState[Any], patience: float, last: Attempt[Any] | None) -> None:
        self._call = call
        self._patience = patience
        self._last = last

    def steps(
        self, got: Pick | Signal | None, holding: Pick | None
    ) -> Generator[Pause, None, Pick | None]:
        """Yield pauses, and return a pick. Returns None if there is no instance for a retry; then
        the last outcome is final.

        Before the wait, the slot of an answer that is to be retried is given back. Otherwise calls
        that hold slots could wait for each other for ever. If a retry has waited for an instance
        that it has not tried, and got no slot, it takes an instance that it has tried and that has
        room.
        """
        call, last = self._call, self._last
        until: float | None = None
        while isinstance(got, Signal):
            if last is not None and last.open:
                last.release_slot()
                holding = None
            until = self._until() if until is None else until
            if call.now >= until:
                if last is None:
                    raise self._tired()
                return None if call.overdue() else self._pick_tried(holding)
            yield Pause(min(until - call.now, self._look_again(got)), got)
            if call.over or (last is not None and call.engine.membership.ended):
                return None
            if call.unwanted():
                if last is None:
                    raise self._tired()
                return None
            got = call.engine.admit(call, holding)
        if got is None and last is None:
            raise call.engine.refusal()
        return got

    def _pick_tried(self, holding: Pick | None) -> Pick | None:
        call = self._call
        call.accepts_tried = True
        got = call.engine.admit(call, holding)
        call.accepts_tried = False
        return got if isinstance(got, Pick) else None

    def _look_again(self, signal: Signal) -> float:
        """Seconds until the call looks for a slot again without being woken.

        In a long queue, only the first call has to look often.
        """
        engine, now = self._call.engine, self._call.now
        crowd = max(1.0, len(engine.queue) / _CROWD)
        with engine.lock:
            looks, leads = engine.queue.looks(signal), engine.queue.leads(signal)
        again = engine.look_again if leads else engine.look_again * crowd
        return min(again, engine.changes_at(now) - now) if looks else again

    def _until(self) -> float:
        call = self._call
        if not call.engine.subscription.known:
            until = call.now + _FIRST_ANSWER
            return until if call.deadline is None else min(until, call.deadline)
        if call.deadline is None:
            return call.now + self._patience
        half = (call.deadline - call.now) / 2
        if (takes := call.engine.answer_time) is None:
            # after the wait, a retry needs some time to use an instance that it has tried
            return call.deadline if self._last is None else call.deadline - half
        return call.deadline - min(takes, half)

    def _tired(self) -> LoadBalancingError:
        call = self._call
        service, waited = call.engine.service, f"after {call.now - call.since:.2f} s"
        reason = f"every instance of {service} is still at its limit of attempts in flight"
        if not (known := call.engine.subscription.known):
            reason = f"no instance of {service} is known: discovery has not answered"
        if call.deadline is not None and (known or call.overdue() or call.unwanted()):
            left = max(0.0, call.deadline - call.now)
            over = "is over" if call.overdue() else f"leaves {left:.2g} s, too little for an answer"
            over = "was ended" if call.unwanted() else over
            return DeadlineExceeded(f"{waited} the deadline {over}; no attempt was made: {reason}")
        kind = NoInstanceAvailable if known else DiscoveryError
        return kind(f"{reason} {waited}")
