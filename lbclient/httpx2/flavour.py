"""The HTTP library: httpx2, and the httpcore2 that belongs to it."""

from __future__ import annotations

import httpcore2 as httpcore
import httpx2 as httpx

__all__ = ["NAME", "PUBLIC", "httpcore", "httpx"]

NAME = "httpx2"
PUBLIC = "lbclient.httpx2"
