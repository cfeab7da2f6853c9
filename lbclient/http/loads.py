"""Load reports over HTTP: what answers say beside, and probes that ask for nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from lbclient._version import __version__
from lbclient.deadline import Expiry
from lbclient.discovery.refresher import REFRESHER
from lbclient.endpoint import Endpoint
from lbclient.health import Loads, Prober
from lbclient.instance import Instance
from lbclient.target import authority_of

from .binding import Binding
from .connections.pool import KeepAlivePool, pool_of
from .flavour import httpx
from .options import WireOptions
from .orca import HEADER, load_of
from .request import Place, attempt_extensions
from .senders import AsyncSender, Sender
from .wires import Wires

__all__ = ["Reports", "areports", "reports"]

_AGENT = f"lbclient/{__version__} load-probe"
_MOST = 65_536
"""So many bytes of a body are read."""
_NO_BODY = httpx.ByteStream(b"")

W = TypeVar("W")
Make = Callable[[Place, WireOptions, KeepAlivePool[Any]], W]


def reports(binding: Binding, make: Make[Sender]) -> Reports | None:
    """None where the strategy does not care. Probes go by wires that `make` makes."""
    loads = binding.balancer.loads()
    return None if loads is None else _Threaded(binding, loads, make)


def areports(binding: Binding, make: Make[AsyncSender]) -> Reports | None:
    """The same for wires that want an event loop: a caller's own."""
    loads = binding.balancer.loads()
    return None if loads is None else _Looped(binding, loads, make)


class Reports(ABC):
    """What the instances of one transport say of their load."""

    def __init__(self, binding: Binding, loads: Loads) -> None:
        self._target = binding.target
        self._loads = loads
        self._prober: Prober | None = None
        if (probe := loads.probe) is not None:
            self._url = httpx.URL(f"{binding.target.origin}{probe.path}")
            self._prober = Prober(
                probe,
                self._ask,
                candidates=loads.candidates,
                scheduler=REFRESHER,
                clock=time.monotonic,
                rng=binding.balancer.rng,
            )

    def heard(self, endpoint: Endpoint, headers: httpx.Headers) -> None:
        """The headers of an attempt have come: it is time to ask others, too."""
        self._hear(endpoint, headers, probed=False)
        if self._prober is not None:
            self._prober.answered()

    def _hear(self, endpoint: Endpoint, headers: httpx.Headers, *, probed: bool) -> None:
        text = headers.get(HEADER)
        try:
            load = None if text is None else load_of(text)
        except ValueError as error:
            self._loads.refused(endpoint, ascii(str(error))[:200])
            return
        if load is not None or probed:
            self._loads.heard(endpoint, load)

    def close(self) -> None:
        """No probe follows."""
        if self._prober is not None:
            self._prober.stop()

    @abstractmethod
    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        """Probe it, and hear. May raise anything; it has said nothing then."""

    def _request(self, instance: Instance) -> httpx.Request:
        target = self._target
        host = target.authority or authority_of(instance.host, instance.port, target.scheme)
        headers = {"Host": host, "User-Agent": _AGENT, "Accept": "*/*"}
        return httpx.Request("GET", self._url, headers=headers)


class _Threaded(Reports):
    """Probes by wires for threads, beside those of the calls, and kept open like them."""

    def __init__(self, binding: Binding, loads: Loads, make: Make[Sender]) -> None:
        self._wires = Wires(
            binding.balancer.pool,
            lambda one, idle: make(binding.place(one), binding.wire_options, idle),
            binding.wire_options,
            binding.balancer.rng,
        )
        self._closed = False
        super().__init__(binding, loads)

    def close(self) -> None:
        super().close()
        self._closed = True
        self._wires.close()

    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        if self._wires.untidy:
            self._wires.tidy()
        request = self._request(endpoint.instance)
        wire = self._wires.to(endpoint, time.monotonic())
        try:
            response = wire.send(request, _NO_BODY, attempt_extensions(request, expiry))
            with contextlib.closing(response):
                self._hear(endpoint, response.headers, probed=True)
                read = 0
                for chunk in response.stream:  # type: ignore[union-attr]  # of a wire for threads
                    if (read := read + len(chunk)) > _MOST or not expiry.left():
                        return
        finally:
            if self._closed:  # what was opened since then, nobody else closes
                wire.close()


class _Looped(Reports):
    """Each probe is an asyncio loop, with a wire of its own."""

    def __init__(self, binding: Binding, loads: Loads, make: Make[AsyncSender]) -> None:
        self._make = make
        self._place, self._options = binding.place, binding.wire_options
        super().__init__(binding, loads)

    def _ask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        asyncio.run(self._aask(endpoint, expiry))

    async def _aask(self, endpoint: Endpoint, expiry: Expiry) -> None:
        request = self._request(endpoint.instance)
        idle: KeepAlivePool[Any] = pool_of(self._options)
        place = self._place(endpoint)
        async with contextlib.aclosing(self._make(place, self._options, idle)) as wire:
            with anyio.fail_after(expiry.left()):
                response = await wire.send(request, _NO_BODY, attempt_extensions(request, expiry))
                await response.aclose()
                self._hear(endpoint, response.headers, probed=True)
