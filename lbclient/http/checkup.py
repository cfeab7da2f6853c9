"""Health checks over HTTP: one GET to one instance, addressed as calls address it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import anyio

from lbclient._version import __version__
from lbclient.deadline import Expiry
from lbclient.endpoint import Endpoint
from lbclient.health import Check, CheckFailed, HealthCheck, plain_check
from lbclient.instance import Instance
from lbclient.target import authority_of

from .binding import Binding
from .connections.pool import KeepAlivePool, pool_of
from .flavour import httpx
from .options import WireOptions
from .request import Place, attempt_extensions
from .senders import AsyncSender, Sender

__all__ = ["achecked", "checked"]

_AGENT = f"lbclient/{__version__} health-check"
_MOST = 65_536
"""So many bytes of a body are read."""
_NO_BODY = httpx.ByteStream(b"")

W = TypeVar("W")
Make = Callable[[Place, WireOptions, KeepAlivePool[Any]], W]


def checked(policy: HealthCheck, binding: Binding, make: Make[Sender]) -> Check:
    """What `policy` asks for; over HTTP, by wires that `make` makes."""
    return plain_check(policy) or _Checkup(policy, binding, make).check


def achecked(policy: HealthCheck, binding: Binding, make: Make[AsyncSender]) -> Check:
    """The same for wires that want an event loop: a caller's own. Each check is an asyncio loop."""
    return plain_check(policy) or _AsyncCheckup(policy, binding, make).check


class _Asks(Generic[W]):
    """The request, and a wire for each check: that connecting works is part of what it proves."""

    def __init__(self, policy: HealthCheck, binding: Binding, make: Make[W]) -> None:
        self._policy = policy
        self._target = binding.target
        self._url = httpx.URL(f"{binding.target.origin}{policy.path}")
        self._place = binding.place
        self._make = make
        self._options = replace(binding.wire_options, retries=0)

    def _wire(self, endpoint: Endpoint) -> W:
        return self._make(self._place(endpoint), self._options, pool_of(self._options))

    def _request(self, instance: Instance) -> httpx.Request:
        target = self._target
        host = target.authority or authority_of(instance.host, instance.port, target.scheme)
        headers = httpx.Headers({"Host": host, "User-Agent": _AGENT, "Accept": "*/*"})
        headers.update(self._policy.headers)
        return httpx.Request("GET", self._url, headers=headers)

    def _judge(self, response: httpx.Response) -> None:
        if response.status_code not in self._policy.statuses:
            raise CheckFailed(f"status {response.status_code}")


class _Checkup(_Asks[Sender]):
    """By wires for threads."""

    def check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """Ask, and read the answer to its end. Raises CheckFailed or an error of httpx's."""
        request = self._request(endpoint.instance)
        with contextlib.closing(self._wire(endpoint)) as wire:
            response = wire.send(request, _NO_BODY, attempt_extensions(request, expiry))
            with contextlib.closing(response):
                self._judge(response)
                read = 0
                for chunk in response.stream:  # type: ignore[union-attr]  # of a wire for threads
                    if (read := read + len(chunk)) > _MOST or not expiry.left():
                        return


class _AsyncCheckup(_Asks[AsyncSender]):
    """By wires for event loops."""

    def check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """The same."""
        asyncio.run(self._check(endpoint, expiry))

    async def _check(self, endpoint: Endpoint, expiry: Expiry) -> None:
        request = self._request(endpoint.instance)
        async with contextlib.aclosing(self._wire(endpoint)) as wire:
            with anyio.fail_after(expiry.left()):
                response = await wire.send(request, _NO_BODY, attempt_extensions(request, expiry))
                async with contextlib.aclosing(response):
                    self._judge(response)
                    read = 0
                    async for chunk in response.stream:  # type: ignore[union-attr]  # as above
                        if (read := read + len(chunk)) > _MOST:
                            return
