"""Who tells a strategy what instances say of their load."""

from __future__ import annotations

from collections.abc import Sequence
from logging import ERROR, WARNING

from lbclient.core import Core
from lbclient.endpoint import Endpoint
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

    def heard(self, endpoint: Endpoint, load: LoadReport | None) -> None:
        """It has said so; None where it was asked, and said nothing."""
        core = self._core
        with core.lock:
            try:
                self._strategy.reported(endpoint, load, now=core.clock())
            except Exception as error:  # noqa: BLE001  # a caller's strategy may raise anything
                name = type(self._strategy).__name__
                core.news.add(ERROR, "strategy %s failed to heed a report", name, error=error)
        core.news.publish()

    def refused(self, endpoint: Endpoint, why: str) -> None:
        """What it has said is nonsense, for reason `why`, and counts as nothing. The first time is
        logged; the others are counted."""
        self.nonsense += 1
        if self.nonsense == 1:
            text = "%s reports a load that cannot be used (and is not told again): %s"
            self._core.news.add(WARNING, text, endpoint.instance, why)
        self.heard(endpoint, None)

    def candidates(self) -> Sequence[Endpoint]:
        """Who may be picked, and so is worth asking."""
        core = self._core
        with core.lock:
            return core.pool.candidates(core.clock())
