"""Sockets to one instance, under httpcore's public `network_backend`.

Two things are ours. A socket opens to the vetted addresses of the instance only, each tried in
turn. And every single read and write is bounded by what is left of the attempt (see `allowance`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import anyio
import httpcore

from lbclient.deadline import Expiry
from lbclient.http.allowance import Allowance, seconds_now
from lbclient.http.goaway import Ear, Liveness
from lbclient.instance import Instance

__all__ = ["AsyncDialer", "Dialer", "Stream"]

N = TypeVar("N", httpcore.NetworkStream, httpcore.AsyncNetworkStream)
Options = Iterable[httpcore.SOCKET_OPTION] | None
_UNREACHED = (httpcore.ConnectError, httpcore.ConnectTimeout)
_UNHEARD = (httpcore.ReadError, httpcore.ReadTimeout)


class Stream(ABC, Generic[N]):
    """One connection: what it has brought so far, and when reading must end."""

    def __init__(self, inner: N, home: _Addresses) -> None:
        home.opened.add(self)
        self.inner: N = inner
        self.home: _Addresses = home
        self.ear = Ear(home.liveness)
        self.peer = _peer(inner)
        """The IP address at the other end."""
        self.hurry: Expiry | None = None
        """While set, reads end with it: what is drained must not cost a whole timeout."""

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of it."""
        if info == "is_readable" and self.ear.stale:
            return True  # to httpcore an idle connection that can be read is one that has ended
        return self.inner.get_extra_info(info)

    def _patience(self, timeout: float | None) -> float | None:
        hurried = timeout if self.hurry is None else Allowance(None, self.hurry)
        return seconds_now(hurried, httpcore.ReadTimeout)

    @abstractmethod
    def disown(self) -> None:
        """In a forked child: let go of the parent's socket, without a word to the other end."""


def _peer(inner: httpcore.NetworkStream | httpcore.AsyncNetworkStream) -> str | None:
    try:
        address = inner.get_extra_info("server_addr")
    except OSError:  # the other end has gone already
        return None
    return address[0] if isinstance(address, tuple) else None


class _Stream(Stream[httpcore.NetworkStream], httpcore.NetworkStream):
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if isinstance(timeout, Allowance) and not self.home.shared:
            timeout.interruptible(self._shut)
        try:
            return self.ear.told(self.inner.read(max_bytes, self._patience(timeout)))
        except _UNHEARD as error:
            self.ear.ended(error)
            raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.ear.asked()
        if not isinstance(timeout, Allowance):
            self.inner.write(buffer, timeout)
            return
        if not self.home.shared:
            timeout.interruptible(self._shut)
        # A peer that takes in drips would be given a whole timeout for each of them.
        view = memoryview(buffer)
        while view:
            view = view[self._write_some(view, seconds_now(timeout, httpcore.WriteTimeout)) :]

    def _shut(self) -> None:
        """Wake a thread that waits for this socket. The descriptor stays, or it would soon be
        another's; and TLS is not asked, since that thread may be in the middle of it."""
        sock = self.inner.get_extra_info("socket")
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _write_some(self, view: memoryview, timeout: float | None) -> int:
        sock: socket.socket = self.inner.get_extra_info("socket")
        try:
            sock.settimeout(timeout)
            return sock.send(view)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def close(self) -> None:
        self.inner.close()

    def disown(self) -> None:
        self.inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            inner = self.inner.start_tls(ssl_context, server_hostname, seconds_now(timeout))
        except BaseException:  # httpcore closes it for an Exception only
            self.inner.close()
            raise
        return _Stream(inner, self.home)


class _AsyncStream(Stream[httpcore.AsyncNetworkStream], httpcore.AsyncNetworkStream):
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self.ear.told(await self.inner.read(max_bytes, self._patience(timeout)))
        except ssl.SSLError as error:  # httpcore lets it through, on this side only
            raise httpcore.ReadError(error) from error
        except _UNHEARD as error:
            self.ear.ended(error)
            raise

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.ear.asked()
        try:
            await self.inner.write(buffer, seconds_now(timeout, httpcore.WriteTimeout))
        except ssl.SSLError as error:
            raise httpcore.WriteError(error) from error

    async def aclose(self) -> None:
        await self.inner.aclose()

    def disown(self) -> None:
        # The socket belongs to an event loop that must not be told: it shares its selector with
        # the parent's. So only what the descriptor stands for is let go.
        sock = self.inner.get_extra_info("socket")
        if sock is not None and (descriptor := sock.fileno()) >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            os.close(null)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            inner = await self.inner.start_tls(ssl_context, server_hostname, seconds_now(timeout))
        except BaseException:  # httpcore closes it for an Exception only
            with anyio.CancelScope(shield=True):
                await self.inner.aclose()
            raise
        return _AsyncStream(inner, self.home)


class _Addresses:
    """Where to dial, whatever host the request's URL may name.

    `shared` where a connection may carry several requests at a time: one of them must not end it.
    """

    def __init__(self, instance: Instance, *, shared: bool) -> None:
        self.shared = shared
        self._hosts = instance.addresses or (instance.host,)
        self.opened: WeakSet[Stream[Any]] = WeakSet()
        """The connections that may be open."""
        self.liveness = Liveness()

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        for stream in list(self.opened):
            stream.disown()

    def _shares(self, timeout: float | None) -> Iterable[tuple[str, float | None]]:
        """Each address, with its share of the time."""
        for host in self._hosts:
            left = seconds_now(timeout)
            yield host, None if left is None else left / len(self._hosts)


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
        failure: Exception = httpcore.ConnectError(f"no address for {host}")
        for address, share in self._shares(timeout):
            try:
                inner = self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except _UNREACHED as error:
                failure = error
            else:
                return _Stream(inner, self)
        raise failure

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._inner.sleep(seconds)


class AsyncDialer(_Addresses, httpcore.AsyncNetworkBackend):
    """The same for event loops, asyncio's and trio's."""

    def __init__(self, instance: Instance, *, shared: bool) -> None:
        super().__init__(instance, shared=shared)
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Options = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers."""
        failure: Exception = httpcore.ConnectError(f"no address for {host}")
        for address, share in self._shares(timeout):
            try:
                inner = await self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except _UNREACHED as error:
                failure = error
            else:
                return _AsyncStream(inner, self)
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)
