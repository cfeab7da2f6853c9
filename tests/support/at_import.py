"""A program, `python -m tests.support.at_import`.

It prints, as JSON, which locks, queues and threads the package makes when it is imported, and
keeps: the cookie jars of clients that are made and dropped meanwhile have locks, too.
"""

import gc
import importlib
import json
import pkgutil
import queue
import sys
import threading
import weakref

MADE: list[tuple[str, str, weakref.ref]] = []


def watch(module, name):
    """Note who makes one of these from now on, also where the name is imported."""
    kind = getattr(module, name)

    def make(*args, **options):
        made = kind(*args, **options)
        frame = sys._getframe(1)
        maker = frame.f_globals.get("__name__", "")
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("lbclient"):
                MADE.append((name, maker, weakref.ref(made)))
                break
            frame = frame.f_back
        return made

    setattr(module, name, make)


if __name__ == "__main__":
    # What others make when they are imported is theirs.
    for name in (
        *(
            "anyio",
            "asyncio",
            "dns.asyncquery",
            "dns.query",
            "dns.resolver",
            "grpc.aio",
            "h11",
            "httptools",
            "httpx",
        ),
        *("httpx2", "logging", "opentelemetry.metrics", "opentelemetry.trace", "pybreaker"),
        *("rich.bar", "rich.console", "rich.live", "rich.table", "rich.text", "tenacity", "trio"),
    ):
        importlib.import_module(name)
    for name in ("Lock", "RLock", "Condition", "Event", "Semaphore", "Thread", "Timer", "local"):
        watch(threading, name)
    for name in ("Queue", "SimpleQueue", "LifoQueue", "PriorityQueue"):
        watch(queue, name)
    package = importlib.import_module("lbclient")
    names = [one.name for one in pkgutil.walk_packages(package.__path__, "lbclient.")]
    names = [name for name in names if not name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    gc.collect()
    kept = [(name, maker) for name, maker, made in MADE if made() is not None]
    sys.stdout.write(json.dumps({"made": kept, "modules": len(names)}))
