"""The queue of calls that wait for a slot: callers take turns, first come, first served in each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from lbclient.waiting import Signal

__all__ = ["Line"]


class Line:
    """Calls that wait, in one queue for each caller. Hold the lock.

    Only the first call looks for a slot. Once it has one, its caller's next call waits until every
    other caller in the line has had a turn: round-robin, as in fair queuing (Nagle, RFC 970). Calls
    without a caller share one queue, so without `fair_by=` the order is that of arrival.

    A caller is the hash of the user's key, so that no code of the user's runs under the lock. Every
    operation takes constant time, whatever the number of calls and callers. Records change in lines
    that call nothing: an exception from a signal handler finds all of them done, or none.
    """

    __slots__ = ("_turns", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Signal, int | None] = {}
        """The caller of each call that waits; empty almost always."""
        self._turns: OrderedDict[int | None, OrderedDict[Signal, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def first(self) -> Signal:
        """The call whose turn it is. Ask only while a call waits."""
        return next(iter(next(iter(self._turns.values()))))

    @property
    def turns(self) -> Mapping[int | None, Mapping[Signal, None]]:
        """The calls of each caller in order of arrival; the callers in the order of their turns."""
        return self._turns

    def passes(self, signal: Signal | None) -> bool:
        """True for the call whose turn it is."""
        first = self.first
        if first is not signal and first.is_set:
            self.wake()  # a call that was woken and has not come may be gone with its event loop
        return not self.waiting or self.first is signal

    def join(self, signal: Signal | None, caller: int | None) -> Signal:
        """Wait behind the caller's other calls, or where the call waits already.

        The signal says when to look again.
        """
        signal = signal or Signal()
        signal.rearm()
        if signal not in self.waiting:
            queue = self._turns.get(caller)
            if queue is None:
                queue = OrderedDict()
            self.waiting[signal] = caller
            queue[signal] = None
            self._turns[caller] = queue
        return signal

    def leave(self, signal: Signal, *, served: bool = False) -> None:
        """The call has given up, or it was `served` and its caller's turn is over.

        Where it was the first, the next is woken: there may be room for that one too, or it was
        woken for a slot that it did not take.
        """
        if signal not in self.waiting:
            return
        first, caller = self.first, self.waiting[signal]
        self._remove(signal)
        if served and caller in self._turns:
            self._turns.move_to_end(caller)
        if signal is first:
            self.wake()

    def wake(self) -> None:
        """Something has changed: let the first call look again that is still there."""
        while self.waiting and not (first := self.first).set():
            self._remove(first)

    def clear(self) -> None:
        """In a forked child: the calls that waited were the parent's."""
        self.waiting.clear()
        self._turns.clear()

    def _remove(self, signal: Signal) -> None:
        caller = self.waiting[signal]
        queue = self._turns[caller]
        del self.waiting[signal]
        del queue[signal]
        if not queue:
            del self._turns[caller]
