"""Three servers, of which one fails, under load for many seconds: no idempotent RPC fails, and the
instance that fails gets hardly anything."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time

import grpc
import pytest

from lbclient import BreakerPolicy, RetryPolicy
from tests.support.rpc import channel_of, messages

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("LBCLIENT_HAMMER_SECONDS", "5"))
SETTLED, RECOVERED = 2.0, 3.0
WORKERS = 8
PACE = 0.004
KINDS = ["threads", "asyncio"]
FAULTS = ["killed", "stopped", "unavailable", "slow"]
OPTIONS = {
    "retry": RetryPolicy(attempts=4, attempt_timeout=0.3),
    "breaker": BreakerPolicy(
        slow_rate=0.5, slow_after=0.03, reset_timeout=0.5, reset_timeout_max=2.0
    ),
}


class Load:
    """Idempotent RPCs at a steady rate, until `end`. `answers` has the server of each, `errors` the
    others."""

    def __init__(self, rpcs):
        self.answers, self.errors = [], []
        self._rpcs = rpcs
        self._ended = threading.Event()
        if rpcs.loop is None:
            self._threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]
            for thread in self._threads:
                thread.start()
        else:
            self._tasks = [rpcs.loop.begin(self._work_async()) for _ in range(WORKERS)]

    def _work(self):
        while not self._ended.is_set():
            try:
                response = self._rpcs.stub.CacheableUnaryCall(messages.SimpleRequest(), timeout=2.0)
            except grpc.RpcError as error:
                self.errors.append(error)
            else:
                self.answers.append((time.monotonic(), int(response.server_id)))
            self._ended.wait(PACE)

    async def _work_async(self):
        while not self._ended.is_set():
            try:
                call = self._rpcs.stub.CacheableUnaryCall(messages.SimpleRequest(), timeout=2.0)
                response = await call
            except grpc.RpcError as error:
                self.errors.append(error)
            else:
                self.answers.append((time.monotonic(), int(response.server_id)))
            await asyncio.sleep(PACE)

    def end(self):
        self._ended.set()
        if self._rpcs.loop is None:
            for thread in self._threads:
                thread.join()
        else:
            for task in self._tasks:
                task.result()

    def wait_for(self, port, seconds):
        """How long it took until this server answered again."""
        began, seen = time.monotonic(), len(self.answers)
        while time.monotonic() < began + seconds:
            if any(server == port for _, server in itertools.islice(self.answers, seen, None)):
                return time.monotonic() - began
            time.sleep(0.01)
        raise AssertionError("it did not serve again")


def attempts(channel, port):
    return next(
        one.attempts for one in channel.balancer.snapshot().instances if one.instance.port == port
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_of_three_fails(rpc_servers, kind, fault):
    """No RPC fails; after two seconds at most one attempt in a hundred goes to the instance; it
    serves again within three seconds of its recovery."""
    servers = rpc_servers(3)
    failing = servers[1]
    with channel_of(kind, [one.address for one in servers], **OPTIONS) as channel:
        load = Load(channel)
        try:
            load.wait_for(failing.port, 5)
            {
                "killed": failing.kill,
                "stopped": failing.pause,
                "unavailable": lambda: failing.tell("status UNAVAILABLE down"),
                "slow": lambda: failing.tell("delay 0.05"),
            }[fault]()
            time.sleep(SETTLED)
            before = attempts(channel, failing.port), len(load.answers)
            time.sleep(SECONDS - SETTLED)
            after = attempts(channel, failing.port), len(load.answers)
            {
                "killed": failing.start,
                "stopped": failing.resume,
                "unavailable": lambda: failing.tell("status "),
                "slow": lambda: failing.tell("delay 0"),
            }[fault]()
            load.wait_for(failing.port, RECOVERED)
        finally:
            load.end()
        assert load.errors == []
        share = (after[0] - before[0]) / (after[1] - before[1])
        assert share <= 0.01
        assert channel.in_flight() == 0
