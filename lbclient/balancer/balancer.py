"""Balancer: discovery, picking, retries, breaking and tracing for any protocol.

It builds the engine and owns the clock, the random numbers and the lock.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Self, TypeVar

from lbclient._internal import fork, validation
from lbclient._internal.failure_log import Complaint
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Pause
from lbclient.balancer.assembly import Policies, Runtime, build_engine
from lbclient.balancer.binding import Binding
from lbclient.balancer.event_loops import ainvoke, arun, asleep
from lbclient.balancer.health_monitor import plain_check
from lbclient.balancer.lease import Lease
from lbclient.balancer.listener import Listener, Listening
from lbclient.balancer.snapshot import ServiceSnapshot, snapshot_of
from lbclient.balancer.threads import invoke, run, sleep
from lbclient.core.call import NO_OPTIONS, Call, call_options
from lbclient.core.membership import DiscoveryLimits
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import Service
from lbclient.discovery.dns.client import dns_by
from lbclient.discovery.dns.service import DnsOptions, Family
from lbclient.discovery.registry import Target, target_of
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.endpoint.classifier import FINE, Classifier, Verdict, classify_network_error
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.resilience.concurrency_limit import AdaptiveLimit, Limits
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.hedging import HedgePolicy
from lbclient.resilience.outlier_detection import OutlierPolicy
from lbclient.resilience.retry import RetryPolicy
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy.protocol import Strategy
from lbclient.strategy.registry import claim, release, strategy_of
from lbclient.telemetry.metrics import MeterProvider
from lbclient.telemetry.outbox import Outbox
from lbclient.telemetry.spans import TracerProvider

__all__ = ["Balancer"]


T = TypeVar("T")


class Balancer:
    """Load balancing without HTTP: for gRPC, a raw socket, or another HTTP client.

    - `service`: what to balance over: a URL such as `"http+srv://orders.example.com"`, a list of
      URLs or of `Instance`, an object with `resolve() -> Answer`, or several of these as
      `FirstOf(...)` or `Union(...)`.
    - `strategy`: `"weighted"`, `"round-robin"`, `"random"`, `"least-busy"`, `"peak-ewma"`,
      `"prequal"`, `"consistent-hash"`, or an object with `pick(candidates, call)`.
    - `retry`: when to try again; None is one attempt.
    - `breaker`: when an instance leaves the rotation; None turns breakers off.
    - `name`: the service's name, for a static list or a resolver that has none.
    - `scheme`: `"http"` or `"https"`, if the service does not say.
    - `max_in_flight`: how many attempts one instance may have under way; further calls wait.
    - `max_in_flight_total`: the same for all instances together.
    - `limit`: an `AdaptiveLimit` learns how many attempts each instance can handle at a time.
    - `throttle`: a `ThrottlePolicy` keeps calls back while the service turns most away.
    - `hedge`: a `HedgePolicy` sends a second attempt if the first takes long.
    - `outliers`: an `OutlierPolicy` ejects instances that fail far more often than their peers.
    - `slow_start`: `SlowStart` lets an instance that is new, or back, warm up.
    - `health`: a `HealthCheck` checks every instance in the background. Here it connects
      (`path=None`) or calls a function of yours (`check=`); over HTTP it may also ask for a `path`.
    - `listener`: a function that is given each `Event`, in order, on a thread of its own.
    - `nameservers`: such as `["127.0.0.1:5353"]`, also `tls://` and `https://`; None uses the
      system's resolver configuration.
    - `allow`: networks, such as `["127.0.0.0/8"]`, that discovery may name although they are
      loopback, link-local, multicast or a cloud's metadata service.
    - `within`: a domain that the targets of SRV records must belong to.
    - `family`: `"ipv4"` or `"ipv6"` asks DNS for addresses of that family only, `"any"` for both.
      Of both, addresses that this host has no route to are not used.
    - `sticky`: seconds for which an address or instance stays known after DNS stopped returning it;
      for names for which DNS returns a few addresses at a time.
    - `max_stale`: seconds for which the last good answer is used while discovery fails; None for
      no limit.
    - `min_refresh`: the shortest time between two refreshes in seconds, however small the TTL.
    - `max_instances`: of a larger set, this client uses a random subset, and keeps it.
    - `tracer_provider`, `meter_provider`: OpenTelemetry's; None is the global one.
    - `clock`: monotonic seconds. `rng`: the random numbers, which are seeded anew in a forked
      child.
    - `judge`: the classifier: what a result or an exception means (`Verdict`). The default knows
      the operating system's network errors.

    Raises ValueError or TypeError, naming the argument, for what cannot be used.
    """

    def __init__(
        self,
        service: Service,
        *,
        strategy: str | Strategy = "weighted",
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008  # a frozen value
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008  # a frozen value
        name: str | None = None,
        scheme: str = "http",
        max_in_flight: int | None = None,
        max_in_flight_total: int | None = None,
        limit: AdaptiveLimit | None = None,
        throttle: ThrottlePolicy | None = None,
        hedge: HedgePolicy | None = None,
        outliers: OutlierPolicy | None = None,
        slow_start: SlowStart | None = None,
        health: HealthCheck | None = None,
        listener: Listener | None = None,
        nameservers: Iterable[str] | None = None,
        allow: Iterable[str] = (),
        within: str | None = None,
        family: Family = "any",
        sticky: float | None = None,
        max_stale: float | None = None,
        min_refresh: float = 1.0,
        max_instances: int | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        judge: Classifier | None = None,
    ) -> None:
        validation.kind("health", health, HealthCheck)
        check = None if health is None else plain_check(health)
        if health is not None and check is None:
            raise ValueError(
                "health: without HTTP there is no path to ask for; pass HealthCheck(path=None), "
                "which connects, or HealthCheck(check=...)"
            )
        limits = Limits(max_in_flight, max_in_flight_total, limit)
        discovery_limits = DiscoveryLimits(max_stale, min_refresh, max_instances)
        policies = Policies(
            retry, breaker, limits, throttle, hedge, outliers, slow_start, discovery_limits
        )
        validation.function("judge", classify_network_error if judge is None else judge)
        validation.of("rng", rng, random.Random, "random.Random()")
        self._rng = random.Random() if rng is None else rng  # noqa: S311  # no secrets
        runtime = self._adapted(Runtime(clock, self._rng, tracer_provider, meter_provider))
        self.target: Target = target_of(
            service,
            name=name,
            scheme=scheme,
            dns=dns_by(nameservers, clock),
            address_filter=AddressFilter(
                allow, None if within is None else validation.host("within", within)
            ),
            clock=clock,
            options=DnsOptions(family, sticky),
            start=THREAD_SCHEDULER.start,
        )
        self._strategy = strategy_of(strategy)
        self._listening = None if listener is None else Listening(listener)
        deliver = None if self._listening is None else self._listening.deliver
        outbox = Outbox(deliver, runtime.least_level)
        judging = f"{self.target.name}: the judge"
        complaint = Complaint(outbox.add, judging, "failed; the outcome counts as neutral")
        classify = _never_raising(judge or classify_network_error, clock, complaint)
        self._engine = build_engine(self.target, self._strategy, policies, runtime, outbox)
        self._binding = Binding(self._engine, classify, self._strategy, runtime.executor)
        if health is not None and check is not None:
            self._binding.check_health(health, check)
        claim(self._strategy)
        fork.track(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target.name}>"

    def call(
        self,
        fn: Callable[[Instance], T],
        *,
        idempotent: bool = False,
        key: object = None,
        deadline: float | None = None,
        caller: object = None,
    ) -> T:
        """Call `fn` with an instance, and again with another as the policy says.

        `fn` connects to `instance.address`, which discovery has vetted, not to `instance.host`.

        - `idempotent`: the call may be repeated even if an attempt may have been carried out.
        - `key`: for strategies that pick by it.
        - `deadline`: seconds for the whole call. In `fn`, `lbclient.time_left()` returns what is
          left for the attempt.
        - `caller`: a hashable value that names the caller. Callers whose calls wait for a limit
          take turns.

        Raises what `fn` raised last, or a LoadBalancingError; RuntimeError after `close`.
        """
        if not callable(fn):
            validation.function("fn", fn)  # type: ignore[unreachable]  # callers may be untyped
        options = NO_OPTIONS
        if idempotent is not False or not (key is deadline is caller is None):
            options = call_options(idempotent=idempotent, key=key, deadline=deadline, caller=caller)
        call: Call[T] = self._binding.begin(options)
        return run(call, partial(invoke, fn))

    async def acall(
        self,
        fn: Callable[[Instance], Awaitable[T]],
        *,
        idempotent: bool = False,
        key: object = None,
        deadline: float | None = None,
        caller: object = None,
    ) -> T:
        """The same for a coroutine function. An attempt is cancelled when its time is up."""
        if not callable(fn):
            validation.function("fn", fn)  # type: ignore[unreachable]  # callers may be untyped
        options = NO_OPTIONS
        if idempotent is not False or not (key is deadline is caller is None):
            options = call_options(idempotent=idempotent, key=key, deadline=deadline, caller=caller)
        call: Call[T] = self._binding.begin(options)
        if self._engine.hedging is not None:
            return await arun(call, partial(ainvoke, fn))
        with call:
            for step in call:  # as in `arun`, with one coroutine less
                if isinstance(step, Pause):
                    await asleep(step)
                else:
                    with step:
                        step.result = await ainvoke(fn, step)
        return call.result()

    def acquire(
        self,
        *,
        idempotent: bool = False,
        key: object = None,
        deadline: float | None = None,
        caller: object = None,
    ) -> Lease:
        """Pick one instance for the time of a `with` or `async with` block, without retries."""
        options = call_options(idempotent=idempotent, key=key, deadline=deadline, caller=caller)
        return Lease(self._binding.begin(options))

    def instances(self) -> list[Instance]:
        """The instances known now, in rotation or not."""
        with self._engine.lock:
            return [one.instance for one in self._engine.pool.endpoints]

    def snapshot(self) -> ServiceSnapshot:
        """What the balancer knows now."""
        return snapshot_of(self._engine)

    def refresh(self) -> None:
        """Ask discovery now, and wait for the answer.

        Raises DiscoveryError if that fails; the instances known before stay in use.
        """
        for pause in self._refresh_round():
            sleep(pause)

    async def arefresh(self) -> None:
        """The same, without blocking the event loop."""
        for pause in self._refresh_round():
            await asleep(pause)

    def eject(self, instance: Instance, seconds: float) -> None:
        """Send no calls to `instance` for so many seconds. Attempts under way go on.

        Raises ValueError for an instance that is not known, or an invalid time.
        """
        validation.number("seconds", seconds, above=True)
        with self._engine.lock:
            self._engine.rotation.eject(self._known(instance), seconds, "hand")
        self._engine.outbox.publish()

    def admit(self, instance: Instance) -> None:
        """Send calls to `instance` again, whatever kept it out: an ejection, its breaker, a
        back-off that it asked for, or a failed health check (until the next result of the checks).

        Raises ValueError for an instance that is not known.
        """
        with self._engine.lock:
            self._engine.rotation.admit(self._known(instance))
        self._engine.outbox.publish()

    def close(self) -> None:
        """Send nothing more, and stop discovery. It does not wait.

        Attempts in flight go on to their end. Calls that wait (for a slot, for discovery, before a
        retry) end now: with their last outcome, or with BalancerClosed if there is none. Later
        calls raise RuntimeError.
        """
        self._binding.refuse_calls()
        self._engine.end()
        self._engine.stop()
        if self._listening is not None:
            self._listening.stop()
        release(self._strategy)

    async def aclose(self) -> None:
        """The same as `close`, which does not block."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def after_fork(self) -> None:
        """In a forked child: new locks, and other random numbers than the parent's, even if `rng`
        is the user's: Python does the same with its module `random`."""
        try:
            self._rng.seed()
        finally:
            self._engine.after_fork(threading.RLock())

    def _adapted(self, runtime: Runtime) -> Runtime:
        """What it runs on. The simulator has a scheduler and an executor of its own."""
        return runtime

    def _known(self, instance: Instance) -> Endpoint:
        if not isinstance(instance, Instance):
            raise TypeError(f"instance must be lbclient.Instance(...), not {instance!r}")
        if (endpoint := self._engine.pool.find(instance)) is None:
            raise ValueError(f"{self.target.name} has no instance {instance}")
        return endpoint

    def _refresh_round(self) -> Iterable[Pause]:
        if self._binding.closed:
            self._binding.refuse()
        return self._engine.membership.round()


def _never_raising(
    judge: Classifier, clock: Callable[[], float], complaint: Complaint
) -> Classifier:
    """Return a classifier that does not raise: if `judge` raises, or returns something other than
    a `Verdict`, the outcome is neutral.

    A classifier of this package needs no such guard: what it raises came from outside.
    """
    if str(getattr(judge, "__module__", "")).startswith("lbclient."):
        return judge

    def verdict(outcome: object) -> Verdict:
        try:
            found: object = judge(outcome)
        except Exception as error:
            if is_interruption(error):
                raise
            complaint.failed(clock(), error)
            return FINE
        if not isinstance(found, Verdict):
            kind = type(found).__name__
            complaint.failed(clock(), detail=f"it returned {kind}, not lbclient.Verdict")
            return FINE
        if complaint.failing:
            complaint.recovered()
        return found

    return verdict
