"""Decides whether a URL names the service, one of its instances, or another origin."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence

from lbclient.discovery.registry import Target
from lbclient.endpoint.instance import DEFAULT_PORTS, Instance

from ._compat import NAME, PUBLIC, httpx
from .errors import LoadBalancingError
from .shortcuts import headers_of, origin_of

__all__ = ["Origin", "base_path", "make_cookies_logical"]

_ENDS = (b"", b"/", b"?")
"""The characters that may follow a base path, unless the whole path ends with it."""
_COOKIE_PATH = re.compile(rb"(;[ \t]*path[ \t]*=[ \t]*)([^; \t]*)", re.IGNORECASE)
_LOCALHOST = "localhost"
_LOOPBACK = frozenset({"127.0.0.1", "::1"})
"""The addresses of `localhost` (RFC 6761, section 6.3)."""


class Origin:
    """The origin of a `Client`'s service. The origins of its instances are treated as the same
    origin.

    Redirects of an instance may contain its address, another name, or the port on which it listens.
    Hosts are compared as addresses and as names, in any spelling. If an instance has a base path,
    only URLs below this path are URLs of the service. `instances` returns the instances that are
    known at the moment. `path` is a base path that the transport puts before the path of each
    request. The base path of the instance comes before both.
    """

    def __init__(
        self, target: Target, instances: Callable[[], Iterable[Instance]], path: str = ""
    ) -> None:
        self._target = target
        self._path = path.encode("ascii")
        self._url = httpx.URL(target.origin)
        self._host = self._url.raw_host
        self._port = self._url.port
        self._scheme = self._url.scheme
        self._origin = origin_of(self._url)
        self._instances = instances

    def admitted(self, request: httpx.Request) -> httpx.Request:
        """Return the request if its URL names the service. If the URL names an instance, or the
        service in another spelling, return a new request whose URL names the service.

        Raises LoadBalancingError for any other URL.
        """
        url = request.url
        if origin_of(url) == self._origin:
            return request
        if (logical := self.logical(url)) is None:
            raise LoadBalancingError(
                f"this client balances {self._url} only, not {self._shown(url)}; for other "
                f"origins use {NAME}.Client(mounts={{...: {PUBLIC}.Transport(...)}})"
            )
        headers = httpx.Headers(request.headers)
        if headers.get("host", "").encode() == url.netloc:
            headers["host"] = self._url.netloc.decode("ascii")
        return httpx.Request(
            request.method,
            logical,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    def make_logical(
        self, response: httpx.Response, request: httpx.Request, instance: Instance
    ) -> None:
        """Change a redirect to an instance, or to the service in another spelling, into a redirect
        to the service. `instance` has sent the response.

        A reverse proxy does the same. So cookies and credentials stay with the service, and the
        next request is balanced like any other request. If the redirect leads outside the base path
        of the instance, it leaves the service, so it is changed into a redirect to the instance's
        own origin.
        """
        location = response.headers.get("location")
        path = self._base_path(instance)
        if location is None or not (path or "//" in location):
            return
        try:
            url = httpx.URL(location)
            if path:
                url = self._resolved(url, request, instance)
            logical = self.logical(url, instance) if url.host else None
            if logical is not None:
                url = logical.copy_with(userinfo=b"")  # a redirect must not set credentials
            elif not (url.host and base_path(instance, self._target)):
                return
            elif self._paths(url, instance):
                url = self._at(instance, url)
            if (shown := str(url)) != location:
                response.headers["location"] = shown
        except (httpx.InvalidURL, UnicodeError):  # httpx raises when it follows it
            return

    def _resolved(self, url: httpx.URL, request: httpx.Request, instance: Instance) -> httpx.URL:
        """Return the absolute URL of a redirect, as httpx does. But a relative URL is resolved
        against the URL that the instance has received."""
        if url.is_absolute_url:
            return url
        if url.scheme and not url.host:
            return url.copy_with(host=_written(instance))
        raw_path = base_path(instance, self._target) + request.url.raw_path
        return self._at(instance, request.url.copy_with(raw_path=raw_path)).join(url)

    def named(self, url: httpx.URL | str) -> httpx.URL | str:
        """Return the URL of a request to be built. If the URL names the service in another
        spelling, the result has the usual spelling, so that cookies, credentials and relative
        redirects stay with the service."""
        if isinstance(url, str) and "//" not in url:
            return url
        parsed = httpx.URL(url)
        return (self.logical(parsed) if parsed.host else None) or url

    def logical(self, url: httpx.URL, answered: Instance | None = None) -> httpx.URL | None:
        """Return the service's URL for a URL of the service or of one of its instances, in any
        spelling, without the base path of the instance. Return None for any other URL. `answered`
        is the instance that has sent the URL. If such a URL has the service's name, its path begins
        with the base path of this instance.

        A URL with the service's name and the port of an instance is also a URL of the service: a
        server may build it from the name in the request and the port on which it listens.
        """
        raw_path = url.raw_path
        found = [path for path in self._paths(url, answered) if _is_below(raw_path, path)]
        if not found:
            return None
        path = max(found, key=len)
        if answered is not None and (own := self._base_path(answered)) in found:
            path = own  # another instance may have a longer base path
        if path:
            below = raw_path[len(path) :]
            url = url.copy_with(raw_path=below if below.startswith(b"/") else b"/" + below)
        return url.copy_with(scheme=self._scheme, host=self._url.host, port=self._port)

    def _paths(self, url: httpx.URL, answered: Instance | None) -> Sequence[bytes]:
        """Return the base paths that the service has at the origin of this URL."""
        target = self._target
        names = _names(url.raw_host.decode("ascii"))
        own = names(self._host.decode("ascii"))
        if own and self._is_service(url):
            return [b"" if answered is None else self._base_path(answered)]
        scheme = url.scheme or self._scheme
        port = DEFAULT_PORTS.get(scheme) if url.port is None else url.port
        netloc = url.netloc.decode("ascii")
        hosts = netloc, f"{netloc}:{DEFAULT_PORTS.get(scheme)}"
        known = self._instances()
        if answered is not None:  # discovery may have removed this instance
            known = *known, answered
        return [
            self._base_path(one)
            for one in known
            if target.scheme_of(one) == scheme
            and (
                (port == one.port and (own or names(one.host) or any(map(names, one.addresses))))
                or (one.headers and one.headers.get("host", "").lower() in hosts)
            )
        ]

    def _base_path(self, instance: Instance) -> bytes:
        """Return the path that is put before the path of each request to this instance."""
        return base_path(instance, self._target) + self._path

    def _at(self, instance: Instance, url: httpx.URL) -> httpx.URL:
        """Return the URL with the instance's own origin."""
        scheme = self._target.scheme_of(instance)
        return url.copy_with(scheme=scheme, host=_written(instance), port=instance.port)

    def _is_service(self, url: httpx.URL) -> bool:
        """Return True if a URL, which has the service's host, also has the service's scheme and
        port."""
        default = DEFAULT_PORTS[self._scheme]
        port = default if url.port is None else url.port
        return url.scheme in ("", self._scheme) and port == (self._port or default)

    def _shown(self, url: httpx.URL) -> str:
        """Return a URL for use in errors: its scheme, host and port, and also the path if only the
        path differs from the service's URL."""
        return _shown(url) + (url.path if self._paths(url, None) else "")


def base_path(instance: Instance, target: Target) -> bytes:
    """Return the path that is put before the path of a request to this instance. It is empty if the
    service's URL already contains the base path, since all instances have the same one."""
    return b"" if instance.path == target.path else instance.path.encode("ascii")


def make_cookies_logical(response: httpx.Response, path: bytes) -> None:
    """Remove a base path from the paths of the cookies that a response sets. The requests of the
    client do not have this path, so such a cookie would never be sent."""
    if "set-cookie" not in response.headers:
        return

    def below(match: re.Match[bytes]) -> bytes:
        name, raw = match.groups()
        return name + (raw[len(path) :] or b"/") if _is_below(raw, path) else match[0]

    response.headers = headers_of(
        (name, _COOKIE_PATH.sub(below, value) if name.lower() == b"set-cookie" else value)
        for name, value in response.headers.raw
    )


def _written(instance: Instance) -> str:
    """Return the host as it is written in URLs: without a zone, which httpx does not accept."""
    return instance.host.partition("%")[0]


def _is_below(raw: bytes, path: bytes) -> bool:
    return raw.startswith(path) and (not path or raw[len(path) : len(path) + 1] in _ENDS)


def _names(host: str) -> Callable[[str], bool]:
    """Return a function that compares an instance's host with `host`, the host of a URL.

    An instance's host is in canonical form: a name in lower case, or an address as `ipaddress`
    prints it.
    """
    host = host.removesuffix(".")
    try:
        address = ipaddress.ip_address(host.replace("%25", "%", 1))  # RFC 6874
    except ValueError:
        name = host.lower()
        if name == _LOCALHOST or name.endswith(f".{_LOCALHOST}"):
            return (_LOOPBACK | {_LOCALHOST, name}).__contains__
        return name.__eq__
    zone = getattr(address, "scope_id", None)
    if zone is not None:  # an instance's address may omit the zone
        return {str(address), str(address).partition("%")[0]}.__contains__
    plain = getattr(address, "ipv4_mapped", None) or address
    same = {str(plain)}
    if plain.version == 4:
        same.add(str(ipaddress.IPv6Address(f"::ffff:{plain}")))
    if str(plain) in _LOOPBACK:
        same.add(_LOCALHOST)
    return lambda known: known in same or known.partition("%")[0] in same


def _shown(url: httpx.URL) -> str:
    """Return scheme, host and port (even the default port), without userinfo."""
    host = url.raw_host.decode("ascii")
    port = DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port
    shown = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{shown}" + ("" if port is None else f":{port}")
