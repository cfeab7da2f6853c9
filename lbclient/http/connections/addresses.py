"""The addresses to connect to, and the sockets.

A socket connects only to addresses of an instance that discovery has checked. If an instance has no
addresses, the operating system resolves its name. If an instance has several addresses, they are
tried in parallel (RFC 8305): the next attempt to connect starts when the previous one has failed,
or has not connected within a quarter of a second.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # `getaddrinfo` imports it when a descriptor may be lacking
import ipaddress
import itertools
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import anyio

from lbclient.endpoint.classifier import more_telling

from .._compat import httpx
from ..options import ConnectionSettings
from ..request import Upstream
from .timeouts import seconds_now

__all__ = [
    "ATTEMPT_DELAY",
    "Address",
    "Dial",
    "aresolve",
    "first_of",
    "open_socket",
    "race",
    "resolve",
]

ATTEMPT_DELAY = 0.25
"""Seconds between the starts of two attempts to connect (RFC 8305, section 5)."""
_UNRESOLVED = "the name {} was not resolved in time"


class Address(NamedTuple):
    """An IP address in the form that the socket module needs."""

    family: int
    to: tuple[str, int] | tuple[str, int, int, int]


class Dial:
    """The data to connect to one instance: its addresses, its TLS name and the socket options."""

    __slots__ = ("hosts", "options", "port", "tls_name")

    def __init__(self, upstream: Upstream, options: ConnectionSettings) -> None:
        instance = upstream.instance
        self.hosts: tuple[str, ...] = instance.addresses or (instance.host,)
        self.port: int = instance.port
        self.tls_name: str = upstream.tls_name or instance.host
        self.options: ConnectionSettings = options


def resolve(dial: Dial, timeout: float | None) -> Sequence[Address]:
    """Return the addresses to try, in order. Raises ConnectError or ConnectTimeout."""
    try:
        if known := _known(dial):
            return known
        return _interleaved(_look_up(dial, seconds_now(timeout)))
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error


async def aresolve(dial: Dial, timeout: float | None) -> Sequence[Address]:
    """Like `resolve`, on an event loop. Raises ConnectError or ConnectTimeout."""
    try:
        if known := _known(dial):
            return known
        with anyio.fail_after(seconds_now(timeout)):
            found = await anyio.getaddrinfo(dial.hosts[0], dial.port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpx.ConnectTimeout(_UNRESOLVED.format(dial.hosts[0])) from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error
    return _interleaved(found)


def open_socket(address: Address, options: ConnectionSettings) -> socket.socket:
    """Create a non-blocking socket with the caller's options. Raises OSError."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(0.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options.socket_options or ():
            # Each form of the tuple fits one overload; pyright wants one overload for all forms.
            sock.setsockopt(*option)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if options.local_address is not None:
            sock.bind((options.local_address, 0))
    except BaseException:
        sock.close()
        raise
    return sock


async def race(
    addresses: Sequence[Address], dial: Callable[[Address], Awaitable[socket.socket]]
) -> socket.socket:
    """Return the first socket that is connected. If no attempt succeeds, raises the error that says
    most about the instance."""
    if len(addresses) == 1:
        return await dial(addresses[0])
    won: list[socket.socket] = []
    failure: Exception | None = None
    ended = [anyio.Event() for _ in addresses]

    async def attempt(index: int, address: Address) -> None:
        nonlocal failure
        if index:
            with anyio.move_on_after(ATTEMPT_DELAY * index):
                await ended[index - 1].wait()
        try:
            won.append(await dial(address))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = more_telling(failure, error)
            ended[index].set()
        else:
            group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for index, address in enumerate(addresses):
                group.start_soon(attempt, index, address)
        if not won:
            raise failure or httpx.ConnectError("there is no address to connect to")
        return won.pop(0)
    except BaseExceptionGroup as errors:
        error = first_of(errors)
        raise error from error.__cause__
    finally:
        for sock in won:  # several sockets may have connected at the same time
            sock.close()


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception to raise for a group of exceptions of tasks. An exception of a signal
    handler takes precedence."""
    outside = (error for error in errors.exceptions if not isinstance(error, Exception))
    return next(outside, errors.exceptions[0])


def _known(dial: Dial) -> Sequence[Address]:
    """Return the addresses that need no lookup."""
    found = []
    for host in dial.hosts:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            if address.version == 4:
                found.append(Address(socket.AF_INET, (host, dial.port)))
            elif address.scope_id is None:
                found.append(Address(socket.AF_INET6, (host, dial.port, 0, 0)))
            else:  # only the operating system knows the number of a zone ("eth0")
                family, *_, to = socket.getaddrinfo(host, dial.port, type=socket.SOCK_STREAM)[0]
                found.append(Address(family, to))  # type: ignore[arg-type]  # IPv6 only
    return found


def _interleaved(found: Sequence[tuple[Any, ...]]) -> Sequence[Address]:
    """Sort the addresses so that the families alternate, starting with the family of the first
    address (RFC 8305, section 4)."""
    unique = list(dict.fromkeys(Address(family, to) for family, _, _, _, to in found))
    first = [address for address in unique if address.family == unique[0].family]
    others = [address for address in unique if address.family != unique[0].family]
    pairs = itertools.zip_longest(first, others)
    return [address for pair in pairs for address in pair if address is not None]


def _look_up(dial: Dial, seconds: float | None) -> Sequence[tuple[Any, ...]]:
    """Ask the operating system for addresses. Its lookup has no timeout of its own and may take
    half a minute, so it runs on another thread."""
    found: list[Sequence[tuple[Any, ...]] | Exception] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(dial.hosts[0], dial.port, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001  # raised below
            found.append(error)

    thread = threading.Thread(target=ask, name="lbclient-lookup", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there are too many threads
        ask()
    else:
        thread.join(seconds)
    if not found:
        raise httpx.ConnectTimeout(_UNRESOLVED.format(dial.hosts[0]))
    if isinstance(answer := found[0], Exception):
        raise answer
    return answer
