"""`lbclient demo`: shows real DNS, real instances and real traffic while instances fail."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator

import httpx

import lbclient
from lbclient.balancer.options import BalancerOptions
from lbclient.cli.demo.director import Director, Playbill, View
from lbclient.cli.demo.meter import Load, Meter, Outcome
from lbclient.cli.demo.plain import Plain
from lbclient.cli.demo.stage import Stage, service_of, stage

__all__ = ["demo"]

_TICK = 0.1
"""Seconds between two frames."""


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo. The exit status is 1 if a call failed."""
    logging.getLogger("lbclient").addHandler(logging.NullHandler())  # the view shows these events
    scheme = "grpc" if arguments.grpc else "http"
    bill = Playbill(service_of(scheme), arguments.strategy, arguments.seconds)
    view = _view(bill, plain=arguments.plain)
    opened = _over_grpc if arguments.grpc else _over_http
    with stage(scheme=scheme) as world, opened(world, bill) as (balancer, call):
        balancer.refresh()
        load, director = Load(call), Director(world, bill.seconds)
        meter = Meter(balancer, load, window=min(1.0, bill.seconds / 12))
        with view, load:
            _play(meter, director, view, bill.seconds)
        last = meter.read(bill.seconds)
        director.end(last)
    view.close(last, director.scenes)
    if last.tally.failed:
        print(f"the last failed call: {load.last_failure}", file=sys.stderr)
    return 1 if last.tally.failed else 0


def _play(meter: Meter, director: Director, view: View, seconds: float) -> None:
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        frame = meter.read(now)
        director.step(frame)
        view.show(frame, director.scenes)
        time.sleep(_TICK)


Opened = Generator[tuple[lbclient.Balancer, Callable[[], Outcome]]]


@contextlib.contextmanager
def _over_http(world: Stage, bill: Playbill) -> Opened:
    options = _options(world, bill)
    with lbclient.Client(bill.service, **options) as client:

        def call() -> Outcome:
            outcome: httpx.Response | Exception
            try:
                outcome = client.get("/orders/42")
            except Exception as error:  # noqa: BLE001  # the call has failed, whatever the error
                outcome = error
            failed = isinstance(outcome, Exception) or outcome.is_error
            return Outcome(repr(outcome) if failed else "", _further_attempts(outcome))

        yield client.balancer, call


@contextlib.contextmanager
def _over_grpc(world: Stage, bill: Playbill) -> Opened:
    import lbclient.grpc  # noqa: PLC0415  # grpcio is an extra

    method, retried = "/demo.Orders/Get", deque[None]()

    def listen(event: lbclient.Event) -> None:
        if isinstance(event, lbclient.RetryDecided):
            retried.append(None)

    options = _options(world, bill)
    options["listener"] = listen
    with lbclient.grpc.channel(bill.service, idempotent=[method], **options) as channel:
        get = channel.unary_unary(method)

        def call() -> Outcome:
            failure = ""
            try:
                get(b"")
            except Exception as error:  # noqa: BLE001  # as above
                failure = repr(error)
            further = 0
            with contextlib.suppress(IndexError):
                while True:
                    retried.pop()
                    further += 1
            return Outcome(failure, further)

        yield channel.balancer, call


def _further_attempts(outcome: object) -> int:
    return max(0, len(lbclient.call_info(outcome).attempts) - 1)


def _options(world: Stage, bill: Playbill) -> BalancerOptions:
    return {
        "strategy": bill.strategy,
        "nameservers": [world.nameserver],
        "allow": ["127.0.0.0/8"],
    }


def _view(bill: Playbill, *, plain: bool) -> View:
    if plain or not _can_draw():
        return Plain(bill)
    try:
        from lbclient.cli.demo.screen import Screen  # noqa: PLC0415  # rich is an extra
    except ImportError:
        print("For the live view: pip install 'lbclient[cli]'")
        return Plain(bill)
    return Screen(bill)


def _can_draw() -> bool:
    return (
        sys.stdout.isatty()
        and os.environ.get("TERM") != "dumb"
        and sys.stdout.encoding.lower().startswith("utf")
    )
