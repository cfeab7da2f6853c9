"""A program that uses channels and forks: `python tests/support/forking.py ADDRESS SCENARIO`.

It prints a line for each child: the name of the fork, and `ok` or the child's error.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent import futures

import grpc

import lbclient.grpc
import lbclient.grpc.aio
from lbclient import HealthCheck, RetryPolicy

PATH = "/grpc.testing.TestService/"
SECONDS = 15.0
ADDRESS = sys.argv[1]
SUPPORTED = os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "1"


def unary(channel):
    assert channel.unary_unary(f"{PATH}EmptyCall")(b"", timeout=10.0) == b""


def future(channel):
    assert channel.unary_unary(f"{PATH}EmptyCall").future(b"", timeout=10.0).result() == b""


def duplex(channel):
    assert list(channel.stream_stream(f"{PATH}FullDuplexCall")(iter(()), timeout=10.0)) == []


async def aio_unary(channel):
    assert await channel.unary_unary(f"{PATH}EmptyCall")(b"", timeout=10.0) == b""


async def aio_duplex(channel):
    call = channel.stream_stream(f"{PATH}FullDuplexCall")(iter(()), timeout=10.0)
    assert [one async for one in call] == []


class Interceptor(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation, details, request):
        return await continuation(details, request)


def in_a_loop(work=aio_unary, **options):
    """Carry out an RPC in an event loop of its own, over a channel of its own."""

    async def run():
        async with lbclient.grpc.aio.channel([ADDRESS], **options) as channel:
            await work(channel)

    with futures.ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: asyncio.run(run())).result()


def tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def report(name, work):
    """In the child: carry out the work, and print what came of it."""
    try:
        work()
    except RuntimeError as error:
        tell(f"{name}: {error}")
    else:
        tell(f"{name}: ok")


def in_a_child(name, *work, method="fork"):
    """Fork; each piece of work is carried out in the child. Print `hung` if the child does not
    end."""
    named = [(f"{name} {getattr(one, '__name__', '')}".strip(), one) for one in work]

    in_main_thread = threading.current_thread() is threading.main_thread()

    def everything():
        for pair in named:
            report(*pair)
        gc.collect()

    if method == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=everything)
        process.start()
        pid = process.pid
    elif not (pid := os.fork()):
        everything()
        if SUPPORTED and in_main_thread:
            sys.exit()  # with all finalizers
        os._exit(0)  # as `multiprocessing` ends its children
    end = time.monotonic() + SECONDS
    while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            tell(f"{name}: hung")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)
    if status[1]:
        tell(f"{name}: status {os.waitstatus_to_exitcode(status[1])}")


def kinds(channel):
    """Calls of several kinds over this channel, and over a new one."""

    def known():
        unary(channel)

    def known_future():
        future(channel)

    def known_duplex():
        duplex(channel)

    def new():
        with lbclient.grpc.channel([ADDRESS]) as other:
            unary(other)

    return known, known_future, known_duplex, new


def loops():
    """Calls in event loops."""

    def loop():
        in_a_loop()

    def loop_duplex():
        in_a_loop(aio_duplex)

    def loop_interceptors():
        in_a_loop(interceptors=[Interceptor()])

    return loop, loop_duplex, loop_interceptors


pooled_channels = []


def pooled(_):
    """In a process of a pool: an RPC over the channel that the parent has used."""
    try:
        unary(pooled_channels[0])
    except RuntimeError as error:
        return str(error)
    return "ok"


def in_a_pool(channel):
    """Calls in the processes of a pool."""
    pooled_channels.append(channel)
    context = multiprocessing.get_context("fork")
    with futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        (result,) = set(pool.map(pooled, range(10), timeout=60))
    tell(f"pool: {result}")


def unused_then_used():
    """Forks before and after the first call of another channel, and with an RPC under way."""
    with lbclient.grpc.channel([ADDRESS]) as unused, lbclient.grpc.channel([ADDRESS]) as channel:
        told = threading.Event()
        unused.subscribe(lambda _: told.set())
        assert told.wait(SECONDS)

        def subscribed():
            told = threading.Event()
            unused.subscribe(lambda _: told.set())
            assert told.wait(SECONDS)

        in_a_child("unused", *kinds(unused), *loops(), subscribed)
        unary(channel)
        in_a_child("another", *kinds(unused))
        in_a_child("used", *kinds(channel), *loops())

        def nested():
            in_a_child("grandchild", *kinds(channel))

        in_a_child("child", nested)
        call = channel.stream_stream(f"{PATH}FullDuplexCall")(requests := Requests())
        in_a_child("stream", *kinds(channel), *((call.cancel, channel.close) if SUPPORTED else ()))
        requests.ended.set()
        assert list(call) == []
        unary(channel)
        unary(unused)
        thread = threading.Thread(target=in_a_child, args=("thread", *kinds(channel)))
        thread.start()
        thread.join()
        in_a_child("multiprocessing", *kinds(channel), method="multiprocessing")
        in_a_pool(channel)
    tell("parent: ok")


class Requests:
    """No requests, but not at once."""

    def __init__(self):
        self.ended = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        self.ended.wait()
        raise StopIteration


def used_in_a_loop():
    """Forks while a channel is open in an event loop, and after that."""

    async def run():
        channel = lbclient.grpc.aio.channel([ADDRESS])
        await aio_unary(channel)
        in_a_child("open", *loops(), *kinds(lbclient.grpc.channel([ADDRESS])))
        await aio_unary(channel)
        await channel.close()

    asyncio.run(run())
    gc.collect()  # a child that finalizes it would wait for gRPC's thread
    in_a_child("closed", *loops())
    in_a_loop()
    tell("parent: ok")


def health_checks():
    """Many forks while health checks are under way, also of an instance that hangs."""
    options = {
        "health": HealthCheck(grpc="", interval=0.05, timeout=0.05, up=1, down=1),
        "idempotent": {f"{PATH}EmptyCall"},
        "retry": RetryPolicy(attempts=20, attempt_timeout=0.5, budget=None),
    }
    with lbclient.grpc.channel([ADDRESS, *sys.argv[3:]], **options) as channel:
        unary(channel)
        followed = channel._adapter.health._followed
        end = time.monotonic() + SECONDS
        while not any(followed.values()):
            assert time.monotonic() < end
            time.sleep(0.005)

        def checked():
            unary(channel)
            health = channel._adapter.health
            end = time.monotonic() + SECONDS
            while not any(health._followed.values()):
                assert time.monotonic() < end
                time.sleep(0.005)
            assert followed is not health._followed

        for number in range(int(os.environ.get("LBCLIENT_FORKS", "5"))):
            in_a_child(f"health {number}", checked)
            unary(channel)
    tell("parent: ok")


if __name__ == "__main__":
    {one.__name__: one for one in (unused_then_used, used_in_a_loop, health_checks)}[sys.argv[2]]()
