"""Cookies that cost nothing where none is set."""

from __future__ import annotations

from .flavour import httpx
from .shortcuts import sets_cookies

__all__ = ["Jar"]


class Jar(httpx.Cookies):
    """httpx's cookies. For each response httpx builds two objects of the standard library's and
    scans its headers twice, which takes a tenth of a whole call; here only where there is a cookie
    in it."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Keep what the response sets."""
        if sets_cookies(response):
            super().extract_cookies(response)
