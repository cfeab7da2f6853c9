"""The protocols of strategies: objects with `pick`. Some also learn from outcomes or load reports.

An instance can report its load (a `LoadReport`) with its responses, or in reply to a load probe.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol, runtime_checkable

from lbclient._internal import validation
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["Learning", "LoadAware", "LoadProbe", "LoadReport", "PickContext", "Probing", "Strategy"]

_MOST_IN_FLIGHT = 1e6
_LONGEST = 3600.0

_PATH = re.compile(r"/[!\"$-~]*")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The load that an instance reports, from all of its clients.

    - `in_flight`: requests that the instance works on, or that wait in its queue.
    - `latency`: seconds that a response of this instance takes at this load, by its own measure.
    - `utilization`: the used part, from 0 to 1, of the resource that limits the instance, such as
      the KV cache of an LLM server.

    Raises ValueError or TypeError, naming the argument, if a number is negative, not finite or too
    large: above 1,000,000 requests, one hour or a utilization of 1.
    """

    in_flight: float
    latency: float | None = None
    utilization: float | None = None

    def __post_init__(self) -> None:
        _at_most("in_flight", validation.number("in_flight", self.in_flight), _MOST_IN_FLIGHT)
        if self.latency is not None:
            seconds = validation.number("latency (seconds)", self.latency)
            _at_most("latency (seconds)", seconds, _LONGEST)
        if self.utilization is not None:
            validation.fraction("utilization", self.utilization)


def _at_most(name: str, value: float, most: float) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most:g}, not {value!r}")


@dataclass(frozen=True, slots=True)
class LoadProbe:
    """Asks random instances for their load (`LoadReport`) in the background, over HTTP.

    The number of probes is in proportion to the number of calls; without calls there are no probes.
    Only clients and transports send load probes, not a `Balancer`.

    - `path`: the path of a GET request. The load is read from the header `endpoint-load-metrics` of
      the response, whatever its status is. A response without this header reports no load.
    - `rate`: probes for each response to a call, on average. At most 16 probes are under way at a
      time.
    - `interval`: seconds from one round of probes to the next.
    - `timeout`: seconds for one probe.

    Source: the asynchronous probes of Prequal (NSDI 2024).

    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
    """

    path: str = field(repr=False)  # a query may contain a secret
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
    """What a strategy may use for a pick: a random number generator, the time, and the key of the
    call."""

    @property
    def rng(self) -> random.Random:
        """The balancer's random number generator."""
        ...

    @property
    def now(self) -> float:
        """The time of the balancer's clock, in seconds."""
        ...

    @property
    def key(self) -> object:
        """The value that the caller passed as `key`, or None."""
        ...


class Strategy(Protocol):
    """Picks one of the candidates, for the first attempt of each call.

    If the strategy has a method `after_fork()`, it is called in a forked child. A strategy that
    keeps a position in a sequence must move to a random position in this method. Otherwise all
    workers of a pre-fork server would pick the same instances at the same time. `call.rng` has a
    new seed at that time.
    """

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick one of `candidates`, which are never empty.

        `candidates` is a new object whenever instances, their rotation or their weights have
        changed, so a strategy may use the identity of this object as a key of a cache. This method
        is called under the balancer's lock, so it must not block or do I/O.
        """
        ...


@runtime_checkable
class Learning(Protocol):
    """A strategy that learns how attempts ended."""

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Record an attempt that has been classified, even if the strategy did not pick its
        instance.

        The attempt took `elapsed` seconds. `failed` is True if the attempt was not served: a fault,
        or a response such as 429. The slower attempt of a hedged call is recorded with its time so
        far, which is a lower bound. An attempt that says nothing about the instance (because it was
        cancelled) is not recorded. This method is called under the balancer's lock, while the
        attempt still counts as in flight.
        """
        ...


@runtime_checkable
class LoadAware(Protocol):
    """A strategy that uses the load that instances report."""

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """Record the load that an instance reports, with a response or in reply to a probe.

        `load` is None if the instance was probed and did not report its load. Reports with invalid
        numbers are never passed to this method. This method is called under the balancer's lock. If
        the report came with a response, the attempt still counts as in flight.
        """
        ...


@runtime_checkable
class Probing(LoadAware, Protocol):
    """A strategy that also wants instances to be probed for their load."""

    @property
    def probe(self) -> LoadProbe | None:
        """The settings for load probes; None for no probes."""
        ...
