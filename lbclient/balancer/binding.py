"""The part of a balancer that bindings of protocols use."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NoReturn, TypeVar

from lbclient._internal.deadline import Deadline
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Signal
from lbclient.balancer.deadlines import begun
from lbclient.balancer.health_monitor import Check, CheckExecutor, Monitor
from lbclient.balancer.load_probe import Loads
from lbclient.core.call import NO_OPTIONS, Call, CallOptions
from lbclient.core.engine import Engine
from lbclient.core.pool import Pool
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.classifier import Classifier
from lbclient.endpoint.endpoint import Endpoint
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.retry import RetryPolicy
from lbclient.strategy.protocol import LoadAware, Strategy
from lbclient.telemetry.semantics import Semantics

__all__ = ["Binding", "described"]

R = TypeVar("R")
_SEMANTICS = Semantics()


class Binding:
    """The interface of a balancer for the binding of a protocol. It begins calls, and reports
    changes.

    `lbclient.protocol.bind(balancer)` returns it. Use it if `Balancer.call` is not enough: if a
    result has a body that is read later, if telemetry should use the protocol's terms, or if
    connections are kept for each instance.
    """

    def __init__(
        self, engine: Engine, classify: Classifier, strategy: Strategy, executor: CheckExecutor
    ) -> None:
        self.pool: Pool = engine.pool
        """The known endpoints, and which of them are in rotation. Do not change this object."""
        self.rng: random.Random = engine.rng
        """The balancer's random number generator."""
        self.clock: Callable[[], float] = engine.clock
        """The balancer's clock: monotonic seconds."""
        self.retry: RetryPolicy = engine.retry_rules.policy
        """The balancer's retry policy; if it has none, a policy of one attempt."""
        self.closed: bool = False
        """True once new calls are refused."""
        self._engine = engine
        self._classify = classify
        self._strategy = strategy
        self._executor = executor

    def begin(
        self, options: CallOptions = NO_OPTIONS, semantics: Semantics = _SEMANTICS
    ) -> Call[R]:
        """Begin a call, which `run` or `arun` carries out. Raises RuntimeError after
        `refuse_calls`.

        `options` are the options of this call; `semantics` describes the call to telemetry.
        """
        if self.closed:
            self.refuse()
        return Call(self._engine, self._classify, options, semantics)

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline that begins now, for several calls of this balancer and for no other
        calls.

        `math.inf` limits no call. It also hides the deadline of an enclosing request.
        """
        return begun(seconds, self.clock, self._engine)

    def check_health(self, policy: HealthCheck, check: Check) -> None:
        """Check the health of every instance in the background with `check`, beginning at the first
        call."""
        engine = self._engine
        engine.membership.health_monitor = Monitor(
            policy,
            check,
            endpoints=lambda: engine.pool.endpoints,
            report=engine.record_health,
            clock=engine.clock,
            rng=engine.rng,
            executor=self._executor,
        )

    def report_health(
        self, endpoint: Endpoint, *, healthy: bool, why: str, breaker: Breaker | None = None
    ) -> None:
        """Record at once what an instance itself has said about its health. `why` is empty if the
        instance is healthy. `breaker` identifies the machine that has said it: if the endpoint has
        another breaker now, the report is ignored."""
        self._engine.record_health(endpoint, breaker or endpoint.breaker, healthy=healthy, why=why)

    @property
    def state(self) -> str:
        """The service and its state, for a `repr`. This property takes no lock, makes no lookup and
        does not raise.
        """
        engine = self._engine
        if self.closed:
            return f"{engine.service}: closed"
        known = f"{len(engine.pool)} instances"
        try:
            known = f"{engine.pool.in_rotation(engine.clock())} of {known} in rotation"
        except Exception as error:
            if is_interruption(error):
                raise  # any other error comes from the user's clock
        return f"{engine.service}: {known}"

    def loads(self) -> Loads | None:
        """The object that takes the load reports of instances; None if the strategy does not use
        them.
        """
        strategy = self._strategy
        return Loads(strategy, self._engine) if isinstance(strategy, LoadAware) else None

    def refuse(self) -> NoReturn:
        """Raise the error of a call that begins after the balancer was closed."""
        raise RuntimeError(f"the balancer of {self._engine.service} is closed")

    def refuse_calls(self) -> None:
        """Refuse new calls. Calls under way continue."""
        self.closed = True

    def idle(self) -> Signal:
        """Return a signal that is set once no call is under way and no attempt is in flight."""
        return self._engine.drained()

    def abandon_calls(self) -> None:
        """From now on, charge no instance and retry no call, since the connections of all calls are
        being closed."""
        self._engine.abandoned = True


def described(owner: object, binding: Binding | None) -> str:
    """Return the `repr` of an object that has a balancer, such as a client. `binding` is None if
    `owner` has not been constructed yet."""
    return f"<{type(owner).__name__}{'' if binding is None else f' {binding.state}'}>"
