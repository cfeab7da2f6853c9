"""What a client keeps from one request to the next: URLs, patterns of requests, cookies.

httpx merges the client's headers, cookies, parameters and timeouts into every request: a quarter of
the time of a call. Between two calls of one client nothing of that changes but the URL. So requests
that are a method and a URL and nothing else are made from a pattern.

httpx also parses a relative URL, merges it with the base and parses the result, for every request.
That costs more than all the decisions of a call together, and a service asks for the same paths
again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

from ._compat import httpx
from .origin import Origin
from .shortcuts import Fields, request_like, settings_of

__all__ = ["LazyCookies", "RequestCache"]

_MOST = 256

_DEFAULT = httpx.USE_CLIENT_DEFAULT
_UNSET = (None, None, None, None, None, None, None, _DEFAULT, None)
"""What httpx's own `request` passes on for each call that asks for nothing. Only `timeout` has this
default, so whatever the order of the names, nothing else can look like it."""
_OWN = frozenset({b"host", b"content-length"})
_State = tuple[httpx.URL | None, Fields, dict[str, httpx.Request]]
"""Base, headers, and the patterns made of them: one value, since threads share it."""


class LazyCookies(httpx.Cookies):
    """httpx's cookies. For each response httpx builds two objects of the standard library's and
    scans its headers twice, which takes a tenth of a whole call; here only where there is a cookie
    in it."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Keep what the response sets."""
        headers = response.headers
        if "set-cookie" in headers or "set-cookie2" in headers:
            super().extract_cookies(response)


class UrlCache:
    """What the URLs of requests stand for, below a base; forgotten when there are too many, or
    another base is set."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state: tuple[httpx.URL | None, dict[str, httpx.URL]] = (None, {})
        """The base, and what is known below it: one value, since threads may set another base."""

    def merged(self, url: httpx.URL | str, base: httpx.URL) -> httpx.URL | None:
        """The absolute URL, of the base's origin; None for what httpx must look at itself."""
        if not isinstance(url, str):
            return None
        of, known = self._state
        if of is not base or len(known) >= _MOST:
            known = {}
            self._state = base, known
        merged = known.get(url)
        if merged is None and (whole := _whole(url, base)) is not None:
            try:
                merged = known[url] = httpx.URL(whole)
            except httpx.InvalidURL:  # httpx tells where, in the URL as it was given
                return None
        return merged

    def learn(self, url: httpx.URL | str, base: httpx.URL, merged: httpx.URL) -> None:
        """Keep what httpx has made of `url`, where it is of the base's origin."""
        of, known = self._state
        mine = (base.scheme, base.netloc) == (merged.scheme, merged.netloc)
        if of is base and mine and isinstance(url, str):
            known[url] = merged


def _whole(url: str, base: httpx.URL) -> str | None:
    """The URL, unparsed: of a path which is just appended to the base, or of the base's origin."""
    if url[:1] == "/":
        whole = str(base) + url[1:]
        return whole if url[1:2] != "/" and "/." not in url and "#" not in whole else None
    origin = f"{base.scheme}://{base.netloc.decode('ascii')}/"
    return url if url.startswith(origin) else None


class RequestCache:
    """The requests of one client. Patterns, one a method, are void as soon as the client's base or
    headers are others than when they were made."""

    __slots__ = ("_origin", "_state", "_url_cache")

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._url_cache = UrlCache()
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
        base, headers, timeout, adds = settings_of(client)
        known = self._url_cache.merged(url, base)
        unset = len(options) == len(_UNSET) and all(map(is_, options.values(), _UNSET))
        if known is not None and not adds and (unset or _asks_for_nothing(options)):
            of, before, patterns = self._state
            if of is not base or headers != before:
                before, patterns = headers.copy(), {}
                self._state = base, before, patterns
            if (pattern := patterns.get(method)) is not None:
                return request_like(pattern, known, timeout)
            request = build(method, known, **options)
            if _bears(request, before):
                patterns[method] = request_like(request, known, timeout)
            return request
        named = self._origin.named(url) if known is None else known
        request = build(method, named, **options)
        if named is url and options.get("params") is None and not client.params:
            self._url_cache.learn(url, base, request.url)
        return request


def _asks_for_nothing(options: Mapping[str, Any]) -> bool:
    """True where none of these options says anything. A timeout of None does: no timeout."""
    return all(
        value is _DEFAULT or (value is None and name != "timeout")
        for name, value in options.items()
    )


def _bears(request: httpx.Request, headers: Fields) -> bool:
    """True where these are its headers, after httpx's own: another thread may have set others, and
    these again, since."""
    found, theirs = request.headers.raw, [(name, value) for name, _, value in headers]
    own = found[: max(0, len(found) - len(theirs))]
    return found[len(own) :] == theirs and all(name.lower() in _OWN for name, _ in own)
