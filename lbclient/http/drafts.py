"""Requests that are a method and a URL and nothing else, made from a pattern.

httpx merges the client's headers, cookies, parameters and timeouts into every request: a quarter of
the time of a call. Between two calls of one client nothing of that changes but the URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

from .flavour import httpx
from .origin import Origin
from .shortcuts import Fields, request_like, settings_of
from .urls import Urls

__all__ = ["Drafts"]

_DEFAULT = httpx.USE_CLIENT_DEFAULT
_UNSET = (None, None, None, None, None, None, None, _DEFAULT, None)
"""What httpx's own `request` passes on for each call that asks for nothing. Only `timeout` has this
default, so whatever the order of the names, nothing else can look like it."""
_OWN = frozenset({b"host", b"content-length"})
_State = tuple[httpx.URL | None, Fields, dict[str, httpx.Request]]
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
        base, headers, timeout, adds = settings_of(client)
        known = self._urls.merged(url, base)
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
            self._urls.learn(url, base, request.url)
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
