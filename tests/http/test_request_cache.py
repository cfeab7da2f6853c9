"""Requests copied from a pattern equal those that httpx itself would have built."""

import copy
import ssl
import sys
import threading

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lbclient
from lbclient.http.options import DEFAULT_TIMEOUT

OWN = "http://10.0.0.1:8080"
TLS = ssl.create_default_context()
"""One for all: httpx would load the certificates anew for each client."""
PATHS = [
    *[
        "/x",
        "x",
        "",
        "/",
        "//x",
        "///x",
        "/a/../b",
        "/../../x",
        "/./x",
        "/.x",
        "/x?a=1&b=2",
        "?q=1",
    ],
    *[
        "/%41",
        "/%zz",
        "/ä ö",
        "/x#f",
        "/x%2Fy",
        "/x:y",
        ":x",
        "/x?y=/../z",
        "/x\\y",
        "/[x]",
        "/x;y",
    ],
    *[f"{OWN}/y", f"{OWN}", "http://10.0.0.2/y", "https://10.0.0.1:8080/y", f"{OWN}/base/../y"],
]


def same(ours, bare):
    """Compare everything that a transport, or a hook, can see."""
    assert ours.method == bare.method
    assert ours.url == bare.url
    assert str(ours.url) == str(bare.url)
    assert ours.url.raw_path == bare.url.raw_path
    assert ours.headers.raw == bare.headers.raw
    assert ours.headers.encoding == bare.headers.encoding
    assert ours.extensions == bare.extensions
    assert ours.content == bare.content
    assert list(ours.stream) == list(bare.stream)
    assert set(ours.__dict__) == set(bare.__dict__)


def headers_set(client):
    client.headers["X-New"] = "1"


def header_gone(client):
    client.headers.pop("accept", None)


def headers_replaced(client):
    client.headers = {b"X-Other": "ä".encode()}


def cookie_set(client):
    client.cookies.set("a", "b")


def cookies_replaced(client):
    client.cookies = {"c": "d"}


def cookies_gone(client):
    client.cookies.clear()


def parameters_set(client):
    client.params = {"q": "1"}


def parameters_gone(client):
    client.params = {}


def timeout_set(client):
    client.timeout = 7.0


def base_set(client):
    client.base_url = f"{OWN}/elsewhere/"


CHANGES = [
    *[headers_set, header_gone, headers_replaced, cookie_set, cookies_replaced, cookies_gone],
    *[parameters_set, parameters_gone, timeout_set, base_set],
]
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.sampled_from([None, {"X-One": "1"}, {"Host": "elsewhere.test"}]),
        "params": st.sampled_from([None, {"p": "1"}, {}]),
        "content": st.sampled_from([None, b"", b"body"]),
        "json": st.sampled_from([None, {"a": 1}]),
        "timeout": st.sampled_from([httpx.USE_CLIENT_DEFAULT, None, 3.0]),
        "extensions": st.sampled_from([None, {}, {"lbclient": {"key": 1}}, {"timeout": {}}]),
    },
)
METHODS = st.sampled_from(["GET", "get", "POST", "PUT", "DELETE", "HEAD", "QUERY"])
REQUESTS = st.tuples(METHODS, st.sampled_from(PATHS) | st.text(max_size=12), ASKED)


def built(client, method, url, asked):
    try:
        return client.build_request(method, url, **asked)
    except Exception as error:  # noqa: BLE001  # whatever httpx raises, we raise
        return type(error), str(error)


@settings(max_examples=300)
@given(steps=st.lists(st.one_of(st.sampled_from(CHANGES), REQUESTS, REQUESTS), max_size=12))
def test_whatever_is_asked_in_whatever_order(steps):
    """If the headers, cookies, parameters, timeouts and base of a client change between its
    requests, it builds the same requests as httpx's own client, and raises the same errors."""
    with (
        lbclient.Client(f"{OWN}/base") as ours,
        httpx.Client(base_url=f"{OWN}/base", timeout=DEFAULT_TIMEOUT, verify=TLS) as bare,
    ):
        for step in steps:
            if callable(step):
                step(ours)
                step(bare)
                continue
            for _ in range(2):
                made, expected = built(ours, *step), built(bare, *step)
                if isinstance(expected, tuple):
                    assert made == expected
                else:
                    same(made, expected)


@pytest.mark.parametrize("path", PATHS)
def test_the_second_time_too(path):
    """Each kind of path gives the same URL the first time and every other time."""
    with (
        lbclient.Client(f"{OWN}/base") as ours,
        httpx.Client(base_url=f"{OWN}/base", timeout=DEFAULT_TIMEOUT, verify=TLS) as bare,
    ):
        for _ in range(3):
            made, expected = built(ours, "GET", path, {}), built(bare, "GET", path, {})
            if isinstance(expected, tuple):
                assert made == expected
            else:
                same(made, expected)


def test_what_becomes_of_one_is_nothing_to_the_next():
    """Authorization, changed extensions and a changed URL affect only their own request."""
    with lbclient.Client(OWN) as client:
        first = client.build_request("GET", "/x")
        for _ in range(2):
            before = copy.deepcopy((first.headers.raw, first.extensions))
            spoilt = client.build_request("GET", "/x")
            spoilt.headers["Authorization"] = "Bearer secret"
            spoilt.extensions["timeout"]["read"] = 0.001
            spoilt.extensions["trace"] = print
            spoilt.url = httpx.URL("http://elsewhere.test/")
            after = client.build_request("GET", "/x")
            assert (after.headers.raw, after.extensions) == before
            assert after.url == first.url


def test_cookies_are_kept_and_sent():
    """A cookie that a response sets is sent with the next request, and not after it is cleared:
    patterns have no cookies."""

    def answer(request):
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"Set-Cookie": "session=1"} if len(seen) == 2 else {})

    seen = []
    with lbclient.Client(OWN, transport=lambda _: httpx.MockTransport(answer)) as client:
        for _ in range(4):
            client.get("/x")
        assert dict(client.cookies) == {"session": "1"}
        client.cookies.clear()
        client.get("/x")
        client.cookies = {"other": "2"}
        client.get("/x")
    assert seen == [None, None, "session=1", "session=1", None, "other=2"]


def test_cookies_of_the_constructor():
    """`cookies=` is httpx's: a dict, pairs, a jar or Cookies."""
    for given_ in ({"a": "1"}, [("a", "1")], httpx.Cookies({"a": "1"})):
        with lbclient.Client(OWN, cookies=given_) as client:
            assert client.build_request("GET", "/x").headers["cookie"] == "a=1"
    with lbclient.Client(OWN) as client:
        assert dict(client.cookies) == {}


def test_threads_that_change_the_client():
    """C: C: while one thread changes headers and base, requests of another have the old ones or the
    new ones, never a stale pattern."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with lbclient.Client(OWN) as client:
            for turn in range(200):
                threads = [threading.Thread(target=client.build_request, args=("GET", "/x"))]
                threads += [threading.Thread(target=_change, args=(client, turn))]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                for _ in range(2):
                    made = client.build_request("GET", "/x")
                    assert made.headers["x-turn"] == str(turn)
                    assert made.url.path == f"/{turn}/x"
    finally:
        sys.setswitchinterval(interval)


def _change(client, turn):
    client.headers["X-Turn"] = str(turn)
    client.base_url = f"{OWN}/{turn}"


@pytest.mark.anyio
async def test_the_async_client_does_the_same():
    """The async client builds from patterns too, and keeps cookies."""

    def answer(request):
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"Set-Cookie": "session=1"})

    seen = []
    async with (
        lbclient.AsyncClient(OWN, transport=lambda _: httpx.MockTransport(answer)) as ours,
        httpx.AsyncClient(base_url=OWN, timeout=DEFAULT_TIMEOUT) as bare,
    ):
        for _ in range(2):
            same(ours.build_request("GET", "/x"), bare.build_request("GET", "/x"))
        await ours.get("/x")
        await ours.get("/x")
    assert seen == [None, "session=1"]
