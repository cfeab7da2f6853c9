"""A strategy is an object with `pick`; some learn from outcomes, or from load reports.

An instance may tell its load in a `LoadReport`, beside its answers or asked by a `LoadProbe`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol, runtime_checkable

from lbclient._internal import validation
from lbclient.endpoint import Endpoint

__all__ = ["Learning", "LoadAware", "LoadProbe", "LoadReport", "PickContext", "Probing", "Strategy"]

_MOST_IN_FLIGHT = 1e6
_LONGEST = 3600.0

_PATH = re.compile(r"/[!\"$-~]*")


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
        _at_most("in_flight", validation.number("in_flight", self.in_flight), _MOST_IN_FLIGHT)
        if self.latency is not None:
            seconds = validation.number("latency (seconds)", self.latency)
            _at_most("latency (seconds)", seconds, _LONGEST)


def _at_most(name: str, value: float, most: float) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most:g}, not {value!r}")


@dataclass(frozen=True, slots=True)
class LoadProbe:
    """Random instances are asked for their load (`LoadReport`) in the background, the more the
    more calls there are; without calls, nobody is. By clients and transports, over HTTP.

    - `path`: what to GET. An answer of any status counts by its load header alone
      (`endpoint-load-metrics`); who sends none offers none.
    - `rate`: probes for each answer to a call, on average; 16 are under way at the most.
    - `interval`: seconds from one round of probes to the next.
    - `timeout`: seconds for one probe.

    Source: the asynchronous probes of Prequal (NSDI 2024): three for each call, and one second.

    Raises ValueError or TypeError, naming the argument, for what cannot be used.
    """

    path: str = field(repr=False)  # a query may hold a secret
    _: KW_ONLY
    rate: float = 3.0
    interval: float = 0.1
    timeout: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise TypeError(f"path must be text such as '/load', not {self.path!r}")
        if not _PATH.fullmatch(self.path):
            shown = self.path.partition("?")[0]
            raise ValueError(
                "path must begin with '/' and hold printable ASCII without spaces or '#', "
                f"not {shown!r}"
            )
        validation.number("rate (probes for each call)", self.rate, above=True)
        validation.seconds("interval", self.interval)
        validation.seconds("timeout", self.timeout)


class PickContext(Protocol):
    """What a strategy is told of the call: the dice, the clock's time, and the call's key."""

    @property
    def rng(self) -> random.Random:
        """The balancer's dice."""
        ...

    @property
    def now(self) -> float:
        """The balancer's clock, in seconds."""
        ...

    @property
    def key(self) -> object:
        """What the caller passed as `key`, or None."""
        ...


class Strategy(Protocol):
    """Given the candidates, pick one. Asked for the first attempt of each call.

    In a forked child `after_fork()` is called, if the strategy has that method. A strategy that
    keeps a place in a sequence begins at a random one there, or all workers of a pre-fork server
    pick the same instances at the same time. `call.rng` is seeded anew by then.
    """

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick one of `candidates`, which are never empty.

        They are a new object whenever membership, admissibility or weights have changed, so a
        strategy may cache by their identity. Called under the balancer's lock: compute only.
        """
        ...


@runtime_checkable
class Learning(Protocol):
    """A strategy that is told how attempts ended."""

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """An attempt, whoever picked its instance, has its verdict after `elapsed` seconds.

        `failed` where it was not served: a fault, or an answer such as 429. One that was overtaken
        by a hedge is told with the time so far, a lower bound; one that says nothing of the
        instance (cancelled) is not told. Called under the balancer's lock, while the attempt still
        counts as in flight.
        """
        ...


@runtime_checkable
class LoadAware(Protocol):
    """A strategy that is told what instances say of their own load."""

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """It has said so, with an answer or to a probe. None: it was probed, and said nothing.

        A lie cannot be told from the truth, but nonsense never comes here. Called under the
        balancer's lock; of an answer, while its attempt still counts as in flight.
        """
        ...


@runtime_checkable
class Probing(LoadAware, Protocol):
    """One that wants instances asked for their load, too."""

    @property
    def probe(self) -> LoadProbe | None:
        """How; None is not at all."""
        ...
