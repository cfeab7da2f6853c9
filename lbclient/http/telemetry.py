"""The spans and metrics of HTTP calls, as defined by OpenTelemetry's stable conventions for HTTP
clients."""

from __future__ import annotations

from urllib.parse import urlsplit

from lbclient.discovery.registry import Target
from lbclient.endpoint.instance import DEFAULT_PORTS, Instance
from lbclient.telemetry.semantics import Attributes, Semantics, error_attributes

from ._compat import httpx
from .connections.instance_transport import peer_of
from .origin import base_path

__all__ = ["HttpSemantics", "Labels", "redacted"]

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_MOST_URLS = 256
_PEER = "network.peer.address"


class Labels:
    """Caches the labels of a service's metrics (by method and outcome), and the span attributes of
    recently requested URLs."""

    def __init__(self, target: Target) -> None:
        self._server = _server(httpx.URL(target.origin))
        self._target = target
        self._url_cache: dict[tuple[int, str], tuple[httpx.URL, Attributes]] = {}
        self._made: dict[tuple[str, object], Attributes] = {}

    def of(self, method: str, result: object) -> Attributes:
        """Return the labels for this method and this result."""
        outcome = result.status_code if isinstance(result, httpx.Response) else type(result)
        labels = self._made.get((method, outcome))
        if labels is None:
            more = _outcome(result)
            labels = {"http.request.method": method, **self._server, **more}
            self._made[method, outcome] = labels
        return labels

    def of_request(self, method: str, url: httpx.URL) -> Attributes:
        """Return the span attributes for this method and URL. They are cached by the URL object,
        since a client uses one URL object for each path."""
        known = self._url_cache.get((id(url), method))
        if known is None or known[0] is not url:
            if len(self._url_cache) >= _MOST_URLS:
                self._url_cache = {}
            attributes = {"http.request.method": method, **_server(url), "url.full": redacted(url)}
            known = self._url_cache[id(url), method] = url, attributes
        return known[1]

    def of_instance(self, url: httpx.URL, instance: Instance) -> Attributes:
        """Return the span attributes of the URL that an instance gets, if it has a scheme, a base
        path or a Host of its own."""
        target, fixed = self._target, "host" in instance.headers
        if not (instance.scheme or instance.path or fixed):
            return {}
        scheme, host, port = target.scheme_of(instance), instance.host, instance.port
        authority = target.authority_at(instance)
        if fixed or not target.is_separate(instance):
            parts = urlsplit(f"//{authority}")
            host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[scheme]
        path = base_path(instance, target).decode("ascii") + _target(url)
        return {
            "server.address": host,
            "server.port": port,
            "url.full": f"{scheme}://{authority}{path}",
        }


class HttpSemantics(Semantics):
    """The attributes of one request's spans. They never contain the values of the query."""

    __slots__ = ("_labels", "_method", "_request")

    minimal = False

    def __init__(self, request: httpx.Request, labels: Labels) -> None:
        self._request = request
        self._labels = labels
        self._method = request.method if request.method in _METHODS else "_OTHER"

    @property
    def span_name(self) -> str:  # type: ignore[override]  # read-only in both
        """The name of the span: the method."""
        return "HTTP" if self._method == "_OTHER" else self._method

    def request(self, resend: int) -> Attributes:
        """Return the attributes that are known before sending."""
        known = self._labels.of_request(self._method, self._request.url)
        if self._method == "_OTHER":
            known = {**known, "http.request.method_original": self._request.method}
        return {**known, "http.request.resend_count": resend} if resend else known

    def addressed(self, instance: Instance) -> Attributes:
        """Return the attributes of the URL that this instance gets, if it is not the service's
        URL."""
        return self._labels.of_instance(self._request.url, instance)

    def result(self, result: object) -> Attributes:
        """Return the status, and the address that the response came from. A status of 400 or above
        is marked as an error."""
        known, peer = _outcome(result), peer_of(result)
        return known if peer is None else {**known, _PEER: peer}

    def duration(self, result: object) -> Attributes | None:
        """Return the labels with which the duration of an attempt is recorded."""
        return self._labels.of(self._method, result)


def _server(url: httpx.URL) -> Attributes:
    return {"server.address": url.host, "server.port": url.port or DEFAULT_PORTS.get(url.scheme, 0)}


def _outcome(result: object) -> Attributes:
    if isinstance(result, BaseException):
        return error_attributes(result)
    if not isinstance(result, httpx.Response):
        return {}
    status = result.status_code
    known: dict[str, str | int] = {"http.response.status_code": status}
    if status >= 400:
        known["error.type"] = str(status)
    return known


def redacted(url: httpx.URL) -> str:
    """Return the URL without user name, password and the values of its query."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{_target(url)}"


def _target(url: httpx.URL) -> str:
    """Return the path, and the query without its values."""
    names = (part.partition("=")[0] for part in url.query.decode("ascii").split("&") if part)
    query = "&".join(f"{name}=REDACTED" for name in dict.fromkeys(names))
    path = url.raw_path.partition(b"?")[0].decode("ascii")
    return path + (f"?{query}" if query else "")
