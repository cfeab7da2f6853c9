"""What the sync and the async transport have in common, except for sending requests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar, cast, get_args

from lbclient._internal import validation
from lbclient._internal.signals import Pause
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import Binding
from lbclient.balancer.load_probe import Loads
from lbclient.balancer.options import BalancerOptions, with_defaults
from lbclient.core.call import Call
from lbclient.discovery.composite import Service
from lbclient.discovery.registry import Target
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.protocol import bind
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.retry import ONE_ATTEMPT, RetryPolicy

from ._compat import httpx
from .classifier import HttpClassifier
from .connections.custom_transport import TransportMaker
from .options import (
    ConnectionOptions,
    ConnectionSettings,
    Latency,
    TransportOptions,
    checked,
    connection_limits,
    connection_settings,
    part,
)
from .origin import Origin, base_path, make_cookies_logical
from .request import UNSTREAMED, Upstream, call_options_of
from .response_stream import AsyncResponseStream, ResponseStream
from .shortcuts import Content
from .telemetry import HttpSemantics, Labels

__all__ = ["HttpAdapter", "closed_on_error"]

P = TypeVar("P")
_TLS_NAMES = ("instance", "service")
_LAST_MOMENT = 0.25
_SWITCHING = 101


class HttpAdapter:
    """Connects HTTP to one balancer.

    It checks the arguments of a transport, and for each request its options and the origin of its
    URL. It also decides which URL, Host and TLS name are used for an instance.
    """

    def __init__(self, service: Service, options: TransportOptions) -> None:
        given: TransportOptions = with_defaults(
            checked(options, TransportOptions), TransportOptions
        )
        balancing: BalancerOptions = part(given, BalancerOptions)
        limits = connection_limits(given["limits"])
        if "max_in_flight_total" not in options:
            balancing["max_in_flight_total"] = limits.max_connections
        self.health: HealthCheck | None = given["health"]
        balancing["health"] = None
        validation.kind("health", self.health, HealthCheck)
        if self.health is not None and self.health.grpc is not None:
            raise ValueError("health must be a check over HTTP; grpc is for lbclient.grpc.channel")
        validation.kind("retry", given["retry"], RetryPolicy)
        policy = given["retry"] or ONE_ATTEMPT
        judge = HttpClassifier(policy.statuses, policy.unprocessed)
        self._retried = frozenset(policy.statuses).union(policy.unprocessed)
        self.balancer: Balancer = Balancer(service, judge=judge, **balancing)
        self.binding: Binding = bind(self.balancer)
        self.policy: RetryPolicy = self.binding.retry
        self.target: Target = self.balancer.target
        self.origin: Origin | None = None
        self.added_path: str = self.target.path
        """The base path to put before the path of each request; empty for a `Client`, whose URLs
        already contain the base path."""
        self.loads: Loads | None = self.binding.loads()
        """Passes load reports to the strategy; None if the strategy does not use them."""
        with closed_on_error(self.balancer):
            latency = validation.one_of("latency", given["latency"], get_args(Latency))
            tls_name = validation.one_of("tls_name", given["tls_name"], _TLS_NAMES)
            self._settings = _SettingsByScheme(limits, part(given, ConnectionOptions))
            for instance in self.target.listed:  # not in a call: a TLS context takes 20 ms
                self.settings(instance)
            self.connection_settings: ConnectionSettings = self._settings[self.target.scheme]
            self._key_of = _function("key", given["key"])
            self._fair_by = _function("fair_by", given["fair_by"])
            header = given["deadline_header"]
            self._deadline_header = (
                None if header is None else validation.header("deadline_header", header)
            )
            self.close_grace: float = validation.number(
                "close_grace (seconds)", given["close_grace"]
            )
            if tls_name == "service":
                _check_tls_names(self.target)
        self.first_byte: bool = latency == "first-byte"
        """True if latency is measured up to the first byte of the body."""
        self.tls_name: str | None = self.target.host if tls_name == "service" else None
        self._labels = Labels(self.target)
        self._logical_host = httpx.URL(self.target.origin).netloc

    def own(self, origin: str) -> None:
        """Accept only requests for this origin, as a `Client` does. By default, requests for all
        origins are accepted."""
        self.origin = Origin(replace(self.target, origin=origin), self.balancer.instances)
        self.added_path = ""

    def call(
        self, request: httpx.Request, replayable: Callable[[], bool] | None
    ) -> Call[httpx.Response]:
        """Begin the call that sends this request."""
        options = call_options_of(request, self.policy, replayable, self._key_of, self._fair_by)
        return self.binding.begin(options, HttpSemantics(request, self._labels))

    def drain(self) -> Pause:
        """Return the pause before connections are closed. It ends when no call is under way, or
        after `close_grace` seconds."""
        return Pause(self.close_grace, self.binding.idle())

    def last(self) -> Pause:
        """Return the pause after connections were closed: calls that have lost their connection
        need a moment to end."""
        return Pause(_LAST_MOMENT, self.binding.idle())

    def upstream(self, endpoint: Endpoint) -> Upstream:
        """Return how to address an instance. If the service is a list without a name, each instance
        is addressed by its own Host."""
        instance, target = endpoint.instance, self.target
        headers = {name.lower(): value for name, value in instance.headers.items()}
        fixed = headers.pop("host", None) is not None
        if self.origin is None:
            fixed = fixed or (instance.scheme is not None and target.is_separate(instance))
        host = target.authority_at(instance).encode("ascii")
        hosts: tuple[bytes | None, bytes] | None = None
        if fixed:
            hosts = None, host
        elif self.origin is not None and host != self._logical_host:
            hosts = self._logical_host, host
        return Upstream(
            instance,
            target.scheme_of(instance),
            instance.tls_name or (None if target.is_separate(instance) else self.tls_name),
            hosts,
            self._deadline_header,
            self.loads is not None,
            base_path(instance, target),
            [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()],
        )

    def settings(self, instance: Instance) -> ConnectionSettings:
        """Return the connection settings for an instance. They depend on its scheme."""
        return self._settings[self.target.scheme_of(instance)]

    def transports(self, kind: Callable[..., P], make: TransportMaker) -> P:
        """Return the transports to the instances, in a `TransportPool` or `AsyncTransportPool`."""
        return kind(
            self.binding.pool,
            lambda endpoint, idle: make(
                self.upstream(endpoint), self.settings(endpoint.instance), idle
            ),
            self.connection_settings,
            self.binding.rng,
        )

    def reads_at_once(self, request: httpx.Request, response: httpx.Response) -> bool:
        """True if the response body is read within the attempt. Then the call can be retried if the
        instance fails while it sends the body.

        False if the response already causes a retry because of its status.
        """
        unstreamed: bool = request.extensions.get(UNSTREAMED, False)
        return unstreamed and response.status_code not in self._retried

    def awaits_body(self, request: httpx.Request, response: httpx.Response) -> bool:
        """True if a streamed response is returned only once the first byte of its body has arrived.

        False for an upgraded connection, since its bytes are not a body.
        """
        upgraded = response.status_code == _SWITCHING or request.method == "CONNECT"
        return self.first_byte and not upgraded and response.status_code not in self._retried

    def finished(self, call: Call[httpx.Response], response: httpx.Response) -> httpx.Response:
        """Prepare a response for the caller: add the `CallInfo`."""
        info = response.extensions["lbclient"] = call.info()
        if isinstance(response.stream, Content):
            response.elapsed = timedelta(seconds=call.elapsed)
        elif isinstance(response.stream, ResponseStream | AsyncResponseStream):
            response.stream.info = info  # used if reading the body fails later
        return response

    def logical_cookies(self, response: httpx.Response, instance: Instance) -> None:
        """Remove the base path, of the service or of the instance, from the paths of cookies."""
        if path := base_path(instance, self.target) + self.added_path.encode("ascii"):
            make_cookies_logical(response, path)

    def redirected(
        self, response: httpx.Response, request: httpx.Request, instance: Instance
    ) -> None:
        """Change a redirect to an instance into a redirect to the service. In a transport under a
        plain httpx client, only the base path (of the service or of the instance) is removed."""
        origin = self.origin
        if origin is None:
            path = self.added_path
            if not (path or base_path(instance, self.target)):
                return
            url = request.url.copy_with(raw_path=b"/", fragment=None, userinfo=b"")
            target = replace(self.target, origin=str(url))
            origin = Origin(target, self.balancer.instances, path)
        origin.make_logical(response, request, instance)


class _SettingsByScheme(dict[str, ConnectionSettings]):
    """The connection settings by scheme. They are created when the scheme is first needed, since
    discovery may return instances with another scheme later."""

    def __init__(self, limits: httpx.Limits, options: ConnectionOptions) -> None:
        super().__init__()
        self._limits, self._options = limits, options

    def __missing__(self, scheme: str) -> ConnectionSettings:
        made = self[scheme] = connection_settings(scheme, self._limits, self._options)
        return made


def _check_tls_names(target: Target) -> None:
    """Raise ValueError if TLS would verify the name of the service at an instance that has a name
    of its own."""
    for instance in target.listed:
        own = instance.tls_name
        if own is None and instance.scheme is not None and not validation.is_address(instance.host):
            own = instance.host
        secure = target.named and target.scheme_of(instance) == "https"
        if secure and own not in (None, target.host):
            raise ValueError(
                f"name: TLS would verify {target.host!r} at {instance}, not {own!r}; pass "
                'tls_name="instance", so that it verifies the name of each instance'
            )


@contextlib.contextmanager
def closed_on_error(balancer: Balancer) -> Generator[None]:
    """Return a context manager that closes the balancer if its block raises an exception. The block
    creates the client or transport that uses the balancer."""
    try:
        yield
    except BaseException:
        balancer.close()
        raise


def _function(name: str, value: object) -> Callable[[httpx.Request], object] | None:
    if value is not None:
        validation.function(name, value)
    return cast("Callable[[httpx.Request], object] | None", value)
