"""All drivers make the same decisions."""

import random
from dataclasses import dataclass, replace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbclient import Balancer, BreakerPolicy, Instance, RetryBudget, RetryPolicy, Verdict
from lbclient._internal.signals import Pause
from lbclient.balancer import balancer
from lbclient.balancer.binding import Binding
from lbclient.balancer.event_loops import arun
from lbclient.balancer.threads import run
from lbclient.core.call import CallOptions
from lbclient.protocol import bind
from lbclient.simulation import World, carry_out
from lbclient.telemetry.semantics import Semantics


class Sending(Pause):
    """The time of an attempt, not a pause between attempts."""


class Broken(Exception):
    """An attempt that ends with its own verdict."""


@dataclass(frozen=True)
class Outcome:
    """The scripted outcome of one attempt, and its duration."""

    verdict: Verdict
    raises: bool
    seconds: float


@dataclass
class Script:
    """The configuration of a balancer and the outcomes of its attempts, in order, repeated."""

    seed: int
    weights: list[int]
    priorities: list[int]
    strategy: str
    attempts: int
    fail_max: int
    ratio: float
    deadline: float | None
    limit: int | None
    idempotent: list[bool]
    outcomes: list[Outcome]


def judge(result: object) -> Verdict:
    return result.args[0] if isinstance(result, Broken) else result  # type: ignore[return-value]


class Run:
    """One run of a script: the same balancer, the same seed, its own virtual clock."""

    def __init__(self, script: Script, clock) -> None:
        self.script = script
        self.trace: list[object] = []
        self._next = 0
        instances = [
            Instance("10.0.0.1", 1 + place, weight=weight, priority=priority)
            for place, (weight, priority) in enumerate(
                zip(script.weights, script.priorities, strict=False)
            )
        ]
        self.balancer = Balancer(
            instances,
            strategy=script.strategy,
            retry=RetryPolicy(
                attempts=script.attempts,
                deadline=script.deadline,
                budget=RetryBudget(ratio=script.ratio, reserve=0.1, window=10),
            ),
            breaker=BreakerPolicy(fail_max=script.fail_max, reset_timeout=0.5),
            max_in_flight=script.limit,
            clock=clock,
            rng=random.Random(script.seed),
            judge=judge,
        )

    def outcome(self) -> Outcome:
        outcome = self.script.outcomes[self._next % len(self.script.outcomes)]
        self._next += 1
        return outcome

    def calls(self):
        for idempotent in self.script.idempotent:
            yield bind(self.balancer).begin(CallOptions(idempotent=idempotent), Semantics())

    def paused(self, pause: Pause) -> None:
        self.trace.append(("pause", pause.seconds))

    def ended(self, call, error: BaseException | None) -> None:
        done = call.info().attempts
        self.trace.append((type(error).__name__, [tuple(map(repr, one)) for one in done]))
        snapshot = self.balancer.snapshot()
        self.trace.append(
            [(one.breaker, one.in_flight, one.attempts) for one in snapshot.instances]
        )


def finish(outcome: Outcome) -> Verdict:
    if outcome.raises:
        raise Broken(outcome.verdict)
    return outcome.verdict


def in_threads(script: Script) -> list[object]:
    world = World()
    here = Run(script, world.clock)

    def rest(pause: Pause) -> None:
        here.paused(pause)
        world._now += pause.seconds

    def send(_):
        outcome = here.outcome()
        world._now += outcome.seconds
        return finish(outcome)

    for call in here.calls():
        try:
            run(call, send, rest)
        except Exception as error:  # noqa: BLE001  # compared by the trace
            here.ended(call, error)
        else:
            here.ended(call, None)
    return here.trace


def in_tasks(script: Script, backend: str) -> list[object]:
    world = World()
    here = Run(script, world.clock)

    async def rest(pause: Pause) -> None:
        await anyio.lowlevel.checkpoint()
        here.paused(pause)
        world._now += pause.seconds

    async def send(_):
        await anyio.lowlevel.checkpoint()
        outcome = here.outcome()
        world._now += outcome.seconds
        return finish(outcome)

    async def main() -> None:
        for call in here.calls():
            try:
                await arun(call, send, rest)
            except Exception as error:  # noqa: BLE001  # compared by the trace
                here.ended(call, error)
            else:
                here.ended(call, None)

    anyio.run(main, backend=backend)
    return here.trace


def in_acall(script: Script) -> list[object]:
    """Run the script by `Balancer.acall`; `asleep` is how it waits."""
    world = World()
    here = Run(script, world.clock)
    binding = bind(here.balancer)
    begun: list[object] = []

    async def rest(pause: Pause) -> None:
        await anyio.lowlevel.checkpoint()
        here.paused(pause)
        world._now += pause.seconds

    async def send(_):
        await anyio.lowlevel.checkpoint()
        outcome = here.outcome()
        world._now += outcome.seconds
        return finish(outcome)

    def begin(*asked):
        begun.append(Binding.begin(binding, *asked))
        return begun[-1]

    async def main() -> None:
        for idempotent in script.idempotent:
            try:
                await here.balancer.acall(send, idempotent=idempotent)
            except Exception as error:  # noqa: BLE001  # compared by the trace
                here.ended(begun[-1], error)
            else:
                here.ended(begun[-1], None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balancer, "asleep", rest)
        patch.setattr(binding, "begin", begin)
        anyio.run(main, backend="asyncio")
    return here.trace


def in_virtual_time(script: Script) -> list[object]:
    world = World()
    here = Run(script, world.clock)

    def send(_):
        outcome = here.outcome()
        yield Sending(outcome.seconds)
        return finish(outcome)

    def main():
        for call in here.calls():
            process = carry_out(call, send)
            error: BaseException | None = None
            try:
                yield from watched(process)
            except Exception as failure:  # noqa: BLE001  # compared by the trace
                error = failure
            here.ended(call, error)

    def watched(process):
        step = next(process)
        while True:
            if not isinstance(step, Sending):
                here.paused(step)
            yield step
            try:
                step = next(process)
            except StopIteration:
                return

    world.spawn(main())
    world.run()
    return here.trace


SECONDS = (0.0, 0.01, 0.3, 2.0)
verdicts = st.builds(
    Verdict,
    fault=st.booleans(),
    again=st.sampled_from(["never", "idempotent", "always"]),
    rest=st.sampled_from([0.0, 0.0, 0.2, 40.0]),
    backoff=st.booleans(),
)
outcomes = st.builds(
    Outcome, verdict=verdicts, raises=st.booleans(), seconds=st.sampled_from(SECONDS)
)
scripts = st.builds(
    Script,
    seed=st.integers(0, 2**32),
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    priorities=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    strategy=st.sampled_from(["weighted", "round-robin", "random", "least-busy"]),
    attempts=st.integers(1, 5),
    fail_max=st.integers(1, 3),
    ratio=st.sampled_from([0.0, 0.5, 5.0]),
    deadline=st.sampled_from([None, 0.05, 1.0]),
    limit=st.sampled_from([None, 1]),
    idempotent=st.lists(st.booleans(), min_size=1, max_size=12),
    outcomes=st.lists(outcomes, min_size=1, max_size=12),
)


@settings(max_examples=150)
@given(scripts)
def test_one_script_gives_one_trace(script):
    """A script of outcomes gives the same decisions on a thread, on asyncio and in virtual time."""
    expected = in_threads(script)
    assert in_tasks(script, "asyncio") == expected
    assert in_virtual_time(script) == expected


@settings(max_examples=50)
@given(scripts)
def test_one_script_gives_one_trace_by_acall(script):
    """`Balancer.acall` makes the same decisions as the drivers. There is no deadline, since it
    would cancel an attempt in real time."""
    script = replace(script, deadline=None)
    assert in_acall(script) == in_threads(script)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=15)
@given(script=scripts)
def test_one_script_gives_one_trace_on_each_event_loop(backend, script):
    """A script of outcomes gives the same decisions on both event loops."""
    assert in_tasks(script, backend) == in_threads(script)
