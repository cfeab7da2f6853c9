"""Data that a client reuses for later requests: parsed URLs, and requests that serve as patterns.
The module also contains cookies that are parsed only if a response sets them.

httpx merges the client's headers, cookies, parameters and timeouts into every request, which takes
a quarter of the time of a call. Between two calls of one client usually only the URL changes. So if
a call sets only the method and the URL, its request is copied from an earlier request (the pattern)
with another URL.

httpx also parses a relative URL, merges it with the base URL and parses the result, for every
request. This takes longer than all decisions of the balancer for a call. Since clients of a service
use the same paths again and again, the results are cached.
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
"""The values that httpx's own `request` passes if a call sets nothing. Only `timeout` has
`_DEFAULT` as its default. So the values can be compared without their names, in any order."""
_OWN = frozenset({b"host", b"content-length"})
_State = tuple[httpx.URL | None, Fields, dict[str, httpx.Request]]
"""The base URL, the headers, and the patterns made from them. They are one value, so that other
threads always see all three together."""


class LazyCookies(httpx.Cookies):
    """A cookie store that parses the headers of a response only if the response sets cookies. httpx
    would build two objects of the standard library for each response and scan its headers twice,
    which takes a tenth of the time of a call."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Store the cookies that the response sets."""
        headers = response.headers
        if "set-cookie" in headers or "set-cookie2" in headers:
            super().extract_cookies(response)


class UrlCache:
    """A cache for one base URL. It maps the URL that a call passes to the absolute URL. The cache
    is emptied when it is full, or when the base URL changes."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state: tuple[httpx.URL | None, dict[str, httpx.URL]] = (None, {})
        """The base URL, and the cache for it. They are one value, since another thread may set
        another base URL."""

    def merged(self, url: httpx.URL | str, base: httpx.URL) -> httpx.URL | None:
        """Return the absolute URL, if it has the same origin as the base URL. Otherwise returns
        None, and httpx must build the request."""
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
            except httpx.InvalidURL:  # httpx itself raises a better error
                return None
        return merged

    def learn(self, url: httpx.URL | str, base: httpx.URL, merged: httpx.URL) -> None:
        """Store the URL that httpx has built from `url`, if it has the base URL's origin."""
        of, known = self._state
        mine = (base.scheme, base.netloc) == (merged.scheme, merged.netloc)
        if of is base and mine and isinstance(url, str):
            known[url] = merged


def _whole(url: str, base: httpx.URL) -> str | None:
    """Return the absolute URL as text. Returns None if `url` is neither a path that is appended to
    the base URL nor a URL of the same origin."""
    if url[:1] == "/":
        whole = str(base) + url[1:]
        return whole if url[1:2] != "/" and "/." not in url and "#" not in whole else None
    origin = f"{base.scheme}://{base.netloc.decode('ascii')}/"
    return url if url.startswith(origin) else None


class RequestCache:
    """Builds the requests of one client, from one pattern per method. The patterns are dropped when
    the client's base URL or headers have changed."""

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
        """Return the request that `build` would return, from the cache if possible. `build` is
        httpx's `build_request`."""
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
            if _has_headers(request, before):
                patterns[method] = request_like(request, known, timeout)
            return request
        named = self._origin.named(url) if known is None else known
        request = build(method, named, **options)
        if named is url and options.get("params") is None and not client.params:
            self._url_cache.learn(url, base, request.url)
        return request


def _asks_for_nothing(options: Mapping[str, Any]) -> bool:
    """Return True if none of these options is set. A timeout of None is set: it means that there is
    no timeout."""
    return all(
        value is _DEFAULT or (value is None and name != "timeout")
        for name, value in options.items()
    )


def _has_headers(request: httpx.Request, headers: Fields) -> bool:
    """Return True if the last headers of the request are `headers`, the headers of the client. They
    may differ if another thread has changed the client's headers meanwhile, and changed them back.
    """
    found, theirs = request.headers.raw, [(name, value) for name, _, value in headers]
    own = found[: max(0, len(found) - len(theirs))]
    return found[len(own) :] == theirs and all(name.lower() in _OWN for name, _ in own)
