"""The HTTP library: httpx2."""

from __future__ import annotations

import httpx2 as httpx

__all__ = ["NAME", "PUBLIC", "httpx"]

NAME = "httpx2"
PUBLIC = "lbclient.httpx2"
