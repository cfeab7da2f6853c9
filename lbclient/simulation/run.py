"""Many clients, many servers, one clock: a run is a pure function of its seed."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lbclient import checks
from lbclient.balancer import Balancer
from lbclient.breaker import BreakerPolicy
from lbclient.call import Attempt, Call
from lbclient.discovery import Service
from lbclient.instance import Answer
from lbclient.retry import RetryPolicy
from lbclient.simulation.invariants import Invariants
from lbclient.simulation.load import Load
from lbclient.simulation.reply import Reply, judge_of
from lbclient.simulation.report import Outcome, Report
from lbclient.simulation.rounds import simulated
from lbclient.simulation.server import Host, Server
from lbclient.simulation.shell import carry_out
from lbclient.simulation.world import Process, World
from lbclient.strategy import Strategy
from lbclient.telemetry import Semantics
from lbclient.terms import Terms
from lbclient.waiting import Pause

__all__ = ["Scenario", "simulate"]

_SEMANTICS = Semantics()


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to whom: `servers`, the `load`, and so many `clients` that share it.

    - `idempotent`: whether the requests may be repeated.
    - `until`: the run is broken off then, in seconds; who is unanswered has failed.
    - `patience`: seconds that a request without deadline waits for a place.
    - `ttl`: seconds between two look-ups of who is there; who joins or leaves is known that late.

    Raises ValueError or TypeError, naming the argument.
    """

    servers: Sequence[Server]
    load: Load
    clients: int = 1
    idempotent: bool = True
    until: float = math.inf
    patience: float = 5.0
    ttl: float = 1.0

    def __post_init__(self) -> None:
        if not self.servers or len({one.name for one in self.servers}) < len(self.servers):
            raise ValueError("servers must be some, each with a name of its own")
        checks.count("clients", self.clients)
        checks.number("patience (seconds)", self.patience)
        checks.seconds("ttl", self.ttl)
        if not self.until > 0:
            raise ValueError(f"until (seconds) must be above 0, not {self.until!r}")


def simulate(
    scenario: Scenario,
    *,
    seed: int = 0,
    strategy: str | Callable[[], Strategy] = "weighted",
    checked: bool = True,
    **options: Any,
) -> Report:
    """Run it. `strategy` is a name, or makes a strategy for each client; `options` are those of
    `Balancer`. The same arguments give the same report, on any machine.

    `checked` has the invariants looked at before every attempt.
    """
    return _Run(scenario, seed, strategy, options, checked=checked).report()


class _Known:
    """Discovery: who is there at the moment."""

    def __init__(self, scenario: Scenario, world: World) -> None:
        self._scenario = scenario
        self._world = world

    def resolve(self) -> Answer:
        """Asked at each round."""
        now, scenario = self._world.clock(), self._scenario
        known = [one.instance for one in scenario.servers if one.known(now)]
        return Answer(known, scenario.ttl)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        strategy: str | Callable[[], Strategy],
        options: dict[str, Any],
        *,
        checked: bool,
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._world = World()
        self._hosts = {
            one.name: Host(one, self._world, self._dice(f"server {one.name}"))
            for one in scenario.servers
        }
        self._options = options
        self._clients = [self._client(number, strategy) for number in range(scenario.clients)]
        panics = (options.get("breaker") or BreakerPolicy()).panic_threshold > 0
        self._watched = [
            Invariants(one, f"client {number}", panics=panics)
            for number, one in enumerate(self._clients)
        ]
        self._checked = checked
        self._outcomes: list[Outcome] = []
        self._waiting: dict[int, float] = {}
        self._sent: list[tuple[float, str]] = []
        self._trace = hashlib.blake2b(digest_size=16)

    def report(self) -> Report:
        world, scenario = self._world, self._scenario
        loads = scenario.load.start(world, scenario.clients, self._request, self._dice("load"))
        while (self._waiting or not all(loads)) and world.step(scenario.until):
            pass  # discovery would go on for ever
        if not self._waiting:
            for watched in self._watched:
                watched.over(world.clock())
        end = scenario.until if scenario.until < math.inf else world.clock()
        self._outcomes.extend(
            Outcome(arrived, end - arrived, None, "unanswered", 0)
            for arrived in self._waiting.values()
        )
        for balancer in self._clients:
            balancer.close()
        answered = {name: dict(host.answered) for name, host in self._hosts.items()}
        breaches = [breach for watched in self._watched for breach in watched.breaches]
        digest = self._trace.hexdigest()
        return Report(self._seed, self._outcomes, self._sent, answered, digest, breaches)

    def _dice(self, whose: str) -> random.Random:
        """Each has dice of its own, so that a new client changes nobody else's luck."""
        return random.Random(f"{self._seed} {whose}")

    def _client(self, number: int, strategy: str | Callable[[], Strategy]) -> Balancer:
        retry = self._options.get("retry", RetryPolicy())
        statuses = () if retry is None else retry.statuses
        scenario = self._scenario
        always = all(one.joins == 0 and one.leaves == math.inf for one in scenario.servers)
        known = [one.instance for one in scenario.servers]
        service: Service = known if always else _Known(scenario, self._world)
        return simulated(
            self._world,
            service,
            name="simulated.test",
            rng=self._dice(f"client {number}"),
            strategy=strategy if isinstance(strategy, str) else strategy(),
            judge=judge_of(statuses),
            **self._options,
        )

    def _request(self, client: int) -> Process[object]:
        """One request of one client, from its arrival to its end."""
        world, scenario = self._world, self._scenario
        terms = Terms(scenario.idempotent, patience=scenario.patience)
        call: Call[Reply] = self._clients[client].begin(terms, _SEMANTICS)
        key, arrived = id(call), world.clock()
        self._waiting[key] = arrived
        status: int | None = None
        error: str | None = None
        try:
            reply = yield from carry_out(call, self._sender(client))
            status = reply.status
        except Exception as failure:  # noqa: BLE001  # it is the outcome
            error = type(failure).__name__
        del self._waiting[key]
        now = world.clock()
        if self._checked and call.deadline is not None:
            self._watched[client].ended(now, now - call.deadline)
        outcome = Outcome(arrived, now - arrived, status, error, len(call.tried))
        self._outcomes.append(outcome)
        self._note(client, *outcome)
        return None

    def _sender(self, client: int) -> Callable[[Attempt[Reply]], Process[Reply]]:
        sent = 0

        def send(attempt: Attempt[Reply]) -> Process[Reply]:
            nonlocal sent
            sent += 1
            first, now, name = sent == 1, self._world.clock(), attempt.instance.host
            if self._checked:
                self._watched[client].sending(attempt, now, first=first)
            self._sent.append((now, name))
            self._note(now, client, name, attempt.reason)
            reply = self._hosts[name].receive()
            left = math.inf if attempt.expiry is None else attempt.expiry.left()
            if reply.seconds > left:
                yield Pause(left)
                raise TimeoutError
            if reply.seconds:
                yield Pause(reply.seconds)
            if reply.error is not None:
                raise reply.error.with_traceback(None)
            attempt.status = reply.status
            return reply

        return send

    def _note(self, *what: object) -> None:
        self._trace.update(repr(what).encode())
