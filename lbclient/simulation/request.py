"""A request as simulated servers see it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SimulatedRequest"]


class SimulatedRequest(NamedTuple):
    """One request of a load, for behaviours with a fourth parameter and for `fair_by=`.

    - `method`: it also decides whether a request may be repeated: only a method of the retry
      policy's `methods` is, and only where the scenario is `idempotent`.
    - `path`: for the servers; the client's decisions do not depend on it.
    - `key`: for strategies that pick by it, such as `"consistent-hash"`.
    - `caller`: what names the caller; the number of the client where the load names none.
    """

    method: str = "GET"
    path: str = "/"
    key: object = None
    caller: object = None
