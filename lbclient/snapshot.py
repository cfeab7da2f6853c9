"""What a balancer knows at one moment, for people and dashboards."""

from __future__ import annotations

from dataclasses import dataclass

from lbclient.breaker import State
from lbclient.core import Core
from lbclient.endpoint import Endpoint
from lbclient.instance import Instance

__all__ = ["InstanceSnapshot", "ServiceSnapshot", "snapshot_of"]


@dataclass(frozen=True, slots=True)
class InstanceSnapshot:
    """One instance: attempts `in_flight`, state of its `breaker`, `attempts` and `failures` (its
    faults) so far, and `latency`, a moving mean of its attempts in seconds (None before any)."""

    instance: Instance
    in_flight: int
    breaker: State
    attempts: int
    failures: int
    latency: float | None


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """One service: its name, its `instances`, `age` in seconds since the last good answer (None
    before the first, 0 for a list that never changes), and `error`, why the last refresh failed."""

    service: str
    instances: tuple[InstanceSnapshot, ...]
    age: float | None
    error: Exception | None


def snapshot_of(core: Core) -> ServiceSnapshot:
    """All of one moment."""
    with core.lock:
        core.reap()
        instances = tuple(map(_instance, core.pool.endpoints))
        age = core.watch.age(core.clock())
        return ServiceSnapshot(core.service, instances, age, core.watch.error)


def _instance(one: Endpoint) -> InstanceSnapshot:
    return InstanceSnapshot(
        instance=one.instance,
        in_flight=one.in_flight,
        breaker=one.breaker.state,
        attempts=one.attempts,
        failures=one.failures,
        latency=one.latency,
    )
