"""Runs many clients and many servers with one clock. The result of a run depends only on its
arguments.

Discovery and health checks run in virtual time too.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

from lbclient._internal import validation
from lbclient.balancer.assembly import Runtime
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.health_monitor import in_turn
from lbclient.balancer.options import BalancerOptions
from lbclient.core.call import Call, CallOptions, caller_of
from lbclient.discovery.composite import Service
from lbclient.discovery.scheduler import ScheduledJob
from lbclient.endpoint.classifier import Classifier
from lbclient.endpoint.instance import Answer
from lbclient.protocol import bind
from lbclient.resilience.concurrency_limit import Limits
from lbclient.resilience.retry import RetryPolicy
from lbclient.simulation.behaviour import SimulatedRequest, judge_of
from lbclient.simulation.client import Client
from lbclient.simulation.invariants import Invariants
from lbclient.simulation.report import Journal, Outcome, Report
from lbclient.simulation.scenario import Scenario
from lbclient.simulation.server import Host
from lbclient.simulation.world import Process, World
from lbclient.strategy.protocol import Strategy
from lbclient.strategy.registry import BY_NAME, StrategyName

__all__ = ["Rounds", "simulate", "simulated"]


class Rounds:
    """Replaces the scheduler: runs the jobs that its threads run in production. A round takes no
    virtual time."""

    def __init__(self, world: World) -> None:
        self.generation: object = object()
        self._world = world

    def schedule(self, job: ScheduledJob) -> None:
        """Run the next round of `job` at the time `job.next_at`. This replaces a round that was
        scheduled before."""
        job.ticket += 1
        ticket = job.ticket
        if not job.stopped:
            self._world.at(job.next_at, lambda: self._round(job, ticket), background=True)

    def _round(self, job: ScheduledJob, ticket: int) -> None:
        if job.ticket == ticket and job.claim():
            job.run()
            self.schedule(job)


def simulated(
    world: World,
    service: Service,
    *,
    judge: Classifier | None = None,
    **options: Unpack[BalancerOptions],
) -> Balancer:
    """Return a balancer that uses the clock and the discovery of a world."""

    class Simulated(Balancer):
        def _adapted(self, runtime: Runtime) -> Runtime:
            """Return a runtime without the parts that a simulation does not need. In a simulation
            every response is closed, so the queue does not look for responses that were garbage
            collected. What happens to instances is in the report, and is not logged."""
            return replace(
                runtime,
                scheduler=Rounds(world),
                executor=in_turn,
                look_again=math.inf,
                least_level=logging.ERROR,
            )

    return Simulated(service, judge=judge, clock=world.clock, **options)  # type: ignore[misc]  # not two clocks


def simulate(
    scenario: Scenario,
    *,
    seed: int = 0,
    strategy: StrategyName | Callable[[], Strategy] = "weighted",
    checked: bool = True,
    fair_by: Callable[[SimulatedRequest], object] | None = None,
    **options: Any,
) -> Report:
    """Run a scenario, and return its report. The same arguments give the same report, on any
    machine.

    `strategy` is a name, or a function that makes a strategy for each client. `fair_by` is a
    function that returns the caller of a request, like the option of `Client`. `options` are the
    options of `Balancer`. If `checked` is True, the invariants are checked before every attempt and
    after every event. The checks change nothing in the report except `breaches`.

    Raises ValueError or TypeError if an argument is invalid.
    """
    if not isinstance(scenario, Scenario):
        raise TypeError(f"scenario must be Scenario(...), not {scenario!r}")
    if isinstance(strategy, str):
        strategy = BY_NAME[validation.one_of("strategy", strategy, BY_NAME)]
    validation.function("strategy (a name, or a function that makes one for each client)", strategy)
    if fair_by is not None:
        validation.function("fair_by", fair_by)
    return _Run(scenario, seed, strategy, fair_by, options, checked=checked).report()


class _Known:
    """The resolver of a run. It returns the servers that are known at the moment."""

    def __init__(self, scenario: Scenario, world: World) -> None:
        self._scenario = scenario
        self._world = world

    def resolve(self) -> Answer:
        """Return the servers that are known now. It is called for each lookup."""
        now, scenario = self._world.clock(), self._scenario
        known = [server.instance for server in scenario.servers if server.known(now)]
        return Answer(known, scenario.ttl)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        strategy: Callable[[], Strategy],
        fair_by: Callable[[SimulatedRequest], object] | None,
        options: dict[str, Any],
        *,
        checked: bool,
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._strategy = strategy
        self._fair_by = fair_by
        self._options = options
        self._methods = getattr(options.get("retry"), "methods", RetryPolicy().methods)
        self._world = World()
        self._journal = Journal()
        self._hosts = {
            server.name: Host(server, self._world, self._rng(f"server {server.name}"))
            for server in scenario.servers
        }
        self._clients = [
            self._client(number, checked=checked) for number in range(scenario.clients)
        ]
        self._watches = [client.watch for client in self._clients if client.watch is not None]

    def report(self) -> Report:
        world, scenario, journal = self._world, self._scenario, self._journal
        loads: list[Sequence[object]] = []
        for number, load in enumerate(scenario.loads):
            rng = self._rng(f"load {number}" if number else "load")
            parts = load.start(world, scenario.clients, self._request, rng)
            if not isinstance(parts, Sequence):
                raise TypeError(
                    f"load must have a method start that returns a list of lists, not {parts!r}"
                )
            loads += parts
        while (journal.waiting or not all(loads)) and not world.idle:
            if not world.step(scenario.until):
                break
            for watch in self._watches:
                watch.between(world.clock())
        self._conclude()
        for client in self._clients:
            client.balancer.close()
        answered = {name: dict(host.answered) for name, host in self._hosts.items()}
        breaches = [breach for watch in self._watches for breach in watch.breaches]
        return Report(self._seed, journal.outcomes, journal.sent, answered, journal.trace, breaches)

    def _conclude(self) -> None:
        """Record the requests that are still unanswered as failed."""
        scenario, now = self._scenario, self._world.clock()
        end = scenario.until if scenario.until < math.inf else now
        for client in self._clients:
            for trail, arrived in client.waiting.items():
                attempts, number = len(trail.call.tried), client.number
                outcome = Outcome(arrived, end - arrived, None, "unanswered", attempts, number)
                self._journal.ended(outcome)
                if client.watch is not None and scenario.until == math.inf and not trail.lost:
                    client.watch.forgotten(now)
            if client.watch is not None and not client.waiting:
                client.watch.over(now)

    def _request(self, client: int, request: SimulatedRequest | None = None) -> Process[object]:
        return self._clients[client].request(request)

    def _call_options(self, request: SimulatedRequest) -> CallOptions:
        scenario, fair_by = self._scenario, self._fair_by
        return CallOptions(
            scenario.idempotent and request.method.upper() in self._methods,
            request.key,
            patience=scenario.patience,
            caller=None
            if fair_by is None
            else caller_of("the result of fair_by", fair_by(request)),
        )

    def _rng(self, whose: str) -> random.Random:
        """Return a random number generator. Each server, client and load has its own, so that an
        additional client does not change the random numbers of the others."""
        return random.Random(f"{self._seed} {whose}")

    def _client(self, number: int, *, checked: bool) -> Client:
        scenario, balancer = self._scenario, self._balancer(number)
        watch = self._watch(number, balancer) if checked else None
        timeout = math.inf if scenario.timeout is None else scenario.timeout
        return Client(
            number,
            balancer,
            self._call_options,
            timeout,
            self._world,
            self._hosts,
            self._journal,
            watch,
        )

    def _balancer(self, number: int) -> Balancer:
        scenario = self._scenario
        always = all(server.joins == 0 and server.leaves == math.inf for server in scenario.servers)
        known = [server.instance for server in scenario.servers]
        service: Service = known if always else _Known(scenario, self._world)
        retry = self._options.get("retry", RetryPolicy())
        return simulated(
            self._world,
            service,
            name="simulated.test",
            rng=self._rng(f"client {number}"),
            strategy=self._strategy(),
            judge=judge_of(getattr(retry, "statuses", ()), getattr(retry, "unprocessed", ())),
            **self._options,
        )

    def _watch(self, number: int, balancer: Balancer) -> Invariants:
        request, policy = self._options, self._options.get("breaker")
        call: Call[object] = bind(balancer).begin()
        limits = Limits(
            request.get("max_in_flight"), request.get("max_in_flight_total"), request.get("limit")
        )
        panic = 0.0 if policy is None else policy.panic_threshold
        return Invariants(call.engine, f"client {number}", limits, panic)
