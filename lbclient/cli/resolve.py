"""`lbclient resolve`: shows the answer of discovery for a service, and the refused records.

With `--watch`, the command then shows each change when a client would notice it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import random
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import lbclient
from lbclient.cli.report import as_arguments, as_options, changes, count, picture
from lbclient.discovery.dns.service import DnsService
from lbclient.discovery.registry import Target
from lbclient.discovery.resolver import Resolver, text_of
from lbclient.discovery.subscription import CEILING, ServiceSubscription
from lbclient.discovery.watched import WatchedResolver
from lbclient.endpoint.instance import Answer
from lbclient.errors import ServiceAbsent

__all__ = ["Reporter", "resolve"]

_NOBODY = Answer(())
_LOOK = 0.1
"""Seconds between two checks for updates of a watch. Updates arrive on other threads."""


def resolve(arguments: argparse.Namespace) -> int:
    """Ask discovery, and print the answer: once, or repeatedly with `watch`.

    The exit status is 1 if there is no usable instance, and 2 for invalid arguments.
    """
    try:
        balancer = _balancer(arguments)
    except (ValueError, ImportError) as error:
        print(f"lbclient resolve: {as_arguments(str(error))}", file=sys.stderr)
        return 2
    with contextlib.closing(balancer):
        if not arguments.watch:
            return _once(balancer.target)
        _watch(balancer.target)
    return 0


def _balancer(arguments: argparse.Namespace) -> lbclient.Balancer:
    service: list[str] = arguments.service
    return lbclient.Balancer(
        service[0] if len(service) == 1 else service,
        nameservers=arguments.nameserver,
        allow=arguments.allow,
        within=arguments.within,
        family=arguments.family,
        sticky=arguments.sticky,
    )


def _once(target: Target) -> int:
    for one in target.watched:
        one.notify = None  # otherwise the balancer would log the outcome, too
    answer = target.resolver.resolve()
    print("\n".join(picture(target.name, answer, pushed=bool(target.watched))))
    if not _is_complete(target.resolver):
        late = "DNS has not answered all questions yet; --watch shows what comes later"
        print(f"lbclient resolve: {late}", file=sys.stderr)
    if not answer.instances:
        print("lbclient resolve: there is no usable instance", file=sys.stderr)
        return 1
    return 0


def _is_complete(resolver: Resolver) -> bool:
    if isinstance(resolver, DnsService):
        return resolver.source.complete
    return not isinstance(resolver, WatchedResolver) or resolver.complete


def _watch(target: Target) -> None:
    """Show the service, then each change, until the user interrupts the command. Returns at once if
    the service never changes.

    Raises BrokenPipeError as soon as standard output is no longer read.
    """
    logging.getLogger("lbclient").addHandler(logging.NullHandler())  # printed anyway
    rounds = Reporter(target.name, target.resolver, watched=target.watched).subscription
    longest = _LOOK if target.watched else math.inf
    while not rounds.stopped:
        _rest(min(rounds.next_at - time.monotonic(), longest))
        if rounds.claim():
            rounds.run()


class Reporter:
    """Reports what each lookup of its `subscription` has changed. It is a `SubscriptionListener`,
    like the balancer's `Membership`.

    It writes to standard error until the first good answer, and to standard output after that.
    """

    def __init__(
        self,
        name: str,
        resolver: Resolver,
        clock: Callable[[], float] = time.monotonic,
        watched: Sequence[WatchedResolver] = (),
    ) -> None:
        self._watched = watched
        self._what = "watch" if resolver in watched else "lookup"
        self._lock = threading.RLock()
        self.subscription: ServiceSubscription = ServiceSubscription(
            name,
            resolver,
            self,
            clock=clock,
            rng=random.Random(),  # noqa: S311  # not for secrets
            lock=self._lock,
            max_stale=None,
            watched=watched,
        )
        for one in watched:
            one.notify = self._poke
            one.start()
        self._known: Answer | None = None
        self._error: Exception | None = None
        self._lines: list[str] = []

    def _poke(self) -> None:
        with self._lock:
            self.subscription.poke()

    def on_update(self, answer: Answer) -> Callable[[], None]:
        """Report the changes, with the age of the previous answer of a lookup."""
        age = self._age(", age was") if self._what == "lookup" else ""
        return partial(self._succeeded, answer, age)

    def on_absent(self) -> None:
        """Report that the service was declared absent."""
        if self._known is not None:
            self._known = _NOBODY

    def on_error(self) -> None:
        """Report the error, unless the last lookup failed for the same reason."""
        error = self.subscription.error
        if error is not None and isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__  # the subscription would only end this lookup
        if self._error is None or text_of(error) != text_of(self._error):
            what = self._absent() if isinstance(error, ServiceAbsent) else self._failed()
            self._say(f"{what}{self._next(', next try')}: {as_options(text_of(error))}")
        self._error = error

    def publish(self) -> None:
        """Print the lines that have been collected."""
        stream = sys.stderr if self._known is None else sys.stdout
        for line in self._lines:
            print(line, file=stream, flush=True)
        self._lines.clear()

    def _succeeded(self, answer: Answer, age: str) -> None:
        before, self._known = self._known, answer
        error, self._error = self._error, None
        if before is None:
            self._lines += picture(self.subscription.service, answer, pushed=bool(self._watched))
            self._begin()
            return
        if isinstance(error, ServiceAbsent):
            self._say("offered again")
        elif error is not None:
            self._say(f"{self._what} works again{age}")
        for line in changes(before, answer):
            self._say(line)

    def _begin(self) -> None:
        self._lines.append("")
        if self.subscription.stopped:
            self._say("nothing to watch: this never changes")
        else:
            self._say(f"watching{self._next(', next lookup')}")

    def _absent(self) -> str:
        dropped = f", {count(self._known.instances, 'instance')} dropped" if self._known else ""
        return f"service declared absent{dropped}"

    def _failed(self) -> str:
        if not self._known or not self._known.instances:
            return f"{self._what} failed, no instance is known"
        instances = count(self._known.instances, "instance")
        return f"{self._what} failed, {instances} still in use{self._age(', age')}"

    def _age(self, words: str) -> str:
        age = self.subscription.age(self.subscription.clock())
        return "" if age is None else f"{words} {age:.0f} s"

    def _next(self, words: str) -> str:
        """Return text that says when the next lookup or the next watch begins. The text is empty
        while a watch runs."""
        at = min(self.subscription.next_at, *(one.next_at for one in self._watched), math.inf)
        seconds = at - self.subscription.clock()
        return f"{words} in {seconds:.0f} s" if seconds <= CEILING * 2 else ""

    def _say(self, text: str) -> None:
        self._lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")


def _rest(seconds: float) -> None:
    """Sleep for `seconds`. If standard output is a pipe that its reader closes (as `| head` does),
    end the sleep: `poll` reports this."""
    if not hasattr(select, "poll"):  # Windows does not have `poll`
        time.sleep(max(0.0, seconds))
        return
    output = select.poll()
    output.register(sys.stdout, 0)
    if output.poll(max(0.0, seconds) * 1e3):
        raise BrokenPipeError
