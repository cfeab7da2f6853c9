"""Sockets to one instance, under httpcore's public `network_backend`.

A socket opens to the vetted addresses of the instance only, each tried in turn. Of an instance that
has none the operating system resolves the name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakSet

import anyio

from lbclient import checks
from lbclient.instance import Instance
from lbclient.outcome import more_telling

from .allowance import seconds_now
from .flavour import httpcore
from .goaway import Liveness
from .loop_stream import LoopBackend
from .stream import AsyncStream, Stream, SyncStream

__all__ = ["AsyncDialer", "Dialer"]

Options = Iterable[httpcore.SOCKET_OPTION] | None
_CLOSED = "the client was closed while the connection was made"
_UNREACHED = (httpcore.ConnectError, httpcore.ConnectTimeout)


class _Addresses:
    """Where to dial, whatever host the request's URL may name.

    `shared` where a connection may carry several requests at a time: one of them must not end it.
    """

    def __init__(self, instance: Instance, *, shared: bool) -> None:
        self.shared = shared
        self._hosts = instance.addresses or (instance.host,)
        self.opened: WeakSet[Stream[Any]] = WeakSet()
        """The connections that may be open."""
        self._shut = False
        self.liveness = Liveness()

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        for stream in list(self.opened):
            stream.disown()

    def shut(self) -> None:
        """Wake threads that wait for one of these connections, and open no other."""
        self._shut = True
        for stream in list(self.opened):
            if isinstance(stream, SyncStream):
                stream.shut()


class Dialer(_Addresses, httpcore.NetworkBackend):
    """Opens sockets to one instance, for threads."""

    def __init__(self, instance: Instance, *, shared: bool) -> None:
        super().__init__(instance, shared=shared)
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Options = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers."""
        failure: Exception | None = None
        for address, share in _shares(self._hosts, timeout):
            try:
                inner = self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except _UNREACHED as error:
                failure = more_telling(failure, error)
            else:
                stream = SyncStream(inner, self)
                if self._shut:
                    stream.close()
                    raise httpcore.ConnectError(_CLOSED)
                return stream
        raise failure or httpcore.ConnectError(f"no address for {host}")

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._inner.sleep(seconds)


class AsyncDialer(_Addresses, httpcore.AsyncNetworkBackend):
    """The same for event loops, asyncio's and trio's."""

    def __init__(self, instance: Instance, *, shared: bool, secure: bool) -> None:
        super().__init__(instance, shared=shared)
        plain = not (shared or secure) and _on_asyncio()
        self._inner = LoopBackend() if plain else httpcore.AnyIOBackend()
        # anyio would do that by itself, and race the addresses of a name (RFC 8305).
        self._resolves = plain and not any(map(checks.is_address, self._hosts))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Options = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers."""
        failure: Exception | None = None
        hosts = await _resolved(self._hosts[0], port, timeout) if self._resolves else self._hosts
        for address, share in _shares(hosts, timeout):
            try:
                inner = await self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except _UNREACHED as error:
                failure = more_telling(failure, error)
            else:
                stream = AsyncStream(inner, self)
                if self._shut:
                    await stream.aclose()
                    raise httpcore.ConnectError(_CLOSED)
                return stream
        raise failure or httpcore.ConnectError(f"no address for {host}")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


def _shares(hosts: Sequence[str], timeout: float | None) -> Iterable[tuple[str, float | None]]:
    """Each, with its share of the time."""
    for host in hosts:
        left = seconds_now(timeout)
        yield host, None if left is None else left / len(hosts)


def _on_asyncio() -> bool:
    """False on trio, in asyncio's loop as a guest too."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


async def _resolved(name: str, port: int, timeout: float | None) -> tuple[str, ...]:
    try:
        with anyio.fail_after(seconds_now(timeout)):
            found = await anyio.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(error) from error
    except OSError as error:
        raise httpcore.ConnectError(error) from error
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
