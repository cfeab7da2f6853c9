"""Whose URL a request names: the service's own, one of its instances', or a stranger's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lbclient.instance import Instance

from .errors import LoadBalancingError
from .flavour import NAME, PUBLIC, httpx

__all__ = ["Origin"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin:
    """The origin that a `Client` balances: its own, and its instances' where a redirect names one.

    `instances` tells who they are now.
    """

    def __init__(self, url: str, instances: Callable[[], Iterable[Instance]]) -> None:
        self._url = httpx.URL(url)
        self._host = self._url.raw_host
        self._port = self._url.port
        self._scheme = self._url.scheme
        self._instances = instances

    def admitted(self, request: httpx.Request) -> httpx.Request:
        """The request; a new one that names the service where it named an instance.

        Raises LoadBalancingError for a URL that is not the service's.
        """
        url = request.url
        if url.raw_host == self._host and url.port == self._port and url.scheme == self._scheme:
            return request
        if not self._names_instance(url):
            raise LoadBalancingError(
                f"this client balances {self._url} only, not {url.scheme}://{url.host}; for other "
                f"origins use {NAME}.Client(mounts={{...: {PUBLIC}.Transport(...)}})"
            )
        headers = httpx.Headers(request.headers)
        if headers.get("host", "").encode() == url.netloc:
            headers["host"] = self._url.netloc.decode("ascii")
        return httpx.Request(
            request.method,
            self._logical(url),
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    def make_logical(self, response: httpx.Response) -> None:
        """Name the service in a redirect that names one of its instances.

        As a reverse proxy does: so cookies and credentials stay with the service, and the next
        request is balanced like any other.
        """
        location = response.headers.get("location")
        if location is None or "//" not in location:
            return
        try:
            url = httpx.URL(location)
        except httpx.InvalidURL:
            return
        if url.host and self._names_instance(url):
            response.headers["location"] = str(self._logical(url))

    def _logical(self, url: httpx.URL) -> httpx.URL:
        return url.copy_with(scheme=self._scheme, host=self._url.host, port=self._url.port)

    def _names_instance(self, url: httpx.URL) -> bool:
        if url.scheme not in ("", self._scheme):
            return False
        port = url.port or _DEFAULT_PORTS[self._scheme]
        return any(
            port == one.port and url.host in (one.host, *one.addresses) for one in self._instances()
        )
