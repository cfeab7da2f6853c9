"""One gRPC channel for each instance: its sub-channel.

gRPC itself opens connections. After a failure it waits before it connects again, longer each time,
and refuses all calls meanwhile. But in lbclient, the breaker decides when an instance is tried
again, and the waits of gRPC would make the breaker's probes fail. So a sub-channel that could not
connect is not used again: the next attempt gets a new sub-channel, which connects at once.

If a sub-channel is replaced, or its instance has left, the sub-channel is not closed. RPCs in
flight keep it alive, and gRPC closes its connection after the last of these RPCs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from weakref import WeakSet

import grpc

from lbclient._internal import fork
from lbclient.endpoint.endpoint import Endpoint
from lbclient.protocol import Binding

__all__ = [
    "FORKS_SUPPORTED",
    "Method",
    "SubChannel",
    "SubChannels",
    "claim_grpc",
    "make_room",
    "opened",
]

_READY = 2
"""The number of the state READY in gRPC's core."""
_MOST = 1000
"""The maximum number of multi-callables that a channel or a sub-channel stores."""
_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
_inherited: list[object] = []
"""The sub-channels of the parent of a forked child. The child must neither use nor finalize
them."""


def _forks_supported() -> bool:
    """Ask grpcio whether forks are supported. It reads the environment variable only once, when it
    is imported."""
    try:
        return bool(import_module("grpc._cython.cygrpc").is_fork_support_enabled())
    except (ImportError, AttributeError):
        return os.environ.get(_FORK_SUPPORT, "").lower() in {"1", "yes", "true"}


FORKS_SUPPORTED: bool = _forks_supported()
"""True if gRPC works in a forked child of a process that has used gRPC on threads."""


class _Process:
    """Records which parts of gRPC this process and its parents have used.

    gRPC's threads do not exist in a forked child, and the parts of gRPC that the child inherits
    wait for these threads. With gRPC's support of forks, gRPC starts again in the child. But gRPC
    for asyncio has no such support, so the child gets an error. It gets this error even if the
    parent has closed its channels, since gRPC's threads end some time later.
    """

    def __init__(self) -> None:
        self._used = self._used_on_loop = self._unusable = self._unusable_on_loop = False
        self._channels: WeakSet[Any] = WeakSet()
        """gRPC's channels. A child must not finalize the channels of its parent: with asyncio, gRPC
        would then wait for a thread that does not exist in the child."""
        fork.track(self)

    def claim(self, *, on_loop: bool) -> None:
        if self._unusable:
            raise RuntimeError(
                "the parent of this forked process has used gRPC, which would block here: set "
                f"{_FORK_SUPPORT}=1 before grpcio is imported, or fork before the first RPC"
            )
        if on_loop and self._unusable_on_loop:
            raise RuntimeError(
                "the parent of this forked process has used gRPC in an event loop, which would "
                "block or crash here: fork before the first RPC, use lbclient.grpc.channel, or "
                "begin the process with the start method 'spawn' of multiprocessing"
            )
        self._used = True
        self._used_on_loop = self._used_on_loop or on_loop

    def opened(self, channel: Any) -> Any:
        self._channels.add(channel)
        return channel

    def after_fork(self) -> None:
        _inherited.extend(self._channels)
        self._channels = WeakSet()
        self._unusable = self._unusable or (self._used and not FORKS_SUPPORTED)
        self._unusable_on_loop = self._unusable_on_loop or self._used_on_loop


_process = _Process()


def claim_grpc(*, on_loop: bool) -> None:
    """Record that gRPC is used, on threads or in an event loop.

    Raises RuntimeError in a forked child in which gRPC would block.
    """
    _process.claim(on_loop=on_loop)


def opened(channel: Any) -> Any:
    """Record a new channel of gRPC, and return it."""
    return _process.opened(channel)


@dataclass(frozen=True, eq=False, slots=True)
class Method:
    """A method of a service, as a stub passes it: its path, its kind (such as `"unary_unary"`), and
    the functions that write and read its messages."""

    path: str
    kind: str
    serializer: Callable[[Any], bytes] | None
    deserializer: Callable[[bytes], Any] | None
    registered: bool


def make_room(stored: dict[Any, Any]) -> None:
    """Empty a store of multi-callables that is full, such as after many stubs with a serializer of
    their own. Those that are still in use are created and stored again."""
    if len(stored) >= _MOST:
        stored.clear()


class SubChannel:
    """The channel to one instance, and its multi-callables."""

    __slots__ = ("_lock", "addresses", "channel", "failed", "methods")

    def __init__(self, channel: Any, addresses: tuple[str, ...], lock: threading.Lock) -> None:
        self.channel: Any = channel
        self.addresses: tuple[str, ...] = addresses
        self.failed: bool = False
        """True if the sub-channel could not connect."""
        self.methods: dict[Method, Any] = {}
        self._lock = lock

    def method(self, method: Method) -> Any:
        """Return the multi-callable of a method."""
        known = self.methods.get(method)
        if known is None:
            with self._lock:  # generated code of gRPC registers methods on one thread
                make_room(self.methods)
                known = self.methods[method] = getattr(self.channel, method.kind)(
                    method.path,
                    method.serializer,
                    method.deserializer,
                    _registered_method=method.registered,
                )
        return known

    def connected(self) -> bool:
        """True if there is a connection now, or if this is not known. This method does not open a
        connection.

        An internal function of gRPC is used, since the public `Channel.subscribe` needs a thread
        for each channel.
        """
        try:
            if isinstance(self.channel, grpc.aio.Channel):
                return self.channel.get_state() is grpc.ChannelConnectivity.READY
            core = getattr(self.channel, "_channel", None)
            check: Callable[[bool], int] | None = getattr(core, "check_connectivity_state", None)
            return check is None or check(False) == _READY  # called as gRPC calls it
        except (ValueError, grpc.aio.UsageError):  # the channel is closed
            return True


class SubChannels:
    """The sub-channels of one channel. Each sub-channel is created when it is first needed."""

    def __init__(self, binding: Binding, open_channel: Callable[[Endpoint], Any]) -> None:
        self._open = open_channel
        self._known: dict[Endpoint, SubChannel] = {}
        self._opened: WeakSet[Any] = WeakSet()
        """gRPC's channels, including those of removed sub-channels that still have RPCs."""
        self._lock = threading.Lock()
        self.closed: bool = False
        binding.pool.listen(self.departed)
        fork.track(self)

    def to(self, endpoint: Endpoint) -> SubChannel:
        """Return the sub-channel to an instance."""
        known = self._known.get(endpoint)
        if (
            known is not None
            and known.addresses is endpoint.instance.addresses
            and not known.failed
        ):
            return known
        return self._new(endpoint)

    def departed(self) -> None:
        """Remove the sub-channels to instances that have left."""
        for endpoint in [one for one in list(self._known) if one.gone]:
            self._known.pop(endpoint, None)

    def take_all(self) -> Sequence[Any]:
        """Remove all channels, and return them to be closed, including those to instances that have
        left. After that, no channel is created."""
        self.closed = True
        with self._lock:
            found, self._known, self._opened = list(self._opened), {}, WeakSet()
        return found

    def after_fork(self) -> None:
        """In a forked child: store the sub-channels of the parent, so that they are neither used
        nor finalized."""
        _inherited.append(self._known)
        self._known, self._opened, self._lock = {}, WeakSet(), threading.Lock()

    def _new(self, endpoint: Endpoint) -> SubChannel:
        with self._lock:
            if self.closed:
                raise ValueError("the channel of this RPC is closed: open a new channel")
            known, addresses = self._known.get(endpoint), endpoint.instance.addresses
            if known is not None and not known.failed and set(known.addresses) == set(addresses):
                known.addresses = addresses
                return known
            made = SubChannel(self._open(endpoint), addresses, threading.Lock())
            self._opened.add(made.channel)
            if not endpoint.gone:  # otherwise the instance has left since it was picked
                self._known[endpoint] = made
            return made
