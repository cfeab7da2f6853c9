"""The options that all entry points share, each declared once, and recommended values."""

import inspect
import random
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from inspect import Parameter
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar, Unpack, get_args

from lbclient._internal import validation
from lbclient.balancer.listener import Listener
from lbclient.discovery.dns.service import Family
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.resilience.concurrency_limit import AdaptiveLimit
from lbclient.resilience.health_check import HealthCheck
from lbclient.resilience.hedging import HedgePolicy
from lbclient.resilience.outlier_detection import OutlierPolicy
from lbclient.resilience.retry import ONE_ATTEMPT, RetryPolicy
from lbclient.resilience.slow_start import SlowStart
from lbclient.resilience.throttle import ThrottlePolicy
from lbclient.strategy.protocol import Strategy
from lbclient.strategy.registry import StrategyName
from lbclient.telemetry.metrics import MeterProvider
from lbclient.telemetry.spans import TracerProvider

__all__ = [
    "RECOMMENDED",
    "BalancerOptions",
    "Option",
    "recommended",
    "refuse_unknown",
    "shows",
    "with_defaults",
]

C = TypeVar("C", bound=type)
_NO_HINTS: Mapping[str, str] = MappingProxyType({})


class Option(NamedTuple):
    """The text of an option for `help`, and its default. A default of `...` means the default of
    httpx."""

    text: str
    default: object = None


class BalancerOptions(TypedDict, total=False):
    """The options of `Balancer`, and of all clients and transports."""

    strategy: Annotated[
        StrategyName | Strategy,
        Option(
            ", ".join(f'`"{name}"`' for name in get_args(StrategyName))
            + ", or an object with `pick(candidates, call)`.",
            "weighted",
        ),
    ]
    retry: Annotated[
        RetryPolicy | None,
        Option(
            "when a call is retried, and the `deadline` of every call: "
            "`RetryPolicy(deadline=2.0)`. None means one attempt.",
            RetryPolicy(),
        ),
    ]
    breaker: Annotated[
        BreakerPolicy | None,
        Option(
            "when an instance that keeps failing gets no more calls until a probe succeeds; None "
            "means no breaker.",
            BreakerPolicy(),
        ),
    ]
    name: Annotated[
        str | None,
        Option(
            "the service's name, in errors, traces and the `Host` header, if `service` has no "
            "name: for a list, a file or an object with `resolve`."
        ),
    ]
    scheme: Annotated[str, Option('`"http"` or `"https"`, if `service` does not name one.', "http")]
    max_in_flight: Annotated[
        int | None,
        Option(
            "the most attempts that one instance may have in flight; further calls wait in a queue."
        ),
    ]
    max_in_flight_total: Annotated[
        int | None, Option("the most attempts in flight at all instances together.")
    ]
    limit: Annotated[
        AdaptiveLimit | None,
        Option(
            "an `AdaptiveLimit` learns how many attempts each instance can handle at a time "
            "(`max_in_flight` sets a fixed number)."
        ),
    ]
    throttle: Annotated[
        ThrottlePolicy | None,
        Option("a `ThrottlePolicy` refuses calls while the service refuses most of them."),
    ]
    hedge: Annotated[
        HedgePolicy | None,
        Option("a `HedgePolicy` sends a second attempt if the first is slow."),
    ]
    outliers: Annotated[
        OutlierPolicy | None,
        Option("an `OutlierPolicy` ejects instances that fail far more often than their peers."),
    ]
    slow_start: Annotated[
        SlowStart | None,
        Option("`SlowStart` ramps up the traffic to new and recovered instances."),
    ]
    health: Annotated[
        HealthCheck | None,
        Option(
            'a `HealthCheck` checks every instance in the background: `HealthCheck("/health")` '
            "sends a GET for that path, `HealthCheck(path=None)` only connects, and "
            "`HealthCheck(check=fn)` calls your function."
        ),
    ]
    listener: Annotated[
        Listener | None,
        Option(
            "a function that gets each `Event`, in order, on a thread that lbclient starts for "
            "it, so that no call waits for it."
        ),
    ]
    nameservers: Annotated[
        Iterable[str] | None,
        Option(
            'the DNS servers to ask, such as `["127.0.0.1:5353"]` or `["tls://10.0.0.2"]`; None '
            "uses those of the system's resolver configuration."
        ),
    ]
    allow: Annotated[
        Iterable[str],
        Option(
            "networks whose addresses DNS may return although they are loopback, link-local, "
            'multicast or those of a cloud\'s metadata service, such as `["127.0.0.0/8"]`.',
            (),
        ),
    ]
    within: Annotated[
        str | None,
        Option(
            "a domain that the targets of SRV records, and the host names that a registry reports, "
            "must belong to."
        ),
    ]
    family: Annotated[
        Family,
        Option(
            'which addresses DNS is asked for: `"ipv4"`, `"ipv6"` or `"any"`. With `"any"`, '
            "addresses to which this host has no route are not used.",
            "any",
        ),
    ]
    sticky: Annotated[
        float | None,
        Option(
            "seconds for which lbclient keeps an address or instance that DNS no longer returns. "
            "It is for names of which DNS returns only some of many addresses in each answer."
        ),
    ]
    max_stale: Annotated[
        float | None,
        Option(
            "seconds for which the last good answer of discovery is used while lookups fail; None "
            "for no limit."
        ),
    ]
    min_refresh: Annotated[
        float,
        Option(
            "the shortest time between two lookups, in seconds, however small the TTL is.",
            1.0,
        ),
    ]
    max_instances: Annotated[
        int | None,
        Option(
            "how many instances of a larger set this client uses: a random subset, which hardly "
            "changes later. None uses all instances."
        ),
    ]
    tracer_provider: Annotated[
        TracerProvider | None,
        Option("an OpenTelemetry tracer provider, which gets the spans; None uses the global one."),
    ]
    meter_provider: Annotated[
        MeterProvider | None,
        Option(
            "an OpenTelemetry meter provider, which gets the metrics; None uses the global one."
        ),
    ]
    clock: Annotated[
        Callable[[], float],
        Option(
            "a function that returns monotonic seconds; tests pass their own to control the time.",
            time.monotonic,
        ),
    ]
    rng: Annotated[
        random.Random | None,
        Option(
            "the generator of random numbers; tests pass one with a seed. It gets a new seed in a "
            "forked child."
        ),
    ]


def with_defaults(options: Mapping[str, object], kind: type) -> Any:
    """Return all options of the TypedDict `kind`: the given values, and defaults for the other
    options."""
    declared = _declared(kind).items()
    defaults = {name: option.default for name, option in declared if option.default is not ...}
    return defaults | dict(options)


def shows(kind: type) -> Callable[[C], C]:
    """Class decorator: list the options of the TypedDict `kind` in the signature and in the
    docstring of a class."""

    def decorated(cls: C) -> C:
        declared, init = _declared(kind), vars(cls)["__init__"]
        signature = inspect.signature(init)
        *own, _ = signature.parameters.values()
        named = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=option.default)
            for name, option in declared.items()
        ]
        init.__signature__ = signature.replace(parameters=[*own, *named])
        lines = [
            textwrap.fill(f"- `{name}`: {option.text}", 98, subsequent_indent="  ")
            for name, option in declared.items()
        ]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Options:", "", *lines])
        return cls

    return decorated


@cache
def _declared(kind: type) -> dict[str, Option]:
    """Return the options that a TypedDict declares, by name."""
    annotations = inspect.get_annotations(kind)
    return {name: annotation.__metadata__[0] for name, annotation in annotations.items()}


_POLICIES: dict[str, type[RetryPolicy | BreakerPolicy | AdaptiveLimit]] = {
    "retry": RetryPolicy,
    "breaker": BreakerPolicy,
    "limit": AdaptiveLimit,
}


def refuse_unknown(
    options: Iterable[str], known: Iterable[str], hints: Mapping[str, str] = _NO_HINTS
) -> None:
    """Raise TypeError for names that are not among the known names. The error lists the known
    names, and says where an argument belongs or which argument was probably meant. `hints` has such
    a text for some names."""
    if unknown := sorted(set(options) - set(known)):
        where = [hint for name in unknown for hint in _hints(name, known, hints)]
        parts = [f"unknown argument {', '.join(unknown)}", *where]
        raise TypeError("; ".join([*parts, f"known: {', '.join(sorted(known))}"]))


def _hints(name: str, known: Iterable[str], hints: Mapping[str, str]) -> Iterable[str]:
    if name in hints:
        yield hints[name]
    elif name == "probe":
        yield "probe belongs to strategy=lbclient.Prequal(probe=...)"
    else:
        yield from (f"did you mean {near}?" for near in get_close_matches(name, known, 1, 0.8))
    for argument, policy in _POLICIES.items():
        if name in {field.name for field in fields(policy)}:
            yield f"{name} belongs to {argument}=lbclient.{policy.__name__}({name}=...)"


def recommended(
    deadline: float | None = None, **changes: Unpack[BalancerOptions]
) -> BalancerOptions:
    """Return options for a client, transport or balancer: a good start for a service that you do
    not know well.

        Client(service, **recommended(deadline=2.0))

    `deadline` is the time of a whole call in seconds: attempts, delays, waits and the body. The
    deadline is set in the `RetryPolicy`, even if `changes` contains a policy. (There, `retry=None`
    means a single attempt.) `changes` are options of `Balancer` by name: each of them replaces a
    recommended option, or is added to the recommended options.

    Compared with the defaults, these options help a service that is overloaded or partly slow, and
    cost a healthy service nothing: see docs/scoreboard.md and benchmarks/healthy.py. Only a first
    burst of more than twenty calls for each instance waits a few round trips while the limit grows.
    (A larger `initial=` avoids this wait, but then an overload starts with more attempts.)

    With the defaults, the instances are used in turn, so the share of each instance matches its
    weight exactly, and every call is sent at once. With these options, calls are sent to instances
    with few attempts in flight. While the service is busy, calls wait in a queue: as long as their
    deadline allows, or as long as httpx's pool timeout if there is no deadline.

    Raises TypeError for a change that is not an option (the error lists the options), and
    ValueError or TypeError for a `deadline` that is not a time above zero.
    """
    refuse_unknown(changes, BalancerOptions.__annotations__)
    options: BalancerOptions = {
        "strategy": "least-busy",
        "limit": AdaptiveLimit(backoff=0.5, tolerance=2.0),
        "breaker": BreakerPolicy(panic_threshold=0.5),
        "retry": RetryPolicy(attempts=5),
    }
    options.update(changes)
    if deadline is not None:
        retry = options["retry"]
        validation.kind("retry", retry, RetryPolicy)
        options["retry"] = replace(retry or ONE_ATTEMPT, deadline=deadline)
    return options


RECOMMENDED: BalancerOptions = recommended()
"""`recommended()` as a value: `Client(service, **RECOMMENDED)`."""
