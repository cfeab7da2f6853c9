"""The part of a balancer that the binding of a protocol uses.

`docs/protocols.md` shows a whole binding. `lbclient.http` is another binding.
"""

from __future__ import annotations

from lbclient._internal.signals import Pause, Signal
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import Binding
from lbclient.balancer.callbacks import CallbackRun, asleep_until, sleep_until, start
from lbclient.balancer.event_loops import arun, asleep
from lbclient.balancer.health_monitor import Check, CheckFailed
from lbclient.balancer.load_probe import Loads
from lbclient.balancer.threads import run, sleep
from lbclient.core.attempt import Attempt
from lbclient.core.call import NO_OPTIONS, Call, CallOptions
from lbclient.core.call_info import CallInfo, explain
from lbclient.endpoint.classifier import Classifier, Verdict
from lbclient.telemetry.semantics import Attributes, Semantics
from lbclient.telemetry.spans import propagation

__all__ = [
    "NO_OPTIONS",
    "Attempt",
    "Attributes",
    "Binding",
    "Call",
    "CallInfo",
    "CallOptions",
    "CallbackRun",
    "Check",
    "CheckFailed",
    "Classifier",
    "Loads",
    "Pause",
    "Semantics",
    "Signal",
    "Verdict",
    "arun",
    "asleep",
    "asleep_until",
    "bind",
    "explain",
    "propagation",
    "run",
    "sleep",
    "sleep_until",
    "start",
]


def bind(balancer: Balancer) -> Binding:
    """Return the `Binding` of a balancer: the methods for the binding of a protocol.

    Raises TypeError if the argument is not a `Balancer`.
    """
    if not isinstance(balancer, Balancer):
        raise TypeError(f"balancer must be an lbclient.Balancer, not {balancer!r}")
    return balancer._binding  # noqa: SLF001  # `Balancer` itself shows what its users need
