"""Connects gRPC to one balancer. The RPCs themselves are in other modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from importlib import import_module
from typing import Any, cast

import grpc

from lbclient._internal import validation
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.options import BalancerOptions, refuse_unknown
from lbclient.discovery.composite import Composite, Service
from lbclient.discovery.registry import Target
from lbclient.discovery.service_url import GRPC, authority_of
from lbclient.endpoint.endpoint import Endpoint
from lbclient.errors import DeadlineExceeded
from lbclient.grpc.classifier import GrpcClassifier, classified, codes_of
from lbclient.grpc.health import Health
from lbclient.grpc.load_reports import LoadReports
from lbclient.grpc.options import ChannelOptions
from lbclient.grpc.subchannels import Method, claim_grpc, opened
from lbclient.grpc.telemetry import GrpcSemantics
from lbclient.protocol import Attributes, Binding, Call, CallOptions, bind
from lbclient.resilience.health_check import HealthCheck

__all__ = ["Adapter", "ChannelArguments", "Codes", "Idempotent", "MethodCalls"]

ChannelArguments = Sequence[tuple[str, Any]]
Codes = Collection[str | grpc.StatusCode]
Idempotent = Collection[str] | Callable[[str], bool]

_OWN: Mapping[str, Any] = {
    "grpc.enable_retries": 0,  # the balancer retries, with other instances
    "grpc.service_config_disable_resolution": 1,  # TXT records must not configure this process
    "grpc.enable_http_proxy": 0,  # a proxy would choose the instance
    "grpc.use_local_subchannel_pool": 1,  # channels would share connections and back-offs
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.min_reconnect_backoff_ms": 1250,  # in fact the timeout for connecting, as for HTTP
}


class GrpcBalancer(Balancer):
    """A balancer of services that speak gRPC."""

    _schemes = GRPC


class Adapter:
    """Connects gRPC to one balancer. It checks the arguments of a channel, begins calls, and
    decides which target name is used for an instance."""

    def __init__(
        self,
        service: Service,
        *,
        credentials: grpc.ChannelCredentials | None,
        options: ChannelArguments,
        idempotent: Idempotent,
        codes: Codes,
        balancing: ChannelOptions,
    ) -> None:
        refuse_unknown(balancing, ChannelOptions.__annotations__)
        validation.of(
            "credentials", credentials, grpc.ChannelCredentials, "grpc.ChannelCredentials"
        )
        self.credentials = credentials
        self._options = _arguments(options)
        self._idempotent = _idempotent(idempotent)
        given = dict(balancing)
        health: Any = given.pop("health", None)
        validation.kind("health", health, HealthCheck)
        judge: Any = given.pop("judge", None)
        if judge is not None:
            validation.function("judge", judge)
            judge = partial(classified, judge)
        given.setdefault("scheme", "grpc" if credentials is None else "grpcs")
        self.hedged: bool = given.get("hedge") is not None
        """True if unary calls may be hedged."""
        self.classifies_responses: bool = judge is not None
        """True if a user's classifier needs the response."""
        self.balancer: Balancer = GrpcBalancer(
            _as_urls(service, secure=credentials is not None),
            judge=judge or GrpcClassifier(codes_of(codes)),
            **cast("BalancerOptions", given),
        )
        self.binding: Binding = bind(self.balancer)
        self._target = self.balancer.target
        self.closed: str = (
            f"the channel to {self._target.name} is closed: open a new channel for further RPCs"
        )
        """The error text for RPCs that begin after the channel was closed."""
        self.health: Health | None = None
        try:
            _check(self._target, credentials)
            if health is not None:
                self.health = Health(health, self.open_blocking, self.binding)
                self.binding.check_health(health, self.health.check)
        except BaseException:
            self.balancer.close()
            raise
        host = self._target.authority or self._target.name
        self._server = _server(host)
        loads = self.binding.loads()
        self.load_reports: LoadReports | None = None if loads is None else LoadReports(loads)

    def close(self) -> None:
        """Begin no more calls, and end the health checks."""
        self.balancer.close()
        if self.health is not None:
            self.health.close()

    def semantics(self, method: str) -> GrpcSemantics:
        """Return the semantics that describe the RPCs of a method to telemetry."""
        return GrpcSemantics(method, self._server)

    def is_idempotent(self, method: str) -> bool:
        """True if the method may be repeated even if it may have been carried out."""
        return self._idempotent(method)

    def target_of(self, endpoint: Endpoint) -> tuple[str, list[tuple[str, Any]]]:
        """Return gRPC's name of the target for an instance, and the arguments of its channel."""
        instance, scheme = endpoint.instance, self._target.scheme
        addresses = instance.addresses or (instance.host,)
        family = [one for one in addresses if _is_ipv6(one) is _is_ipv6(addresses[0])]
        if not validation.is_address(addresses[0]):
            target = f"dns:///{instance.host}:{instance.port}"
        elif _is_ipv6(addresses[0]):
            target = "ipv6:" + ",".join(f"[{one}]:{instance.port}" for one in family)
        else:
            target = "ipv4:" + ",".join(f"{one}:{instance.port}" for one in family)
        own = {
            **_OWN,
            "grpc.default_authority": self._target.authority
            or authority_of(instance.host, instance.port, scheme),
        }
        if self.credentials is not None:
            own["grpc.ssl_target_name_override"] = (
                instance.tls_name or self._target.host or instance.host
            )
        return target, list({**own, **self._options}.items())

    def open_blocking(self, endpoint: Endpoint) -> grpc.Channel:
        """Open a channel to one instance, for threads. The channel connects at its first RPC.
        Raises RuntimeError in a forked child in which gRPC would block."""
        channel: grpc.Channel = self._open(grpc, endpoint)
        return channel

    def open_on_loop(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """Open a channel to one instance, for the running event loop of asyncio. Raises
        RuntimeError in a forked child in which gRPC would block."""
        channel: grpc.aio.Channel = self._open(grpc.aio, endpoint)
        return channel

    def _open(self, module: Any, endpoint: Endpoint) -> Any:
        target, arguments = self.target_of(endpoint)
        claim_grpc(on_loop=module is grpc.aio)
        if self.credentials is None:
            return opened(module.insecure_channel(target, arguments))
        return opened(module.secure_channel(target, self.credentials, arguments))


class MethodCalls:
    """Begins the calls of one method."""

    __slots__ = ("_binding", "_idempotent", "_semantics", "_untimed", "adapter", "method")

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self.adapter: Adapter = adapter
        self.method: Method = method
        self._binding = adapter.binding
        # A stream of responses may be repeated until its first message, since its caller has
        # received nothing before.
        streams = method.kind.endswith("_stream")
        self._idempotent: bool = streams or adapter.is_idempotent(method.path)
        self._semantics = adapter.semantics(method.path)
        self._untimed = CallOptions(self._idempotent)

    def begin(
        self, timeout: float | None, replayable: Callable[[], bool] | None = None
    ) -> Call[Any]:
        """Begin a call. `timeout` is its deadline. Raises DeadlineExceeded if it has passed."""
        if self._binding.closed:
            raise ValueError(self.adapter.closed)
        if timeout is not None and timeout <= 0:
            raise DeadlineExceeded(f"the timeout was {timeout:.3g} s, so nothing was sent")
        options = self._untimed
        if timeout is not None or replayable is not None:
            options = CallOptions(self._idempotent, deadline=timeout, replayable=replayable)
        return self._binding.begin(options, self._semantics)


def _check(target: Target, credentials: object) -> None:
    """Raise ValueError if the service cannot be called."""
    if target.scheme == "grpcs" and credentials is None:
        raise ValueError(
            "credentials must be given for a service with the scheme grpcs, such as "
            "grpc.ssl_channel_credentials()"
        )
    if target.path:
        raise ValueError(f"service must not have a path, not {target.path!r}")


def _as_urls(service: Service, *, secure: bool) -> Service:
    """Return the service with each `host:port` replaced by a URL."""
    if isinstance(service, str):
        return cast("Service", _url(service, secure=secure))
    if isinstance(service, Composite):
        own = copy(service)  # with its other arguments, such as patience
        own.services = tuple(_as_urls(one, secure=secure) for one in service.services)
        return own
    if isinstance(service, Iterable) and not isinstance(cast("object", service), bytes | bytearray):
        return cast("Service", [_url(one, secure=secure) for one in service])
    return service


def _url(item: object, *, secure: bool) -> object:
    if isinstance(item, str) and "://" not in item and item:
        return f"{'grpcs' if secure else 'grpc'}://{item}"
    return item


def _arguments(options: ChannelArguments) -> dict[str, Any]:
    given = validation.several("options", options, "pairs of a name and a value")
    for pair in given:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"options must contain pairs of a name and a value, not {pair!r}")
    return dict(cast("list[tuple[str, Any]]", given))


def _idempotent(idempotent: Idempotent) -> Callable[[str], bool]:
    if callable(idempotent):
        return lambda method: bool(idempotent(method))
    names = validation.several("idempotent", idempotent, "names such as '/orders.Orders/Get'")
    for name in names:
        if not (isinstance(name, str) and name.startswith("/") and name.count("/") == 2):
            raise ValueError(
                f"idempotent must contain full names such as '/orders.Orders/Get', not {name!r}"
            )
    known = frozenset(names)
    return lambda method: method in known or _declared_idempotent(method)


def _declared_idempotent(method: str) -> bool:
    """True if the method's descriptor has an `idempotency_level` that says that the method may be
    repeated."""
    try:
        pool = import_module("google.protobuf.descriptor_pool")  # stubs may not use protobuf
        name = method.removeprefix("/").replace("/", ".")
        found = pool.Default().FindMethodByName(name)
        return bool(found.GetOptions().idempotency_level)
    except (ImportError, KeyError):
        return False


def _server(authority: str) -> Attributes:
    host, colon, port = authority.rpartition(":")
    if colon and port.isdigit():
        return {"server.address": host.strip("[]"), "server.port": int(port)}
    return {"server.address": authority}


def _is_ipv6(address: str) -> bool:
    return ":" in address
