"""One instance of a service, and what a client knows of it: load, breaker, health."""

from __future__ import annotations

from lbclient.endpoint.endpoint import Endpoint

__all__ = ["Endpoint"]
