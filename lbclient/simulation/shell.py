"""The shell of virtual time: what threads do by sleeping, it does by yielding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.simulation.world import Process
from lbclient.waiting import Pause

__all__ = ["carry_out"]

R = TypeVar("R")


def carry_out(call: Call[R], send: Callable[[Attempt[R]], Process[R]]) -> Process[R]:
    """Carry a call out in a world; `send` is a process too, and takes its time by yielding."""
    with call:
        for step in call:
            if isinstance(step, Pause):
                yield step
            else:
                with step:
                    step.result = yield from send(step)
    return call.result()
