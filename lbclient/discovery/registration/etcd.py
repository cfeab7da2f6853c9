"""A registrar for etcd. It sets a key with a lease. etcd removes the key when the lease is not kept
alive.

A lease can be lost, for example if the process was suspended for too long, or if etcd was restored
from a backup. Then etcd answers a keep-alive with status 200, but without a TTL. The registrar asks
for a new lease and sets the key again. It also sets the key again if the key was deleted.

The name of the key contains the number of the lease. So no other process uses the same key, even if
it registers the same address. With an `identity`, the name is the identity. Then a process that
starts again takes over the key, with a new lease, and the end of the old lease does not remove the
key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields
from typing import Any

from lbclient._internal import validation
from lbclient._internal.blocking import run_blocking
from lbclient.discovery.pushed.api import StatusError
from lbclient.discovery.pushed.etcd import Etcd, EtcdCluster, encoded
from lbclient.discovery.registration.registrar import RegistrarOptions, UpdateError, addresses_of
from lbclient.endpoint.instance import Instance
from lbclient.errors import DiscoveryError

__all__ = ["EtcdRegistrar", "value_of"]

_IDENTITY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_NOT_FOUND = 404
_LEAST = 1.0
"""The minimum number of seconds for a keep-alive."""
Left = Callable[[], float]
_Step = Callable[[EtcdCluster, Left], Coroutine[Any, Any, None]]


class EtcdRegistrar:
    """Registers one instance as a key under the prefix of `via`. The value of the key describes the
    instance."""

    def __init__(self, via: Etcd, options: RegistrarOptions) -> None:
        addresses_of(options.instance)  # raises ValueError if one is not valid
        if options.identity is not None:
            _check(options.identity)
        self.interval: float = options.ttl / 3
        """Seconds between two keep-alives. If one of them is lost, the lease still stays alive."""
        self._via = via
        self._options = options
        self._value = value_of(options.instance)
        self._cluster: EtcdCluster | None = None
        self._lease: str | None = None

    def put(self, seconds: float) -> None:
        """Set the key, or keep its lease alive."""
        if self._lease is not None:  # a keep-alive that hangs must not outlast the lease
            seconds = min(seconds, max(self.interval, _LEAST))
        self._run(self._put, seconds)

    def remove(self, seconds: float) -> None:
        """Give up the lease. etcd removes the key, unless another process has taken it over."""
        if self._lease is not None:
            self._run(self._revoke, seconds)

    def _run(self, step: _Step, seconds: float) -> None:
        clock = self._options.clock
        until = clock() + seconds
        try:
            with self._via.session() as api:
                # Each change uses a new session, so that no connection is idle for long. The member
                # and the token stay the same, since etcd takes long to check a password.
                cluster = self._cluster = self._cluster or EtcdCluster(self._via, api)
                cluster.enter(api)
                run_blocking(lambda: step(cluster, lambda: until - clock()))
        except DiscoveryError as error:
            raise UpdateError(str(error), undecided=self._lease is not None) from error

    async def _put(self, cluster: EtcdCluster, left: Left) -> None:
        if self._lease is not None and await self._is_kept_alive(cluster, left):
            if await self._is_set(cluster, left):
                return
        else:
            document = {"TTL": str(self._options.ttl)}
            self._lease = lease_of(await cluster.call("/v3/lease/grant", document, left()))
        document = {**self._key(), "value": encoded(self._value), "lease": self._lease}
        await cluster.call("/v3/kv/put", document, left())

    async def _is_kept_alive(self, cluster: EtcdCluster, left: Left) -> bool:
        answer = await cluster.call("/v3/lease/keepalive", {"ID": self._lease}, left())
        result = answer.get("result")
        return isinstance(result, dict) and result.get("TTL", "0") != "0"

    async def _is_set(self, cluster: EtcdCluster, left: Left) -> bool:
        """Return True if the key exists. With an identity, another process may have taken it
        over."""
        document = {**self._key(), "count_only": True}
        return bool((await cluster.call("/v3/kv/range", document, left())).get("count"))

    async def _revoke(self, cluster: EtcdCluster, left: Left) -> None:
        try:
            await cluster.call("/v3/lease/revoke", {"ID": self._lease}, left())
        except StatusError as error:
            if error.status != _NOT_FOUND:  # otherwise the lease has expired
                raise
        self._lease = None

    def _key(self) -> dict[str, str]:
        name = self._options.identity or f"{self._options.instance}-{self._lease}"
        return {"key": encoded(f"{self._via.prefix}{name}".encode())}


def lease_of(granted: Mapping[str, Any]) -> str:
    """Return the number of a lease that etcd has granted. Raises DiscoveryError if the response
    contains none."""
    lease = granted.get("ID")
    if not isinstance(lease, str) or not lease.isdecimal():
        raise DiscoveryError("etcd granted no lease")
    return lease


def value_of(instance: Instance) -> bytes:
    """Return the value of a key that describes an instance, in the format that `Etcd` reads.

    Raises TypeError if the metadata of the instance cannot be written as JSON.
    """
    defaults = Instance(instance.host, instance.port)
    differing = {
        one.name: getattr(instance, one.name)
        for one in fields(instance)
        if getattr(instance, one.name) != getattr(defaults, one.name)
    }
    if not differing:
        return str(instance).encode()
    for name in differing.keys() & {"metadata", "headers"}:
        differing[name] = dict(differing[name])
    document = {"host": instance.host, "port": instance.port, **differing}
    try:
        return json.dumps(document, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"instance.metadata must be JSON, to be registered: {error}") from None


def _check(identity: object) -> None:
    if not isinstance(identity, str):
        raise TypeError(f"identity must be a word, not {type(identity).__name__}")
    if not _IDENTITY.fullmatch(identity):
        raise ValueError(
            "identity must be a word of letters, digits, dots, hyphens and underscores, "
            f"not {validation.bare(identity)!r}"
        )
