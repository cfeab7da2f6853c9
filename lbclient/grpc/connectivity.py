"""The connectivity of a channel to many instances."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

import grpc

from lbclient._internal import fork
from lbclient._internal.deadline import Expiry
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.health_monitor import connects
from lbclient.errors import LoadBalancingError
from lbclient.protocol import Binding

__all__ = ["Connectivity"]

_logger = logging.getLogger(__name__)
_INTERVAL = 0.1
_CONNECT = 1.25
"""Seconds for connecting to one instance."""
_UNATTENDED = 1.0
"""Seconds for which a thread still tries to connect after the last request for a connection."""

State = grpc.ChannelConnectivity
Callback = Callable[[grpc.ChannelConnectivity], None]


class Connectivity:
    """The connectivity of a channel. It is READY while an instance is in rotation.
    `grpc.channel_ready_future`, which asks the channel to connect, also waits until an instance
    accepts a connection.

    As in gRPC, a thread looks for changes as long as there are callbacks.
    """

    def __init__(self, balancer: Balancer, binding: Binding) -> None:
        self._balancer = balancer
        self._binding = binding
        self._callbacks: dict[Callback, grpc.ChannelConnectivity | None] = {}
        self._watching = threading.Lock()
        """The thread that looks for changes holds this lock."""
        self._connect = False
        """True if a subscriber has asked for a connection, and no connection has been made yet."""
        self._accepted = False
        """True if an instance has accepted a connection since one was asked for."""
        self._unattended_until = -math.inf
        """Until this time, the thread tries to connect although there is no callback."""
        fork.track(self)

    def state(self) -> grpc.ChannelConnectivity:
        """Return the connectivity now, without connecting."""
        binding = self._binding
        if binding.closed:
            return State.SHUTDOWN
        if self._connecting():
            return State.CONNECTING
        if not len(binding.pool):
            return State.IDLE
        ready = binding.pool.in_rotation(binding.clock())
        return State.READY if ready else State.TRANSIENT_FAILURE

    def connect(self) -> None:
        """Start a thread that connects to an instance. The thread ends once it is connected, or
        soon after the last code that waits for the connection has stopped waiting."""
        if self._binding.closed or (self._accepted and self.state() is State.READY):
            return
        self._accepted = False
        self._unattended_until = time.monotonic() + _UNATTENDED
        self._begin_polling()

    def attend(self) -> None:
        """Let the thread of `connect` go on, since the caller waits for a change."""
        if time.monotonic() < self._unattended_until:
            self._unattended_until = time.monotonic() + _UNATTENDED

    def try_to_connect(self) -> bool:
        """Ask discovery, and connect to an instance. This may block. Returns False if no instance
        accepts a connection."""
        with contextlib.suppress(LoadBalancingError, RuntimeError):
            self._balancer.refresh()
        for endpoint in list(self._binding.pool.endpoints):
            if self._binding.closed:
                break
            with contextlib.suppress(OSError):
                connects(endpoint, Expiry(time.monotonic() + _CONNECT, time.monotonic))
                self._accepted = True
                self._connect, self._unattended_until = False, -math.inf
                return True
        return False

    def subscribe(self, callback: Callback, *, connect: bool) -> None:
        """Call `callback` with the connectivity, now and after each change. As in gRPC, this does
        nothing once the channel is closed."""
        if not self._binding.closed:
            self._callbacks[callback] = None
            self._connect = self._connect or connect
            self._begin_polling()

    def unsubscribe(self, callback: Callback) -> None:
        """Stop calling `callback`."""
        self._callbacks.pop(callback, None)

    def close(self) -> None:
        """Stop calling all callbacks."""
        self._callbacks.clear()

    def after_fork(self) -> None:
        """In a forked child: start a new thread, as gRPC does, since the parent's thread does not
        exist in the child."""
        self._watching = threading.Lock()
        if self._is_watched():
            self._begin_polling()

    def _connecting(self) -> bool:
        asked = self._connect and bool(self._callbacks)
        return asked or time.monotonic() < self._unattended_until

    def _is_watched(self) -> bool:
        return not self._binding.closed and (bool(self._callbacks) or self._connecting())

    def _begin_polling(self) -> None:
        if self._watching.acquire(blocking=False):
            try:
                threading.Thread(
                    target=self._poll, name="lbclient-connectivity", daemon=True
                ).start()
            except BaseException:  # no more threads can be started: the next request tries again
                self._watching.release()
                raise

    def _poll(self) -> None:
        try:
            due = -math.inf
            while self._is_watched():
                state = self.state()
                for callback, known in list(self._callbacks.items()):
                    if known is not state and callback in self._callbacks:
                        self._callbacks[callback] = state
                        try:
                            callback(state)
                        except Exception:
                            _logger.exception("a callback of a channel failed")
                if not self._connecting() or time.monotonic() < due:
                    time.sleep(_INTERVAL)
                elif not self.try_to_connect():
                    due = time.monotonic() + _INTERVAL
        finally:
            self._watching.release()
        if self._is_watched():  # subscribed just before the lock was released
            self._begin_polling()
