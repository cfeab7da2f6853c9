"""What an instance says of its own load."""

from __future__ import annotations

from dataclasses import dataclass

from lbclient import checks

__all__ = ["LoadReport"]

_MOST_IN_FLIGHT = 1e6
_LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How busy an instance says that it is, whoever keeps it busy.

    - `in_flight`: requests that it is working on, or that wait in its line, as it says so.
    - `latency`: seconds that an answer takes there at such a load, as far as it knows.

    Raises ValueError or TypeError, naming the argument, for what no instance can mean: a number
    that is negative, not finite, above 1,000,000 requests or an hour.
    """

    in_flight: float
    latency: float | None = None

    def __post_init__(self) -> None:
        _at_most("in_flight", checks.number("in_flight", self.in_flight), _MOST_IN_FLIGHT)
        if self.latency is not None:
            seconds = checks.number("latency (seconds)", self.latency)
            _at_most("latency (seconds)", seconds, _LONGEST)


def _at_most(name: str, value: float, most: float) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most:g}, not {value!r}")
