"""Kubernetes: the ready endpoints of a Service, from its EndpointSlices, which are watched."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult

from lbclient._internal import validation
from lbclient.discovery.entries import short, sorted_out
from lbclient.discovery.pushed.api import (
    LostConnection,
    RegistryApi,
    StatusError,
    read_secret,
    registry_url,
    secret,
)
from lbclient.discovery.pushed.source import Alive, PushedSource, Update
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord, answer_of_distinct
from lbclient.errors import DiscoveryError

__all__ = ["Kubernetes", "from_url"]

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""The folder with the files of the pod's service account: `token`, `ca.crt` and `namespace`."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_PAGE = 50
"""The maximum number of slices in one response of a list. A slice has at most 1,000 endpoints (100
by default)."""
_PAGES = 200
"""The maximum number of requests for one list. A list without an end would keep the server busy for
ever."""
_LEAST, _MORE = 240, 60
"""The API server ends a watch after `_LEAST` seconds, plus a random part of `_MORE` seconds."""
_MARGIN = 15.0
_BOOKMARKS = 150.0
"""After this number of seconds without an event, a server that sends bookmarks no longer works: it
sends a bookmark about once a minute."""
_APART = 2.0
"""The minimum number of seconds between two lists. A watch follows each list, so this is at most
one request per second."""
_AGAIN = 1.0
"""Seconds from the start of a watch to the start of the next one, at least."""
_BRIEF = 10.0
"""Seconds. A longer watch may end for any reason, since proxies end idle connections."""


class Kubernetes(PushedSource):
    """A Service in Kubernetes. Its instances are the ready endpoints of all of its EndpointSlices.

    - `service`: the name of the Service, of type ClusterIP or headless.
    - `namespace`: the namespace of the Service. The default is the namespace of the pod in which
      the program runs, or `"default"` outside a cluster.
    - `port`: the name of the port, or the number on which the pods listen (`targetPort`). It may be
      left out if the Service has one port.
    - `server`: the URL of the API server, such as `"http://127.0.0.1:8001"` for `kubectl proxy`.
      Without `server`, a program in a pod uses the pod's service account. The files with its token
      and certificates are read again when they change. Outside a pod, the default is the
      environment variable `KUBERNETES_MASTER`.
    - `token`: a bearer token. No error, log or `repr` shows it.
    - `ca`: a file with the certificates to trust, by which the API server's certificate is checked.

    A pod that shuts down gets no more calls as soon as Kubernetes marks it as terminating. Calls
    that are in flight end normally. The metadata of an instance are `zone`, `node` and `pod`, if
    they are known. A pod with addresses of both families is one instance.

    Raises ValueError or TypeError, naming the argument.
    """

    def __init__(
        self,
        service: str,
        *,
        namespace: str | None = None,
        port: str | int | None = None,
        server: str | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
    ) -> None:
        self.service: str = _label("service", service)
        self.namespace: str = _own_namespace() if namespace is None else namespace
        _label("namespace", self.namespace)
        self.port: str | int | None = _port("port", port)
        self.server: str | None = None if server is None else registry_url("server", server)
        self.token: str | None = None if token is None else secret("token", token)
        if ca is not None and not isinstance(ca, str | os.PathLike):
            raise TypeError(f"ca must be a path, not {type(ca).__name__}")
        self.ca: str | None = None if ca is None else os.fspath(ca)
        self.name: str = f"{self.service}.{self.namespace}"

    def __repr__(self) -> str:
        shown = [repr(self.service), f"namespace={self.namespace!r}"]
        shown += [
            f"{name}={value!r}"
            for name in ("port", "server", "ca")
            if (value := getattr(self, name)) is not None
        ]
        return f"Kubernetes({', '.join(shown)})"

    def session(self) -> RegistryApi:
        """Return a new session with the API server. Raises DiscoveryError outside a cluster if
        there is no `server`."""
        server, ca = self.server, self.ca
        headers: Callable[[], Mapping[str, str]] = dict
        if server is None:
            server = _proxy()
        if server is None:
            server, ca = _own_server(), ca or str(_ACCOUNT / "ca.crt")
            headers = _own_token
        if (token := self.token) is not None:
            headers = lambda: _bearer(token)  # noqa: E731
        rule = (
            'the service account needs the verbs "list" and "watch" for "endpointslices" of the '
            f'group "discovery.k8s.io" in the namespace "{self.namespace}"'
        )
        hints = {403: rule, 404: "EndpointSlices need Kubernetes 1.21 or newer"}
        return RegistryApi("Kubernetes", server, headers=headers, ca=ca, hints=hints)

    async def follow(self, api: RegistryApi, update: Update, alive: Alive) -> None:
        """List the slices and watch them. When the server ends a watch, the next watch begins at
        the last version. If the server no longer has this version, the slices are listed again."""
        slices = _Slices(self.name, self.port)
        while True:
            await api.pace(_APART)
            version = await self._list(api, slices)
            update(slices.answer())
            try:
                while True:
                    began = api.clock()
                    version = await self._changes(api, slices, version, update, alive)
                    await api.pause(max(0.0, began + _AGAIN - api.clock()))
            except DiscoveryError as error:
                if not isinstance(error, StatusError) or error.status != 410:
                    await api.pause(_AGAIN)  # this was two requests: a list and a watch
                    raise

    @property
    def _path(self) -> str:
        return f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"

    @property
    def _selector(self) -> str:
        return f"kubernetes.io/service-name={self.service}"

    async def _list(self, api: RegistryApi, slices: _Slices) -> str:
        """Replace all slices. Returns the version of the list."""
        found: dict[str, _Slice] = {}
        params: dict[str, str | int] = {"labelSelector": self._selector, "limit": _PAGE}
        for _ in range(_PAGES):
            reply = await api.get(self._path, params, timeout=30)
            document = _object(reply.json())
            for one in _array(document.get("items")):
                name, parsed = slices.parse(one, api)
                found[name] = parsed
            metadata = _object(document.get("metadata"))
            if not (more := _text(metadata.get("continue"))):
                break
            params["continue"] = more
        else:
            raise DiscoveryError(f"{api} sent a list of more than {_PAGES} pages")
        if not (version := _text(metadata.get("resourceVersion"))):
            raise DiscoveryError(f"{api} sent a list without a version")
        slices.replace(found)
        return version

    async def _changes(
        self, api: RegistryApi, slices: _Slices, version: str, update: Update, alive: Alive
    ) -> str:
        """Apply the changes since `version`, until the watch ends. Returns the last version."""
        seconds = _LEAST + round(_MORE * api.rng.random())
        params: dict[str, str | int] = {
            "labelSelector": self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": seconds,
        }
        began, heard, changed = api.clock(), False, False
        try:
            async with api.stream("GET", self._path, params, silence=seconds + _MARGIN) as lines:
                alive()
                async for line in lines:
                    event = _object(api.json(line))
                    version = slices.apply(event, api) or version
                    heard = True
                    if event.get("type") == "BOOKMARK":
                        lines.silence = _BOOKMARKS
                        alive()
                    else:
                        changed = True
                    if changed and not lines.pending:  # otherwise the next line has already arrived
                        changed = False
                        update(slices.answer())
            error = DiscoveryError(f"{api} ended a watch at once")
        except LostConnection as lost:
            error = lost
        if not heard and api.clock() - began < _BRIEF:
            raise error
        return version


class _Slice(NamedTuple):
    """The parsed content of one EndpointSlice."""

    version: tuple[str, str]
    """The UID and the resource version of the slice."""
    family: str
    instances: dict[str, Instance]
    """Maps an address and port to its instance."""
    pods: dict[str, str]
    """Maps a pod and port to the key of its instance in `instances`."""
    refused: list[RejectedRecord]
    waiting: int
    """The number of endpoints that are not ready, or are terminating."""


class _Slices:
    """The EndpointSlices of a Service. If one of them changes, only this slice is parsed."""

    def __init__(self, name: str, port: str | int | None) -> None:
        self._name = name
        self._port = port
        self._slices: dict[str, _Slice] = {}
        self._dual: dict[str, tuple[Instance, Instance, Instance]] = {}
        """Maps a pod and port to three instances: with the IPv4 address, with the IPv6 address, and
        with both."""

    def parse(self, document: object, api: object) -> tuple[str, _Slice]:
        """Return the name of a slice, and its parsed content. Errors name `api`, which has sent the
        document."""
        found = _object(document)
        metadata = _object(found.get("metadata"))
        if not (name := _text(metadata.get("name"))):
            raise DiscoveryError(f"{api} sent an EndpointSlice without a name")
        version = _text(metadata.get("uid")), _text(metadata.get("resourceVersion"))
        known = self._slices.get(name)
        if known is not None and known.version == version and all(version):
            return name, known
        before = {} if known is None else known.instances
        return name, _parsed(name, found, version, self._port, before)

    def replace(self, slices: dict[str, _Slice]) -> None:
        """Replace all slices by those of a new list."""
        self._slices = slices

    def apply(self, event: Mapping[str, object], api: RegistryApi) -> str:
        """Apply an event of a watch. Returns the new version, if the event has one.

        Raises StatusError if the event is an error.
        """
        kind, document = event.get("type"), _object(event.get("object"))
        if kind == "ERROR":
            code = document.get("code")
            said = api.clean(_text(document.get("message"))) or "no reason given"
            status = code if isinstance(code, int) else 0
            raise StatusError(f"{api} ended the watch: {said}", status)
        if kind in ("ADDED", "MODIFIED"):
            name, self._slices[name] = self.parse(document, api)
        elif kind == "DELETED":
            self._slices.pop(_text(_object(document.get("metadata")).get("name")), None)
        elif kind != "BOOKMARK":
            raise DiscoveryError(f"{api} sent an unknown kind of event")
        return _text(_object(document.get("metadata")).get("resourceVersion"))

    def answer(self) -> Answer:
        """Return the instances of all slices together."""
        # The order must not depend on the order of events, so that all clients have the same order.
        slices = [self._slices[name] for name in sorted(self._slices)]
        found: dict[str, Instance] = {}
        for one in slices:
            found.update(one.instances)
        self._join(slices, found)
        _, refused = sorted_out(record for one in slices for record in one.refused)
        if not found:
            refused.append(RejectedRecord(self._name, self._why_none(slices)))
        return answer_of_distinct(found.values(), refused)  # no two have the same address and port

    def _join(self, slices: Iterable[_Slice], instances: dict[str, Instance]) -> None:
        """Join the IPv6 address of a pod with its IPv4 address, so that a pod is one instance."""
        second = {
            pod: key for one in slices if one.family == "IPv6" for pod, key in one.pods.items()
        }
        before, self._dual = self._dual, {}
        if not second:
            return
        for pod, key in (
            (pod, key) for one in slices if one.family == "IPv4" for pod, key in one.pods.items()
        ):
            if (six := instances.get(second.get(pod, ""))) is None:
                continue
            four = instances[key]
            known = before.get(pod)
            if known is None or known[0] is not four or known[1] is not six:
                known = four, six, replace(four, addresses=(four.host, six.host))
            self._dual[pod] = known
            del instances[second[pod]]
            instances[key] = known[2]

    def _why_none(self, slices: Iterable[_Slice]) -> str:
        if not self._slices:
            return "it has no EndpointSlice; does a Service of this name exist?"
        if waiting := sum(one.waiting for one in slices):
            return f"none of its {waiting} endpoints is ready"
        return "it has no ready endpoint"


def _parsed(
    name: str,
    document: Mapping[str, object],
    version: tuple[str, str],
    wanted: str | int | None,
    before: Mapping[str, Instance],
) -> _Slice:
    """Parse a slice. An instance of `before` that has not changed stays the same object, which
    saves time here and in the balancer."""
    family = _text(document.get("addressType"))
    endpoints = [_object(one) for one in _array(document.get("endpoints"))]
    ready = [one for one in endpoints if _is_ready(_object(one.get("conditions")))]
    parsed = _Slice(version, family, {}, {}, [], len(endpoints) - len(ready))
    port, reason = _port_of(_array(document.get("ports")), wanted)
    if port is None:
        if ready:
            parsed.refused.append(RejectedRecord(short(name), reason))
        return parsed
    for one in ready:
        address = next(map(_text, _array(one.get("addresses"))), "")
        target = _object(one.get("targetRef"))
        pod = target if target.get("kind") == "Pod" else {}
        about = {"zone": one.get("zone"), "node": one.get("nodeName"), "pod": pod.get("name")}
        metadata = {key: value for key, value in about.items() if isinstance(value, str)}
        try:
            host = _host(address, family)
            key = f"{host} {port}"
            if (instance := before.get(key)) is None or instance.metadata != metadata:
                instance = Instance(host, port, metadata=metadata)
        except ValueError as error:
            parsed.refused.append(RejectedRecord(short(address), short(str(error))))
            continue
        parsed.instances[key] = instance
        if uid := _text(pod.get("uid")):
            parsed.pods[f"{uid} {port}"] = key
    return parsed


def _is_ready(conditions: Mapping[str, object]) -> bool:
    """Return True if calls may be sent to an endpoint. A condition that is missing has its default
    value."""
    return conditions.get("ready") is not False and conditions.get("terminating") is not True


def _port_of(ports: Iterable[object], wanted: str | int | None) -> tuple[int | None, str]:
    """Return the number of the wanted port in a slice; None and a reason if the slice does not have
    it.

    Only TCP ports are used. A slice that lists no ports has every port.
    """
    known: dict[str, int] = {}
    listed = False
    for one in map(_object, ports):
        listed = True
        number = one.get("port")
        valid = type(number) is int and 1 <= number <= 65535
        if valid and one.get("protocol", "TCP") == "TCP":
            known[_text(one.get("name"))] = number  # type: ignore[assignment]  # checked above
    if isinstance(wanted, int):
        if wanted in known.values() or not listed:
            return wanted, ""
    elif wanted is not None:
        if wanted in known:
            return known[wanted], ""
    elif len(known) == 1:
        return next(iter(known.values())), ""
    shown = ", ".join(
        f"{name} ({number})" if name else str(number) for name, number in known.items()
    )
    has = f"the ports of its pods are {shown}" if shown else "its EndpointSlice has no TCP port"
    if wanted is None:
        return None, f"{has}; pass port= with one of them" if shown else f"{has}; pass port="
    return None, f"there is no port {wanted!r}; {has}"


def _host(address: str, family: str) -> str:
    """Check the address of an endpoint. Raises ValueError."""
    if family == "FQDN":
        return validation.host("the address", address)
    if family not in ("IPv4", "IPv6"):
        raise ValueError(f"the addressType {family!r} is not IPv4, IPv6 or FQDN")
    literal = ipaddress.ip_address(address)
    if f"IPv{literal.version}" != family:
        raise ValueError(f"it is not of the family {family}")
    return str(literal)


def _object(value: object) -> dict[str, Any]:
    """Return the value if it is a JSON object, or else an empty object."""
    return value if isinstance(value, dict) else {}


def _array(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _label(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text such as 'orders', not {validation.shown(value)}")
    if not _LABEL.fullmatch(value):
        raise ValueError(
            f"{name} must be lower-case letters, digits and '-', at most 63 characters, "
            f"not {validation.bare(value)!r}"
        )
    return value


def _port(name: str, value: object) -> str | int | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return validation.port(name, value)
    if not _PORT_NAME.fullmatch(value) or value.isdigit():
        raise ValueError(
            f"{name} must be the name of a port (lower-case letters, digits and '-', at most 15 "
            f"characters) or a number, not {validation.bare(value)!r}"
        )
    return value


def _bearer(token: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token}"}


def _own_token() -> Mapping[str, str]:
    return _bearer(read_secret("the token of the pod's service account", _ACCOUNT / "token"))


def _own_namespace() -> str:
    try:
        return (_ACCOUNT / "namespace").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return "default"


def _proxy() -> str | None:
    """Return the URL in KUBERNETES_MASTER, which other clients of Kubernetes read, too. A program
    in a pod does not read it, since the pod's token is not for that server."""
    url = os.environ.get("KUBERNETES_MASTER")
    if not url or os.environ.get("KUBERNETES_SERVICE_HOST"):
        return None
    try:
        return registry_url("KUBERNETES_MASTER", url)
    except ValueError as error:
        raise DiscoveryError(f"Kubernetes: {error}") from None


def _own_server() -> str:
    """Return the URL of the API server. Kubernetes sets it in the environment of each pod."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise DiscoveryError(
            "Kubernetes: this program does not run in a pod (KUBERNETES_SERVICE_HOST is not set); "
            "set KUBERNETES_MASTER or pass server=, for example 'http://127.0.0.1:8001' with "
            "`kubectl proxy`"
        )
    try:
        return registry_url("server", f"https://{f'[{host}]' if ':' in host else host}:{port}")
    except ValueError as error:
        raise DiscoveryError(f"Kubernetes: KUBERNETES_SERVICE_HOST and _PORT: {error}") from None


def from_url(url: SplitResult, _query: Mapping[str, str]) -> Kubernetes:
    """Parse a URL such as `http+k8s://orders.shop:http`: the port `http` of the Service `orders` in
    the namespace `shop`."""
    host, _, port = url.netloc.partition(":")
    service, _, namespace = host.partition(".")
    if not service or "." in namespace or host.endswith("."):
        raise ValueError(
            "service must name a Service of Kubernetes, and its namespace and port if needed, as "
            f"in {url.scheme}://orders.shop:http; not {validation.bare(url.netloc)!r}"
        )
    given: str | int | None = int(port) if re.fullmatch("[0-9]{1,5}", port) else port or None
    return Kubernetes(
        _label("service", service),
        namespace=_label("service (its namespace)", namespace) if namespace else None,
        port=_port("service (its port)", given),
    )
