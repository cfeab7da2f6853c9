"""Bytes on asyncio's own transports, under httpcore's public `network_backend`.

For plain HTTP/1.1 alone; what it is worth, and why all else goes by anyio, is in the design page.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import anyio

from .flavour import httpcore

__all__ = ["LoopBackend", "LoopStream"]

_ENOUGH = 2**16
"""So many unread bytes make the other end wait."""
_NAMES = {"server_addr": "peername", "client_addr": "sockname"}


class LoopBackend(httpcore.AsyncNetworkBackend):
    """Opens them, to an IP address."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within the time. Raises httpcore's ConnectError or ConnectTimeout."""
        loop = asyncio.get_running_loop()
        stream = LoopStream(loop)
        local = None if local_address is None else (local_address, 0)
        try:
            with anyio.fail_after(timeout):
                await loop.create_connection(lambda: stream, host, port, local_addr=local)
            for option in socket_options or ():
                stream.get_extra_info("socket").setsockopt(*option)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(error) from error
        except OSError as error:
            stream.abort()
            raise httpcore.ConnectError(error) from error
        return stream

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class LoopStream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection: what has arrived, who waits for it, and whether more can be sent.

    One task reads at a time, and one writes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._arrived: deque[bytes] = deque()
        self._unread = 0
        self._paused = False
        self._ended = False
        """True where nothing more will arrive."""
        self._broken: Exception | None = None
        """What ended it, but for an orderly end."""
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self._transport = made = cast("asyncio.Transport", transport)
        made.set_write_buffer_limits(0)  # so that a write ends when the kernel has it

    def data_received(self, data: bytes) -> None:
        """Something has arrived."""
        self._arrived.append(data)
        self._unread += len(data)
        if self._unread > _ENOUGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The other end sends no more. True: it may still be written to."""
        self._ended = True
        self._wake()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """It is no more."""
        self._ended = True
        self._broken = self._broken or error
        self._wake()
        self._writable.set()

    def pause_writing(self) -> None:
        """There is something that the kernel would not take yet."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has taken all."""
        self._writable.set()

    # What httpcore asks.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has arrived, or arrives within the time; nothing at the end.

        Raises httpcore's ReadError or ReadTimeout.
        """
        if not self._arrived and not self._ended:
            await self._more(timeout)
        if self._arrived:
            return self._taken(max_bytes)
        if self._broken is not None:
            raise httpcore.ReadError(self._broken) from self._broken
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Hand all of it to the kernel, within the time. Raises WriteError or WriteTimeout."""
        if not buffer:
            return
        if (transport := self._transport) is None or transport.is_closing():
            raise httpcore.WriteError(self._broken or "the connection has ended")
        transport.write(buffer)
        if self._writable.is_set():
            return
        try:
            with anyio.fail_after(timeout):
                await self._writable.wait()
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        if transport.is_closing():
            raise httpcore.WriteError(self._broken or "the connection has ended")

    async def aclose(self) -> None:
        """End it at once. Who is reading gets a ReadError."""
        self.abort()
        await asyncio.sleep(0)  # the socket is closed in the loop's next round

    def abort(self) -> None:
        """The same without seeing to the end of it."""
        self._broken = self._broken or ConnectionAbortedError("the connection was closed here")
        self._ended = True
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of it."""
        if info == "is_readable":
            return self.readable or self._heard()
        name = _NAMES.get(info, info)
        return None if self._transport is None else self._transport.get_extra_info(name)

    @property
    def readable(self) -> bool:
        """True where something has arrived, if only the end."""
        return self._ended or bool(self._arrived)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _more(self, timeout: float | None) -> None:
        self._reader = reader = self._loop.create_future()
        timer = None if timeout is None else self._loop.call_later(timeout, _late, reader)
        try:
            await reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    def _taken(self, most: int) -> bytes:
        data = self._arrived.popleft()
        if len(data) > most:
            self._arrived.appendleft(data[most:])
            data = data[:most]
        self._unread -= len(data)
        if self._paused and self._unread <= _ENOUGH and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def _heard(self) -> bool:
        """True where the kernel has something that the loop has not come to yet."""
        sock = self.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))


def _late(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_exception(httpcore.ReadTimeout("nothing arrived in time"))
