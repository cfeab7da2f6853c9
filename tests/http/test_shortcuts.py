"""Our clients skip the layers of httpx that a call does not need, without any visible
difference."""

import ast
import asyncio
import contextlib
import gzip
import importlib
import inspect
import itertools
import json
import logging
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx
import httpx2
import lbclient.httpx2.shortcuts
import pytest

import lbclient
import lbclient.http.shortcuts
import lbclient.httpx2

OWN = "http://10.0.0.1:8080"
FLAVOURS = {
    "httpx": (httpx, lbclient, lbclient.http.shortcuts),
    "httpx2": (httpx2, lbclient.httpx2, lbclient.httpx2.shortcuts),
}
DIGEST = 'Digest realm="r", nonce="abc", qop="auth", algorithm=MD5'
PACKED = gzip.compress(b"packed", mtime=0)


def server_of(lib):  # noqa: C901  # two small classes
    """A transport of this library that answers by path. It records the requests, and how many
    bodies were closed."""

    class Body(lib.SyncByteStream, lib.AsyncByteStream):
        def __init__(self, closings, chunks):
            self.closings, self.chunks = closings, chunks

        def __iter__(self):
            for chunk in self.chunks:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk

        async def __aiter__(self):
            for chunk in self:
                yield chunk

        def close(self):
            self.closings.append(1)

        async def aclose(self):
            self.closings.append(1)

    class Server(lib.BaseTransport, lib.AsyncBaseTransport):
        def __init__(self):
            self.sent, self.closings = [], []

        def handle_request(self, request):
            timeout = request.extensions.get("timeout")
            self.sent.append((request.method, request.url.path, request.headers.raw, timeout))
            answer = ANSWERS[request.url.path]
            if callable(answer):
                answer = answer(lib, request)
            if isinstance(answer, BaseException):
                raise answer
            status, headers, *chunks = answer
            if chunks == [None]:
                return lib.Response(status, headers=headers, content=b"whole")
            body = Body(self.closings, chunks)
            extensions = {"http_version": b"HTTP/1.1", "reason_phrase": b"Fine"}
            return lib.Response(status, headers=headers, stream=body, extensions=extensions)

        async def handle_async_request(self, request):
            return self.handle_request(request)

    return Server


class Flavour:
    """One HTTP library, what we have for it, and a transport with answers by path."""

    def __init__(self, name):
        self.httpx, self.ours, self.shortcuts = FLAVOURS[name]
        self.Server = server_of(self.httpx)

    def clients(self, side, kind):
        """The client class of httpx, a function that makes one, and functions that make ours for
        comparison. Each client uses the server that it is given."""
        name = {"sync": "Client", "async": "AsyncClient"}[side]
        bare = getattr(self.httpx, name)

        def unbalanced(cls):
            options = {"base_url": OWN, "trust_env": False}
            return lambda server, cls=cls, **given: cls(transport=server, **(options | given))

        def balanced(cls):
            options = {"timeout": 5.0, "retry": None, "breaker": None, "trust_env": False}
            return lambda server, cls=cls, **given: cls(
                [OWN], transport=lambda _: server, **(options | given)
            )

        if kind == "direct":
            return bare, unbalanced(bare), unbalanced(getattr(self.shortcuts, f"Direct{name}"))
        return bare, unbalanced(bare), balanced(getattr(self.ours, name))


def echo(_, request):
    shown = json.dumps([request.method, request.headers.multi_items()])
    return 200, {"Content-Type": "application/json"}, shown.encode()


def digest(_, request):
    if "authorization" in request.headers:
        return 200, {}, b"in"
    return 401, {"WWW-Authenticate": DIGEST}, b"out"


def basic(_, request):
    return (200 if "authorization" in request.headers else 401), {}, b"body"


ANSWERS = {
    "/": (200, {}, b"root"),
    "/text": (200, {"Content-Type": "text/plain; charset=latin-1"}, b"h\xe9", b"!"),
    "/unknown": (200, {"Content-Type": "text/plain"}, b"h\xe9"),
    "/empty": (204, {}),
    "/whole": (200, {"X-One": "1"}, None),
    "/whole-redirect": (302, {"Location": "/text"}, None),
    "/twice": (200, [("X-One", "1"), ("x-one", "2"), ("X-Odd", b"\xe9")], b"x"),
    "/echo": echo,
    "/cookie": (200, [("Set-Cookie", "a=b"), ("Set-Cookie", "c=d; Path=/echo")], b"x"),
    "/redirect-cookie": (302, [("Set-Cookie", "r=s"), ("Location", "/echo")], b"x"),
    "/redirect": (302, {"Location": "/text"}, b"moved"),
    "/see-other": (303, {"Location": f"{OWN}/echo#here"}, b""),
    "/same-method": (307, {"Location": "/echo"}, b""),
    "/loop": (302, {"Location": "/loop"}, b""),
    "/twice-moved": (301, {"Location": "/redirect"}, b""),
    "/to-error": (302, {"Location": "/lost"}, b""),
    "/nowhere": (302, {"Location": "https://:x/"}, b"odd"),
    "/not-modified": (304, {"Location": "/text"}, b""),
    "/choices": (300, {}, b"several"),
    "/gzip": (200, {"Content-Encoding": "gzip"}, PACKED[:9], PACKED[9:]),
    "/gzip-redirect": (302, {"Content-Encoding": "gzip", "Location": "/text"}, PACKED),
    "/not-gzip": (200, {"Content-Encoding": "gzip"}, b"no gzip at all"),
    "/identity": (200, {"Content-Encoding": "identity"}, b"plain"),
    "/404": (404, {}, b"none"),
    "/500": (500, {}, b"broken"),
    "/503": (503, {"Retry-After": "1"}, b"later"),
    "/basic": basic,
    "/digest": digest,
    "/lost": lambda lib, _: lib.ConnectError("lost"),
    "/slow": lambda lib, _: lib.ReadTimeout("slow"),
    "/odd-error": lambda *_: OSError("no error of httpx"),
    "/interrupted": lambda *_: KeyboardInterrupt(),
    "/torn": lambda lib, _: (200, {}, b"half", lib.ReadError("torn")),
    "/torn-redirect": lambda lib, _: (302, {"Location": "/"}, b"half", lib.ReadError("torn")),
    "/body-interrupted": (200, {}, b"half", KeyboardInterrupt()),
}


# What a caller sees


async def done(result):
    return await result if inspect.isawaitable(result) else result


def shown(response, *, inside):
    """All that a caller can see of a response."""
    try:
        elapsed = type(response.elapsed).__name__
    except RuntimeError as error:
        elapsed = str(error)
    try:
        content = response.content, response.text, response.encoding
    except Exception as error:  # noqa: BLE001  # whatever it is, it is compared
        content = type(error).__name__, str(error)
    following = response.next_request
    extensions = {k: v for k, v in response.extensions.items() if k != "lbclient"}
    told = {
        "is": (repr(response), response.status_code, response.http_version, response.reason_phrase),
        "content": content,
        "headers": (response.headers.raw, response.headers.encoding),
        "state": (response.is_closed, response.is_stream_consumed, response.num_bytes_downloaded),
        "request": (response.request.method, str(response.request.url), str(response.url)),
        "request headers": response.request.headers.raw,
        "history": [shown(one, inside=inside) for one in response.history],
        "next": following and (following.method, str(following.url), following.headers.raw),
        "cookies": sorted(response.cookies.items()),
        "elapsed": elapsed,
        "encoding": (response.default_encoding, response.charset_encoding),
        "redirects": (response.is_redirect, response.has_redirect_location),
        "extensions": extensions,
        "links": response.links,
    }
    if inside:
        told["attributes"] = vars(response).keys() - {"_decoder"}
    return told


async def told(step, client, server, *, inside):
    """The outcome of a step: its result or its error, what was sent and closed, and the client's
    state."""
    try:
        result = await done(step(client))
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            raise
        try:
            request = str(error.request.url)
        except (AttributeError, RuntimeError):
            request = None
        result = type(error).__name__, str(error), request
    if hasattr(result, "status_code"):
        response, result = result, [shown(result, inside=inside)]
        await done((response.aclose if hasattr(client, "aclose") else response.close)())
        result.append(shown(response, inside=inside))
    state = client.is_closed, sorted((one.name, one.value, one.path) for one in client.cookies.jar)
    return result, list(server.sent), len(server.closings), state


# Scenes: each makes the steps of a client; they are carried out one after another


def get(path, **options):
    return lambda client: client.get(path, **options)


def get_with(path, auth, client):
    return client.get(path, auth=auth())


def post(path, **options):
    return lambda client: client.post(path, **options)


def send(path, *, method="GET", stream=True, read=None, before=None, **options):
    """Build a request and send it, then do with the response what the step says."""

    async def step(client):
        request = client.build_request(method, path)
        if before is not None:
            before(client, request)
        response = await done(client.send(request, stream=stream, **options))
        if read == "chunks":
            chunks = response.aiter_raw() if hasattr(client, "__aenter__") else response.iter_raw()
            got = [one async for one in chunks] if hasattr(chunks, "__anext__") else [*chunks]
            assert b"".join(got)
        elif read is not None:
            name = f"a{read}" if hasattr(client, "__aenter__") else read
            await done(getattr(response, name)())
        return response

    return step


def no_timeout(_, request):
    request.extensions.pop("timeout")


def raise_for_status(path):
    async def step(client):
        return (await done(client.get(path))).raise_for_status()

    return step


def close(client):
    return (client.aclose if hasattr(client, "aclose") else client.close)()


async def entered(client):
    await done(client.__aenter__() if hasattr(client, "__aenter__") else client.__enter__())


def setting(**attributes):
    def step(client):
        for name, value in attributes.items():
            setattr(client, name, value)

    return step


def forget_cookies(client):
    client.cookies.clear()


SCENES = {
    **{f"get {path}": [get("/"), get(path), get("/")] for path in ANSWERS},
    **{f"follow {path}": [get("/"), get(path, follow_redirects=True)] for path in ANSWERS},
    **{f"stream {path}": [get("/"), send(path), get("/")] for path in ANSWERS},
    "stream, read": [get("/"), send("/text", read="read")],
    "stream, closed unread": [get("/"), send("/text", read="close")],
    "stream, chunks": [get("/"), send("/text", read="chunks")],
    "stream, gzip": [get("/"), send("/gzip", read="read"), send("/gzip", read="chunks")],
    "stream, redirect": [get("/"), send("/redirect", read="read", follow_redirects=True)],
    "stream, torn": [get("/"), send("/torn", read="read")],
    "first call": [get("/text")],
    "first call redirected": [get("/redirect", follow_redirects=True)],
    "post": [get("/"), post("/echo", json={"a": 1}), post("/echo", content=b"")],
    "post follows": [get("/"), post("/see-other", data={"a": "b"}, follow_redirects=True)],
    "post, same method": [get("/"), post("/same-method", content=b"x", follow_redirects=True)],
    "cookies": [get("/cookie"), get("/cookie"), get("/echo"), forget_cookies, get("/echo")],
    "cookies of a redirect": [get("/"), get("/redirect-cookie", follow_redirects=True)],
    "auth of one call": [get("/"), get("/basic", auth=("u", "p")), get("/basic"), get("/echo")],
    "no auth asked": [get("/"), get("/basic", auth=None)],
    "wrong auth": [get("/"), get("/basic", auth=7)],
    "auth in the URL": [get("/"), get(f"{OWN.replace('//', '//u:p@')}/basic"), get("/basic")],
    "raise for status": [get("/"), *map(raise_for_status, ("/text", "/404", "/500", "/redirect"))],
    "no timeout in the request": [get("/"), send("/echo", stream=False, before=no_timeout)],
    "timeout of one call": [get("/"), get("/echo", timeout=2.0), get("/echo", timeout=None)],
    "headers, parameters": [get("/"), get("/echo", headers={"X-Y": "1"}, params={"q": "1"})],
    "closed": [get("/"), close, get("/"), close],
    "closed before": [close, get("/")],
    "entered": [entered, get("/text"), close, get("/")],
    "entered twice": [entered, entered],
    "entered late": [get("/"), entered, get("/")],
}
OPTIONS = {
    "auth of the client": [{"auth": ("u", "p")}, get("/basic"), get("/basic", auth=None)],
    "follows always": [{"follow_redirects": True}, get("/redirect"), get("/twice-moved")],
    "but not this once": [
        {"follow_redirects": True},
        get("/"),
        get("/redirect", follow_redirects=False),
    ],
    "few redirects": [{"max_redirects": 1}, get("/"), get("/loop", follow_redirects=True)],
    "no redirects": [{"max_redirects": 0}, get("/"), get("/loop", follow_redirects=True)],
    "impossible redirects": [{"max_redirects": -1}, get("/"), get("/")],
    "cookies of the client": [{"cookies": {"k": "v"}}, get("/echo"), get("/cookie"), get("/echo")],
    "cookies replaced": [{}, get("/cookie"), setting(cookies={"n": "m"}), get("/echo")],
    "encoding": [{"default_encoding": "latin-1"}, get("/"), get("/unknown"), get("/text")],
    "encoding found": [{"default_encoding": lambda _: "cp1252"}, get("/"), get("/unknown")],
    "headers set later": [{}, get("/echo"), setting(headers={"X-New": "1"}), get("/echo")],
    "auth set later": [{}, get("/basic"), setting(auth=("u", "p")), get("/basic")],
    "parameters": [{"params": {"q": "1"}}, get("/echo"), get("/echo", params={"r": "2"})],
    "timeout set later": [{}, get("/echo"), setting(timeout=7.0), get("/echo")],
}


def scenes():
    yield from ((name, {}, steps) for name, steps in SCENES.items())
    yield from ((name, first, steps) for name, (first, *steps) in OPTIONS.items())


each_way = pytest.mark.parametrize(
    ("flavour", "side", "kind"),
    list(itertools.product(FLAVOURS, ["sync", "async"], ["direct", "balanced"])),
)


async def differences(flavour, side, kind, played):
    """Those of these scenes that differ between the two clients."""
    made = Flavour(flavour)
    _, *both = made.clients(side, kind)

    async def play(make, options, steps):
        server = made.Server()
        given = {
            name: one() if name == "auth" and callable(one) else one
            for name, one in options.items()
        }
        client = make(server, **given)
        try:
            return [await told(step, client, server, inside=kind == "direct") for step in steps]
        finally:
            await done(close(client))

    for name, options, steps in played:
        expected, found = [await play(make, options, steps) for make in both]
        if found != expected:
            yield name, [pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1]]


async def same(*played):
    assert [one async for one in differences(*played)] == []


@each_way
def test_a_call_is_as_httpx_makes_it(flavour, side, kind):
    """The response or the error of a call, its requests, and the client's state after it are the
    same as with a client of httpx."""
    asyncio.run(same(flavour, side, kind, scenes()))


@each_way
def test_without_shortcuts_it_is_the_same(flavour, side, kind, monkeypatch):
    """If httpx does not work as the shortcuts expect, its public API gives the same result."""
    monkeypatch.setattr(FLAVOURS[flavour][2], "INTACT", False)
    asyncio.run(same(flavour, side, kind, scenes()))


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """A .netrc with the password for the service, where httpx would find it."""
    path = tmp_path / ".netrc"
    path.write_text("machine 10.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(path))
    return path


@each_way
def test_auth_flows(flavour, side, kind, secrets, monkeypatch):
    """Each kind of authentication works, for the client and for one call; a .netrc is read only if
    that is requested."""
    lib = FLAVOURS[flavour][0]

    class Twice(lib.Auth):
        requires_response_body = True

        def auth_flow(self, request):
            response = yield request
            request.headers["X-Seen"] = str(len(response.text))
            yield request

    def signed(request):
        request.headers["X-Signed"] = "yes"
        return request

    auths = {
        "digest": lambda: lib.DigestAuth("u", "p"),
        "netrc": lambda: lib.NetRCAuth(str(secrets)),
        "twice": Twice,
        "function": lambda: signed,
        "none": lambda: None,
    }
    # A nonce of the client's is random, and a digest counts its requests.
    monkeypatch.setattr(lib.DigestAuth, "_get_client_nonce", lambda *_: b"nonce")
    played = [("trusted", {"trust_env": True}, [get("/"), get("/basic")])]
    for (name, make), path in itertools.product(
        auths.items(), ("/digest", "/basic", "/redirect", "/lost")
    ):
        follow = get(path, follow_redirects=True)
        played.append((f"{name}, client's: {path}", {"auth": make}, [get("/"), get(path), follow]))
        asked = partial(get_with, path, make)
        played.append((f"{name}: {path}", {}, [get("/"), asked, follow]))
    asyncio.run(same(flavour, side, kind, played))


def hooks_of(side, notes, failing=()):
    def note(one):
        notes.append((type(one).__name__, str(one.url), getattr(one, "status_code", None)))
        if type(one).__name__ in failing:
            raise ValueError("the hook fails")

    async def anote(one):
        note(one)

    return note if side == "sync" else anote


@each_way
@pytest.mark.parametrize("failing", [(), ("Request",), ("Response",)], ids=str)
def test_event_hooks(flavour, side, kind, failing):
    """Hooks are called for each request and response, even if they were appended later, and their
    exceptions reach the caller."""
    _, theirs, ours = Flavour(flavour).clients(side, kind)

    async def seen(make):
        notes, results = [], []
        hook = hooks_of(side, notes, failing)
        for events in (["request"], ["response"], ["request", "response"], []):
            given = {"event_hooks": {one: [hook] for one in events}} if events else {}
            server = Flavour(flavour).Server()
            client = make(server, **given)
            with contextlib.suppress(ValueError):
                await done(client.get("/"))
            if not given:
                client.event_hooks["request"].append(hook)
                client.event_hooks["response"].append(hook)
            for path in ("/text", "/redirect", "/lost"):
                step = get(path, follow_redirects=True)
                results.append(await told(step, client, server, inside=kind == "direct"))
            await done(close(client))
        return notes, results

    async def both():
        expected = await seen(theirs)
        assert len(expected[0]) >= 4
        assert await seen(ours) == expected

    asyncio.run(both())


LAYERS = [
    "_set_timeout",
    "_build_request_auth",
    "_send_handling_auth",
    "_send_handling_redirects",
    "_send_single_request",
    "_transport_for_url",
]


def counting(called, original):
    def counted(*given, **options):
        called.append(original.__name__)
        return original(*given, **options)

    return counted


@each_way
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("where", ["subclass", "class", "instance"])
def test_a_layer_that_was_replaced_is_called(flavour, side, kind, layer, where, monkeypatch):
    """A layer of httpx's that a subclass overrides, or that another library replaces in the class
    or in one client, is called for each request; no shortcut bypasses it."""
    made = Flavour(flavour)
    bare, _, ours = made.clients(side, kind)
    called = []

    async def play():
        cls = {}
        if where == "subclass":
            base = type(client := ours(made.Server()))
            await done(close(client))
            cls = {"cls": type("Own", (base,), {layer: counting(called, getattr(bare, layer))})}
        client = ours(made.Server(), **cls)
        await done(client.get("/"))
        if where == "class":
            monkeypatch.setattr(bare, layer, counting(called, getattr(bare, layer)))
        elif where == "instance":
            monkeypatch.setattr(client, layer, counting(called, getattr(client, layer)))
        called.clear()
        response = await done(client.get("/text"))
        assert response.text == "h\xe9!"
        await done(close(client))

    asyncio.run(play())
    assert called == [layer]


@each_way
def test_a_send_that_was_replaced_is_called(flavour, side, kind, monkeypatch):
    """Tools that watch httpx wrap `send` of its client class; they see each of our calls."""
    made = Flavour(flavour)
    bare, _, ours = made.clients(side, kind)
    called = []

    async def play():
        client = ours(made.Server())
        await done(client.get("/"))
        monkeypatch.setattr(bare, "send", counting(called, bare.send))
        await done(client.get("/text"))
        monkeypatch.undo()
        await done(client.get("/text"))
        await done(close(client))

    asyncio.run(play())
    assert called == ["send"]


@each_way
def test_a_plain_call_takes_the_shortcut(flavour, side, kind):
    """After the first call none of httpx's layers is used, whatever the response; only a redirect
    that is followed uses them."""
    made = Flavour(flavour)
    bare, _, ours = made.clients(side, kind)
    passed = []
    codes = {getattr(bare, name).__code__: name for name in ("send", *LAYERS)}

    def note(frame, event, _):
        if event == "call" and frame.f_code in codes:
            passed.append(codes[frame.f_code])

    async def play():
        client = ours(made.Server())
        await done(client.get("/"))
        sys.setprofile(note)
        try:
            for path in ("/text", "/cookie", "/whole", "/gzip", "/redirect", "/503"):
                await done(client.get(path))
            assert passed == []
            await done(client.get("/redirect", follow_redirects=True))
        finally:
            sys.setprofile(None)
        await done(close(client))

    asyncio.run(play())
    assert passed[:1] == ["_send_handling_redirects"]
    assert passed.count("_send_single_request") == 1


@each_way
def test_another_transport_is_used(flavour, side, kind):
    """A transport that is mounted, or that replaces the client's own, gets the requests."""
    made = Flavour(flavour)
    _, _, ours = made.clients(side, kind)

    async def play():
        own, mounted, other = made.Server(), made.Server(), made.Server()
        client = ours(own)
        await done(client.get("/"))
        pattern = importlib.import_module(f"{made.httpx.__name__}._utils").URLPattern
        client._mounts = {pattern("http://10.0.0.1"): mounted}
        await done(client.get("/"))
        client._mounts = {}
        client._transport, kept = other, client._transport
        await done(client.get("/"))
        client._transport = kept
        await done(close(client))
        return len(own.sent), len(mounted.sent), len(other.sent)

    assert asyncio.run(play()) == (1, 1, 1)


@each_way
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_what_httpx_logs(flavour, side, kind, level, caplog):
    """Each request is logged as httpx logs it, if that log level is enabled."""
    made = Flavour(flavour)
    _, *both = made.clients(side, kind)
    caplog.set_level(level, made.httpx.__name__)

    async def logged(make):
        caplog.clear()
        client = make(made.Server())
        for path in ("/", "/text?q=1", "/404", "/redirect"):
            await done(client.get(path, follow_redirects=True))
        await done(close(client))
        return [
            (one.levelno, one.getMessage())
            for one in caplog.records
            if one.name == made.httpx.__name__
        ]

    expected, found = [asyncio.run(logged(make)) for make in both]
    assert len(expected) == (5 if level == logging.INFO else 0)
    assert found == expected


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_body_for_the_other_side(flavour, side):
    """A request with a body of the wrong kind (sync or async) raises what httpx raises."""
    made = Flavour(flavour)
    _, *both = made.clients(side, "direct")

    async def chunks():
        yield b"x"

    body = chunks() if side == "sync" else iter([b"x"])

    async def error_of(make):
        client = make(made.Server())
        await done(client.get("/"))
        with pytest.raises(RuntimeError) as caught:
            await done(client.post("/echo", content=body))
        await done(close(client))
        return str(caught.value)

    expected, found = [asyncio.run(error_of(make)) for make in both]
    assert found == expected


# Objects


PAIRS = {
    "none": [],
    "some": [(b"Content-Type", b"text/plain; charset=utf-8"), (b"X-One", b"1"), (b"x-one", b"2")],
    "odd": [(b"X-Latin", b"\xe9"), (b"X-UTF8", "ä".encode())],
    "encoded": [(b"Content-ENCODING", b"gzip")],
    "identity": [(b"Content-Encoding", b"identity")],
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("intact", [True, False])
@pytest.mark.parametrize("how", ["bytes", "filled", "stream"])
def test_responses_are_those_of_httpx(flavour, pairs, intact, how, monkeypatch):
    """A response that is built directly, from bytes or a stream, equals one that httpx has built
    and read, in everything that a caller sees."""
    lib, _, shortcuts = FLAVOURS[flavour]
    monkeypatch.setattr(shortcuts, "INTACT", intact)
    content = gzip.compress(b"body") if pairs is PAIRS["encoded"] else b"body"
    fields = [(name, name.lower(), value) for name, value in pairs]
    request = lib.Request("GET", OWN)
    theirs = lib.Response(200, headers=pairs, stream=lib.ByteStream(content), request=request)
    if how == "bytes":
        ours = shortcuts.response_of(200, fields, content, {})
    else:
        ours = shortcuts.response_of(200, fields, lib.ByteStream(content), {})
        assert not ours.is_closed
    if how == "filled":
        shortcuts.fill(ours, content)
    ours.request = request
    if how != "stream" and pairs is not PAIRS["encoded"] and pairs is not PAIRS["identity"]:
        assert ours.is_closed
        assert ours.content == b"body"
    for one in (ours, theirs):
        assert one.read() == b"body"
        one.elapsed = timedelta(seconds=1)
        assert list(one.iter_bytes(1)) == [b"b", b"o", b"d", b"y"]
        with pytest.raises(lib.StreamConsumed):
            next(one.iter_raw())
    assert shown(ours, inside=True) == shown(theirs, inside=True)
    if how != "stream":
        assert isinstance(ours.stream, shortcuts.Content)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("intact", [True, False])
def test_a_copied_request_is_its_own(flavour, intact, monkeypatch):
    """A copy has all parts of a request, and changes of it do not affect the original."""
    lib, _, shortcuts = FLAVOURS[flavour]
    monkeypatch.setattr(shortcuts, "INTACT", intact)
    request = lib.Request("POST", OWN, headers={"X-A": "1"}, content=b"c", extensions={"a": 1})
    copy = shortcuts.copied(request)
    assert (copy.method, copy.url, copy.content) == ("POST", request.url, b"c")
    assert copy.headers.raw == request.headers.raw
    assert copy.extensions == request.extensions
    assert copy.stream is request.stream
    like = shortcuts.request_like(request, lib.URL(f"{OWN}/b"), lib.Timeout(3))
    like.headers["X-A"] = "2"
    like.extensions["b"] = 2
    assert request.headers["X-A"] == "1"
    assert request.extensions == {"a": 1}
    assert request.url == lib.URL(OWN)


# The check at import


def broken_response(lib, monkeypatch):
    build = lib.Response.__init__

    def init(self, *given, **options):
        build(self, *given, **options)
        self.something_new = None

    monkeypatch.setattr(lib.Response, "__init__", init)


def broken_headers(lib, monkeypatch):
    build = lib.Headers.__init__

    def init(self, *given, **options):
        build(self, *given, **options)
        self._list = list(map(list, self._list))

    monkeypatch.setattr(lib.Headers, "__init__", init)


def broken_call(lib, monkeypatch):
    build = lib.Client._build_redirect_request
    base = lib.Client.__mro__[1]

    def redirected(self, request, response):
        if type(self).__name__.startswith("Direct"):
            raise lib.InvalidURL("another way")
        return build(self, request, response)

    monkeypatch.setattr(base, "_build_redirect_request", redirected)


def wrapped_layer(lib, monkeypatch):
    layer = lib.AsyncClient._send_single_request
    monkeypatch.setattr(lib.AsyncClient, "_send_single_request", counting([], layer))


def missing_layer(lib, monkeypatch):
    monkeypatch.delattr(lib.Client, "_transport_for_url")


def other_settings(lib, monkeypatch):
    base = lib.Client.__mro__[1]
    monkeypatch.setattr(base, "headers", property(lambda _: lib.Headers({"X": "1"})))


def other_urls(lib, monkeypatch):
    monkeypatch.setattr(lib.URL, "port", property(lambda _: 7))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "change",
    [
        broken_response,
        broken_headers,
        broken_call,
        wrapped_layer,
        missing_layer,
        other_settings,
        other_urls,
    ],
)
def test_another_httpx_is_noticed(flavour, change, monkeypatch, caplog):
    """If httpx builds or calls differently from what the shortcuts expect, they are not used, and
    this is logged once."""
    lib, _, shortcuts = FLAVOURS[flavour]
    caplog.set_level(logging.INFO)
    change(lib, monkeypatch)
    assert shortcuts._verified() is False
    (record,) = caplog.records
    assert record.name == shortcuts.__name__
    assert f"{lib.__name__} {lib.__version__}: no shortcuts" in record.getMessage()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_this_httpx_is_as_expected(flavour, caplog):
    """The shortcuts are used with the installed httpx; verifying this logs nothing."""
    caplog.set_level(logging.DEBUG)
    shortcuts = FLAVOURS[flavour][2]
    assert shortcuts.INTACT
    assert shortcuts._verified() is True
    assert caplog.records == []


def test_private_names_are_used_in_one_file():
    """Private attributes of httpx's objects are used in shortcuts.py only."""
    private = {"_list", "_encoding", "_content", "_uri_reference", "_transport_for_url", "_state"}
    private |= {"_num_bytes_downloaded", "_mounts", "_event_hooks", "_base_url", "_params"}
    for path in Path(lbclient.http.shortcuts.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in private:
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                assert own or path.name == "shortcuts.py", f"{path.name}: {ast.unparse(node)}"
