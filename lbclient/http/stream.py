"""One connection to an instance, under httpcore: its reads and writes end with the attempt, and
what it has brought is remembered."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

import anyio

from lbclient.deadline import STOOD_STILL, Expiry

from .allowance import Allowance, seconds_now
from .flavour import httpcore
from .goaway import Ear, Liveness
from .loop_stream import LoopStream

__all__ = ["AsyncStream", "Home", "Line", "Stream", "SyncStream"]

N = TypeVar("N", httpcore.NetworkStream, httpcore.AsyncNetworkStream)
_LOOK = 0.05
_UNHEARD = (httpcore.ReadError, httpcore.ReadTimeout)


class Home(Protocol):
    """What the connections to one instance share."""

    shared: bool
    opened: WeakSet[Stream[Any]]
    liveness: Liveness


class Line:
    """One connection, whoever carries its bytes: what it has brought so far, when reading ends."""

    def __init__(self, liveness: Liveness, address: object) -> None:
        self.ear = Ear(liveness)
        self.peer = address[0] if isinstance(address, tuple) else None
        """The IP address at the other end."""
        self.hurry: Expiry | None = None
        """While set, reads end with it: what is drained must not cost a whole timeout."""


class Stream(Line, ABC, Generic[N]):
    """One connection under httpcore."""

    def __init__(self, inner: N, home: Home) -> None:
        super().__init__(home.liveness, _address(inner))
        home.opened.add(self)
        self.inner: N = inner
        self.home: Home = home

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


def _address(inner: httpcore.NetworkStream | httpcore.AsyncNetworkStream) -> object:
    try:
        return inner.get_extra_info("server_addr")
    except OSError:  # the other end has gone already
        return None


class SyncStream(Stream[httpcore.NetworkStream], httpcore.NetworkStream):
    """For threads."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what is there, within the time."""
        if isinstance(timeout, Allowance) and not self.home.shared:
            timeout.interruptible(self.shut)
        try:
            return self.ear.told(self.inner.read(max_bytes, self._patience(timeout)))
        except _UNHEARD as error:
            self.ear.ended(error)
            raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it, within the time."""
        self.ear.asked()
        if not isinstance(timeout, Allowance):
            self.inner.write(buffer, timeout)
            return
        if not self.home.shared:
            timeout.interruptible(self.shut)
        # A peer that takes in drips would be given a whole timeout for each of them.
        view = memoryview(buffer)
        while view:
            view = view[self._write_some(view, seconds_now(timeout, httpcore.WriteTimeout)) :]

    def shut(self) -> None:
        """Wake a thread that waits for this socket. The descriptor stays, or it would soon be
        another's; and TLS is not asked, since that thread may be in the middle of it."""
        sock = self.inner.get_extra_info("socket")
        with contextlib.suppress(OSError):
            if isinstance(sock, socket.SocketType):
                socket.SocketType.shutdown(sock, socket.SHUT_RDWR)
            elif sock is not None:  # eventlet's plain sockets
                sock.shutdown(socket.SHUT_RDWR)

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
        """Close it; a thread that waits for it is woken."""
        self.shut()
        self.inner.close()

    def disown(self) -> None:
        """Let go of the parent's socket."""
        self.inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Speak TLS from here on."""
        try:
            inner = self.inner.start_tls(ssl_context, server_hostname, seconds_now(timeout))
        except BaseException:  # httpcore closes it for an Exception only
            self.inner.close()
            raise
        return SyncStream(inner, self.home)


class AsyncStream(Stream[httpcore.AsyncNetworkStream], httpcore.AsyncNetworkStream):
    """For event loops."""

    _served = 0
    """So many answers it had brought when the last request began."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what is there, within the time."""
        try:
            return self.ear.told(await self._read(max_bytes, timeout))
        except ssl.SSLError as error:  # httpcore lets it through, on this side only
            raise httpcore.ReadError(error) from error
        except _UNHEARD as error:
            self.ear.ended(error)
            raise

    async def _read(self, max_bytes: int, timeout: float | None) -> bytes:
        """A process that stood still hears its timers before its sockets: so look once more."""
        patience, began = self._patience(timeout), time.monotonic()
        try:
            return await self.inner.read(max_bytes, patience)
        except httpcore.ReadTimeout:
            if patience is None or time.monotonic() - began - patience < STOOD_STILL:
                raise
        try:
            return await self.inner.read(max_bytes, _LOOK)
        except httpcore.ReadTimeout:
            seconds_now(timeout, httpcore.ReadTimeout)
            raise

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it, within the time."""
        if not buffer:  # of a body without any bytes
            return
        if self._served != self.ear.answers:
            self._begin()
        self.ear.asked()
        try:
            await self.inner.write(buffer, seconds_now(timeout, httpcore.WriteTimeout))
        except (ssl.SSLError, anyio.EndOfStream) as error:  # the latter where TLS had ended
            raise httpcore.WriteError(error) from error

    def _begin(self) -> None:
        """Another request begins, some rounds of the loop after its connection was found fit. What
        has come since is the end, or an answer to nobody: another connection must be taken."""
        self._served = self.ear.answers
        if isinstance(self.inner, LoopStream) and self.inner.readable:
            raise httpcore.ConnectionNotAvailable

    async def aclose(self) -> None:
        """Close it."""
        await self.inner.aclose()

    def disown(self) -> None:
        """Let go of the parent's socket."""
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
        """Speak TLS from here on."""
        try:
            inner = await self.inner.start_tls(ssl_context, server_hostname, seconds_now(timeout))
        except BaseException:  # httpcore closes it for an Exception only
            with anyio.CancelScope(shield=True):
                await self.inner.aclose()
            raise
        return AsyncStream(inner, self.home)
