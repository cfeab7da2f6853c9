"""The common part of the sync and the async transport: everything except sending."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import TypeVar, cast, get_args

from lbclient._internal import validation
from lbclient._internal.signals import Pause
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import Binding
from lbclient.balancer.options import BalancerOptions, with_defaults
from lbclient.core.call import Call
from lbclient.discovery.composite import Service
from lbclient.discovery.registry import Target
from lbclient.discovery.service_url import authority_of
from lbclient.endpoint.endpoint import Endpoint
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
    connection_settings,
    deadline_header,
    part,
)
from .origin import Origin
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

    It checks the arguments, reads the options of each request, checks the origin that the request
    names, and knows how instances are addressed.
    """

    def __init__(self, service: Service, options: TransportOptions) -> None:
        given: TransportOptions = with_defaults(
            checked(options, TransportOptions), TransportOptions
        )
        balancing: BalancerOptions = part(given, BalancerOptions)
        if isinstance(limits := given["limits"], httpx.Limits):
            validation.limit("limits (max_connections)", limits.max_connections)
            if (idle := limits.max_keepalive_connections) is not None:
                validation.count("limits (max_keepalive_connections)", idle, least=0)
            if (expiry := limits.keepalive_expiry) is not None:
                validation.number("limits (keepalive_expiry, seconds)", expiry)
            if "max_in_flight_total" not in options:
                balancing["max_in_flight_total"] = limits.max_connections
        self.health: HealthCheck | None = given["health"]
        balancing["health"] = None
        validation.kind("health", self.health, HealthCheck)
        validation.kind("retry", given["retry"], RetryPolicy)
        policy = given["retry"] or ONE_ATTEMPT
        judge = HttpClassifier(policy.statuses, policy.unprocessed)
        self._retried = frozenset(policy.statuses).union(policy.unprocessed)
        self.balancer: Balancer = Balancer(service, judge=judge, **balancing)
        self.binding: Binding = bind(self.balancer)
        self.policy: RetryPolicy = self.binding.retry
        self.target: Target = self.balancer.target
        self.origin: Origin | None = None
        self.asks_load: bool = self.binding.loads() is not None
        """True if the strategy uses the load that instances report."""
        with closed_on_error(self.balancer):
            latency = validation.one_of("latency", given["latency"], get_args(Latency))
            tls_name = validation.one_of("tls_name", given["tls_name"], _TLS_NAMES)
            self.connection_settings: ConnectionSettings = connection_settings(
                self.target.scheme, limits, **part(given, ConnectionOptions)
            )
            self._key_of = _function("key", given["key"])
            self._fair_by = _function("fair_by", given["fair_by"])
            self._deadline_header = deadline_header(given["deadline_header"])
            self.close_grace: float = validation.number(
                "close_grace (seconds)", given["close_grace"]
            )
        self.first_byte: bool = latency == "first-byte"
        """True if latency is measured up to the first byte of the body."""
        self.tls_name: str | None = self.target.host if tls_name == "service" else None
        url = httpx.URL(self.target.origin)
        self._labels = Labels(url)
        self._logical_host = url.netloc

    def own(self, origin: str) -> None:
        """Accept only requests for this origin, as a `Client` does. A transport accepts all."""
        self.origin = Origin(origin, self.balancer.instances)

    def call(
        self, request: httpx.Request, replayable: Callable[[], bool] | None
    ) -> Call[httpx.Response]:
        """Begin the call that sends this request."""
        options = call_options_of(request, self.policy, replayable, self._key_of, self._fair_by)
        return self.binding.begin(options, HttpSemantics(request, self._labels))

    def drain(self) -> Pause:
        """Return the wait before connections close: until no call is left, or `close_grace`."""
        return Pause(self.close_grace, self.binding.idle())

    def last(self) -> Pause:
        """Return the wait after `drain`: calls that have lost their connections need a moment to
        end.
        """
        return Pause(_LAST_MOMENT, self.binding.idle())

    def upstream(self, endpoint: Endpoint) -> Upstream:
        """Return how to address an instance. In a list without a name, each has its own Host."""
        instance, hosts = endpoint.instance, None
        if self.origin is not None and self.target.authority is None:
            own = authority_of(instance.host, instance.port, self.target.scheme).encode("ascii")
            hosts = None if own == self._logical_host else (self._logical_host, own)
        return Upstream(
            instance,
            self.target.scheme,
            self.tls_name,
            hosts,
            self._deadline_header,
            self.asks_load,
        )

    def transports(self, kind: Callable[..., P], make: TransportMaker) -> P:
        """Return the transports to the instances, in a `TransportPool` or `AsyncTransportPool`."""
        settings = self.connection_settings
        return kind(
            self.binding.pool,
            lambda endpoint, idle: make(self.upstream(endpoint), settings, idle),
            settings,
            self.binding.rng,
        )

    def reads_at_once(self, request: httpx.Request, response: httpx.Response) -> bool:
        """True if the body is read within the attempt, so that an instance that fails while it
        sends the body can be replaced.

        False for a response that may be replaced by another attempt anyway.
        """
        unstreamed: bool = request.extensions.get(UNSTREAMED, False)
        return unstreamed and response.status_code not in self._retried

    def awaits_body(self, request: httpx.Request, response: httpx.Response) -> bool:
        """True if a streamed response is returned only once the first byte of its body has arrived.

        False after an upgrade, whose bytes are not a body.
        """
        upgraded = response.status_code == _SWITCHING or request.method == "CONNECT"
        return self.first_byte and not upgraded and response.status_code not in self._retried

    def finished(self, call: Call[httpx.Response], response: httpx.Response) -> httpx.Response:
        """Prepare a response for the caller: add the `CallInfo`, and make redirects lead to the
        service.
        """
        info = response.extensions["lbclient"] = call.info()
        if isinstance(response.stream, Content):
            response.elapsed = timedelta(seconds=call.elapsed)
        elif isinstance(response.stream, ResponseStream | AsyncResponseStream):
            response.stream.info = info  # for an error while the body is read later
        redirect = 300 <= response.status_code < 400 and response.has_redirect_location
        if redirect and self.origin is not None:
            self.origin.make_logical(response)
        return response


@contextlib.contextmanager
def closed_on_error(balancer: Balancer) -> Generator[None]:
    """Close the balancer if the block, which builds something around it, raises."""
    try:
        yield
    except BaseException:
        balancer.close()
        raise


def _function(name: str, value: object) -> Callable[[httpx.Request], object] | None:
    if value is not None:
        validation.function(name, value)
    return cast("Callable[[httpx.Request], object] | None", value)
