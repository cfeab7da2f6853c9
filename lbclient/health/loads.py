"""Who tells a strategy what instances say of their load."""

from __future__ import annotations

from collections.abc import Sequence
from logging import WARNING

from lbclient.complaint import Complaint
from lbclient.core import Core
from lbclient.endpoint import Endpoint
from lbclient.interruption import is_interruption
from lbclient.strategy import LoadAware, LoadProbe, LoadReport, Probing

__all__ = ["Loads"]


class Loads:
    """One balancer's strategy that heeds reports, under that balancer's lock."""

    def __init__(self, strategy: LoadAware, core: Core) -> None:
        probe = strategy.probe if isinstance(strategy, Probing) else None
        self.probe = probe if isinstance(probe, LoadProbe) else None
        """How it wants instances asked, where it does; a caller's may mean another thing by it."""
        self.nonsense = 0
        """How many reports could not be used."""
        self._strategy = strategy
        self._core = core
        name = f"{core.service}: strategy {type(strategy).__name__}"
        self._heeding = Complaint(core.news.add, name, "failed to heed a report")
        self._refusals = Complaint(
            core.news.add, f"{core.service}: a load report", "cannot be used", WARNING
        )

    def heard(self, endpoint: Endpoint, load: LoadReport | None) -> None:
        """It has said so; None where it was asked, and said nothing."""
        core = self._core
        with core.lock:
            now = core.clock()
            if load is not None and self._refusals.failing:
                self._refusals.recovered()
            try:
                self._strategy.reported(endpoint, load, now=now)
            except Exception as error:
                if is_interruption(error):
                    raise
                self._heeding.failed(now, error)
            else:
                if self._heeding.failing:
                    self._heeding.recovered()
        core.news.publish()

    def refused(self, endpoint: Endpoint, why: str) -> None:
        """What it has said is nonsense, for reason `why`, and counts as nothing."""
        with self._core.lock:
            self.nonsense += 1
            self._refusals.failed(self._core.clock(), detail=f"{endpoint.instance}: {why}")
        self.heard(endpoint, None)

    def candidates(self) -> Sequence[Endpoint]:
        """Who may be picked, and so is worth asking."""
        core = self._core
        with core.lock:
            return core.pool.candidates(core.clock())
