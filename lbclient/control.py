"""What can be seen of a balancer, and done to it, beside its calls."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import NoReturn

from lbclient import checks
from lbclient.budget import Budget
from lbclient.core import Core
from lbclient.endpoint import Endpoint
from lbclient.health import Check, Crew, HealthCheck, Loads, Monitor, Threads
from lbclient.instance import Instance
from lbclient.pool import Pool
from lbclient.shell import asleep, sleep
from lbclient.snapshot import ServiceSnapshot, snapshot_of
from lbclient.strategy import LoadAware, Strategy
from lbclient.target import Target
from lbclient.waiting import Pause, Signal

__all__ = ["Control"]


class Control:
    """The part of `Balancer` that makes no calls."""

    target: Target
    _core: Core
    _strategy: Strategy
    _dice: random.Random
    _closed: bool

    def instances(self) -> list[Instance]:
        """The instances known now, in rotation or not."""
        with self._core.lock:
            return [one.instance for one in self._core.pool.endpoints]

    @property
    def pool(self) -> Pool:
        """Who is known and who is in rotation: for whoever binds a protocol. Read it only."""
        return self._core.pool

    @property
    def rng(self) -> random.Random:
        """The dice."""
        return self._dice

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds, as they were handed in."""
        return self._core.clock

    def abandon(self) -> None:
        """Calls under way lose their connections now: that is nobody's fault, and not tried again.
        For whoever binds a protocol."""
        self._core.abandoned = True

    def refuse(self) -> None:
        """Let no call begin, while those that are under way go on: for whoever binds a protocol,
        and gives them some time before it closes."""
        self._closed = True

    def idle(self) -> Signal:
        """A signal that is set once no call is under way, and nothing in flight: for whoever binds
        a protocol."""
        return self._core.drained()

    @property
    def budget(self) -> Budget | None:
        """The account of retries, where there is a budget. Read it only."""
        return self._core.retries.budget

    def snapshot(self) -> ServiceSnapshot:
        """What is known now."""
        return snapshot_of(self._core)

    def refresh(self) -> None:
        """Ask discovery now and wait for the answer; DiscoveryError if it failed (what was known
        stays in use)."""
        for pause in self._asked():
            sleep(pause)

    async def arefresh(self) -> None:
        """The same, without blocking the event loop."""
        for pause in self._asked():
            await asleep(pause)

    def loads(self) -> Loads | None:
        """Whom to tell what instances say of their load: for whoever binds a protocol. None where
        the strategy heeds no reports, and nobody need look for any."""
        strategy = self._strategy
        return Loads(strategy, self._core) if isinstance(strategy, LoadAware) else None

    def examine(self, policy: HealthCheck, check: Check) -> None:
        """Have `check` made of every instance, from the first call on: for whoever binds a
        protocol."""
        core = self._core
        core.membership.companion = Monitor(
            policy,
            check,
            endpoints=lambda: core.pool.endpoints,
            report=core.checked,
            clock=core.clock,
            rng=core.rng,
            crew=self._crew(),
        )

    def eject(self, instance: Instance, seconds: float) -> None:
        """Have no call go to `instance` for so many seconds; what is under way goes on.

        Raises ValueError for an instance that is not known, or no such time.
        """
        checks.number("seconds", seconds, above=True)
        with self._core.lock:
            self._core.rotation.eject(self._known(instance), seconds, "hand")
        self._core.news.publish()

    def admit(self, instance: Instance) -> None:
        """Have calls go to `instance` again, whatever kept it out: an ejection, its breaker, a
        rest that it asked for, a failed health check (until the checks change their mind).

        Raises ValueError for an instance that is not known.
        """
        with self._core.lock:
            self._core.rotation.admit(self._known(instance))
        self._core.news.publish()

    def _crew(self) -> Crew:
        """Who makes the checks."""
        return Threads()

    def _known(self, instance: Instance) -> Endpoint:
        if not isinstance(instance, Instance):
            raise TypeError(f"instance must be lbclient.Instance(...), not {instance!r}")
        if (endpoint := self._core.pool.find(instance)) is None:
            raise ValueError(f"{self.target.name} has no instance {instance}")
        return endpoint

    def _refuse(self) -> NoReturn:
        raise RuntimeError(f"the balancer of {self.target.name} is closed")

    def _asked(self) -> Iterable[Pause]:
        if self._closed:
            self._refuse()
        return self._core.membership.round()
