"""What the URL of a request names: the service, one of its instances, or another origin."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from lbclient.endpoint.instance import Instance

from ._compat import NAME, PUBLIC, httpx
from .errors import LoadBalancingError
from .shortcuts import origin_of

__all__ = ["Origin"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCALHOST = "localhost"
_LOOPBACK = frozenset({"127.0.0.1", "::1"})
"""The addresses that `localhost` stands for (RFC 6761, section 6.3)."""


class Origin:
    """The origin of a `Client`'s service. The origins of its instances count as the same origin.

    An instance may build redirects with its address, an alias, or the port on which it listens.
    Hosts are compared as addresses and as names, in any spelling. `instances` returns the instances
    that are known at the moment.
    """

    def __init__(self, url: str, instances: Callable[[], Iterable[Instance]]) -> None:
        self._url = httpx.URL(url)
        self._host = self._url.raw_host
        self._port = self._url.port
        self._scheme = self._url.scheme
        self._origin = origin_of(self._url)
        self._instances = instances

    def admitted(self, request: httpx.Request) -> httpx.Request:
        """Return the request. If it names an instance, or the service in another spelling, return a
        new one that names the service.

        Raises LoadBalancingError for any other URL.
        """
        url = request.url
        if origin_of(url) == self._origin:
            return request
        if not self.includes(url):
            raise LoadBalancingError(
                f"this client balances {self._url} only, not {_shown(url)}; for other "
                f"origins use {NAME}.Client(mounts={{...: {PUBLIC}.Transport(...)}})"
            )
        headers = httpx.Headers(request.headers)
        if headers.get("host", "").encode() == url.netloc:
            headers["host"] = self._url.netloc.decode("ascii")
        return httpx.Request(
            request.method,
            self.logical(url),
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    def make_logical(self, response: httpx.Response) -> None:
        """Change a redirect to an instance, or to the service in another spelling, into a redirect
        to the service.

        A reverse proxy does the same. So cookies and credentials stay with the service, and the
        next request is balanced like any other.
        """
        location = response.headers.get("location")
        if location is None or "//" not in location:
            return
        try:
            url = httpx.URL(location)
            if url.host and self.includes(url):  # a redirect must not set credentials
                logical = str(self.logical(url).copy_with(userinfo=b""))
                if logical != location:
                    response.headers["location"] = logical
        except (httpx.InvalidURL, UnicodeError):  # httpx raises when it follows the redirect
            return

    def named(self, url: httpx.URL | str) -> httpx.URL | str:
        """Return the URL of a request to be built. If it names the service, it gets the service's
        own spelling, so that cookies, credentials and relative redirects stay with the service."""
        if isinstance(url, str) and "//" not in url:
            return url
        parsed = httpx.URL(url)
        return self.logical(parsed) if parsed.host and self.includes(parsed) else url

    def logical(self, url: httpx.URL) -> httpx.URL:
        """Return the service's URL with the path and query of this URL."""
        return url.copy_with(scheme=self._scheme, host=self._url.host, port=self._port)

    def includes(self, url: httpx.URL) -> bool:
        """Return True for a URL of the service or of one of its instances, in any spelling.

        The service's name with the port of an instance counts too: a server may build a URL from
        the name in the request and the port on which it listens.
        """
        if url.scheme not in ("", self._scheme):
            return False
        default = _DEFAULT_PORTS[self._scheme]
        port = default if url.port is None else url.port
        names = _names(url.raw_host.decode("ascii"))
        own = names(self._host.decode("ascii"))
        if own and port == (self._port or default):
            return True
        return any(
            port == instance.port
            and (own or names(instance.host) or any(map(names, instance.addresses)))
            for instance in self._instances()
        )


def _names(host: str) -> Callable[[str], bool]:
    """Return a function that says whether an instance's host is the same as this host of a URL.

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
    if zone is not None:  # an instance without a zone may be in this zone
        return {str(address), str(address).partition("%")[0]}.__contains__
    plain = getattr(address, "ipv4_mapped", None) or address
    same = {str(plain)}
    if plain.version == 4:
        same.add(str(ipaddress.IPv6Address(f"::ffff:{plain}")))
    if str(plain) in _LOOPBACK:
        same.add(_LOCALHOST)
    return lambda known: known in same or known.partition("%")[0] in same


def _shown(url: httpx.URL) -> str:
    """Return scheme, host and port (even the default one), without userinfo."""
    host = url.raw_host.decode("ascii")
    port = _DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port
    shown = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{shown}" + ("" if port is None else f":{port}")
