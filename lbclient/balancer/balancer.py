"""Balancer: discovery, picks, retries, breakers and tracing for any protocol.

A balancer builds the engine and owns the clock, the random number generator and the lock.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Self, TypeVar, Unpack

from lbclient._internal import fork, validation
from lbclient._internal.failure_log import Complaint
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Pause
from lbclient.balancer.assembly import Runtime, build_engine
from lbclient.balancer.binding import Binding, described
from lbclient.balancer.event_loops import ainvoke, arun, asleep
from lbclient.balancer.health_monitor import plain_check
from lbclient.balancer.lease import Lease
from lbclient.balancer.listener import Listening
from lbclient.balancer.options import BalancerOptions, refuse_unknown, shows, with_defaults
from lbclient.balancer.snapshot import ServiceSnapshot, snapshot_of
from lbclient.balancer.threads import invoke, run, sleep
from lbclient.core.call import NO_OPTIONS, Call, call_options
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import Service
from lbclient.discovery.dns.client import dns_by
from lbclient.discovery.dns.service import DnsOptions
from lbclient.discovery.registry import Target, target_of
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.discovery.service_url import HTTP
from lbclient.endpoint.classifier import FINE, Classifier, Verdict, classify_network_error
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.resilience.health_check import HealthCheck
from lbclient.strategy.registry import claim, release, strategy_of
from lbclient.telemetry.events import Outbox

__all__ = ["Balancer"]


T = TypeVar("T")


@shows(BalancerOptions)
class Balancer:
    """Load balancing without HTTP: for gRPC, a raw socket, or another HTTP client.

    - `service`: the service to call: a URL such as `"http+srv://orders.example.com"`, a list of
      URLs or of `Instance`, an object with `resolve() -> Answer`, a `Watcher`, or several of these
      as `FirstOf(...)` or `Union(...)`.
    - `judge`: the classifier, a function that returns the `Verdict` on a result or an exception.
      The default classifier treats the operating system's network errors as faults, and any other
      outcome as good or neutral.

    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
    """

    _schemes: Sequence[str] = HTTP
    """The schemes of the URLs that may name a service."""

    def __init__(
        self,
        service: Service,
        *,
        judge: Classifier | None = None,
        **options: Unpack[BalancerOptions],
    ) -> None:
        refuse_unknown(options, [*BalancerOptions.__annotations__, "judge"])
        given: BalancerOptions = with_defaults(options, BalancerOptions)
        health, clock, within = given["health"], given["clock"], given["within"]
        validation.kind("health", health, HealthCheck)
        check = None if health is None else plain_check(health)
        if health is not None and check is None:
            raise ValueError(
                "health must have neither a path nor grpc, since a Balancer has no protocol; pass "
                "HealthCheck(path=None), which connects, or HealthCheck(check=...)"
            )
        validation.function("judge", classify_network_error if judge is None else judge)
        validation.of("rng", given["rng"], random.Random, "random.Random()")
        rng = random.Random() if given["rng"] is None else given["rng"]  # noqa: S311  # no secrets
        runtime = self._adapted(
            Runtime(clock, rng, given["tracer_provider"], given["meter_provider"])
        )
        self._rng = rng
        self.target: Target = target_of(
            service,
            name=given["name"],
            scheme=given["scheme"],
            dns=dns_by(given["nameservers"], clock),
            address_filter=AddressFilter(
                given["allow"], None if within is None else validation.host("within", within)
            ),
            clock=clock,
            options=DnsOptions(given["family"], given["sticky"]),
            start=THREAD_SCHEDULER.start,
            scheduler=runtime.scheduler,
            rng=rng,
            schemes=self._schemes,
        )
        self._strategy = strategy_of(given["strategy"])
        self._listening = None if given["listener"] is None else Listening(given["listener"])
        deliver = None if self._listening is None else self._listening.deliver
        outbox = Outbox(deliver, runtime.least_level)
        judging = f"{self.target.name}: the judge"
        complaint = Complaint(outbox.add, judging, "failed; the outcome counts as neutral")
        classify = _never_raising(judge or classify_network_error, clock, complaint)
        self._engine = build_engine(self.target, self._strategy, given, runtime, outbox)
        self._binding = Binding(self._engine, classify, self._strategy, runtime.executor)
        if health is not None and check is not None:
            self._binding.check_health(health, check)
        claim(self._strategy)
        fork.track(self)

    def __repr__(self) -> str:
        return described(self, getattr(self, "_binding", None))

    def call(
        self,
        fn: Callable[[Instance], T],
        *,
        idempotent: bool = False,
        key: object = None,
        deadline: float | None = None,
        caller: object = None,
    ) -> T:
        """Call `fn` with an instance, and retry with other instances as the retry policy says.

        `fn` should connect to `instance.address`, which discovery has checked, not to
        `instance.host`.

        - `idempotent`: the call may be repeated even if an attempt may have been carried out.
        - `key`: for strategies that pick by a key.
        - `deadline`: seconds for the whole call. In `fn`, `lbclient.time_left()` returns the time
          that is left for the attempt.
        - `caller`: a hashable value that identifies the caller. Callers whose calls wait for a slot
          take turns.

        Raises the exception of `fn` in the last attempt, or a LoadBalancingError. Raises
        RuntimeError after `close`.
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
        """Like `call`, for a coroutine function. An attempt is cancelled when its time is up."""
        if not callable(fn):
            validation.function("fn", fn)  # type: ignore[unreachable]  # callers may be untyped
        options = NO_OPTIONS
        if idempotent is not False or not (key is deadline is caller is None):
            options = call_options(idempotent=idempotent, key=key, deadline=deadline, caller=caller)
        call: Call[T] = self._binding.begin(options)
        if self._engine.hedging is not None:
            return await arun(call, partial(ainvoke, fn))
        with call:
            for step in call:  # as in `arun`, but with one coroutine fewer
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
        """Return the instances known now, in rotation or not."""
        with self._engine.lock:
            return [endpoint.instance for endpoint in self._engine.pool.endpoints]

    def snapshot(self) -> ServiceSnapshot:
        """Return the current state of the balancer."""
        return snapshot_of(self._engine)

    def refresh(self) -> None:
        """Ask discovery now, and wait for the answer.

        Raises DiscoveryError if discovery gives no good answer. Then the known instances stay in
        use.
        """
        for pause in self._refresh_round():
            sleep(pause)

    async def arefresh(self) -> None:
        """Like `refresh`, without blocking the event loop."""
        for pause in self._refresh_round():
            await asleep(pause)

    def eject(self, instance: Instance, seconds: float) -> None:
        """Send no calls to `instance` for this many seconds. Attempts in flight continue.

        Raises ValueError for an instance that is not known, or an invalid time.
        """
        validation.number("seconds", seconds, above=True)
        with self._engine.lock:
            self._engine.rotation.eject(self._known(instance), seconds, "hand")
        self._engine.outbox.publish()

    def admit(self, instance: Instance) -> None:
        """Send calls to `instance` again, whatever the reason why it was out of rotation: an
        ejection, its breaker, a back-off that it asked for, or a failed health check (until the
        next result of the checks).

        Raises ValueError for an instance that is not known.
        """
        with self._engine.lock:
            self._engine.rotation.admit(self._known(instance))
        self._engine.outbox.publish()

    def close(self) -> None:
        """Send nothing more, and stop discovery. Returns at once.

        Attempts in flight continue. Calls that wait (for a slot, for discovery, before a retry) end
        now. Their result is their last outcome, or BalancerClosed if they have none. Later calls
        raise RuntimeError.
        """
        self._binding.refuse_calls()
        self._engine.end()
        self._engine.stop()
        if self._listening is not None:
            self._listening.stop()
        release(self._strategy)

    async def aclose(self) -> None:
        """Like `close`, for `async` code. `close` does not block either."""
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
        """In a forked child: make new locks, and give `rng` a new seed, even if the user has passed
        `rng`. Python does the same for its module `random`."""
        try:
            self._rng.seed()
        finally:
            self._engine.after_fork(threading.RLock())

    def _adapted(self, runtime: Runtime) -> Runtime:
        """Return the runtime to use. The simulator overrides this method to replace the scheduler
        and the executor."""
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
    """Return a classifier that does not raise: if `judge` raises, or does not return a `Verdict`,
    the outcome is neutral.

    The classifiers of this package are used without this wrapper. They raise no exceptions of their
    own; only a signal handler may raise an exception while they run.
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
