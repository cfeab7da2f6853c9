"""The queue of calls that wait for a slot. Callers take turns; the calls of one caller are served
in order of arrival."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

from lbclient._internal.signals import Signal

__all__ = ["WaitQueue"]


class WaitQueue:
    """Calls that wait for a slot, in one queue for each caller. Call its methods with the
    balancer's lock held.

    Only the first call looks for a slot. Once it has one, the next call of its caller waits until
    every other caller in the queue has had a turn. So callers are served round-robin, as in fair
    queuing (Nagle, RFC 970). Calls without a caller share one queue, so without `fair_by=` they are
    served in order of arrival.

    A retry whose turn has come may not want any of the free slots, since it waits for an instance
    that its call has not tried. Such a retry waits separately, before all other calls. It keeps its
    turn for the slots that it wants, and the calls behind it take the other slots.

    A caller is the hash of the user's key, so that no code of the user runs under the lock. Every
    operation takes constant time, whatever the number of calls and callers. Only retries that wait
    separately are searched one by one. Records change in lines that call no function. So if a
    signal handler raises an exception, all of these lines have run, or none.
    """

    __slots__ = ("_turns", "retries", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Signal, int | None] = {}
        """Maps the signal of each waiting call to its caller. Almost always empty."""
        self._turns: OrderedDict[int | None, OrderedDict[Signal, None]] = OrderedDict()
        self.retries: dict[Signal, Collection[object]] = {}
        """The retries that wait separately, in the order of their turns. Maps the signal of each
        retry to the endpoints whose slots it does not want."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.retries)

    @property
    def first(self) -> Signal:
        """The call whose turn it is. Use only while a call waits."""
        return next(iter(next(iter(self._turns.values()))))

    @property
    def turns(self) -> Mapping[int | None, Mapping[Signal, None]]:
        """The callers in the order of their turns, each with its waiting calls in order of
        arrival."""
        return self._turns

    def looks(self, signal: Signal) -> bool:
        """True if the call of `signal` may look for a slot: its turn has come, or it is a retry
        that waits separately."""
        return signal in self.retries or (bool(self.waiting) and self.first is signal)

    def leads(self, signal: Signal) -> bool:
        """True for the call whose turn it is, and for the first of the retries that wait
        separately.
        """
        if signal in self.retries:
            return next(iter(self.retries)) is signal
        return bool(self.waiting) and self.first is signal

    def passes(self, signal: Signal | None) -> bool:
        """True if a call may look for a slot now: its turn has come, or it is a retry that waits
        separately. If the call whose turn it is cannot be woken any more, it is removed first. Use
        only while a call waits."""
        if signal in self.retries:
            return True
        first = self.first
        if first is not signal and first.is_set:
            self._wake_first()  # the first call was woken before, but its event loop may have ended
        return not self.waiting or self.first is signal

    def join(self, signal: Signal | None, caller: int | None) -> Signal:
        """Wait behind the other calls of the caller. A call that already waits keeps its place.

        The returned signal is set when the call should look for a slot again.
        """
        signal = signal or Signal()
        signal.rearm()
        if signal in self.retries:
            self.retries[signal] = ()  # the retry wants any slot now
        elif signal not in self.waiting:
            queue = self._turns.get(caller)
            if queue is None:
                queue = OrderedDict()
            self.waiting[signal] = caller
            queue[signal] = None
            self._turns[caller] = queue
        return signal

    def join_retries(
        self, signal: Signal | None, unwanted: Collection[object], free: Iterable[object] = ()
    ) -> Signal:
        """Wait separately for a slot at any endpoint that is not in `unwanted`.

        `free` are the endpoints with a free slot. Other calls may take the slots that this retry no
        longer wants.
        """
        signal = signal or Signal()
        signal.rearm()
        if self.retries.get(signal) is not unwanted:
            self.retries[signal] = unwanted
            if signal in self.waiting:
                self._end_turn(signal)
            self._hand_over(signal, free)
        return signal

    def left_for(self, signal: Signal | None) -> Collection[object] | None:
        """Return the endpoints whose slots the call of `signal` may take, since no retry before it
        waits for them. None means all endpoints."""
        left: set[object] | None = None
        last: Collection[object] = ()
        gone = []
        for retry, unwanted in self.retries.items():
            if retry is signal or (left is not None and not left):
                break
            if retry.is_set and not retry.set():
                gone.append(retry)
            elif left is None:
                left, last = set(unwanted), unwanted
            elif unwanted != last:  # consecutive retries often have tried the same endpoints
                left, last = left.intersection(unwanted), unwanted
        for retry in gone:
            del self.retries[retry]  # its event loop has ended
        return left

    def leave(self, signal: Signal, *, served: bool = False, free: Iterable[object] = ()) -> None:
        """Remove a call that has given up, or was `served`, which ends its caller's turn.

        If the call was the first in the queue, the next call is woken. There may be another free
        slot, or the first call may not have taken the slot for which it was woken. If the call
        waited separately, other calls may take the slots at the `free` endpoints.
        """
        if signal in self.retries:
            self._hand_over(signal, free)
            del self.retries[signal]
        if signal not in self.waiting:
            return
        first = self.first
        if served:
            self._end_turn(signal)
        else:
            self._remove(signal)
        if signal is first:
            self._wake_first()

    def wake(self, freed: object = None) -> None:
        """Wake the call that wants the slot which has become free at `freed`.

        If `freed` is None, something else has changed. Then all retries that wait separately are
        woken, and also the first of the other calls.
        """
        gone = []
        for retry, unwanted in self.retries.items():
            if freed is not None and (retry.is_set or freed in unwanted):
                continue  # the retry will look anyway, or does not want that slot
            if not retry.set():
                gone.append(retry)
            elif freed is not None:
                break
        else:
            self._wake_first()
        for retry in gone:
            del self.retries[retry]  # its event loop has ended

    def clear(self) -> None:
        """In a forked child: forget the calls of the parent."""
        self.retries.clear()
        self.waiting.clear()
        self._turns.clear()

    def _wake_first(self) -> None:
        while self.waiting and not (first := self.first).set():
            self._remove(first)

    def _hand_over(self, retry: Signal, free: Iterable[object]) -> None:
        """Offer each free slot to another call, since a retry no longer wants it.

        One call for each endpoint is woken, not all calls that wait. When that call is served, it
        wakes the next call for the slots that are left. Otherwise, each time a call is served,
        hundreds of calls would look for a slot and find none.
        """
        looks, retry.is_set = retry.is_set, True  # this retry itself must not be woken
        try:
            for endpoint in free:
                self.wake(endpoint)
        finally:
            retry.is_set = looks
        self._wake_first()

    def _end_turn(self, signal: Signal) -> None:
        caller = self.waiting[signal]
        self._remove(signal)
        if caller in self._turns:
            self._turns.move_to_end(caller)

    def _remove(self, signal: Signal) -> None:
        caller = self.waiting[signal]
        queue = self._turns[caller]
        del self.waiting[signal]
        del queue[signal]
        if not queue:
            del self._turns[caller]
