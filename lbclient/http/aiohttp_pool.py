"""aiohttp's connections to one instance: opened to its vetted addresses, and fit to be used."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from lbclient.instance import Instance

from .aiohttp_use import AiohttpLine, Use, current
from .goaway import Liveness
from .options import WireOptions

__all__ = ["Connections", "dialled"]

_NAMELESS = "instance.invalid"


class Connections(aiohttp.TCPConnector):
    """aiohttp's pool, uncapped. It tells each use which connection it has got."""

    def __init__(self, instance: Instance, options: WireOptions) -> None:
        self.uses = 0
        self._keeping = 0
        """So many of the uses have a connection that may be kept."""
        self._opened: WeakSet[socket.socket] = WeakSet()
        self._most_idle = options.limits.max_keepalive_connections
        self._set_on_sockets = options.socket_options or ()
        self._liveness = Liveness()
        self._lines: WeakKeyDictionary[ResponseHandler, AiohttpLine] = WeakKeyDictionary()
        addresses, local = instance.addresses, options.local_address
        super().__init__(
            limit=0,
            keepalive_timeout=options.limits.keepalive_expiry,
            ssl=True if options.ssl_context is None else options.ssl_context,
            local_addr=None if local is None else (local, 0),
            resolver=_Addresses(addresses) if addresses else aiohttp.ThreadedResolver(),
            use_dns_cache=False,
            socket_factory=self._socket,
        )

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        """Get a connection; not one with an answer that nobody asked for, which aiohttp would take
        for that to the next request."""
        while True:
            connection = await super().connect(*args, **kwargs)
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101  # it is None once released
            line = self._lines.get(protocol)
            if line is None or not (line.ear.stale or protocol.should_close or line.readable):
                break
            transport = connection.transport
            connection.close()
            if transport is not None:
                transport.abort()
        keeps = line is not None or self._most_idle is None or self._keeping < self._most_idle
        if line is None:
            line = self._lines[protocol] = AiohttpLine(protocol, self._liveness)
        if keeps:
            self._keeping += 1
        else:
            protocol.force_close()
        current.get().begin(line, protocol, keeps=keeps)
        return connection

    def used(self, use: Use) -> None:
        """It is over."""
        self.uses -= 1
        self._keeping -= use.keeps

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets, of which asyncio must not be told."""
        for sock in list(self._opened):
            if (descriptor := sock.fileno()) >= 0:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, descriptor)
                os.close(null)

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        sock = socket.socket(*address[:3])
        self._opened.add(sock)
        try:
            for option in self._set_on_sockets:
                sock.setsockopt(*option)
        except BaseException:
            sock.close()
            raise
        return sock


class _Addresses(AbstractResolver):
    """Knows the vetted addresses of an instance, and no others."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, *_: object, **__: object
    ) -> list[ResolveResult]:
        """All of them."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


def dialled(instance: Instance) -> str:
    """The host of a URL by which aiohttp dials this instance."""
    match instance.addresses:
        case ():
            return instance.host
        case (address,):
            return address
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(instance.host)
        return _NAMELESS  # an address would be dialled as it is, and the others be left out
    return instance.host
