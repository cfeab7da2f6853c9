"""The URLs that a client was asked for of late.

httpx parses a relative URL, merges it with the base and parses the result, for every request. That
costs more than all the decisions of a call together, and a service asks for the same paths again
and again.
"""

from __future__ import annotations

from .flavour import httpx

__all__ = ["Urls"]

_MOST = 256


class Urls:
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
