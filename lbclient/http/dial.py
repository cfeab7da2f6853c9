"""Sockets to one instance, under httpcore's public `network_backend`.

Two things are ours. A socket opens to the vetted addresses of the instance only, each tried in
turn. And every single read and write is bounded by what is left of the attempt (see `allowance`).
"""

from __future__ import annotations

import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import anyio
import httpcore

from lbclient.deadline import Expiry
from lbclient.http.allowance import LEAST, Allowance, seconds_now
from lbclient.instance import Instance

__all__ = ["AsyncDialer", "Dialer", "Stream"]

Options = Iterable[httpcore.SOCKET_OPTION] | None
_UNREACHED = (httpcore.ConnectError, httpcore.ConnectTimeout)


class Stream(ABC):
    """One connection: how many answers it has brought, and when reading it must end."""

    def __init__(self, opened: WeakSet[Stream]) -> None:
        opened.add(self)
        self.opened = opened
        self.answers = 0
        self.peer: str | None = None
        """The IP address at the other end."""
        self.hurry: Expiry | None = None
        """While set, reads end with it: what is drained must not cost a whole timeout."""

    def _patience(self, timeout: float | None) -> float | None:
        if self.hurry is None:
            return seconds_now(timeout)
        return max(LEAST, self.hurry.left())

    @abstractmethod
    def disown(self) -> None:
        """In a forked child: let go of the parent's socket, without a word to the other end."""


def _peer(inner: httpcore.NetworkStream | httpcore.AsyncNetworkStream) -> str | None:
    try:
        address = inner.get_extra_info("server_addr")
    except OSError:  # the other end has gone already
        return None
    return address[0] if isinstance(address, tuple) else None


class _Stream(Stream, httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, opened: WeakSet[Stream]) -> None:
        super().__init__(opened)
        self.inner = inner
        self.peer = _peer(inner)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, self._patience(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not isinstance(timeout, Allowance):
            self.inner.write(buffer, timeout)
            return
        # A peer that takes in drips would be given a whole timeout for each of them.
        view = memoryview(buffer)
        while view:
            view = view[self._write_some(view, timeout.now()) :]

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
        return _Stream(inner, self.opened)


class _AsyncStream(Stream, httpcore.AsyncNetworkStream):
    def __init__(self, inner: httpcore.AsyncNetworkStream, opened: WeakSet[Stream]) -> None:
        super().__init__(opened)
        self.inner = inner
        self.peer = _peer(inner)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self.inner.read(max_bytes, self._patience(timeout))
        except ssl.SSLError as error:  # httpcore lets it through, on this side only
            raise httpcore.ReadError(error) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self.inner.write(buffer, seconds_now(timeout))
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
        return _AsyncStream(inner, self.opened)


class _Addresses:
    """Where to dial, whatever host the request's URL may name."""

    def __init__(self, instance: Instance) -> None:
        self._hosts = instance.addresses or (instance.host,)
        self.opened: WeakSet[Stream] = WeakSet()
        """The connections that may be open."""

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

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
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
                return _Stream(inner, self.opened)
        raise failure

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._inner.sleep(seconds)


class AsyncDialer(_Addresses, httpcore.AsyncNetworkBackend):
    """The same for event loops, asyncio's and trio's."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
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
                return _AsyncStream(inner, self.opened)
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)
