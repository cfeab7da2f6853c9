"""From what a user calls a service to its name, its origin, and what resolves it."""

from __future__ import annotations

from lbclient.target.target import Target, target_of
from lbclient.target.url import DEFAULT_PORTS, authority_of

__all__ = ["DEFAULT_PORTS", "Target", "authority_of", "target_of"]
