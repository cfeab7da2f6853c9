"""Requests that are a method and a URL and nothing else, made from a pattern.

httpx merges the client's headers, cookies, parameters and timeouts into every request: a quarter of
the time of a call. Between two calls of one client nothing of that changes but the URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .flavour import httpx
from .origin import Origin
from .urls import Urls

__all__ = ["Drafts"]

_DEFAULT = httpx.USE_CLIENT_DEFAULT
_OWN = frozenset({b"host", b"content-length"})
_State = tuple[httpx.URL | None, list[tuple[bytes, bytes]], dict[str, httpx.Request]]
"""Base, headers, and the patterns made of them: one value, since threads share it."""


class Drafts:
    """The requests of one client. Patterns, one a method, are void as soon as the client's base or
    headers are others than when they were made."""

    __slots__ = ("_origin", "_state", "_urls")

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._urls = Urls()
        self._state: _State = (None, [], {})

    def request(
        self,
        client: httpx.Client | httpx.AsyncClient,
        method: str,
        url: httpx.URL | str,
        options: Mapping[str, Any],
        build: Callable[..., httpx.Request],
    ) -> httpx.Request:
        """What `build`, which is httpx's, makes of this."""
        base = client.base_url
        known = self._urls.merged(url, base)
        if known is not None and _asks_nothing(options) and not (client.cookies or client.params):
            headers, patterns = self._patterns(client, base)
            if (pattern := patterns.get(method)) is not None:
                return _made_from(pattern, known, client.timeout)
            request = build(method, known, **options)
            if _bears(request, headers):
                patterns[method] = _made_from(request, known, client.timeout)
            return request
        named = self._origin.named(url) if known is None else known
        request = build(method, named, **options)
        if named is url and options.get("params") is None and not client.params:
            self._urls.learn(url, base, request.url)
        return request

    def _patterns(
        self, client: httpx.Client | httpx.AsyncClient, base: httpx.URL
    ) -> tuple[list[tuple[bytes, bytes]], dict[str, httpx.Request]]:
        of, headers, patterns = self._state
        now = client.headers.raw
        if of is not base or now != headers:
            patterns = {}
            self._state = base, now, patterns
        return now, patterns


def _asks_nothing(options: Mapping[str, Any]) -> bool:
    """A timeout of None is asked for: no timeout."""
    if options.get("timeout", _DEFAULT) is not _DEFAULT:
        return False
    for value in options.values():  # noqa: SIM110  # all() takes twice as long
        if value is not None and value is not _DEFAULT:
            return False
    return True


def _bears(request: httpx.Request, headers: list[tuple[bytes, bytes]]) -> bool:
    """True where these are its headers, after httpx's own: another thread may have set others, and
    these again, since."""
    found = request.headers.raw
    own = found[: max(0, len(found) - len(headers))]
    return found[len(own) :] == headers and all(name.lower() in _OWN for name, _ in own)


def _made_from(pattern: httpx.Request, url: httpx.URL, timeout: httpx.Timeout) -> httpx.Request:
    """A request of its own, which may be changed as its owner likes."""
    made = httpx.Request.__new__(httpx.Request)
    made.__dict__.update(pattern.__dict__)  # copy.copy would pickle it, and lose its body
    made.url = url
    made.headers = pattern.headers.copy()
    made.extensions = {"timeout": timeout.as_dict()}  # one may be set in place, so it is read anew
    return made
