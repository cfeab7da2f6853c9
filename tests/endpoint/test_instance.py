"""What an instance has of its own: scheme, base path, headers, TLS name; and that nothing shows the
values of its headers."""

import asyncio
import contextlib
import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lbclient
from lbclient import Answer, Instance
from lbclient.endpoint.instance import identity_of
from lbclient.http.request import Upstream
from tests.support.http import says

KEY = "hunter2-s3cret"
OWN = Instance.from_url(
    "https://eu.example.com/openai/v1", weight=3, headers={"api-key": KEY}, tls_name="api.test"
)


def test_a_url_names_an_instance():
    """`from_url` takes scheme, host, port and base path from the URL, and the rest as `Instance`
    does."""
    assert (OWN.scheme, OWN.host, OWN.port, OWN.path) == (
        "https",
        "eu.example.com",
        443,
        "/openai/v1",
    )
    assert (OWN.weight, OWN.priority, OWN.tls_name) == (3, 0, "api.test")
    assert (
        Instance(
            "eu.example.com",
            443,
            scheme="https",
            path="/openai/v1",
            headers={"api-key": KEY},
            tls_name="api.test",
        )
        == OWN
    )
    local = Instance.from_url("HTTP://[::1]:8080/", 2, 1, {"zone": "a"}, addresses=["127.0.0.1"])
    assert (local.scheme, local.host, local.port, local.path) == ("http", "::1", 8080, "")
    assert (local.weight, local.priority, local.metadata["zone"], local.address) == (
        2,
        1,
        "a",
        "127.0.0.1",
    )
    assert Instance.from_url("http://a").port == 80


def test_a_plain_instance_has_nothing_of_its_own():
    """An instance without these fields looks as before."""
    plain = Instance("a", 80)
    assert (plain.scheme, plain.path, dict(plain.headers), plain.tls_name) == (None, "", {}, None)
    assert repr(plain) == "Instance(host='a', port=80, weight=1, priority=0)"
    assert str(plain) == "a:80"


def test_what_makes_two_instances_equal():
    """Two instances are equal if requests to them are the same; weight, priority, metadata and
    addresses do not count."""
    same = dataclasses.replace(OWN, weight=1, priority=2, metadata={"a": 1}, addresses=["::1"])
    assert same == OWN
    assert hash(same) == hash(OWN)
    others = [
        dataclasses.replace(OWN, **{name: value})
        for name, value in {
            "host": "us.example.com",
            "port": 444,
            "scheme": "http",
            "path": "/openai",
            "headers": {"api-key": "other"},
            "tls_name": None,
        }.items()
    ]
    assert len({OWN, *others}) == 7
    assert len(Answer([OWN, same, *others]).instances) == 7
    assert len({identity_of(one) for one in (OWN, same, *others)} - {identity_of(OWN)}) >= 4
    assert len({hash(OWN), hash(dataclasses.replace(OWN, headers={"api-key": "other"}))}) == 1


def test_headers_are_a_mapping():
    """Names of headers are compared in any case, and the values can be read."""
    headers = OWN.headers
    assert headers["API-Key"] == headers["api-key"] == KEY
    assert dict(headers) == {"api-key": KEY}
    assert headers == {"Api-Key": KEY}
    assert headers != {"api-key": "other"}
    assert headers != KEY
    assert "x-other" not in headers
    assert len(headers) == 1


@pytest.mark.parametrize(
    "copied",
    [
        lambda one: pickle.loads(pickle.dumps(one)),
        copy.copy,
        copy.deepcopy,
        dataclasses.replace,
    ],
    ids=["pickle", "copy", "deepcopy", "replace"],
)
def test_copies_have_everything(copied):
    """A copy, also in another process, has the same fields and still hides the values."""
    full = dataclasses.replace(OWN, metadata={"zone": "a"}, addresses=["10.0.0.1"], priority=2)
    made = copied(full)
    fields = [one.name for one in dataclasses.fields(Instance)]
    assert [getattr(made, name) for name in fields] == [getattr(full, name) for name in fields]
    assert KEY not in repr(made)


@pytest.mark.parametrize(
    "shown",
    [
        repr,
        str,
        "{!r}".format,
        pprint.pformat,
        lambda one: repr(one.headers),
        lambda one: str(one.headers),
        lambda one: f"{one.headers.items()} {one.headers.values()}",
        lambda one: repr([one]),
        lambda one: repr(Answer([one])),
        lambda one: repr({one: 1}),
        lambda one: repr(lbclient.Balancer([one]).target),
        lambda one: repr(Upstream(one, "https", None, None, headers=[(b"api-key", KEY.encode())])),
    ],
    ids=range(12),
)
def test_values_are_not_shown(shown):
    """Names of headers are shown, values are not."""
    assert KEY not in shown(OWN)
    assert "api-key" in repr(OWN)
    assert "https" in repr(OWN)
    assert str(OWN) == "eu.example.com:443"


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"scheme": "ftp"}, ValueError, "scheme must be one of 'http', 'https'"),
        ({"scheme": 1}, ValueError, "scheme must be"),
        ({"path": "v1"}, ValueError, "path must begin with one '/'"),
        ({"path": "//v1"}, ValueError, "path must begin with one '/'"),
        ({"path": "/v1?key=hunter2"}, ValueError, "path must not contain a query or a fragment"),
        ({"path": "/v1#hunter2"}, ValueError, "path must not contain a query or a fragment"),
        ({"path": "/v 1"}, ValueError, "path must begin with"),
        ({"path": "/v\r\n1"}, ValueError, "path must begin with"),
        ({"path": "/v1\n"}, ValueError, "path must begin with"),
        ({"path": "/é"}, ValueError, "path must begin with"),
        ({"path": "/%zz"}, ValueError, "path must begin with"),
        ({"path": "/a/../b"}, ValueError, "path must not contain '.' or '..'"),
        ({"path": "/a/%2E%2e"}, ValueError, "path must not contain '.' or '..'"),
        ({"path": "/."}, ValueError, "path must not contain '.' or '..'"),
        ({"path": None}, TypeError, "path must be text"),
        ({"path": b"/v1"}, TypeError, "path must be text"),
        ({"headers": {"api key": KEY}}, ValueError, "headers must have HTTP header names"),
        ({"headers": {"": KEY}}, ValueError, "headers must have HTTP header names"),
        ({"headers": {"x:": KEY}}, ValueError, "headers must have HTTP header names"),
        ({"headers": {1: KEY}}, ValueError, "headers must have HTTP header names, not int"),
        ({"headers": {"api-key": f"{KEY}\r\nX: y"}}, ValueError, "headers: the value of api-key"),
        ({"headers": {"api-key": f"{KEY}\n"}}, ValueError, "headers: the value of api-key"),
        ({"headers": {"api-key": f"{KEY}\0"}}, ValueError, "headers: the value of api-key"),
        ({"headers": {"api-key": f" {KEY}"}}, ValueError, "headers: the value of api-key"),
        ({"headers": {"api-key": f"{KEY}é"}}, ValueError, "headers: the value of api-key"),
        ({"headers": {"api-key": KEY.encode()}}, TypeError, "of api-key must be text, not bytes"),
        ({"headers": {"api-key": None}}, TypeError, "of api-key must be text, not NoneType"),
        ({"headers": {"a": KEY, "A": KEY}}, ValueError, "headers must contain A once"),
        ({"headers": {"Host": ""}}, ValueError, "headers: the value of Host must be a host"),
        ({"headers": {"host": "u:hunter2@a"}}, ValueError, "headers: the value of host must be"),
        ({"headers": {"host": "a b"}}, ValueError, "headers: the value of host must be"),
        ({"headers": {"host": "a/b"}}, ValueError, "headers: the value of host must be"),
        ({"headers": {"host": "a:x"}}, ValueError, "headers: the value of host must be"),
        ({"headers": {"host": "a:0"}}, ValueError, "headers: the value of host must be"),
        ({"headers": {"host": "[::1"}}, ValueError, "headers: the value of host must be"),
        ({"headers": [("api-key", KEY)]}, TypeError, "headers must be a dict"),
        ({"headers": KEY}, TypeError, "headers must be a dict"),
        ({"headers": None}, TypeError, "headers must be a dict"),
        ({"tls_name": "a b"}, ValueError, "tls_name must be a host name"),
        ({"tls_name": ""}, ValueError, "tls_name must be a host name"),
        ({"tls_name": 1}, TypeError, "tls_name must be a host name"),
    ],
    ids=range(41),
)
def test_what_no_instance_has(fields, error, words):
    """An invalid field is refused at construction; the error names it, and shows no secret."""
    with pytest.raises(error) as caught:
        Instance("a", 80, **fields)
    text = str(caught.value)
    assert words in text
    assert "hunter2" not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "make",
    [
        lambda headers: Instance.from_url("https://a.test/v1", headers),
        lambda headers: Instance("a", headers),
        lambda headers: Instance("a", 80, headers),
        lambda headers: Instance("a", 80, 1, headers),
        lambda headers: Instance("a", 80, addresses=[headers]),
        lambda headers: Instance("a", 80, scheme=headers),
        lambda headers: Instance("a", 80, path=headers),
        lambda headers: Instance("a", 80, tls_name=headers),
        lambda headers: Instance({"host": "a", "headers": headers}, 80),
        lambda headers: Answer([{"host": "a", "port": 80, "headers": headers}]),
        lambda headers: lbclient.Client([{"host": "a", "port": 80, "headers": headers}]),
    ],
    ids=range(11),
)
def test_headers_as_another_argument(make):
    """If headers are passed as another argument, the error shows no value of a header."""
    with pytest.raises((TypeError, ValueError), match=" must ") as caught:
        make({"api-key": KEY})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Keep-Alive",
        "Proxy-Connection",
    ],
)
def test_headers_of_connections_are_refused(name):
    """A header that describes a request's body or connection cannot be an instance's."""
    with pytest.raises(ValueError, match=f"headers must not contain {name}"):
        Instance("a", 80, headers={name: "1"})


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        (b"http://a", TypeError, "url must be text"),
        (None, TypeError, "url must be text"),
        ("a:80", ValueError, "url must be an http or https URL"),
        ("http+srv://a", ValueError, "url must be an http or https URL"),
        ("ftp://u:hunter2@a", ValueError, "url must be an http or https URL"),
        ("http://u:hunter2@a", ValueError, "pass headers= instead"),
        ("http://a?key=hunter2", ValueError, "url must not contain a query"),
        ("http://a/#hunter2", ValueError, "url must not contain a query or a fragment"),
        ("http://a/v1?", ValueError, "url must not contain a query"),
        ("http://", ValueError, "url (its host) must be"),
        ("http://a b", ValueError, "without spaces"),
        ("http://a\n", ValueError, "without spaces or control characters"),
        ("http://a:0", ValueError, "from 1 to 65535"),
        ("http://a:99999", ValueError, "from 1 to 65535"),
        ("http://u:hunter2@a:x", ValueError, "from 1 to 65535"),
        ("http://[::1", ValueError, "url must be a URL"),
        ("http://a/../b", ValueError, "path must not contain"),
    ],
    ids=range(17),
)
def test_what_no_url_of_an_instance_is(url, error, words):
    """`from_url` refuses what names no instance; the error shows no secret."""
    with pytest.raises(error) as caught:
        Instance.from_url(url)
    assert words in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)[-1:])


@given(st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_accepted_can_be_sent(name, value):
    """Each header that an instance accepts is one line of a request, and each base path one part of
    its first line."""
    with contextlib.suppress(ValueError):
        line = f"{name}: {Instance('a', 80, headers={name: value}).headers[name]}"
        assert line.isascii()
        assert line.replace("\t", " ").isprintable()
    with contextlib.suppress(ValueError):
        path = Instance("a", 80, path=value).path
        assert path == "" or (path.startswith("/") and not path.endswith("/"))
        assert path.isascii()
        assert path.isprintable()
        assert not set(path) & set(" ?#")


def test_a_snapshot_and_events_are_json(servers):
    """`as_dict` of snapshots and events is what `json.dumps` accepts, without values of headers."""
    (bad,) = servers(says(503))
    own = Instance.from_url(f"{bad.url}/v1", headers={"api-key": KEY})
    events = []
    options = {"listener": events.append, "breaker": lbclient.BreakerPolicy(fail_max=1)}
    with lbclient.Client([own], **options) as client:
        client.get("/")
        snapshot = client.balancer.snapshot()
        client.balancer.eject(own, 60)
        client.balancer.admit(own)
    events += [
        lbclient.DiscoveryFailed("orders", 1.0, lbclient.DiscoveryError("no answer")),
        lbclient.InstancesChanged("orders", 1.0, (own,), ()),
    ]
    shown = json.dumps([snapshot.as_dict(), *(one.as_dict() for one in events)])
    assert KEY not in shown + repr(snapshot) + repr(events)
    (one,) = snapshot.as_dict()["instances"]
    assert (one["instance"], one["scheme"], one["path"]) == (str(own), "http", "/v1")
    assert one["headers"] == ["api-key"]
    assert (one["attempts"], one["failures"], one["breaker"]) == (1, 1, "open")
    assert [one.as_dict() for one in events[-2:]] == [
        {
            "event": "DiscoveryFailed",
            "service": "orders",
            "at": 1.0,
            "error": "lbclient.errors.DiscoveryError: no answer",
        },
        {
            "event": "InstancesChanged",
            "service": "orders",
            "at": 1.0,
            "joined": [str(own)],
            "left": [],
        },
    ]


def test_a_snapshot_shows_the_error_of_discovery():
    """The error of a refresh is text in `as_dict`."""

    class Broken:
        def resolve(self):
            raise ValueError("no registry")

    with lbclient.Balancer(Broken()) as balancer:
        with pytest.raises(lbclient.DiscoveryError):
            balancer.call(lambda _: None)
        shown = balancer.snapshot().as_dict()
    assert "no registry" in shown["error"]
    json.dumps(shown)


def test_no_log_or_error_shows_a_value(dead_port, caplog, servers):
    """What a failed call logs and raises names the instance, and shows no value of a header."""
    caplog.set_level(logging.DEBUG)
    own = Instance.from_url(f"http://127.0.0.1:{dead_port}/v1", headers={"api-key": KEY})
    (wrong,) = servers(lambda connection, _: connection.send(b"garbage\r\n\r\n"))
    other = Instance.from_url(wrong.url, headers={"api-key": KEY})

    async def fails(instances):
        async with lbclient.AsyncClient(instances, breaker=lbclient.BreakerPolicy(1)) as client:
            await client.get("/")

    for instances in ([own], [other], [own, other]):
        with pytest.raises(httpx.TransportError) as caught:
            asyncio.run(fails(instances))
        text = "".join(traceback.format_exception(caught.value))
        assert KEY not in text + repr(lbclient.call_info(caught.value))
    assert KEY not in caplog.text
    assert str(own) in caplog.text
