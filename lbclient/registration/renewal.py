"""When an entry is put again: a zone that was reloaded has lost it."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from lbclient.discovery import text_of
from lbclient.discovery.pace import Backoff, jittered

__all__ = ["Renewal"]

logger = logging.getLogger(__name__)


class Renewal:
    """Calls `renew` about every `interval` seconds, sooner after it failed; for the refresher.

    It logs what is new: the first of equal failures, and the success after one.
    """

    def __init__(
        self,
        renew: Callable[[], None],
        shown: str,
        interval: float,
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.clock = clock
        self.turn = -1
        """The refresher's ticket for the next round."""
        self.stopped = False
        self.quick = False
        self._renew = renew
        self._shown = shown
        self._interval = interval
        self._rng = rng
        self._round = threading.Lock()
        self._failure = ""
        self._backoff = Backoff(rng)
        self.next_at = clock() + jittered(interval, rng)

    @property
    def busy(self) -> bool:
        """True while a round is under way."""
        return self._round.locked()

    def claim(self) -> bool:
        """Claim the round that is due; False while it is not due, or one is under way."""
        due = not self.stopped and self.clock() >= self.next_at
        return due and self._round.acquire(blocking=False)

    def run(self) -> None:
        """One round, after `claim`. It may block."""
        before = self._failure
        try:
            self._failure = self._try()
            self.next_at = self.clock() + self._pause()
        finally:
            self._round.release()
        if self._failure and self._failure != before:
            logger.warning("%s could not be registered again: %s", self._shown, self._failure)
        elif before and not self._failure:
            logger.info("%s is registered again", self._shown)

    def _try(self) -> str:
        """Why it failed; nothing if it did not."""
        try:
            self._renew()
        except Exception as error:  # noqa: BLE001  # whatever it is, the next round is due all the same
            return text_of(error)
        return ""

    def _pause(self) -> float:
        if self._failure:
            return self._backoff.failed()
        self._backoff.succeeded()
        return jittered(self._interval, self._rng)
