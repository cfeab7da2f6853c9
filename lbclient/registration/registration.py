"""Registration: a service tells DNS where it is, for as long as a block lasts."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

import anyio
import anyio.to_thread

from lbclient import checks, forking
from lbclient.discovery.refresher import REFRESHER
from lbclient.discovery.update import Primary
from lbclient.instance import Instance
from lbclient.registration.entry import entry_of
from lbclient.registration.key import key_of
from lbclient.registration.presence import GRACE, Presence
from lbclient.registration.registrar import Registrar
from lbclient.registration.renewal import Renewal
from lbclient.registration.sigterm import Link

__all__ = ["Registration"]

_LONGEST_TTL = 2**31 - 1  # RFC 2181, 8


class _Stay(NamedTuple):
    presence: Presence
    renewal: Renewal
    link: Link


class Registration:
    """Registers one instance of a service with a DNS server while a block runs.

    with lbclient.Registration(service, instance, server="10.0.0.2", key=Path("reg.key")):
        serve()

    It adds an SRV record (RFC 2782), and address records where needed, by dynamic update (RFC
    2136) signed with TSIG (RFC 8945), and again about every `ttl` seconds in the background. At
    the end of the block, and on SIGTERM, it takes out what it has added and nothing else. What a
    process that was killed has left is replaced when it starts again. `async with` does the same
    without blocking the event loop, on asyncio and trio. It may be entered again after it was left.

    - `service`: as a client names it, `"http+srv://orders.example.com"`, or the name of the SRV
      records, `"_orders._tcp.example.com"`.
    - `instance`: a `host` that is a name is the target of the record, and its `addresses`, if any,
      become address records of that name. For a `host` that is an address a name is made within
      the service's domain.
    - `server`: the address, with or without port, of the zone's primary server.
    - `key`: `"[algorithm:]name:secret"` as `nsupdate -y` has it, or the path of a key file as
      `tsig-keygen` writes it; None does not sign.
    - `zone`: the zone to update; None asks the server.
    - `ttl`: of the records, in whole seconds.
    - `identity`: a word that stays the same over restarts though address and port change, such as
      the name of a StatefulSet's pod, and is this instance's alone. It makes the target's name, and
      everything registered under that name for this service before is replaced. Without it, what
      has the same target and port is.
    - `timeout`: seconds for one change in DNS with all its questions.
    - `clock`: monotonic seconds; `rng`: the dice.

    Entering raises RegistrationError where DNS did not take the record, RuntimeError where it is
    entered already. Leaving raises nothing for what DNS does: it logs a warning.
    SIGTERM is handled where the block is entered on the main thread: the record is taken out, then
    follows what would have happened without it. Where SIGTERM is ignored it stays so.
    In a forked child it is not entered.
    Raises ValueError or TypeError, naming the argument, for what cannot be used.
    """

    def __init__(
        self,
        service: str,
        instance: Instance,
        *,
        server: str,
        key: str | os.PathLike[str] | None = None,
        zone: str | None = None,
        ttl: int = 30,
        identity: str | None = None,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        checks.function("clock", clock)
        checks.of("rng", rng, random.Random, "random.Random()")
        if checks.count("ttl (seconds)", ttl) > _LONGEST_TTL:
            raise ValueError(f"ttl (seconds) must be {_LONGEST_TTL} or less, not {ttl!r}")
        self._timeout = checks.seconds("timeout", timeout)
        self._interval = ttl
        self._clock = clock
        self._dice = random.Random() if rng is None else rng  # noqa: S311  # dice, no secrets
        entry = entry_of(service, instance, identity)
        self._shown = f"{instance} as {entry.owner}"
        self._registrar = Registrar(
            entry,
            Primary(server, key_of(key)),
            zone=None if zone is None else _around(entry.owner, zone),
            ttl=ttl,
            clock=clock,
        )
        self._stay: _Stay | None = None
        forking.track(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shown}>"

    def __enter__(self) -> Self:
        stay = self._begin()
        try:
            stay.link.install()
            with stay.link.deferring():
                stay.presence.enter()
            REFRESHER.schedule(stay.renewal)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        stay = self._begin()
        try:
            stay.link.install()
            await _in_thread(stay.presence.enter)
            REFRESHER.schedule(stay.renewal)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """Leave DNS now, before the block ends: to finish what is under way, with no new calls."""
        if (stay := self._end()) is None:
            return
        try:
            with stay.link.deferring():
                stay.presence.leave()
        finally:
            stay.link.remove()

    async def aclose(self) -> None:
        """The same without blocking the event loop. Cancellation does not interrupt it."""
        if (stay := self._end()) is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await _in_thread(stay.presence.leave)
        except BaseException:  # asyncio's own cancel() knows no shield
            threading.Thread(target=stay.presence.leave, name="lbclient-leaving").start()
            raise
        finally:
            stay.link.remove()

    def after_fork(self) -> None:
        """In a child: what the parent has registered is the parent's."""
        self._dice.seed()
        if (stay := self._end()) is not None:
            stay.link.remove()

    def _begin(self) -> _Stay:
        if self._stay is not None:
            raise RuntimeError(f"{self!r} is entered already; it can be again once it was left")
        presence = Presence(self._registrar, self._shown, self._timeout)
        renewal = Renewal(
            presence.renew, self._shown, self._interval, clock=self._clock, rng=self._dice
        )
        link = Link(presence.leave, 2 * (self._timeout + GRACE))
        self._stay = _Stay(presence, renewal, link)
        return self._stay

    def _end(self) -> _Stay | None:
        stay, self._stay = self._stay, None
        if stay is not None:
            stay.renewal.stopped = True
        return stay


async def _in_thread(change: Callable[[], None]) -> None:
    """At once, however many threads of others are busy."""
    await anyio.to_thread.run_sync(change, limiter=anyio.CapacityLimiter(1))


def _around(owner: str, zone: str) -> str:
    found = checks.host("zone", zone) + "."
    if not f".{owner}".endswith(f".{found}"):
        raise ValueError(f"zone must be a domain around {owner}, not {zone!r}")
    return found
