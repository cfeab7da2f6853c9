"""`lbclient demo`: shows real DNS, real instances and real traffic while instances fail."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

import lbclient
from lbclient.cli.demo.director import Director, Playbill, View
from lbclient.cli.demo.meter import Load, Meter
from lbclient.cli.demo.plain import Plain
from lbclient.cli.demo.stage import SERVICE, Stage, stage

__all__ = ["demo"]

_TICK = 0.1
"""Seconds between two frames."""


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo. The exit status is 1 if a call failed."""
    logging.getLogger("lbclient").addHandler(logging.NullHandler())  # the view shows these events
    bill = Playbill(SERVICE, arguments.strategy, arguments.seconds)
    view = _view(bill, plain=arguments.plain)
    with stage() as world, _client(world, bill) as client:
        client.balancer.refresh()
        load, director = Load(client), Director(world, bill.seconds)
        meter = Meter(client.balancer, load, window=min(1.0, bill.seconds / 12))
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


def _client(world: Stage, bill: Playbill) -> lbclient.Client:
    return lbclient.Client(
        bill.service,
        strategy=bill.strategy,
        nameservers=[world.nameserver],
        allow=["127.0.0.0/8"],
    )


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
