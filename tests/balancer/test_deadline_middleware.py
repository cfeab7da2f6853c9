"""Deadlines that a service's callers send: the middleware for ASGI, and that for WSGI."""

import contextlib
import contextvars
import logging
import math
import select
import socket
import sys
import wsgiref.util
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

import lbclient
import lbclient.asgi
import lbclient.wsgi
from lbclient import Balancer, DeadlineExceeded, Instance
from lbclient._internal.deadline import CURRENT
from tests.support.drivers import as_guest
from tests.support.interruptions import Interrupt, SoftLimit, points

pytestmark = pytest.mark.anyio

ONE = [Instance("10.0.0.1", 1)]
TWO = [Instance("10.0.0.1", 1), Instance("10.0.0.2", 1)]
REQUEST = {"type": "http.request", "body": b"", "more_body": False}
START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}

HEADERS = {
    # the header's value, and the seconds that are left; None: it is ignored
    "10000": 10.0,
    "00010000": 10.0,
    "1": 0.001,
    "0": 0.0,
    "60000": 30.0,
    "9" * 19: 30.0,
    "9" * 5000: 30.0,
    "0" * 5000 + "10000": 10.0,
    "": None,
    "-10000": None,
    "+10000": None,
    " 10000": None,
    "10000 ": None,
    "10 000": None,
    "10_000": None,
    "10000.0": None,
    "1e4": None,
    "0x2710": None,
    "inf": None,
    "nan": None,
    "10000ms": None,
    "10000,10000": None,
    "\u00b2": None,
    "10000\u00b2": None,
    "10000\n": None,
}
values = pytest.mark.parametrize(
    ("value", "seconds"), HEADERS.items(), ids=lambda value: ascii(value)[:12]
)


def about(left, seconds):
    """True if so many seconds were left a moment ago."""
    return left is None if seconds is None else seconds - 5 < left <= seconds


class Asgi:
    """A server's side of one request, as uvicorn has it: once the response is complete or the
    caller has gone, `receive` returns that it has."""

    def __init__(self, app, *values, messages=(REQUEST,), kind="http", headers=(), **options):
        self.app = lbclient.asgi.DeadlineMiddleware(app, **options)
        own = [(b"X-Deadline-Ms", value.encode("latin-1")) for value in values]
        self.scope = {"type": kind, "headers": [*headers, *own]}
        self.messages = list(messages)
        self.sent = []
        self.received = 0
        self.gone = anyio.Event()
        self.gone_message = {"type": f"{kind}.disconnect"}

    async def receive(self):
        self.received += 1
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return self.gone_message

    async def send(self, message):
        self.sent.append(message)
        if message == END:
            self.gone.set()
            await anyio.lowlevel.checkpoint()

    async def run(self):
        await self.app(self.scope, self.receive, self.send)


async def respond(send):
    await send(START)
    await send(END)


async def settled():
    """Every other task has had its turn, more than once."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


# The header


@values
async def test_the_header_of_an_asgi_request(value, seconds):
    """A header of ASCII digits is that many milliseconds, 30 s at most; anything else is
    ignored."""
    seen = []

    async def app(_, __, send):
        seen.append(lbclient.time_left())
        await respond(send)

    await Asgi(app, value).run()
    assert about(*seen, seconds)


@values
def test_the_header_of_a_wsgi_request(value, seconds):
    """The same in WSGI."""
    app = lbclient.wsgi.DeadlineMiddleware(lambda *_: [lbclient.time_left()])
    assert about(*app({"HTTP_X_DEADLINE_MS": value}, None), seconds)


async def test_a_missing_or_repeated_header():
    """Without the header there is no deadline; nor with two, which WSGI gets as one."""
    for values in ((), ("10000", "10000"), ("10000", "5000")):
        seen = []

        async def app(_, __, send, seen=seen):
            seen.append(lbclient.time_left())
            await respond(send)

        await Asgi(app, *values).run()
        assert seen == [None]
    assert lbclient.wsgi.DeadlineMiddleware(lambda *_: [lbclient.time_left()])({}, None) == [None]


async def test_a_header_that_is_ignored_is_logged(caplog):
    """What is ignored is logged at debug, and no more than a part of it."""
    caplog.set_level(logging.DEBUG, "lbclient")

    async def app(_, __, send):
        await respond(send)

    await Asgi(app, "x" * 5000).run()
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "x-deadline-ms is ignored" in record.getMessage()
    assert len(record.getMessage()) < 200


async def test_other_headers_and_limits():
    """The header and the longest deadline are options."""
    seen = []

    async def app(_, __, send):
        seen.append(lbclient.time_left())
        await respond(send)

    await Asgi(app, headers=[(b"x-left", b"60000")], header="X-Left", max_seconds=60.0).run()
    await Asgi(app, "60000", max_seconds=10.0).run()
    await Asgi(app, "10000", header="x-left").run()
    assert [None if left is None else round(left) for left in seen] == [60, 10, None]
    wsgi = lbclient.wsgi.DeadlineMiddleware(lambda *_: [lbclient.time_left()], "X-Left", 60.0)
    assert about(*wsgi({"HTTP_X_LEFT": "60000"}, None), 60.0)


@pytest.mark.parametrize("module", [lbclient.asgi, lbclient.wsgi])
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"header": ""}, ValueError, "header must be the name of a header"),
        ({"header": "x deadline"}, ValueError, "header must be the name of a header"),
        ({"header": None}, ValueError, "header must be the name of a header"),
        ({"max_seconds": 0}, ValueError, "max_seconds"),
        ({"max_seconds": math.inf}, ValueError, "max_seconds"),
        ({"max_seconds": math.nan}, ValueError, "max_seconds"),
        ({"max_seconds": "30"}, TypeError, "max_seconds"),
    ],
)
def test_invalid_arguments(module, options, error, said):
    """K4: an argument that cannot be used is an error that names it."""
    with pytest.raises(error, match=said):
        module.DeadlineMiddleware(str, **options)
    with pytest.raises(TypeError, match="app must be callable"):
        module.DeadlineMiddleware(None)


async def test_a_deadline_of_zero():
    """A caller that has no time left gets no calls at all."""
    balancer, sent = Balancer(ONE), []

    async def app(_, __, send):
        with pytest.raises(DeadlineExceeded):
            balancer.call(sent.append)
        await respond(send)

    await Asgi(app, "0").run()
    assert sent == []


# ASGI


async def test_lifespan_and_unknown_scopes():
    """What is neither a request nor a WebSocket passes untouched."""
    passed = []

    async def app(*args):
        passed.append(args)

    for kind in ("lifespan", "unknown"):
        scope, receive, send = {"type": kind}, object(), object()
        await lbclient.asgi.DeadlineMiddleware(app)(scope, receive, send)
        assert passed.pop() == (scope, receive, send)


async def test_a_request_without_deadline_passes_untouched():
    """A request without the header gets the server's own functions."""
    passed = []

    async def app(*args):
        passed.append(args)

    scope, receive, send = {"type": "http", "headers": []}, object(), object()
    await lbclient.asgi.DeadlineMiddleware(app)(scope, receive, send)
    assert passed == [(scope, receive, send)]


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_exceptions_of_the_application(kind):
    """What an application raises passes through as it is, its cause included, and the deadline is
    gone."""
    cause = LookupError("why")

    async def app(*_):
        raise RuntimeError("mine") from cause

    with pytest.raises(RuntimeError, match="mine") as caught:
        await Asgi(app, "10000", kind=kind).run()
    assert caught.value.__cause__ is cause
    assert lbclient.time_left() is None


async def test_a_group_of_exceptions():
    """A group of the application's own is not changed, either."""
    group = ExceptionGroup("mine", [ValueError(), TypeError()])

    async def app(*_):
        raise group

    with pytest.raises(ExceptionGroup) as caught:
        await Asgi(app, "10000").run()
    assert caught.value is group


async def test_a_request_that_is_cancelled():
    """A server may cancel a request: it ends at once, and so does what watches its caller."""
    started, ended = anyio.Event(), []

    async def app(*_):
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(lbclient.time_left())

    async with anyio.create_task_group() as group:
        group.start_soon(Asgi(app, "10000").run)
        await started.wait()
        group.cancel_scope.cancel()
    assert about(*ended, 10.0)


async def test_a_body_that_is_read_in_parts():
    """An application gets every part of a body, whether or not its length was announced, and then
    that the caller has gone, as often as it asks."""
    parts = [{"type": "http.request", "body": b"%d" % number} for number in range(4)]
    for part in parts[:-1]:
        part["more_body"] = True
    seen = []

    async def app(_, receive, send):
        seen.append([await receive() for _ in parts])
        await respond(send)
        seen.append([await receive(), await receive()])

    for headers in ((), [(b"Content-Length", b"4")], [(b"transfer-encoding", b"chunked")]):
        await Asgi(app, "10000", messages=parts, headers=headers).run()
        assert seen == [parts, [GONE, GONE]]
        seen.clear()


async def test_a_body_is_not_read_ahead():
    """Of an announced body nothing is received before the application asks for it, so that a server
    sends no 100 Continue."""
    part = {"type": "http.request", "body": b"x", "more_body": True}

    async def app(_, receive, send):
        await settled()
        assert request.received == 0
        await receive()
        await settled()
        assert request.received == 1
        await respond(send)

    request = Asgi(app, "10000", messages=[part] * 3, headers=[(b"content-length", b"3")])
    await request.run()


async def test_an_application_that_polls():
    """An application may ask whether its caller has gone without waiting, as Starlette does."""
    told = []

    async def is_disconnected(receive):
        message = {}
        with anyio.CancelScope() as scope:
            scope.cancel()
            message = await receive()
        return message == GONE

    async def app(_, receive, __):
        await receive()
        told.append(await is_disconnected(receive))
        request.gone.set()
        await settled()
        told.append(await is_disconnected(receive))

    request = Asgi(app, "10000")
    await request.run()
    assert told == [False, True]


async def test_a_server_whose_receive_fails():
    """What a server's `receive` raises reaches the application where it receives."""

    class Broken(Asgi):
        async def receive(self):
            raise LookupError("the server's")

    async def app(_, receive, send):
        await settled()
        for _ in range(2):
            with pytest.raises(LookupError, match="the server's"):
                await receive()
        await respond(send)

    await Broken(app, "10000").run()


async def calls_until_gone(balancer, request):
    """Call, let the caller go, and call again: the seconds left in each call that was sent."""
    sent = []

    async def fn(_):
        sent.append(lbclient.time_left())

    await balancer.acall(fn)
    request().gone.set()
    await settled()
    assert lbclient.time_left() == 0.0
    with pytest.raises(DeadlineExceeded, match="the deadline was ended"):
        await balancer.acall(fn)
    return sent


@pytest.mark.parametrize("headers", [(), [(b"content-length", b"0")]], ids=["get", "post"])
@pytest.mark.parametrize("reads", [True, False])
async def test_a_caller_that_goes(reads, headers):
    """Once its caller has gone a request makes no further calls, whether or not the application has
    read its empty body."""
    balancer, sent = Balancer(ONE), []

    async def app(_, receive, __):
        if reads:
            await receive()
        sent.extend(await calls_until_gone(balancer, lambda: request))
        assert await receive() == (GONE if reads else REQUEST)
        assert await receive() == GONE

    request = Asgi(app, "10000", headers=headers)
    await request.run()
    assert about(*sent, 10.0)
    assert lbclient.time_left() is None


def test_a_caller_that_goes_while_trio_is_a_guest():
    """A disconnect is noticed also where trio runs as a guest in asyncio's loop."""
    balancer = Balancer(ONE)

    async def serve():
        sent = []

        async def app(*_):
            sent.extend(await calls_until_gone(balancer, lambda: request))

        request = Asgi(app, "10000")
        await request.run()
        return sent

    assert about(*as_guest(serve), 10.0)


async def test_a_caller_that_goes_after_its_upload():
    """The same for a request with a body, from when the application has read it."""
    balancer = Balancer(ONE)

    async def app(_, receive, __):
        await receive()
        assert await calls_until_gone(balancer, lambda: request)

    request = Asgi(app, "10000", headers=[(b"content-length", b"1")])
    await request.run()


async def test_a_caller_that_goes_during_its_upload():
    """The same for an application that is told so while it reads the body."""
    part = {"type": "http.request", "body": b"x", "more_body": True}
    balancer = Balancer(ONE)

    async def app(_, receive, __):
        assert [await receive(), await receive(), await receive()] == [part, GONE, GONE]
        with pytest.raises(DeadlineExceeded):
            balancer.call(str)

    await Asgi(app, "10000", messages=[part, GONE], headers=[(b"content-length", b"9")]).run()


async def test_a_caller_that_goes_while_a_thread_works():
    """A worker thread of the application sees it, too."""
    balancer, sent = Balancer(ONE), []

    def work():
        balancer.call(sent.append)
        anyio.from_thread.run_sync(request.gone.set)
        anyio.from_thread.run(settled)
        with pytest.raises(DeadlineExceeded):
            balancer.call(sent.append)

    async def app(*_):
        await anyio.to_thread.run_sync(work)

    request = Asgi(app, "10000")
    await request.run()
    assert len(sent) == 1


async def test_a_call_of_a_caller_that_goes_is_not_retried():
    """A call that is under way when the caller goes is not sent again."""
    balancer, sent = Balancer(ONE), []

    async def fn(_):
        sent.append(None)
        request.gone.set()
        await settled()
        raise ConnectionResetError

    async def app(*_):
        with pytest.raises(ConnectionResetError):
            await balancer.acall(fn, idempotent=True)

    request = Asgi(app, "10000")
    await request.run()
    assert len(sent) == 1


async def test_after_the_response():
    """What is done after the response has no deadline, though the server then says that the caller
    has gone: background tasks, and tasks that outlive the request."""
    balancer, sent, over = Balancer(ONE), [], anyio.Event()

    async def fn(_):
        sent.append(lbclient.time_left())

    async def later():
        await over.wait()
        await balancer.acall(fn)

    async with anyio.create_task_group() as group:

        async def app(_, __, send):
            group.start_soon(later)
            await anyio.lowlevel.checkpoint()
            await balancer.acall(fn)
            await respond(send)
            await settled()
            await balancer.acall(fn)

        await Asgi(app, "10000").run()
        over.set()
    assert about(sent[0], 10.0)
    assert sent[1:] == [None, None]


async def test_a_task_that_outlives_a_request_without_response():
    """A task that outlives a request is not bound by it, whatever became of that."""
    over, seen = anyio.Event(), []

    async def later():
        await over.wait()
        seen.append(lbclient.time_left())

    async with anyio.create_task_group() as group:

        async def app(*_):
            scope = contextvars.copy_context()
            scope.run(group.start_soon, later)
            request.gone.set()
            await settled()

        request = Asgi(app, "10000")
        await request.run()
        over.set()
    assert seen == [None]


async def test_a_streamed_response():
    """The deadline covers a response that is sent in parts, up to its last."""
    seen = []

    async def app(_, __, send):
        await send(START)
        for number in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 2})
            seen.append(lbclient.time_left())

    await Asgi(app, "10000").run()
    assert [about(left, 10.0) for left in seen[:2]] == [True, True]
    assert seen[2] is None


async def test_a_websocket():
    """The deadline covers a WebSocket to its end; once its caller has gone, it makes no calls."""
    messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "x"}]
    balancer, sent = Balancer(ONE), []

    async def app(_, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        assert await receive() == messages[1]
        balancer.call(lambda _: sent.append(lbclient.time_left()))
        socket.gone.set()
        assert await receive() == {"type": "websocket.disconnect"}
        with pytest.raises(DeadlineExceeded):
            balancer.call(sent.append)

    socket = Asgi(app, "10000", messages=messages, kind="websocket")
    await socket.run()
    assert about(*sent, 10.0)
    assert socket.received == 3


async def test_requests_at_the_same_time():
    """Requests that run by turns each have their own deadline."""
    seen = {}
    started = anyio.Event()

    def app_of(name):
        async def app(_, __, send):
            if name == "first":
                await started.wait()
            started.set()
            await settled()
            seen[name] = lbclient.time_left()
            await respond(send)

        return app

    async with anyio.create_task_group() as group:
        group.start_soon(Asgi(app_of("first"), "10000").run)
        group.start_soon(Asgi(app_of("second"), "20000").run)
    assert about(seen["first"], 10.0)
    assert about(seen["second"], 20.0)


# WSGI


def wsgi(app, value="10000", **environ):
    return lbclient.wsgi.DeadlineMiddleware(app)({"HTTP_X_DEADLINE_MS": value, **environ}, None)


def test_a_generator():
    """The deadline covers a body that is generated, and its closing, but not what the server does
    in between."""
    balancer, times = Balancer(ONE), []

    def app(*_):
        try:
            for _ in range(2):
                yield balancer.call(lambda _: lbclient.time_left())
        finally:
            times.append(lbclient.time_left())

    body = wsgi(app)
    for left in body:
        assert about(left, 10.0)
        assert lbclient.time_left() is None
    body.close()
    unfinished = wsgi(app)
    next(iter(unfinished))
    unfinished.close()
    assert [about(left, 10.0) for left in times] == [True, True]


def test_a_generator_with_a_block_of_its_own():
    """A block that a body keeps open while it generates holds in each part of it, within the time
    of the request, and nowhere else."""

    def app(*_):
        yield lbclient.time_left()
        with lbclient.deadline(5.0):
            yield lbclient.time_left()
            yield lbclient.time_left()
        yield lbclient.time_left()

    lefts = []
    with lbclient.deadline(20.0):
        for left in wsgi(app):
            lefts.append(left)
            assert about(lbclient.time_left(), 20.0)
    assert [round(left) for left in lefts] == [10, 5, 5, 10]


class Body:
    """A body as frameworks have it: an iterable with `close`."""

    def __init__(self, error=None):
        self.times = []
        self.error = error

    def __iter__(self):
        self.times.append(lbclient.time_left())
        yield b"x"

    def close(self):
        self.times.append(lbclient.time_left())
        if self.error is not None:
            raise self.error


def test_the_close_of_a_body():
    """The application's own `close` is called once, has the deadline, and may raise."""
    own = Body()
    body = wsgi(lambda *_: own)
    assert list(body) == [b"x"]
    body.close()
    assert [about(left, 10.0) for left in own.times] == [True, True]
    failing = wsgi(lambda *_: Body(LookupError("mine")))
    with pytest.raises(LookupError, match="mine"):
        failing.close()
    wsgi(lambda *_: iter([b"x"])).close()


def test_a_body_that_raises():
    """What an application or its body raises passes through."""

    def app(*_):
        yield b"x"
        raise LookupError("mine")

    body = wsgi(app)
    assert next(iter(body)) == b"x"
    with pytest.raises(LookupError, match="mine"):
        next(body)
    with pytest.raises(ZeroDivisionError):
        wsgi(lambda *_: 1 / 0)


def test_bodies_that_servers_look_at():
    """A list, of which a server asks the length, and a file, which it may send by itself, are
    passed on as they are."""
    for made in ([b"x"], (b"x",)):
        assert wsgi(lambda *_, made=made: made) is made
    wrapper = wsgiref.util.FileWrapper
    with Path(__file__).open("rb") as file:
        made = wrapper(file)
        assert wsgi(lambda *_: made, **{"wsgi.file_wrapper": wrapper}) is made
        assert wsgi(lambda *_: made) is not made


@pytest.fixture
def connection():
    """Both ends of a TCP connection: the caller's, and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with caller, accepted:
        yield caller, accepted


def closed(sock):
    """Wait until the other end of a connection has been closed."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(10_000)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
@pytest.mark.parametrize("unread", [b"", b"a body"], ids=["", "unread"])
def test_a_wsgi_caller_that_has_gone(connection, name, unread):
    """If the server tells the connection of a request, the request makes no further calls once its
    caller has closed it, although the caller has sent what nobody has read."""
    caller, accepted = connection
    balancer, sent = Balancer(ONE), []

    def app(*_):
        balancer.call(sent.append)
        caller.sendall(unread)
        balancer.call(sent.append)
        caller.close()
        closed(accepted)
        assert lbclient.time_left() == 0.0
        for _ in range(2):
            with pytest.raises(DeadlineExceeded, match="the deadline was ended"):
                balancer.call(sent.append)
            yield b"x"

    with contextlib.closing(wsgi(app, **{name: accepted})) as body:
        assert len(list(body)) == 2
    assert len(sent) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_call_whose_wsgi_caller_has_gone(connection):
    """A call under way when the caller closes its connection is not retried."""
    caller, accepted = connection
    balancer, sent = Balancer(TWO), []

    def fails(instance):
        sent.append(instance)
        caller.close()
        closed(accepted)
        raise ConnectionResetError

    def app(*_):
        with pytest.raises(ConnectionResetError) as caught:
            balancer.call(fails, idempotent=True)
        assert lbclient.call_info(caught.value).stopped == "deadline"
        return [b"x"]

    wsgi(app, **{"gunicorn.socket": accepted})
    assert len(sent) == 1


def test_connections_that_tell_nothing(connection):
    """A connection that cannot say whether the caller is there, or a response that is complete,
    ends no deadline."""
    _, accepted = connection
    balancer, contexts = Balancer(ONE), []

    def app(*_):
        contexts.append(contextvars.copy_context())
        return [balancer.call(lambda _: lbclient.time_left())]

    local, other = socket.socketpair()
    with local, other:
        other.close()
        for own in (local, object(), None):
            assert about(*wsgi(app, **{"gunicorn.socket": own}), 10.0)
    wsgi(app, **{"gunicorn.socket": accepted})
    accepted.close()
    assert [context.run(balancer.call, str) for context in contexts] == ["10.0.0.1:1"] * 4


def test_after_a_wsgi_response():
    """What outlives a request, in a copy of its context, is not bound by it."""
    contexts = []

    def app(*_):
        contexts.append(contextvars.copy_context())
        return [b"x"]

    def generated(*_):
        contexts.append(contextvars.copy_context())
        yield b"x"

    def failing(*_):
        contexts.append(contextvars.copy_context())
        raise LookupError

    wsgi(app)
    body = wsgi(generated)
    assert list(body) == [b"x"]
    body.close()
    with pytest.raises(LookupError):
        wsgi(failing)
    assert [context.run(lbclient.time_left) for context in contexts] == [None] * 3


@pytest.mark.parametrize("kind", [Interrupt, SoftLimit])
def test_interruptions(kind):
    """Wherever a request is interrupted, its thread keeps nothing of its deadline."""

    def app(*_):
        yield lbclient.time_left()

    def work():
        body = wsgi(app)
        try:
            for _ in body:
                pass
        finally:
            trace, _ = sys.gettrace(), sys.settrace(None)
            body.close()
            sys.settrace(trace)

    behind, count = [], 0
    for where, reached in points(lambda: work, kind, everywhere=True):
        count += 1
        behind += [where] * (CURRENT.get() is not None or not reached)
        CURRENT.set(None)
    assert behind == []
    assert count > 20
