"""Registration: keeps a service registered in DNS, Consul or etcd while a block runs.

The registration is renewed periodically. A zone that was reloaded has lost its records. Consul and
etcd remove an instance that was not renewed for `ttl` seconds.

`REGISTRARS` lists the classes that `via=` may have. To support another one, add a file with a
registrar, and an entry in this dict.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import anyio
import anyio.to_thread

from lbclient._internal import fork, validation
from lbclient.discovery.pushed.consul import Consul
from lbclient.discovery.pushed.etcd import Etcd
from lbclient.discovery.registration.consul import ConsulRegistrar
from lbclient.discovery.registration.dns_update import Primary, key_of
from lbclient.discovery.registration.etcd import EtcdRegistrar
from lbclient.discovery.registration.records import DnsRegistrar, entry_of
from lbclient.discovery.registration.registrar import Registrar, RegistrarOptions, UpdateError
from lbclient.discovery.registration.sigterm import SigtermHook
from lbclient.discovery.resolver import text_of
from lbclient.discovery.scheduler import THREAD_SCHEDULER, Backoff, PeriodicJob, jittered
from lbclient.endpoint.instance import Instance
from lbclient.errors import RegistrationError

__all__ = ["REGISTRARS", "Registration", "Renewal"]

_logger = logging.getLogger(__name__)

GRACE = 1.0
"""A block waits for a change at most this number of seconds longer than the timeout of the
change."""

_LONGEST_TTL = 2**31 - 1  # RFC 2181, 8
_SHORTEST = 1.0
"""Seconds from a failed renewal to the next one, at least."""
_LEAST = 0.5
"""The minimum number of seconds for the removal of a record, even if a change under way has used up
the timeout."""

REGISTRARS: dict[type, Callable[[Any, RegistrarOptions], Registrar]] = {
    Consul: ConsulRegistrar,
    Etcd: EtcdRegistrar,
}
"""Maps the class of `via` to a function that makes the registrar of one block. The function checks
the arguments, and sends nothing."""


class Renewal(PeriodicJob):
    """Calls `renew` about every `interval` seconds, and sooner after a failure: never much later
    than that, since a registry with leases would drop the instance.

    Of several equal failures in a row, only the first is logged. The first success after a failure
    is logged too.
    """

    def __init__(
        self,
        renew: Callable[[], None],
        shown: str,
        interval: float,
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        super().__init__(interval, clock=clock, rng=rng)
        self._renew = renew
        self._shown = shown
        self._failure = ""
        self._backoff = Backoff(rng)
        self.next_at: float = clock() + jittered(interval, rng)

    def work(self) -> None:
        """Renew the registration, and log the outcome if it has changed."""
        before, self._failure = self._failure, self._try()
        if self._failure and self._failure != before:
            _logger.warning("%s could not be registered again: %s", self._shown, self._failure)
        elif before and not self._failure:
            _logger.info("%s is registered again", self._shown)

    def _try(self) -> str:
        """Renew the registration. Returns the reason of a failure; empty text after a success."""
        try:
            self._renew()
        except Exception as error:  # noqa: BLE001  # the next round is due in any case
            return text_of(error)
        return ""

    def _next(self, began: float) -> float:  # noqa: ARG002  # counted from the end of the round
        now = self.clock()
        if self._failure:
            return now + min(self._backoff.failed(), max(self._interval, _SHORTEST))
        self._backoff.succeeded()
        return now + jittered(self._interval, self._rng)


class RegisteredRecord:
    """Adds and removes an instance's record, one change at a time, each within `timeout` seconds.

    After `leave`, the record is not added again, even if a renewal is under way.
    """

    def __init__(self, registrar: Registrar, shown: str, timeout: float) -> None:
        self._registrar = registrar
        self._shown = shown
        self._timeout = timeout
        self._lock = threading.Lock()
        self._wanted = True
        self._present = False

    def enter(self) -> None:
        """Add the record. Raises RegistrationError."""
        try:
            self.renew()
        except UpdateError as error:
            raise RegistrationError(f"{self._shown} could not be registered: {error}") from error

    def renew(self) -> None:
        """Add the record again, unless `leave` was called. Raises UpdateError."""
        with self._lock:
            if not self._wanted:
                return
            before, self._present = self._present, True
            try:
                self._registrar.put(self._timeout)
            except UpdateError as error:
                self._present = before or error.undecided
                raise

    def leave(self) -> None:
        """Remove the record. This normally takes at most `timeout` seconds, including the wait for
        a change under way.

        May be called more than once. A failure is logged.
        """
        self._wanted = False
        until = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout + GRACE):
            _logger.warning("%s may stay registered: an earlier change has not ended", self._shown)
            return
        failure: UpdateError | None = None
        try:
            self._remove(max(until - time.monotonic(), min(self._timeout, _LEAST)))
        except UpdateError as error:
            failure = error
        finally:
            self._lock.release()
        if failure is not None:  # logged outside the lock: a log handler has its own lock
            _logger.warning("%s may stay registered: %s", self._shown, failure)

    def _remove(self, seconds: float) -> None:
        if self._present:
            self._registrar.remove(seconds)
            self._present = False


class _Stay(NamedTuple):
    record: RegisteredRecord
    renewal: Renewal
    sigterm_hook: SigtermHook


class Registration:
    """Registers one instance of a service while a block runs: in DNS, Consul or etcd.

        with lbclient.Registration(service, instance, server="10.0.0.2", key=Path("reg.key")):
            serve()

        with lbclient.Registration("orders", instance, via=lbclient.Etcd("/services/orders/")):
            serve()

    In DNS, a registration adds an SRV record (RFC 2782), and address records if needed, with a
    dynamic update (RFC 2136) that is signed with TSIG (RFC 8945). It adds these records again about
    every `ttl` seconds in the background. Records that a killed process has left are replaced when
    the process starts again. In Consul, it registers a service with a TTL check. In etcd, it adds a
    key with a lease. Both are renewed three times within `ttl` seconds, and expire `ttl` seconds
    after the last renewal. At the end of the block, and on SIGTERM, a registration removes exactly
    what it has added. `async with` does the same without blocking the event loop, on asyncio and
    trio. A registration may be entered again after it was left.

    - `service`: for DNS, the service, either as a client names it, such as
      `"http+srv://orders.example.com"`, or by the name of the SRV records, such as
      `"_orders._tcp.example.com"`. With `via`, any name; it is used in logs.
    - `instance`: the instance to register. In DNS, if its `host` is a name, this name is the target
      of the record, and its `addresses`, if any, become address records of the name. If its `host`
      is an address, a name within the domain of the service is generated.
    - `server`: the address of the zone's primary server, with or without a port.
    - `via`: a registry other than DNS, instead of `server`: `lbclient.Consul(...)` or
      `lbclient.Etcd(...)`. Its service name or prefix is used. Then `key` and `zone` are not
      allowed.
    - `key`: `"[algorithm:]name:secret"` as for `nsupdate -y`, or the path of a key file from
      `tsig-keygen`. None: updates are not signed.
    - `zone`: the zone to update; None asks the server.
    - `ttl`: the TTL of the records, or the time after which Consul or etcd removes the instance of
      a killed process, in whole seconds.
    - `identity`: a word that only this instance has, such as the name of a StatefulSet's pod. It
      stays the same after a restart, even if the address and port change. An earlier registration
      with the same identity is replaced. In DNS, the name of the target is made from this word.
      Without `identity`, records with the same target and port are replaced.
    - `timeout`: seconds for one change in the registry, including all questions that it needs.
    - `clock`: returns monotonic seconds; `rng`: the random number generator.

    Entering the block raises RegistrationError if the registry did not accept the instance, and
    RuntimeError if the registration is already entered. If the record cannot be removed at the end,
    a warning is logged and no exception is raised. SIGTERM is handled if the block is entered on
    the main thread: the record is removed, and then the previous handler runs. If the process
    ignores SIGTERM, it continues to ignore it. A forked child does not inherit the registration.
    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
    """

    def __init__(
        self,
        service: str,
        instance: Instance,
        *,
        server: str | None = None,
        via: Consul | Etcd | None = None,
        key: str | os.PathLike[str] | None = None,
        zone: str | None = None,
        ttl: int = 30,
        identity: str | None = None,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        validation.function("clock", clock)
        validation.of("rng", rng, random.Random, "random.Random()")
        if validation.count("ttl (seconds)", ttl) > _LONGEST_TTL:
            raise ValueError(f"ttl (seconds) must be {_LONGEST_TTL} or less, not {ttl!r}")
        self._timeout = validation.seconds("timeout", timeout)
        self._clock = clock
        self._rng = random.Random() if rng is None else rng  # noqa: S311  # random numbers, no secrets
        options = RegistrarOptions(instance, ttl, identity, clock)
        self._uses_httpx = via is not None
        if via is None:
            self._shown, self._registrar = _in_dns(service, options, server, key, zone)
        else:
            only_dns = {"server": server, "key": key, "zone": zone}
            if given := [name for name, value in only_dns.items() if value is not None]:
                raise ValueError(f"{given[0]} is for DNS, and must not be given together with via")
            self._shown, self._registrar = _in_registry(service, options, via)
        self._registrar()  # checks the arguments
        self._stay: _Stay | None = None
        fork.track(self)

    def __repr__(self) -> str:
        entered = ", entered" if getattr(self, "_stay", None) else ""
        return f"<{type(self).__name__} {getattr(self, '_shown', '')}{entered}>"

    def __enter__(self) -> Self:
        stay = self._begin()
        try:
            stay.sigterm_hook.install()
            with stay.sigterm_hook.deferring():
                self._carry_out(stay.record.enter)
            THREAD_SCHEDULER.schedule(stay.renewal)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        stay = self._begin()
        try:
            stay.sigterm_hook.install()
            await _in_thread(stay.record.enter)
            THREAD_SCHEDULER.schedule(stay.renewal)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """Remove the record before the block ends, so that the instance can finish its work without
        new calls."""
        if (stay := self._end()) is None:
            return
        try:
            with stay.sigterm_hook.deferring():
                self._carry_out(stay.record.leave)
        finally:
            stay.sigterm_hook.remove()

    async def aclose(self) -> None:
        """Like `close`, without blocking the event loop. Cancellation does not interrupt it."""
        if (stay := self._end()) is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await _in_thread(stay.record.leave)
        except BaseException:  # cancel() of asyncio ignores the shield
            threading.Thread(target=stay.record.leave, name="lbclient-leaving").start()
            raise
        finally:
            stay.sigterm_hook.remove()

    def after_fork(self) -> None:
        """Forget the registration in a forked child, since it belongs to the parent."""
        self._rng.seed()
        if (stay := self._end()) is not None:
            stay.sigterm_hook.remove()

    def _carry_out(self, change: Callable[[], None]) -> None:
        """Carry out a change, and wait for it.

        A signal handler may raise an exception on this thread between any two steps. If this
        happens in httpx's connection pool, the lock of the pool is never released. So httpx is used
        on another thread.
        """
        if self._uses_httpx:
            _on_a_thread(change)
        else:
            change()

    def _begin(self) -> _Stay:
        if self._stay is not None:
            shown = f"the registration of {self._shown}"
            raise RuntimeError(f"{shown} is already entered; leave it before you enter it again")
        registrar = self._registrar()
        record = RegisteredRecord(registrar, self._shown, self._timeout)
        renewal = Renewal(
            record.renew, self._shown, registrar.interval, clock=self._clock, rng=self._rng
        )
        sigterm_hook = SigtermHook(record.leave, 2 * (self._timeout + GRACE))
        self._stay = _Stay(record, renewal, sigterm_hook)
        return self._stay

    def _end(self) -> _Stay | None:
        stay, self._stay = self._stay, None
        if stay is not None:
            stay.renewal.stopped = True
        return stay


def _on_a_thread(change: Callable[[], None]) -> None:
    """Run `change` on a thread, and wait for its end. If the wait is interrupted, the thread
    continues."""
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            change()
        except BaseException as error:  # noqa: BLE001  # the caller raises it
            outcome.put(error)
        else:
            outcome.put(None)

    try:
        threading.Thread(target=run, name="lbclient-registration", daemon=True).start()
    except RuntimeError:  # no more threads, or the interpreter is about to exit
        change()
        return
    if (error := outcome.get()) is not None:
        raise error


async def _in_thread(change: Callable[[], None]) -> None:
    """Run `change` on a thread without waiting, even if all threads of anyio's default limiter are
    busy."""
    await anyio.to_thread.run_sync(change, limiter=anyio.CapacityLimiter(1))


def _in_dns(
    service: str,
    options: RegistrarOptions,
    server: str | None,
    key: str | os.PathLike[str] | None,
    zone: str | None,
) -> tuple[str, Callable[[], Registrar]]:
    """Return the text for logs, and a function that makes the registrar of one block."""
    if server is None:
        raise TypeError("server must be the address of a DNS server, if via is not given")
    entry = entry_of(service, options.instance, options.identity)
    make = partial(
        DnsRegistrar,
        entry,
        Primary(server, key_of(key)),
        zone=None if zone is None else _around(entry.owner, zone),
        ttl=options.ttl,
        clock=options.clock,
    )
    return f"{options.instance} as {entry.owner}", make


def _in_registry(
    service: object, options: RegistrarOptions, via: object
) -> tuple[str, Callable[[], Registrar]]:
    """Return the text for logs, and a function that makes the registrar of one block."""
    if (make := REGISTRARS.get(type(via))) is None:
        known = ", ".join(f"lbclient.{kind.__name__}(...)" for kind in REGISTRARS)
        raise TypeError(f"via must be one of {known}; not {type(via).__name__}")  # it may be secret
    if not isinstance(service, str):
        raise TypeError(f"service must be text, not {validation.shown(service)}")
    if not (shown := validation.bare(service)) or not service.isprintable():
        raise ValueError(f"service must be a name of printable characters, not {shown!r}")
    if not isinstance(options.instance, Instance):
        kind = type(options.instance).__name__  # type: ignore[unreachable]  # callers may be untyped
        raise TypeError(f"instance must be lbclient.Instance(...), not {kind}")
    return f"{options.instance} as {shown}", partial(make, via, options)


def _around(owner: str, zone: str) -> str:
    found = validation.host("zone", zone) + "."
    if not f".{owner}".endswith(f".{found}"):
        raise ValueError(f"zone must be a domain that contains {owner}, not {zone!r}")
    return found
