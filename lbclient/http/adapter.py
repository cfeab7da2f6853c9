"""What the sync and the async transport share: everything but sending."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import cast

from lbclient._internal import validation
from lbclient._internal.signals import Pause
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import Binding
from lbclient.balancer.options import BalancerOptions
from lbclient.core.call import Call
from lbclient.discovery.registry import Target
from lbclient.discovery.service_url import authority_of
from lbclient.endpoint.endpoint import Endpoint
from lbclient.protocol import bind
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.retry import RetryPolicy

from ._compat import httpx
from .classifier import HttpClassifier
from .options import (
    ConnectionOptions,
    ConnectionSettings,
    TransportOptions,
    connection_settings,
    deadline_header,
    part,
    refuse_bypass,
)
from .origin import Origin
from .request import SHARED_DEADLINE, UNSTREAMED, Upstream, call_options_of
from .response_stream import AsyncResponseStream, ResponseStream
from .shortcuts import Content
from .telemetry import HttpSemantics, Labels

__all__ = ["HttpAdapter", "closed_on_error", "policy_of"]

_TLS_NAMES = ("instance", "service")
_CLOSE_GRACE = 1.0
_LAST_MOMENT = 0.25


class HttpAdapter:
    """Connects HTTP to one balancer.

    It checks the arguments, reads the options of each request, checks the origin that the request
    names, and knows how instances are addressed.
    """

    def __init__(self, service: object, options: Mapping[str, object]) -> None:
        options = dict(options)
        refuse_bypass(options, TransportOptions.__annotations__)
        mine = part(options, BalancerOptions)
        if isinstance(limits := options.get("limits"), httpx.Limits):
            validation.limit("limits (max_connections)", limits.max_connections)
            if (idle := limits.max_keepalive_connections) is not None:
                validation.count("limits (max_keepalive_connections)", idle, least=0)
            if (expiry := limits.keepalive_expiry) is not None:
                validation.number("limits (keepalive_expiry, seconds)", expiry)
            mine.setdefault("max_in_flight_total", limits.max_connections)
        self.health: HealthCheck | None = mine.pop("health", None)
        validation.kind("health", self.health, HealthCheck)
        self.policy: RetryPolicy = policy_of(mine)
        self.balancer: Balancer = Balancer(
            service,  # type: ignore[arg-type]  # checked there
            judge=HttpClassifier(self.policy.statuses),
            **mine,
        )
        self.binding: Binding = bind(self.balancer)
        self.target: Target = self.balancer.target
        self.origin: Origin | None = None
        with closed_on_error(self.balancer):
            tls_name = validation.one_of("tls_name", options.get("tls_name", "service"), _TLS_NAMES)
            self.connection_settings: ConnectionSettings = connection_settings(
                self.target.scheme, **part(options, ConnectionOptions)
            )
            self._key_of = _function("key", options.get("key"))
            self._fair_by = _function("fair_by", options.get("fair_by"))
            self._deadline_header = deadline_header(options.get("deadline_header"))
            self.close_grace: float = validation.number(
                "close_grace (seconds)", options.get("close_grace", _CLOSE_GRACE)
            )
        self.tls_name: str | None = self.target.host if tls_name == "service" else None
        url = httpx.URL(self.target.origin)
        self._labels = Labels(url)
        self._logical_host = url.netloc

    def own(self, origin: str) -> None:
        """Accept only requests for this origin. A `Client` does so, a transport alone does not."""
        self.origin = Origin(origin, self.balancer.instances)

    def call(
        self, request: httpx.Request, replayable: Callable[[], bool] | None
    ) -> Call[httpx.Response]:
        """Begin the call that sends this request."""
        options = call_options_of(request, self.policy, replayable, self._key_of, self._fair_by)
        if (shared := SHARED_DEADLINE.get()) is not None:
            options = shared.bind(options, self.binding)
        return self.binding.begin(options, HttpSemantics(request, self._labels))

    def drain(self) -> Pause:
        """The wait before connections are closed: until no call is left, or `close_grace`."""
        return Pause(self.close_grace, self.binding.idle())

    def last(self) -> Pause:
        """The wait after that: calls that lost their connections need a moment to end."""
        return Pause(_LAST_MOMENT, self.binding.idle())

    def upstream(self, endpoint: Endpoint) -> Upstream:
        """How to address an instance. In a list without a name, each one gets its own Host."""
        instance, hosts = endpoint.instance, None
        if self.origin is not None and self.target.authority is None:
            own = authority_of(instance.host, instance.port, self.target.scheme).encode("ascii")
            hosts = None if own == self._logical_host else (self._logical_host, own)
        return Upstream(instance, self.target.scheme, self.tls_name, hosts, self._deadline_header)

    def reads_at_once(self, request: httpx.Request, response: httpx.Response) -> bool:
        """True if the body is read within the attempt, so that an instance that fails while it
        sends the body can be replaced.

        False for a response that may be replaced by another attempt anyway.
        """
        unstreamed: bool = request.extensions.get(UNSTREAMED, False)
        return unstreamed and response.status_code not in self.policy.statuses

    def finished(self, call: Call[httpx.Response], response: httpx.Response) -> httpx.Response:
        """The response as the caller gets it: with `CallInfo`, and redirects to the service."""
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
def closed_on_error(balancer: Balancer) -> Iterator[None]:
    """Close the balancer if the block, which builds something around it, raises."""
    try:
        yield
    except BaseException:
        balancer.close()
        raise


def policy_of(options: Mapping[str, object]) -> RetryPolicy:
    """The retry policy of these options. The balancer rejects values that are not a policy."""
    policy = options.get("retry", RetryPolicy())
    return policy if isinstance(policy, RetryPolicy) else RetryPolicy(attempts=1)


def _function(name: str, value: object) -> Callable[[httpx.Request], object] | None:
    if value is not None:
        validation.function(name, value)
    return cast("Callable[[httpx.Request], object] | None", value)
