"""Health checks of instances by the protocol grpc.health.v1."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

import grpc

from lbclient._internal import fork
from lbclient._internal.deadline import Expiry
from lbclient.balancer.health_monitor import plain_check
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.endpoint import Endpoint
from lbclient.grpc.subchannels import FORKS_SUPPORTED
from lbclient.grpc.wire import fields, text_field
from lbclient.protocol import Binding, Check, CheckFailed
from lbclient.resilience.health_check import HealthCheck

__all__ = ["Health"]

_CHECK, _WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
_SERVING = 1
_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_LONGEST = 2.0
"""The maximum number of seconds for which a fork waits."""
Open = Callable[[Endpoint], grpc.Channel]
_inherited: list[object] = []
"""The RPCs of the parent of a forked child. The child must not finalize them."""


class _ForkGate:
    """Prevents lbclient's threads from beginning or ending an RPC while this process forks. In the
    child, a lock of gRPC that such a thread holds would never be released, and gRPC would wait for
    this lock within `os.fork()`. A thread that waits for a response holds no lock."""

    _registered = False
    _forking: int | None = None
    """The identifier of the thread that forks, if this thread holds the lock."""

    @fork.Lazy
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def register(self) -> None:
        """From now on, stop lbclient's threads at each fork. gRPC also stops its own threads at a
        fork, and lbclient's threads may wait for them. So lbclient's threads must stop first. For
        this, call this method after gRPC's first channel was created, since gRPC registers itself
        then."""
        if FORKS_SUPPORTED and not self._registered:
            self._registered = True
            os.register_at_fork(
                before=self._before,
                after_in_parent=self._after_in_parent,
                after_in_child=self._after_in_child,
            )

    def _before(self) -> None:
        if self._lock.acquire(timeout=_LONGEST):
            self._forking = threading.get_ident()

    def _after_in_parent(self) -> None:
        if self._forking == threading.get_ident():
            self._forking = None
            self._lock.release()

    def _after_in_child(self) -> None:
        self._forking = None
        vars(self).pop("_lock", None)  # it is created when it is needed


_GATE = _ForkGate()


class _Followed(NamedTuple):
    """A call of `Watch`, and the machine that it follows."""

    machine: tuple[Breaker, frozenset[str]]
    call: Any


class Health:
    """Checks the health of each instance in two ways. In each round, every instance is asked for
    its state (`Check`). In addition, an instance that supports `Watch` reports each change of its
    state at once. Raises ValueError for a check over HTTP.

    Each `Check` opens a connection of its own, since it must also show that connecting works. Only
    `Check` notices a server that hangs. With `Watch`, a server can report at once that it no longer
    serves.
    """

    def __init__(self, policy: HealthCheck, open_channel: Open, binding: Binding) -> None:
        self.check: Check = self._check
        """Checks one instance with `Check`."""
        if (plain := plain_check(policy)) is not None:
            self.check = plain
        elif policy.grpc is None:
            raise ValueError(
                "health must be a check over gRPC, such as HealthCheck(grpc='') or "
                "HealthCheck(grpc='orders.Orders'), HealthCheck(path=None), which connects, or "
                "HealthCheck(check=...)"
            )
        self._request = text_field(1, policy.grpc or "")
        self._open = open_channel
        self._binding = binding
        self._followed: dict[Endpoint, _Followed | None] = {}
        """Maps each instance to its call of `Watch`; to None if there is no such call."""
        fork.track(self)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End all calls of `Watch`."""
        for followed in list(getattr(self, "_followed", {}).values()):
            if followed is not None:
                followed.call.cancel()

    def after_fork(self) -> None:
        """In a forked child: do not touch the RPCs of the parent, and call `Watch` for each
        instance again."""
        _inherited.append(self._followed)
        self._followed = {}

    def _check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        with _GATE:
            channel: Any = self._open(endpoint)
            _GATE.register()
            # This RPC is a future, since a thread with a blocking RPC would be within gRPC all the
            # time (see `_ForkGate`).
            call = channel.unary_unary(_CHECK).future(self._request, timeout=expiry.left())
        try:
            state = _state_of(call.result())
        except grpc.RpcError as error:
            self._unfollow(endpoint)
            raise CheckFailed(f"{error.code().name}: {error.details()}") from None
        finally:
            with _GATE:
                channel.close()
        self._follow(endpoint)
        if state != _SERVING:
            raise CheckFailed(_shown(state))

    def _follow(self, endpoint: Endpoint) -> None:
        for gone in [one for one in list(self._followed) if one.gone]:
            if (followed := self._followed.pop(gone, None)) is not None:
                followed.call.cancel()
        if endpoint.gone:
            return
        machine = _machine(endpoint)  # before the channel gets the addresses
        if (followed := self._followed.setdefault(endpoint, None)) is not None:
            if followed.machine == machine:
                return
            self._unfollow(endpoint)
        with _GATE:
            channel: Any = self._open(endpoint)
            followed = _Followed(machine, channel.unary_stream(_WATCH)(self._request))
            self._followed[endpoint] = followed
        thread = threading.Thread(
            target=_read,
            args=(ref(self), endpoint, channel, followed),
            name="lbclient-health",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads can be started: the next round tries again
            self._unfollow(endpoint)
            with _GATE:
                channel.close()
        if self._binding.closed:
            followed.call.cancel()

    def _unfollow(self, endpoint: Endpoint) -> None:
        """End the call of `Watch`, so that `Watch` is called again once the instance answers. The
        connection of the old call may be lost without an error, and another server may run at the
        address."""
        if (followed := self._followed.get(endpoint)) is not None:
            self._followed[endpoint] = None
            followed.call.cancel()

    def _told(self, endpoint: Endpoint, followed: _Followed, state: int) -> None:
        if followed.machine != _machine(endpoint):
            return
        healthy = state == _SERVING
        self._binding.report_health(
            endpoint,
            healthy=healthy,
            why="" if healthy else _shown(state),
            breaker=followed.machine[0],
        )

    def _ended(self, endpoint: Endpoint, followed: _Followed, *, served: bool) -> None:
        if served and self._followed.get(endpoint) is followed:
            self._followed[endpoint] = None  # the next round calls `Watch` again


def _machine(endpoint: Endpoint) -> tuple[Breaker, frozenset[str]]:
    """Return what identifies the machine at which an instance is now. After an update, the endpoint
    first has a new breaker, and then its new addresses."""
    return endpoint.breaker, frozenset(endpoint.instance.addresses)


def _read(
    health: ref[Health], endpoint: Endpoint, channel: grpc.Channel, followed: _Followed
) -> None:
    """Read the states that one instance reports. This runs on a thread that does not keep the
    `Health` object alive."""
    served = True
    try:
        for response in followed.call:
            if (owner := health()) is not None and not endpoint.gone:
                owner._told(endpoint, followed, _state_of(response))  # noqa: SLF001  # own thread
            owner = None
    except CheckFailed:
        followed.call.cancel()
    except grpc.RpcError as error:
        served = error.code() is not grpc.StatusCode.UNIMPLEMENTED
    finally:
        with _GATE:
            channel.close()
    if (owner := health()) is not None:
        owner._ended(endpoint, followed, served=served)  # noqa: SLF001  # as above


def _shown(state: int) -> str:
    return f"status {_STATES.get(state, state)}"


def _state_of(response: bytes) -> int:
    """Return the state in a health response. If the field is missing, the state has its default
    value."""
    try:
        return next((int(value) for number, value in fields(response) if number == 1), 0)
    except (TypeError, ValueError):
        raise CheckFailed("the response is malformed") from None
