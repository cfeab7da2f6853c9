"""A process of its own for clients of one kind: on one kind of event loop or on threads, with or
without a package, of this version of lbclient or of another. It makes calls when it is told to,
so that sides in several processes take turns."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

from crowd import Effort, Turn, of_tasks, of_threads
from shares import shares

ASYNCIO, UVLOOP, TRIO, THREADS = "asyncio", "uvloop", "trio", "threads"
_HERE = Path(__file__).parent


class Order(NamedTuple):
    """A block of calls with one client, which is made when it is first asked for."""

    rival: str
    urls: tuple[str, ...]
    exchange: str
    at_once: int
    effort: Effort
    sidecar: int | None = None
    """The id of a process that works for the client."""


class Worker:
    """The process, from outside. `without` are packages that it is to do without; `source` is the
    folder that lbclient is imported from."""

    def __init__(
        self,
        kind: str,
        ca: str | None,
        *,
        without: tuple[str, ...] = (),
        source: Path | None = None,
    ) -> None:
        paths = [str(source or _HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, json.dumps(ca), *without],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def turn(self, order: Order) -> Turn:
        return Turn(*self._ask("turn", order))

    def profile(self, order: Order) -> Counter[str]:
        """Per cent of the time of a call, by package."""
        return Counter(self._ask("profile", order))

    def close_clients(self) -> None:
        self._ask("close", None)

    def _ask(self, what: str, order: Order | None) -> Any:
        print(json.dumps([what, order]), file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args} has ended before its time")
        return json.loads(answer)


async def _obey(kind: str, ca: str | None) -> None:
    """Reading an order blocks the event loop: nothing else is to run between two blocks."""
    import rivals  # noqa: PLC0415  # it looks which packages there are

    calls: dict[tuple[object, ...], Callable[[], Any]] = {}
    pools: dict[tuple[object, ...], ThreadPoolExecutor] = {}
    async with contextlib.AsyncExitStack() as clients:
        for what, fields in map(json.loads, sys.stdin):
            if what == "close":
                await clients.aclose()
                calls.clear()
                print("null", flush=True)
                continue
            order = Order(*fields)
            effort, at_once = Effort(*order.effort), order.at_once
            upstream = rivals.Upstream(tuple(order.urls), order.exchange, ca)
            key = order.rival, upstream, at_once
            if new := key not in calls:
                # The first call imports what is imported late: many at once would all wait for
                # that, and then begin with a connection each.
                if kind == THREADS:
                    calls[key] = clients.enter_context(rivals.THREADS[order.rival](upstream))
                    pools[key] = clients.enter_context(ThreadPoolExecutor(at_once))
                    calls[key]()
                else:
                    client = rivals.TASKS[order.rival](upstream)
                    calls[key] = await clients.enter_async_context(client)
                    await calls[key]()
            if kind == THREADS:
                answer: object = of_threads(calls[key], at_once, effort, pools[key])
            elif what == "profile":
                answer = await shares(calls[key], at_once, effort)
            else:
                answer = await of_tasks(calls[key], at_once, effort, order.sidecar)
            print(json.dumps(answer), flush=True)
            if new:
                gc.freeze()  # or each block would wait for the collector to look at all of it


def main() -> None:
    kind, ca, *without = sys.argv[1:]
    sys.modules.update(dict.fromkeys(without))  # type: ignore[arg-type]  # None: not to be imported
    if kind == TRIO:
        import trio  # noqa: PLC0415  # where it is installed

        trio.run(_obey, kind, json.loads(ca))
        return
    factory = None
    if kind == UVLOOP:
        import uvloop  # noqa: PLC0415  # where it is installed

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_obey(kind, json.loads(ca)))


if __name__ == "__main__":
    main()
