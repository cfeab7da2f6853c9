"""A snapshot of the state of a balancer, for people and dashboards."""

from __future__ import annotations

from dataclasses import dataclass

from lbclient.core.engine import Engine
from lbclient.discovery.resolver import text_of
from lbclient.endpoint.breaker import State
from lbclient.endpoint.endpoint import Endpoint, EndpointStatus
from lbclient.endpoint.instance import Instance

__all__ = ["InstanceSnapshot", "ServiceSnapshot", "snapshot_of"]


@dataclass(frozen=True, slots=True)
class InstanceSnapshot:
    """The state of one instance at one moment.

    - `in_flight`: the number of attempts in flight.
    - `breaker`: the state of its breaker.
    - `attempts`, `failures`: the number of attempts and of faults so far.
    - `latency`: a moving mean of the time of attempts that the instance answered, in seconds; None
      before the first answer.
    - `standing`: `"serving"`, or the reason why the instance is out of rotation: `"ejected"`,
      `"unhealthy"` (its active checks fail), `"open"` or `"half-open"` (the state of its breaker),
      `"resting"` (it backs off because of `Retry-After` or a rate limit).
    """

    instance: Instance
    in_flight: int
    breaker: State
    attempts: int
    failures: int
    latency: float | None
    standing: EndpointStatus

    def as_dict(self) -> dict[str, object]:
        """Return this snapshot as a dict that `json.dumps` accepts. `"instance"` is the host and
        port; `"headers"` has the names of the headers."""
        instance = self.instance
        return {
            "instance": str(instance),
            "scheme": instance.scheme,
            "path": instance.path,
            "headers": list(instance.headers),
            "address": instance.address,
            "weight": instance.weight,
            "priority": instance.priority,
            "in_flight": self.in_flight,
            "breaker": self.breaker,
            "attempts": self.attempts,
            "failures": self.failures,
            "latency": self.latency,
            "standing": self.standing,
        }


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """One service.

    - `service`: its name.
    - `instances`: the known instances, in rotation or not.
    - `age`: seconds since the last good answer of discovery; None before the first answer, 0 for a
      static list.
    - `error`: why the last refresh failed, or None.
    """

    service: str
    instances: tuple[InstanceSnapshot, ...]
    age: float | None
    error: Exception | None

    def as_dict(self) -> dict[str, object]:
        """Return this snapshot as a dict that `json.dumps` accepts. `"error"` is the text of the
        error."""
        return {
            "service": self.service,
            "instances": [one.as_dict() for one in self.instances],
            "age": self.age,
            "error": None if self.error is None else text_of(self.error),
        }


def snapshot_of(engine: Engine) -> ServiceSnapshot:
    """Return the current state of the engine."""
    with engine.lock:
        engine.run_deferred()
        now = engine.clock()
        instances = tuple(_instance(endpoint, now) for endpoint in engine.pool.endpoints)
        age = engine.subscription.age(now)
        return ServiceSnapshot(engine.service, instances, age, engine.subscription.error)


def _instance(endpoint: Endpoint, now: float) -> InstanceSnapshot:
    return InstanceSnapshot(
        instance=endpoint.instance,
        in_flight=endpoint.in_flight,
        breaker=endpoint.breaker.state,
        attempts=endpoint.attempts,
        failures=endpoint.failures,
        latency=endpoint.latency,
        standing=endpoint.status(now),
    )
