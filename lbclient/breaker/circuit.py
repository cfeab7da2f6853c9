"""pybreaker, told when to open and how probes end. It keeps the states and counts good probes.

It never wraps the I/O, since its `call` holds a lock while the function runs and cannot see a
coroutine fail. Nor does its clock, which is the wall's, decide anything: an open circuit is told
nothing, and half-opened by us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pybreaker

from lbclient.breaker.policy import BreakerPolicy

__all__ = ["CLOSED", "OPEN", "Circuit", "new_circuit", "tell"]

Circuit = pybreaker.CircuitBreaker
CLOSED = pybreaker.STATE_CLOSED
OPEN = pybreaker.STATE_OPEN


def new_circuit(policy: BreakerPolicy, name: str, turned: Callable[[], None]) -> Circuit:
    """A closed one. `turned` is called at each change of state."""
    return Circuit(
        fail_max=policy.fail_max,
        success_threshold=policy.success_threshold,
        listeners=[_Turns(turned)],
        name=name,
    )


def tell(circuit: Circuit, *, fault: bool) -> None:
    """An outcome, at zero length."""
    try:
        circuit.call(_fail if fault else _succeed)
    except (_Fault, pybreaker.CircuitBreakerError) as error:
        cause = error.__context__
        _forget(error)
        if isinstance(error, pybreaker.CircuitBreakerError) and not isinstance(cause, _Fault):
            raise cause or error from None  # interrupted, and taken for a failure of the function


def _forget(error: BaseException | None) -> None:
    """The frames of pybreaker hold what they raise: a cycle, and in it the whole stack, with the
    caller's own frames, until the garbage collector comes."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class _Turns(pybreaker.CircuitBreakerListener):
    def __init__(self, turned: Callable[[], None]) -> None:
        self._turned = turned

    def state_change(self, *_: object) -> None:
        self._turned()


class _Fault(Exception):
    """Stands for the instance's failure inside pybreaker."""


def _succeed() -> None:
    return None


def _fail() -> NoReturn:
    raise _Fault
