"""A request as simulated servers see it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SimulatedRequest"]


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of a load, for behaviours with a fourth parameter and for `fair_by=`.

    - `method`: it also decides whether a request may be repeated: only a method of the retry
      policy's `methods` is, and only where the scenario is `idempotent`.
    - `path`: for the servers; the client's decisions do not depend on it.
    - `key`: for strategies that pick by it, such as `"consistent-hash"`.
    - `caller`: what names the caller; the number of the client where the load names none.

    Raises TypeError, naming the argument, for a method or path that is not text.
    """

    method: str = "GET"
    path: str = "/"
    key: object = None
    caller: object = None

    def __post_init__(self) -> None:
        for name in ("method", "path"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"{name} must be text, not {value!r}")
