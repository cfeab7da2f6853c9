"""Registers an instance in Consul. The agent removes the instance if its TTL check is not
renewed."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from lbclient._internal import validation
from lbclient._internal.blocking import run_blocking
from lbclient.discovery.pushed.api import RegistryApi, StatusError
from lbclient.discovery.pushed.consul import Consul
from lbclient.discovery.registration.registrar import (
    RegistrarOptions,
    UpdateError,
    addresses_of,
)
from lbclient.endpoint.instance import Instance
from lbclient.errors import DiscoveryError

__all__ = ["ConsulRegistrar"]

_PASSES = 3
"""The check is renewed this many times in each TTL, so one renewal that is late or lost does no
harm."""
_REAPED_AFTER = 60
"""Consul removes an instance after its check has been critical for this number of seconds. Consul
allows no shorter time."""
_IDENTITY = re.compile(r"[A-Za-z0-9._-]+")
_OWN = ("tags", "node", "datacenter")
"""These keys of an instance's metadata are not sent as `Meta`. A client gets their values from
other fields of Consul."""


class ConsulRegistrar:
    """Registers an instance with the agent, renews its TTL check, and deregisters it.

    The ID of the registration is made from the name of the service and `identity` or, without
    `identity`, the address and port. So a process that starts again replaces its old registration.
    If the agent does not know the check, it has lost the registration, and the instance is
    registered again.
    """

    def __init__(self, via: Consul, options: RegistrarOptions) -> None:
        if via.dc is not None:
            raise ValueError("via must not have dc: an agent registers in its own datacenter")
        self.interval: float = options.ttl / _PASSES
        self._via = via
        self._clock = options.clock
        self._document = _document(via, options)
        self._shared = options.identity is not None
        """True if another instance may have the same ID."""
        self._registered = False

    def put(self, seconds: float) -> None:
        """Renew the check. Register the instance if the agent does not have it. Raises
        UpdateError."""
        self._run(self._put, seconds)

    def remove(self, seconds: float) -> None:
        """Deregister the instance. Raises UpdateError."""
        self._run(self._remove, seconds)

    def _run(
        self,
        work: Callable[[RegistryApi, Callable[[], float]], Coroutine[Any, Any, None]],
        seconds: float,
    ) -> None:
        until = self._clock() + seconds

        def left() -> float:
            if (rest := until - self._clock()) <= 0:
                raise DiscoveryError("no time was left")
            return rest

        try:
            with self._via.session() as api:
                run_blocking(lambda: work(api, left))
        except DiscoveryError as error:
            decided = isinstance(error, StatusError) and error.status < 500
            raise UpdateError(str(error), undecided=not decided) from error

    async def _put(self, api: RegistryApi, left: Callable[[], float]) -> None:
        if self._registered:
            path = f"/v1/agent/check/pass/{quote(self._document['Check']['CheckID'], safe='')}"
            # An agent without the check says 404; one before Consul 1.11 says 500.
            reply = await api.put(path, timeout=left(), expect=(200, 404, 500))
            if reply.status == 200:
                return
            self._registered = False
        params = {"replace-existing-checks": "true"}
        await api.put("/v1/agent/service/register", self._document, params, timeout=left())
        self._registered = True

    async def _remove(self, api: RegistryApi, left: Callable[[], float]) -> None:
        name = quote(self._document["ID"], safe="")
        if self._shared:
            path = f"/v1/agent/service/{name}"
            reply = await api.get(path, timeout=left(), expect=(200, 404))
            if reply.status == 200 and not self._is_own(reply.json()):
                return  # a later run, at another address, has registered itself
        await api.put(f"/v1/agent/service/deregister/{name}", timeout=left(), expect=(200, 404))

    def _is_own(self, service: object) -> bool:
        return isinstance(service, dict) and all(
            service.get(key) == self._document[key] for key in ("Address", "Port")
        )


def _document(via: Consul, options: RegistrarOptions) -> dict[str, Any]:
    """Return the JSON document that registers the instance. Raises ValueError or TypeError."""
    instance = options.instance
    for field in ("path", "headers", "tls_name", "priority"):
        if getattr(instance, field):
            raise ValueError(f"instance must not have {field}, since Consul has no place for it")
    addresses_of(instance)
    if instance.addresses not in ((), (instance.host,)):
        raise ValueError("instance must not have addresses, since Consul has one for each instance")
    weight = instance.weight
    if weight != int(weight) or weight < 1:
        raise ValueError(
            f"instance.weight must be a whole number of 1 or more, as in Consul, not {weight!r}"
        )
    name = f"{via.service}-{_identity(options)}"
    return {
        "ID": name,
        "Name": via.service,
        "Tags": _tags(via, instance),
        "Address": instance.host,
        "Port": instance.port,
        "Meta": _meta(instance),
        "Weights": {"Passing": int(weight), "Warning": 1},
        "Check": {
            "CheckID": f"service:{name}",
            "TTL": f"{options.ttl}s",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": f"{max(_REAPED_AFTER, 2 * options.ttl)}s",
        },
    }


def _identity(options: RegistrarOptions) -> str:
    identity: object = options.identity
    if identity is None:
        return f"{options.instance.host}-{options.instance.port}"
    if not isinstance(identity, str):
        raise TypeError(f"identity must be a word, not {identity!r}")
    if not _IDENTITY.fullmatch(identity):
        raise ValueError(
            "identity must be a word of letters, digits, '.', '_' and '-', "
            f"not {validation.bare(identity)!r}"
        )
    return identity


def _tags(via: Consul, instance: Instance) -> list[str]:
    given = instance.metadata.get("tags", [])
    tags = [] if via.tag is None else [via.tag]
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise TypeError("instance.metadata must have a list of texts as tags")
    return list(dict.fromkeys([*tags, *map(str, given)]))


def _meta(instance: Instance) -> dict[str, str]:
    meta: dict[str, str] = {}
    for key, value in instance.metadata.items():
        if key in _OWN:
            continue
        if not isinstance(value, str | int | float):
            raise TypeError(
                f"instance.metadata must have texts and numbers as values, as Meta of Consul; "
                f"{key!r} has {type(value).__name__}"
            )
        meta[key] = str(value)
    return meta
