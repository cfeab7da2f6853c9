"""Whose URL a request names: the service's own, one of its instances', or a stranger's."""

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
    """The origin that a `Client` balances, which its instances' origins stand for too.

    An instance builds redirects from what it knows: its address, an alias, the port on which it
    listens. Hosts are compared as addresses and as names, whatever their spelling. `instances`
    returns the instances that are known now.
    """

    def __init__(self, url: str, instances: Callable[[], Iterable[Instance]]) -> None:
        self._url = httpx.URL(url)
        self._host = self._url.raw_host
        self._port = self._url.port
        self._scheme = self._url.scheme
        self._origin = origin_of(self._url)
        self._instances = instances

    def admitted(self, request: httpx.Request) -> httpx.Request:
        """The request; a new one that names the service where it named an instance, or the service
        in another spelling.

        Raises LoadBalancingError for a URL that is not the service's.
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
        """Name the service in a redirect that names one of its instances, or the service in another
        spelling.

        As a reverse proxy does: so cookies and credentials stay with the service, and the next
        request is balanced like any other.
        """
        location = response.headers.get("location")
        if location is None or "//" not in location:
            return
        try:
            url = httpx.URL(location)
            if url.host and self.includes(url):  # a redirect must not choose the credentials
                logical = str(self.logical(url).copy_with(userinfo=b""))
                if logical != location:
                    response.headers["location"] = logical
        except (httpx.InvalidURL, UnicodeError):  # httpx says so when it follows
            return

    def named(self, url: httpx.URL | str) -> httpx.URL | str:
        """The URL of a request that is to be built, in the service's own spelling if it names the
        service: so cookies, credentials and relative redirects stay with the service."""
        if isinstance(url, str) and "//" not in url:
            return url
        parsed = httpx.URL(url)
        return self.logical(parsed) if parsed.host and self.includes(parsed) else url

    def logical(self, url: httpx.URL) -> httpx.URL:
        """This path and query at the service."""
        return url.copy_with(scheme=self._scheme, host=self._url.host, port=self._port)

    def includes(self, url: httpx.URL) -> bool:
        """True for a URL of the service, or of one of its instances, in any spelling.

        Also for the service's name with the port of an instance: a server puts the port on which it
        listens behind the name by which it was asked.
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
            port == one.port and (own or names(one.host) or any(map(names, one.addresses)))
            for one in self._instances()
        )


def _names(host: str) -> Callable[[str], bool]:
    """Whether the host of a URL names the same as a host or address of an instance, which is in its
    canonical form: a name in lower case, an address as `ipaddress` prints it.
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
    if zone is not None:  # an instance without a zone may be in that one
        return {str(address), str(address).partition("%")[0]}.__contains__
    plain = getattr(address, "ipv4_mapped", None) or address
    same = {str(plain)}
    if plain.version == 4:
        same.add(str(ipaddress.IPv6Address(f"::ffff:{plain}")))
    if str(plain) in _LOOPBACK:
        same.add(_LOCALHOST)
    return lambda known: known in same or known.partition("%")[0] in same


def _shown(url: httpx.URL) -> str:
    """Scheme, host and port, also where the port is the scheme's own: without userinfo."""
    host = url.raw_host.decode("ascii")
    port = _DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port
    shown = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{shown}" + ("" if port is None else f":{port}")
