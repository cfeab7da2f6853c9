"""Health services that lie: states that mean nothing, services that are missing, and answers that
never come or never end. The test itself makes each check."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

import lbclient.grpc
from lbclient import Answer, HealthCheck, Instance
from lbclient._internal.deadline import Expiry
from lbclient.protocol import CheckFailed
from tests.grpc.test_services import until
from tests.support.watchers import Registry

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


class Liar(grpc.GenericRpcHandler):
    """A server whose health service answers what a test says: bytes, an exception's status, or
    nothing until `released`. Other methods echo the request."""

    def __init__(self, address="127.0.0.1:0"):
        self.check, self.watch = SERVING, grpc.StatusCode.UNIMPLEMENTED
        self.checks = self.watches = 0
        self.hanging = threading.Semaphore(0)
        self.released = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16), handlers=[self], options=[("grpc.so_reuseport", 0)]
        )
        self.port = self._server.add_insecure_port(address)
        self._server.start()

    def close(self):
        self.released.set()
        self._server.stop(0).wait()

    def service(self, details):
        if details.method.endswith("/Check"):
            return grpc.unary_unary_rpc_method_handler(self._check)
        if details.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)

    def _check(self, _, context):
        self.checks += 1
        return self._answer(self.check, context)

    def _watch(self, _, context):
        self.watches += 1
        several = isinstance(self.watch, list | Iterator)
        for answer in self.watch if several else [self.watch]:
            yield self._answer(answer, context)

    def _answer(self, answer, context):
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "a lie")
        if answer is None:
            self.hanging.release()
            self.released.wait()
            context.abort(grpc.StatusCode.UNKNOWN, "released")
        return answer


@pytest.fixture
def liar():
    one = Liar()
    yield one
    one.close()


class Checked:
    """The health checks of a channel to the liar."""

    def __init__(self, service):
        health = HealthCheck(grpc="", interval=3600.0, timeout=10.0)
        self.channel = lbclient.grpc.channel(service, health=health)
        self.health = self.channel._adapter.health
        self.channel.balancer.refresh()
        (self._endpoint,) = self.channel._adapter.binding.pool.endpoints

    def check(self, seconds=10.0):
        """Check, and return why the check failed; None if it did not."""
        try:
            self.health.check(self._endpoint, Expiry(time.monotonic() + seconds, time.monotonic))
        except CheckFailed as error:
            return str(error)
        return None

    @property
    def standing(self):
        (one,) = self.channel.balancer.snapshot().instances
        return one.standing

    @property
    def followed(self):
        return self.health._followed.get(self._endpoint)


@pytest.fixture
def checked(liar):
    until(lambda: not following())
    one = Checked([f"127.0.0.1:{liar.port}"])
    yield one
    liar.released.set()
    one.channel.close()
    until(lambda: not following())


def following():
    return [one for one in threading.enumerate() if one.name == "lbclient-health"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "status UNKNOWN"),
        (b"\x08\x00", "status UNKNOWN"),
        (b"\x08\x03", "status SERVICE_UNKNOWN"),
        (b"\x08\x63", "status 99"),
        (b"\xff", "the response is malformed"),
        (b"\x0a\x01x", "the response is malformed"),
        (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED: a lie"),
        (grpc.StatusCode.UNKNOWN, "UNKNOWN: a lie"),
    ],
    ids=str,
)
def test_answers_that_are_not_serving(checked, liar, answer, why):
    """A check fails if the health service answers anything else than SERVING, and its text says
    what the answer was."""
    assert checked.check() is None
    liar.check = answer
    assert checked.check() == why
    liar.check = SERVING
    assert checked.check() is None


def test_a_check_that_hangs(checked, liar):
    """A check without an answer ends at its time limit."""
    liar.check = None
    assert checked.check(0.05).startswith("DEADLINE_EXCEEDED")
    assert following() == []


def test_a_watch_that_is_not_served(checked, liar):
    """A server without `Watch` is asked for it once."""
    for _ in range(5):
        assert checked.check() is None
        until(lambda: not following())
    assert liar.watches == 1


@pytest.mark.parametrize("answers", [[], [SERVING], [b"\xff"], [grpc.StatusCode.INTERNAL]], ids=str)
def test_a_watch_that_ends(checked, liar, answers):
    """A server that ends its `Watch`, or sends nonsense, is asked again at the next check, and not
    earlier. This does not make it unhealthy."""
    liar.watch = answers
    for number in range(3):
        assert checked.check() is None
        until(lambda: not following())
        assert checked.followed is None
        assert liar.watches == number + 1
    assert checked.standing == "serving"


def test_a_watch_that_hangs(checked, liar):
    """A `Watch` that sends nothing costs one thread, and does not hinder the checks."""
    liar.watch = None
    for _ in range(3):
        assert checked.check() is None
    assert liar.hanging.acquire(timeout=10)
    assert liar.watches == len(following()) == 1
    liar.check = NOT_SERVING
    assert checked.check() == "status NOT_SERVING"
    assert liar.watches == len(following()) == 1


def test_a_watch_begins_anew_after_a_check_without_an_answer(checked, liar):
    """After a check that got no answer, `Watch` begins anew, also with a server that did not serve
    it: its connection may be lost, or another server may run there."""
    assert checked.check() is None
    until(lambda: not following())
    liar.watch = [SERVING, None]
    for number in range(1, 4):
        liar.check = grpc.StatusCode.UNAVAILABLE
        assert checked.check() == "UNAVAILABLE: a lie"
        until(lambda: not following())
        liar.check = SERVING
        assert checked.check() is None
        assert liar.hanging.acquire(timeout=10)
        assert liar.watches == number + 1


def test_what_a_watch_says_counts_at_once(checked, liar):
    """What `Watch` says counts at once, although the checks say something else."""
    said = queue.SimpleQueue()
    liar.watch = iter(said.get, "end")
    assert checked.check() is None
    try:
        for bad in NOT_SERVING, b"", b"\x08\x63":
            said.put(bad)
            until(lambda: checked.standing == "unhealthy")
            said.put(SERVING)
            until(lambda: checked.standing == "serving")
    finally:
        said.put("end")


@pytest.fixture
def moving(liar):
    """Checks of an instance at the liar; `move` moves it to the address of a successor."""

    def at(address):
        return Answer([Instance("orders.test", liar.port, addresses=(address,))])

    def move():
        registry.update(at("127.0.0.2"))
        until(lambda: one.channel.balancer.instances()[0].addresses == ("127.0.0.2",))

    registry = Registry(at("127.0.0.1"))
    successor = Liar(f"127.0.0.2:{liar.port}")
    one = Checked(registry)
    yield one, move, successor
    one.channel.close()
    liar.released.set()
    successor.close()
    until(lambda: not following())


def test_what_a_watch_of_an_old_address_says_does_not_count(moving, liar):
    """What a server says after its instance has moved to another address does not count."""
    checked, move, _ = moving
    said = queue.SimpleQueue()
    liar.watch = iter(said.get, "end")
    said.put(SERVING)
    assert checked.check() is None
    move()
    said.put(NOT_SERVING)
    said.put("end")
    until(lambda: not following())
    assert checked.standing == "serving"


@pytest.mark.parametrize("watch", [[SERVING, None], grpc.StatusCode.UNIMPLEMENTED], ids=str)
def test_a_watch_moves_with_its_instance(moving, liar, watch):
    """After its instance has moved to another address, `Watch` follows the server there, also if
    the old server did not serve it."""
    checked, move, successor = moving
    liar.watch, successor.watch = watch, [NOT_SERVING, None]
    assert checked.check() is None
    move()
    assert checked.check() is None
    until(lambda: checked.standing == "unhealthy")
    assert (liar.watches, successor.watches, len(following())) == (1, 1, 1)


def test_an_instance_that_leaves_during_checks(checked):
    """Checks on several threads may notice at the same time that an instance has left: no check
    fails for that."""
    followed = checked.health._followed

    class Leaving:
        @property
        def gone(self):
            followed.pop(self, None)  # as the check on another thread does
            return True

    followed[Leaving()] = None
    assert checked.check() is None
    assert checked.followed is not None


def test_no_thread_for_a_watch(checked, liar, monkeypatch):
    """If no thread can be started for `Watch`, the check counts all the same, and the next one
    tries again."""
    start = threading.Thread.start

    def fail(thread):
        if thread.name == "lbclient-health":
            raise RuntimeError("can't start new thread")
        start(thread)

    liar.watch = None
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert checked.check() is None
    assert checked.followed is None
    monkeypatch.undo()
    assert checked.check() is None
    assert checked.followed is not None
