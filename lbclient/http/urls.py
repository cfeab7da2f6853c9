"""The URLs that a client was asked for of late.

httpx parses a relative URL, merges it with the base and parses the result, for every request. That
costs more than all the decisions of a call together, and a service asks for the same paths again
and again.
"""

from __future__ import annotations

import httpx

__all__ = ["Urls"]

_MOST = 256


class Urls:
    """What relative URLs stand for; forgotten when there are too many, or another base is set."""

    __slots__ = ("_base", "_known")

    def __init__(self) -> None:
        self._base: httpx.URL | None = None
        self._known: dict[str, httpx.URL] = {}

    def merged(self, url: httpx.URL | str, base: httpx.URL) -> httpx.URL | str:
        """The absolute URL, parsed, where it is known; else what was given."""
        if base is not self._base or not isinstance(url, str):
            return url
        return self._known.get(url, url)

    def learn(self, url: httpx.URL | str, base: httpx.URL, merged: httpx.URL) -> None:
        """Keep what httpx has made of `url`, where no parameters had a part in it."""
        if not isinstance(url, str):
            return
        if base is not self._base or len(self._known) >= _MOST:
            self._base, self._known = base, {}
        self._known[url] = merged
