"""Sources that report changes, and the thread that follows all of these sources.

The watches of all sources share one daemon thread with an event loop, so a thousand watched
services need one thread. There is another thread for each host name of a registry while the
operating system looks up the name. If gevent or eventlet has replaced threads, each watch blocks a
green thread instead. There an event loop cannot be shared: if one green thread ran it, code on all
other green threads would seem to run in this event loop.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from lbclient._internal import fork
from lbclient._internal.blocking import run_blocking
from lbclient._internal.fork import Lazy
from lbclient._internal.interruption import block_signals, has_green_threads
from lbclient.discovery.pushed.api import RegistryApi
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.discovery.watched import Alive, BackgroundWatcher, Ended, Update
from lbclient.errors import DiscoveryError

__all__ = ["Alive", "Ended", "PushedSource", "Update"]


class PushedSource(BackgroundWatcher):
    """A service in a registry that pushes changes. It implements the protocol `Watcher`.

    A source is a value: several balancers may share it, and it can be pickled. Attributes that
    begin with an underscore belong to one process.
    """

    name: str
    """The name of the service, for logs and for the Host of requests."""

    @abstractmethod
    def session(self) -> RegistryApi:
        """Return a new session with the registry. Raises DiscoveryError if the address of the
        registry is not known."""

    @abstractmethod
    async def follow(self, api: RegistryApi, update: Update, alive: Alive) -> None:
        """Report all instances, and then each change, until the watch fails or is cancelled.

        `api` is a session that has been entered. Each answer has all instances; their addresses are
        not filtered yet. `alive` is called when the registry has answered without a change. Raises
        DiscoveryError.
        """

    def start(self, update: Update, alive: Alive, ended: Ended) -> Callable[[], None]:
        """Begin to follow the service in the background, and return a function that cancels this.

        `update` and `alive` are called on the shared thread, and must not block. `ended` is called
        once, on that thread, with the error, or with None if the watch was cancelled. The function
        that cancels may be called from any thread, also by a finalizer, and more than once. It does
        not block. In a forked child there is no watch, and none of these functions is called.

        Raises RuntimeError if no thread can be started.
        """
        if not has_green_threads():
            return _SHARED.begin(self, update, alive, ended)
        watch = _BlockingWatch(self, update, alive, ended)
        THREAD_SCHEDULER.spawn(watch.run, "lbclient-watch")
        return watch.cancel

    def watch(self, update: Update, alive: Alive) -> None:
        """Follow the service. This blocks until the watch fails, or until `close` is called.

        Raises DiscoveryError.
        """
        outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        cancel = self.start(update, alive, outcome.put)
        self._cancels.add(cancel)
        try:
            error = outcome.get()
        finally:
            self._cancels.discard(cancel)
            cancel()
        if error is not None:
            raise error

    def close(self) -> None:
        """End all calls of `watch`. After this, the source can be watched again."""
        for cancel in list(self._cancels):
            cancel()

    @Lazy
    def _cancels(self) -> set[Callable[[], None]]:
        """The functions that end the calls of `watch`."""
        return set()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


def _end(source: PushedSource, error: BaseException | None) -> Exception:
    """Return the error of a watch that was not cancelled and has ended."""
    if isinstance(error, Exception):
        return error
    how = "returned" if error is None else f"was ended by {type(error).__name__}"
    failure = DiscoveryError(f"the watch of {source.name} {how}")
    failure.__cause__ = error
    return failure


class _BlockingWatch:
    """A watch that blocks its thread, which is a green thread."""

    def __init__(self, source: PushedSource, update: Update, alive: Alive, ended: Ended) -> None:
        self._source = source
        self._update = update
        self._alive = alive
        self._ended = ended
        self._api: RegistryApi | None = None
        self._cancelled = False

    def run(self) -> None:
        """Follow the source until the watch fails or is cancelled."""
        error: BaseException | None = None
        try:
            with self._source.session() as api:
                self._api = api
                if not self._cancelled:
                    run_blocking(lambda: self._source.follow(api, self._update, self._alive))
        except BaseException as failure:  # noqa: BLE001  # `ended` gets it
            error = failure
        ended = None if self._cancelled else _end(self._source, error)
        del error  # its traceback refers to this frame, and to sockets
        self._ended(ended)

    def cancel(self) -> None:
        """End the watch."""
        self._cancelled = True
        if self._api is not None:
            self._api.end()


class _LoopWatch:
    """A watch on the shared event loop. Its methods are called on the thread of the loop."""

    def __init__(self, source: PushedSource, update: Update, alive: Alive, ended: Ended) -> None:
        self._source = source
        self._update = update
        self._alive = alive
        self._ended = ended
        self._error: Exception | None = None
        self._cancelled = False

    def begin(self, tasks: set[asyncio.Task[None]]) -> None:
        """Start a task, and keep it in `tasks`, since an event loop keeps no task alive."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)
        self._task.add_done_callback(lambda _: self._ended(self._error))

    def cancel(self) -> None:
        """End the watch."""
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            async with self._source.session() as api:
                await self._source.follow(api, self._update, self._alive)
        except BaseException as failure:  # noqa: BLE001  # no error may end the event loop
            error = failure
        self._error = None if self._cancelled else _end(self._source, error)
        del error  # its traceback refers to this frame, and to sockets


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose lookups of names run on daemon threads.

    The threads of asyncio's executor would delay the exit of the interpreter until the operating
    system has answered. While a name is being looked up, it is not looked up a second time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(False)  # asyncio's debug mode is for event loops of the user
        self._lookups: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002  # asyncio's name
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Look up a name."""
        question = host, port, family, type, proto, flags
        if (answer := self._lookups.get(question)) is None:
            answer = self.create_future()
            threading.Thread(
                target=self._look_up, args=(question, answer), name="lbclient-registry", daemon=True
            ).start()
            self._lookups[question] = answer
            answer.add_done_callback(partial(self._forget, question))
        return await asyncio.shield(answer)

    def _forget(self, question: tuple[Any, ...], answer: asyncio.Future[Any]) -> None:
        del self._lookups[question]
        answer.exception()  # asyncio would log an error for which no watch waits any more

    def _look_up(self, question: tuple[Any, ...], answer: asyncio.Future[Any]) -> None:
        block_signals()
        try:
            found = socket.getaddrinfo(*question)
        except Exception as error:  # noqa: BLE001  # the coroutine raises it
            self.call_soon_threadsafe(answer.set_exception, error)
        else:
            self.call_soon_threadsafe(answer.set_result, found)


class _SharedLoop:
    """The shared thread and its event loop. The thread starts with the first watch."""

    def __init__(self) -> None:
        self._loop: _Loop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_parents: list[object] = []
        """The loops and tasks of parent processes. Their finalizers would warn in a child."""

    @Lazy
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def begin(
        self, source: PushedSource, update: Update, alive: Alive, ended: Ended
    ) -> Callable[[], None]:
        """Begin a watch, and return a function that cancels it."""
        loop = self._running()
        watch = _LoopWatch(source, update, alive, ended)

        def cancel() -> None:
            if self._loop is loop:  # in a forked child, this would wake the parent
                loop.call_soon_threadsafe(watch.cancel)

        loop.call_soon_threadsafe(watch.begin, self._tasks)
        return cancel

    def after_fork(self) -> None:
        """In a forked child: start again, since the thread does not exist in the child."""
        self._of_parents.append((self._loop, self._tasks))
        self._loop, self._tasks = None, set()
        vars(self).pop("_lock", None)

    def _running(self) -> _Loop:
        with self._lock:
            if self._loop is None:
                loop = _Loop()
                try:
                    threading.Thread(
                        target=_run, args=(loop,), name="lbclient-watches", daemon=True
                    ).start()
                except BaseException:
                    loop.close()
                    raise
                self._loop = loop
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    block_signals()
    loop.run_forever()


_SHARED = _SharedLoop()
fork.track(_SHARED)
