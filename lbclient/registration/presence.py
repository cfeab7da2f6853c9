"""One time in DNS, from entering to leaving."""

from __future__ import annotations

import logging
import threading

from lbclient.discovery.update import UpdateError
from lbclient.registration.errors import RegistrationError
from lbclient.registration.registrar import Registrar

__all__ = ["GRACE", "Presence"]

GRACE = 1.0
"""Seconds beyond its timeout after which a change is taken for stuck."""

logger = logging.getLogger(__name__)


class Presence:
    """Puts the entry and takes it out, one change at a time, each within `timeout` seconds.

    After `leave` nothing puts it again, also not a renewal that had begun before.
    """

    def __init__(self, registrar: Registrar, shown: str, timeout: float) -> None:
        self._registrar = registrar
        self._shown = shown
        self._timeout = timeout
        self._lock = threading.Lock()
        self._wanted = True
        self._present = False

    def enter(self) -> None:
        """Put the entry. Raises RegistrationError."""
        try:
            self.renew()
        except UpdateError as error:
            raise RegistrationError(f"{self._shown} could not be registered: {error}") from error

    def renew(self) -> None:
        """Put it again, unless it was left. Raises UpdateError."""
        with self._lock:
            if not self._wanted:
                return
            before, self._present = self._present, True
            try:
                self._registrar.put(self._timeout)
            except UpdateError as error:
                self._present = before or error.undecided
                raise

    def leave(self) -> None:
        """Take it out; more than once does no harm. A failure is logged."""
        self._wanted = False
        if not self._lock.acquire(timeout=self._timeout + GRACE):
            logger.warning("%s may stay registered: a change before is stuck", self._shown)
            return
        failure: UpdateError | None = None
        try:
            self._remove()
        except UpdateError as error:
            failure = error
        finally:
            self._lock.release()
        if failure is not None:  # told without the lock: a log's handler has one of its own
            logger.warning("%s may stay registered: %s", self._shown, failure)

    def _remove(self) -> None:
        if self._present:
            self._registrar.remove(self._timeout)
            self._present = False
