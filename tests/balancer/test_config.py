"""Invalid arguments are refused at construction.

Each error is one line that a newcomer can use: it names the argument, and says what is allowed.
"""

from __future__ import annotations

import copy
import dataclasses
import http.server
import math
import pickle
import random
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import anyio
import httpx
import pytest
import trustme
from opentelemetry.metrics import NoOpMeterProvider

import lbclient
from lbclient import BreakerPolicy, Instance, RetryBudget, RetryPolicy
from tests.support.http import tells_port

pytestmark = pytest.mark.anyio

URL = "http://10.0.0.1:8080"
HUGE = 10**400
NAN, INF = math.nan, math.inf
HTTP = {
    "Client": lbclient.Client,
    "AsyncClient": lbclient.AsyncClient,
    "Transport": lbclient.Transport,
    "AsyncTransport": lbclient.AsyncTransport,
}
ENTRIES = {"Balancer": lbclient.Balancer, **HTTP}
CLIENTS = {"Client": lbclient.Client, "AsyncClient": lbclient.AsyncClient}


@pytest.fixture(params=ENTRIES)
def entry(request):
    """All entry points."""
    return ENTRIES[request.param]


@pytest.fixture(params=HTTP)
def http_entry(request):
    """All entry points for HTTP."""
    return HTTP[request.param]


@pytest.fixture(params=CLIENTS)
def client_entry(request):
    """The two clients."""
    return CLIENTS[request.param]


def refusal(kind, make, *args, **kwargs):
    """Return the text of the error, which must be of exactly this type, and one line."""
    with pytest.raises(kind) as caught:
        make(*args, **kwargs)
    assert caught.type is kind
    text = str(caught.value)
    assert text.isprintable()
    return text


def named(*cases):
    """Cases of (arguments, type of error, words of its text), named by their arguments."""
    ids = [" ".join(f"{name}={_short(value)}" for name, value in case[0].items()) for case in cases]
    return {"argvalues": cases, "ids": ids}


def _short(value):
    """The same in every run and on every machine."""
    text = repr(value)
    if text.startswith("<"):
        return getattr(value, "__name__", f"a {type(value).__name__}")
    return text if len(text) < 40 else text[:37] + "..."


def balancer_of(made):
    return made if isinstance(made, lbclient.Balancer) else made.balancer


def instances_of(made):
    return [one.instance for one in balancer_of(made).snapshot().instances]


class Resolver:
    """The caller's own discovery."""

    def resolve(self):
        return lbclient.Answer([Instance("10.0.0.1", 80)])


# What a service is


FORMS = (
    "http+srv://name",
    "http+dns://name:port",
    "http://host:port",
    "lbclient.Instance",
    "resolve()",
)


@pytest.mark.parametrize(
    "service",
    [None, 5, 1.5, True, b"http://10.0.0.1", object(), Instance("10.0.0.1", 80)],
    ids=_short,
)
def test_a_service_of_another_type(entry, service):
    """K1: a service that is not a URL, a list or a resolver is a TypeError that names the known
    forms."""
    text = refusal(TypeError, entry, service)
    assert text.startswith("service ")
    assert all(form in text for form in FORMS)


@pytest.mark.parametrize(
    "service",
    [
        "",
        "orders",
        "orders:8080",
        "10.0.0.1:8080",
        "//orders",
        "ftp://orders",
        "srv://orders",
        "http+tcp://orders",
        "http+srv+x://orders",
        "redis+srv://orders",
        "https+://orders",
    ],
)
def test_a_service_of_unknown_form(entry, service):
    """K1: a URL of an unknown form is a ValueError that names the known forms, and repeats the
    URL."""
    text = refusal(ValueError, entry, service)
    assert text.startswith("service ")
    assert all(form in text for form in FORMS)
    assert repr(service) in text


@pytest.mark.parametrize(
    "service", [[], (), set(), iter(())], ids=["list", "tuple", "set", "iterator"]
)
def test_an_empty_list(entry, service):
    """K5: a list without instances is refused."""
    assert "service must not be an empty list" in refusal(ValueError, entry, service)


@pytest.mark.parametrize(
    "service",
    [[URL, 5], [URL, None], [URL, Instance("10.0.0.2", 80)], [Resolver()], [[URL]], [b"http://h"]],
    ids=["number", "None", "mixture", "resolver", "list", "bytes"],
)
def test_a_list_of_anything_else(entry, service):
    """K5: a list contains URLs or instances, not both."""
    text = refusal(TypeError, entry, service)
    assert text.startswith("service ")
    assert "lbclient.Instance" in text


def test_a_resolver_class_in_place_of_an_object(entry):
    """A class with a `resolve` is refused: only an instance of it can be a resolver, as with
    strategies."""
    assert refusal(TypeError, entry, Resolver).startswith("service ")


@pytest.mark.parametrize(
    "service",
    [
        [URL, URL],
        [URL, URL + "/"],
        [URL, "http://10.0.0.1:8080", "HTTP://10.0.0.1:8080"],
        [Instance("10.0.0.1", 8080), Instance("10.0.0.1", 8080)],
        ["http://Orders.Example:80", "http://orders.example", "http://orders.example."],
        ["http://[::1]:80", "http://[0:0:0:0:0:0:0:1]"],
    ],
    ids=["same", "slash", "case of scheme", "Instance", "case of host", "IPv6"],
)
def test_duplicates_are_one(entry, service):
    """K5: entries with the same host and port are one instance, in any spelling."""
    assert len(instances_of(entry(service))) == 1


def test_of_duplicates_the_largest_weight_counts(entry):
    """K5: of duplicates, the one with the lowest priority counts, then the one with the largest
    weight."""
    service = [
        Instance("10.0.0.1", 80, weight=9, priority=1),
        Instance("10.0.0.1", 80, weight=1),
        Instance("10.0.0.1", 80, weight=3),
    ]
    (one,) = instances_of(entry(service))
    assert (one.weight, one.priority) == (3, 0)


def test_a_list_of_urls_has_no_discovery(entry):
    """K1: a list of URLs is one service without discovery."""
    text = refusal(ValueError, entry, ["http+srv://a", "http+srv://b"])
    assert text.startswith("service ")
    assert "'http+srv://a' cannot be in a list" in text


@pytest.mark.parametrize("service", [["http://a", "https://b"], ["http://a/v1", "http://b/v2"]])
def test_a_list_may_mix_schemes_and_paths(entry, service):
    """K1: URLs of a list that differ in scheme or base path are instances with their own."""
    found = [f"{one.scheme}://{one.host}{one.path}" for one in instances_of(entry(service))]
    assert found == service


@pytest.mark.parametrize(
    "wrap",
    [
        "http://h:{}".format,
        "http+dns://h:{}".format,
        "https://[::1]:{}/v1".format,
        lambda port: [URL, f"http://h:{port}"],
    ],
    ids=["URL", "DNS", "IPv6", "list"],
)
@pytest.mark.parametrize(
    "port", ["0", "99999", "65536", "-1", "abc", "8 0", "80x", "1e3", "\uff18\uff10"]
)
def test_ports(wrap, port):
    """K1: an invalid port is refused, and the error gives the valid range."""
    text = refusal(ValueError, lbclient.Balancer, wrap(port))
    assert text.startswith("service ")
    assert "from 1 to 65535" in text or "spaces" in text


def test_srv_names_its_own_ports(entry):
    """K1: a URL for SRV records must not have a port; the error says that the records have it."""
    text = refusal(ValueError, entry, "http+srv://orders.example.com:8080")
    assert "must not have a port" in text
    assert "SRV records have one" in text


SECRET, WHO = "hunter2", "alice"
WITH_USERINFO = [
    f"http://{WHO}:{SECRET}@h",
    f"http://{SECRET}@h",
    f"http://{WHO}:{SECRET}@h:99999",
    f"http://{WHO}:{SECRET}@h:0",
    f"http://{WHO}:{SECRET}@h:abc",
    f"http://{WHO}:{SECRET}@",
    f"http://{WHO}:{SECRET}@[::1",
    f"http://{WHO}:{SECRET}@h h",
    f"http://{WHO}:{SECRET}@h_!",
    f"http://{WHO}:{SECRET}@h\r\nX: y",
    f"http://{WHO}:{SECRET}@h?a=b",
    f"http://{WHO}:{SECRET}@h#f",
    f"http://{WHO}:p@{SECRET}@h",
    f"http://{WHO}:p/{SECRET}@h",
    f"http://{WHO}:p#{SECRET}@h",
    f"http://{WHO}:p?{SECRET}@h",
    f"http://{WHO}:1?{SECRET}@h",
    f"http://{WHO}:1#{SECRET}@h",
    f"http://{WHO}:{SECRET}\\@h",
    f"http://{WHO}:{SECRET}%40h",
    f"http://{WHO}:{SECRET}",
    f"http:/{WHO}:{SECRET}@h",
    f"http:{WHO}:{SECRET}@h",
    f"{WHO}:{SECRET}@h:80",
    f"//{WHO}:{SECRET}@h",
    f"ftp://{WHO}:{SECRET}@h",
    f"http+srv://{WHO}:{SECRET}@orders.example.com",
    f"http+srv://{WHO}:{SECRET}@orders.example.com:80",
    f"http+dns://{WHO}:{SECRET}@orders.example.com:abc",
    f"http+tcp://{WHO}:{SECRET}@h",
]


@pytest.mark.parametrize("url", WITH_USERINFO)
@pytest.mark.parametrize("wrap", [str, lambda url: [URL, url]], ids=["alone", "in a list"])
def test_userinfo_is_refused_without_an_echo(url, wrap):
    """K1, S5: a URL with user name or password is refused, and the error, with its causes and
    frames, shows neither."""
    with pytest.raises(ValueError, match=r"^service ") as caught:
        lbclient.Balancer(wrap(url))
    _holds_no_secret(caught.value)


@pytest.mark.parametrize(
    "service",
    [
        f"http://{WHO}:{SECRET}@h".encode(),
        [f"http://{WHO}:{SECRET}@h", 5],
        [Instance("10.0.0.1", 80), f"http://{WHO}:{SECRET}@h"],
        [[f"http://{WHO}:{SECRET}@h"]],
        httpx.URL(f"http://{WHO}:{SECRET}@h"),
    ],
    ids=["bytes", "list with a number", "list with an Instance", "nested list", "httpx.URL"],
)
def test_userinfo_of_another_type_is_not_echoed(entry, service):
    """S5: even if the type is wrong, the error shows no user name and no password."""
    with pytest.raises(TypeError, match=r"^service ") as caught:
        entry(service)
    _holds_no_secret(caught.value)


@pytest.mark.parametrize("url", [f"{WHO}:{SECRET}@h", f"http://{WHO}:{SECRET}@h"])
def test_userinfo_elsewhere_is_not_echoed(url):
    """S5: a URL that is passed as a host is refused, and its password is not shown."""
    for make in (
        lambda: lbclient.Balancer(URL, name=url),
        lambda: lbclient.Balancer("http+srv://orders.example.com", within=url),
        lambda: Instance(url, 80),
    ):
        with pytest.raises(ValueError, match="must be") as caught:
            make()
        _holds_no_secret(caught.value)


def _holds_no_secret(error):
    seen = error
    while seen is not None:
        text = f"{seen} {seen!r} {getattr(seen, '__notes__', '')}"
        assert SECRET not in text
        assert WHO not in text
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


@pytest.mark.parametrize(
    "url",
    [
        "http://h\r\nX-Forged: 1",
        "http://h\n",
        "\nhttp://h",
        "http://h/a\tb",
        "http://h /",
        " http://h",
        "http://h/a b",
        "http://h\x00",
        "http://h/\x7f",
        "http+srv://a\nb",
    ],
)
def test_control_characters_and_spaces(entry, url):
    """K1, S4: a URL with control characters or spaces is refused; none is silently removed."""
    for service in (url, [URL, url]):
        text = refusal(ValueError, entry, service)
        assert "service must be a URL without spaces or control characters" in text


@pytest.mark.parametrize("url", ["http://h?a=hunter2", "http://h/#f", "http+srv://h?a=hunter2"])
def test_query_and_fragment(entry, url):
    """K1: a service URL must not have a query or a fragment; the error names `params=`, and shows
    no value."""
    text = refusal(ValueError, entry, url)
    assert "service must not contain a query or a fragment" in text
    assert "params=" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "host",
    ["", "a..b", "-a", "a-", "a_!b", "*", "a" * 64, ".".join(["a" * 60] * 5), "h\xa0h", "..", "."],
)
@pytest.mark.parametrize("form", ["http://{}:80", "http+srv://{}", "http+dns://{}:80"])
def test_hosts(form, host):
    """K1: an invalid host is refused by an error that names the service and the host."""
    text = refusal(ValueError, lbclient.Balancer, form.format(host))
    assert text.startswith("service ")
    assert "host name or an IP address" in text


def test_a_name_of_labels_only():
    """K1: `_orders._tcp` without a domain is refused; the error shows a valid name."""
    text = refusal(ValueError, lbclient.Balancer, "http+srv://_orders._tcp")
    assert text.startswith("service ")
    assert "_orders._tcp.example.com" in text


@pytest.mark.parametrize(
    "service", [URL, [URL], "http+srv://orders.test", "http+dns://orders.test:80"]
)
def test_a_scheme_that_contradicts_the_url(entry, service):
    """K1: `scheme="https"` with a URL of http is refused: a user who asks for TLS must get it."""
    text = refusal(ValueError, entry, service, scheme="https")
    assert text.startswith("scheme='https' contradicts")
    assert "'http'" in text


@pytest.mark.parametrize(
    ("make", "name", "instances"),
    [
        (lambda: URL, "10.0.0.1:8080", 1),
        (lambda: "http://[::1]:8080", "[::1]:8080", 1),
        (lambda: "http://10.0.0.1", "10.0.0.1", 1),
        (lambda: (url for url in (URL, "http://10.0.0.2")), "10.0.0.1:8080", 2),
        (lambda: {"http://10.0.0.1": None}, "10.0.0.1", 1),
        (lambda: [Instance("10.0.0.1", 443)], "10.0.0.1:443", 1),
        (lambda: "http+srv://Orders.Example.com.", "orders.example.com", 0),
        (lambda: "http+srv://_orders._tcp.example.com", "example.com", 0),
        (lambda: "http+dns://orders.example.com:8080/v1", "orders.example.com", 0),
        (lambda: "http://b\xfccher.example", "xn--bcher-kva.example", 1),
        (Resolver, "Resolver", 0),
    ],
    ids=[
        "URL",
        "IPv6",
        "no port",
        "generator",
        "dict",
        "Instance",
        "SRV",
        "_labels",
        "DNS",
        "IDNA",
        "resolver",
    ],
)
def test_services_that_are_fine(entry, make, name, instances):
    """Every known form is accepted, and construction sends no question and opens no connection."""
    before = set(threading.enumerate())
    made = entry(make())
    assert balancer_of(made).snapshot().service == name
    assert len(instances_of(made)) == instances
    assert not set(threading.enumerate()) - before


# Arguments of every entry


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        (
            {"strategy": "fastest"},
            ValueError,
            ("least-busy", "random", "round-robin", "weighted", "'fastest'"),
        ),
        ({"strategy": "Weighted"}, ValueError, ("least-busy", "weighted", "'Weighted'")),
        ({"strategy": ""}, ValueError, ("least-busy", "weighted")),
        ({"strategy": lbclient.RoundRobin}, TypeError, ("'round-robin'", "pick(candidates, call)")),
        ({"strategy": None}, TypeError, ("'weighted'", "pick(candidates, call)", "None")),
        ({"strategy": 5}, TypeError, ("'weighted'", "pick(candidates, call)", "5")),
        ({"strategy": object()}, TypeError, ("'weighted'", "pick(candidates, call)")),
        ({"retry": 3}, TypeError, ("lbclient.RetryPolicy(...)", "None", "3")),
        ({"retry": True}, TypeError, ("lbclient.RetryPolicy(...)", "None")),
        ({"retry": RetryPolicy}, TypeError, ("lbclient.RetryPolicy(...)", "None")),
        ({"retry": {"attempts": 3}}, TypeError, ("lbclient.RetryPolicy(...)", "None")),
        ({"retry": BreakerPolicy()}, TypeError, ("lbclient.RetryPolicy(...)", "None")),
        ({"breaker": 5}, TypeError, ("lbclient.BreakerPolicy(...)", "None", "5")),
        ({"breaker": False}, TypeError, ("lbclient.BreakerPolicy(...)", "None")),
        ({"breaker": BreakerPolicy}, TypeError, ("lbclient.BreakerPolicy(...)", "None")),
        ({"name": "two words"}, ValueError, ("host name", "'two words'")),
        ({"name": ""}, ValueError, ("host name",)),
        ({"name": "a\r\nb"}, ValueError, ("host name", r"'a\r\nb'")),
        ({"name": "http://orders"}, ValueError, ("host name",)),
        ({"name": 5}, TypeError, ("host name", "5")),
        ({"scheme": "ftp"}, ValueError, ("'http'", "'https'", "'ftp'")),
        ({"scheme": "HTTPS"}, ValueError, ("'http'", "'https'")),
        ({"scheme": None}, ValueError, ("'http'", "'https'")),
        ({"max_in_flight": 0}, ValueError, ("1 or more", "0")),
        ({"max_in_flight": -1}, ValueError, ("1 or more", "-1")),
        ({"max_in_flight": 1.5}, TypeError, ("whole number", "1.5")),
        ({"max_in_flight": True}, TypeError, ("whole number", "True")),
        ({"max_in_flight": "5"}, TypeError, ("whole number", "'5'")),
        ({"max_in_flight_total": 0}, ValueError, ("1 or more", "0")),
        ({"max_stale": 0}, ValueError, ("above 0", "0")),
        ({"max_stale": -1}, ValueError, ("above 0", "-1")),
        ({"max_stale": NAN}, ValueError, ("finite", "nan")),
        ({"max_stale": INF}, ValueError, ("finite", "inf")),
        ({"max_stale": True}, TypeError, ("number", "True")),
        ({"max_stale": "60"}, TypeError, ("number", "'60'")),
        ({"max_stale": HUGE}, ValueError, ("finite",)),
        ({"nameservers": []}, ValueError, ("empty", "system")),
        ({"nameservers": ["dns.example"]}, ValueError, ("'127.0.0.1:5353'", "'dns.example'")),
        ({"nameservers": ["10.0.0.2:0"]}, ValueError, ("'127.0.0.1:5353'", "'10.0.0.2:0'")),
        ({"nameservers": ["10.0.0.2:x"]}, ValueError, ("'127.0.0.1:5353'", "'10.0.0.2:x'")),
        ({"nameservers": ["10.0.0.2:99999"]}, ValueError, ("'127.0.0.1:5353'",)),
        ({"nameservers": ["[::1]x"]}, ValueError, ("'[::1]:53'",)),
        ({"nameservers": ["10.0.0.2", None]}, TypeError, ("'127.0.0.1:5353'", "None")),
        ({"nameservers": 5}, TypeError, ("'127.0.0.1:5353'", "5")),
        ({"allow": ["intranet"]}, ValueError, ("'127.0.0.0/8'", "'intranet'")),
        ({"allow": ["127.0.0.1/8"]}, ValueError, ("'127.0.0.0/8'", "127.0.0.1/8")),
        ({"allow": [None]}, TypeError, ("'127.0.0.0/8'", "None")),
        ({"allow": None}, TypeError, ("'127.0.0.0/8'", "None")),
        ({"allow": 5}, TypeError, ("'127.0.0.0/8'", "5")),
        ({"within": "two words"}, ValueError, ("'two words'",)),
        ({"within": ""}, ValueError, ("must be",)),
        ({"within": ["example.com"]}, TypeError, ("must be",)),
        ({"clock": 5}, TypeError, ("callable", "5")),
        ({"clock": None}, TypeError, ("callable", "None")),
        ({"rng": 5}, TypeError, ("random.Random", "5")),
        ({"rng": 0}, TypeError, ("random.Random", "0")),
        ({"rng": random}, TypeError, ("random.Random",)),
        ({"rng": random.Random}, TypeError, ("random.Random",)),
        ({"tracer_provider": 5}, TypeError, ("TracerProvider", "5")),
        ({"tracer_provider": NoOpMeterProvider()}, TypeError, ("TracerProvider",)),
        ({"meter_provider": 5}, TypeError, ("MeterProvider", "5")),
    ),
)
def test_an_argument_is_checked_at_construction(entry, options, kind, words):
    """K2-K4, K8: every entry point checks each argument; the error begins with the argument and
    says what is allowed."""
    (argument,) = options
    text = refusal(kind, entry, URL, **options)
    assert text.startswith(argument)
    assert " must " in text
    assert all(word in text for word in words)


@pytest.mark.parametrize("judge", [5, 0, "all"])
def test_a_judge_is_a_function(judge):
    """`judge` must be a function."""
    text = refusal(TypeError, lbclient.Balancer, URL, judge=judge)
    assert text.startswith("judge must be callable")


def test_an_unknown_argument(entry):
    """A misspelt argument is a TypeError that names it."""
    assert "stratgy" in refusal(TypeError, entry, URL, stratgy="random")


def test_an_unknown_argument_is_answered_with_the_known_ones(entry):
    """The error for an unknown argument lists the known ones."""
    text = refusal(TypeError, entry, URL, retrys=3)
    assert "retrys" in text
    assert "retry," in text
    assert "strategy" in text


def test_arguments_are_keywords(entry):
    """Only the service may be a positional argument."""
    with pytest.raises(TypeError, match="positional"):
        entry(URL, "random")


# Strategies belong to one balancer


def test_a_strategy_object_belongs_to_one_balancer(entry):
    """One strategy object for two balancers is refused: a strategy keeps state."""
    strategy = lbclient.RoundRobin()
    first = entry(URL, strategy=strategy)
    text = refusal(ValueError, entry, URL, strategy=strategy)
    assert text.startswith("strategy ")
    assert "another balancer" in text
    assert "one of its own" in text
    assert balancer_of(first).snapshot().service


def test_a_callers_own_strategy_belongs_to_one_balancer():
    """This also applies to a class of the user's, and to different kinds of clients."""

    class Mine:
        def pick(self, candidates, _):
            return candidates[0]

    mine = Mine()
    lbclient.Client(URL, strategy=mine)
    assert "another balancer" in refusal(ValueError, lbclient.AsyncClient, URL, strategy=mine)
    lbclient.Client(URL, strategy=Mine())


@pytest.mark.parametrize(
    "mistake",
    [{"max_stale": 0}, {"tls_name": "x"}, {"retries": -1}, {"base_url": 5}],
    ids=str,
)
def test_a_construction_that_failed_keeps_no_strategy(mistake):
    """After a failed construction, the same strategy object may be used again."""
    strategy = lbclient.LeastBusy()
    with pytest.raises((TypeError, ValueError)):
        lbclient.Client(URL, strategy=strategy, **mistake)
    lbclient.Client(URL, strategy=strategy)


@pytest.mark.parametrize("choices", [1, 0, -2, True, 2.0, "2"])
def test_choices_of_least_busy(choices):
    """LeastBusy compares two or more, or all (None)."""
    kind = TypeError if not isinstance(choices, int) or choices is True else ValueError
    assert refusal(kind, lbclient.LeastBusy, choices=choices).startswith("choices must be")
    assert repr(lbclient.LeastBusy(choices=None)) == "LeastBusy(choices=None)"


# Policies


def bad_times(name):
    return [
        ({name: -1}, ValueError, ("finite", "-1")),
        ({name: NAN}, ValueError, ("finite", "nan")),
        ({name: INF}, ValueError, ("finite", "inf")),
        ({name: HUGE}, ValueError, ("finite",)),
        ({name: True}, TypeError, ("number", "True")),
        ({name: "1"}, TypeError, ("number", "'1'")),
    ]


def bad_counts(name):
    return [
        ({name: 0}, ValueError, ("1 or more", "0")),
        ({name: -1}, ValueError, ("1 or more", "-1")),
        ({name: True}, TypeError, ("whole number", "True")),
        ({name: 2.0}, TypeError, ("whole number", "2.0")),
        ({name: "2"}, TypeError, ("whole number", "'2'")),
        ({name: None}, TypeError, ("whole number", "None")),
    ]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        *bad_counts("attempts"),
        ({"attempts": 10**9}, ValueError, ("100 or fewer",)),
        *bad_times("backoff"),
        *bad_times("backoff_max"),
        *bad_times("attempt_timeout"),
        ({"attempt_timeout": 0}, ValueError, ("above 0",)),
        *bad_times("deadline"),
        ({"deadline": 0}, ValueError, ("above 0",)),
        ({"backoff": None}, TypeError, ("number",)),
        ({"methods": "GET"}, TypeError, ("collection", "'GET'")),
        ({"methods": b"GET"}, TypeError, ("'GET'",)),
        ({"methods": ["G T"]}, TypeError, ("'GET'", "'G T'")),
        ({"methods": ["GET\r\n"]}, TypeError, ("'GET'",)),
        ({"methods": [""]}, TypeError, ("'GET'",)),
        ({"methods": ["\xc9TAT"]}, TypeError, ("'GET'",)),
        ({"methods": [5]}, TypeError, ("'GET'", "5")),
        ({"methods": 5}, TypeError, ("5",)),
        ({"methods": None}, TypeError, ("None",)),
        ({"statuses": [99]}, ValueError, ("100", "99")),
        ({"statuses": [600]}, ValueError, ("100 to 599", "600")),
        ({"statuses": ["503"]}, TypeError, ("'503'",)),
        ({"statuses": [True]}, TypeError, ("True",)),
        ({"statuses": 503}, TypeError, ("503",)),
        ({"statuses": None}, TypeError, ("None",)),
        ({"budget": 0.2}, TypeError, ("RetryBudget", "None", "0.2")),
        ({"unprocessed": [399]}, ValueError, ("400", "399")),
        ({"unprocessed": [600]}, ValueError, ("400 to 599", "600")),
        ({"unprocessed": ["429"]}, TypeError, ("'429'",)),
        ({"unprocessed": [True]}, TypeError, ("True",)),
        ({"unprocessed": [429.0]}, TypeError, ("429.0",)),
        ({"unprocessed": 429}, TypeError, ("collection", "429")),
        ({"unprocessed": None}, TypeError, ("None",)),
        *bad_times("retry_after_max"),
        ({"retry_after_max": None}, TypeError, ("number",)),
        ({"budget": RetryBudget}, TypeError, ("RetryBudget", "None")),
    ),
)
def test_retry_policy(options, kind, words):
    """K4, K6: invalid values of a retry policy are refused; the error begins with the argument."""
    (argument,) = options
    text = refusal(kind, RetryPolicy, **options)
    assert text.startswith(argument)
    assert " must " in text
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backoff": 2}, ("backoff (2 s)", "backoff_max (1 s)")),
        ({"backoff_max": 0.01}, ("backoff (0.025 s)", "backoff_max (0.01 s)")),
        ({"attempt_timeout": 2, "deadline": 1}, ("attempt_timeout (2 s)", "deadline (1 s)")),
    ],
)
def test_retry_policy_contradicting_itself(options, words):
    """K8: the error about two arguments that contradict each other names both, with their
    values."""
    text = refusal(ValueError, RetryPolicy, **options)
    assert all(word in text for word in words)
    assert "must not be above" in text


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        *bad_times("ratio"),
        *bad_times("reserve"),
        *bad_times("window"),
        ({"window": 0}, ValueError, ("above 0",)),
    ),
)
def test_retry_budget(options, kind, words):
    """K4: invalid values of a budget are refused; the error begins with the argument."""
    (argument,) = options
    text = refusal(kind, RetryBudget, **options)
    assert text.startswith(argument)
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        *bad_counts("fail_max"),
        *bad_counts("success_threshold"),
        *bad_times("reset_timeout"),
        ({"reset_timeout": 0}, ValueError, ("above 0",)),
        *bad_times("reset_timeout_max"),
        *bad_times("panic_threshold"),
        ({"panic_threshold": 1.01}, ValueError, ("between 0 and 1", "1.01")),
        ({"panic_threshold": 50}, ValueError, ("between 0 and 1", "50")),
        ({"panic_threshold": -0.1}, ValueError, ("0", "-0.1")),
        ({"panic_threshold": None}, TypeError, ("number",)),
    ),
)
def test_breaker_policy(options, kind, words):
    """K4, K8: invalid values of a breaker policy are refused; the error begins with the
    argument."""
    (argument,) = options
    text = refusal(kind, BreakerPolicy, **options)
    assert text.startswith(argument)
    assert all(word in text for word in words)


def test_breaker_policy_contradicting_itself():
    """K8: a first open period above the longest one is refused, naming both."""
    text = refusal(ValueError, BreakerPolicy, reset_timeout=60)
    assert "reset_timeout (60 s) must not be above reset_timeout_max (30 s)" in text


def test_edges_that_are_fine():
    """K8: the bounds themselves are allowed."""
    RetryPolicy(attempts=100, backoff=1, backoff_max=1, attempt_timeout=1, deadline=1, budget=None)
    RetryPolicy(attempts=1, methods=(), statuses=range(100, 600), backoff=0, backoff_max=0)
    RetryBudget(ratio=0, reserve=0)
    BreakerPolicy(fail_max=1, reset_timeout=30, panic_threshold=1)
    BreakerPolicy(panic_threshold=0)


def test_methods_are_tokens_of_any_case():
    """Methods are compared in upper case, as httpx sends them; they may contain a hyphen."""
    assert RetryPolicy(methods=["get", "Put"]).methods == {"GET", "PUT"}
    assert RetryPolicy(methods=["M-SEARCH"]).methods == {"M-SEARCH"}


@pytest.mark.parametrize(
    "policy", [RetryPolicy(), RetryBudget(), BreakerPolicy()], ids=lambda one: type(one).__name__
)
def test_policies_are_frozen_values(policy):
    """A policy cannot be changed, compares and hashes by its fields, and can be pickled."""
    (field, *_) = dataclasses.fields(policy)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy, field.name, 1)
    twin = type(policy)()
    assert policy == twin
    assert hash(policy) == hash(twin)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert copy.deepcopy(policy) == policy
    assert dataclasses.replace(policy) == policy


def test_policies_keep_no_list_of_the_callers():
    """A policy does not change if the user changes a list that was passed to it."""
    methods, statuses = ["GET"], [503]
    policy = RetryPolicy(methods=methods, statuses=statuses)
    methods.append("POST")
    statuses.append(500)
    assert (policy.methods, policy.statuses) == ({"GET"}, {503})


def test_each_balancer_owns_its_budget():
    """One policy may be used for two balancers: each has its own budget."""
    policy = RetryPolicy()
    one, other = lbclient.Balancer(URL, retry=policy), lbclient.Balancer(URL, retry=policy)
    assert one._engine.retry_rules.budget is not other._engine.retry_rules.budget


# Arguments of the HTTP entries


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        ({"tls_name": "host"}, ValueError, ("'instance'", "'service'", "'host'")),
        ({"tls_name": None}, ValueError, ("'instance'", "'service'")),
        ({"transport": 5}, TypeError, ("function", "lambda instance: httpx.", "5")),
        ({"transport": httpx.HTTPTransport()}, TypeError, ("function", "lambda instance: httpx.")),
        (
            {"transport": httpx.MockTransport(lambda _: httpx.Response(200))},
            TypeError,
            ("function", "lambda instance: httpx."),
        ),
        ({"limits": 5}, TypeError, ("httpx.Limits", "5")),
        ({"limits": None}, TypeError, ("httpx.Limits", "None")),
        ({"limits": httpx.Limits(max_connections=0)}, ValueError, ("max_connections", "1 or more")),
        ({"limits": httpx.Limits(max_connections=-1)}, ValueError, ("max_connections",)),
        ({"retries": -1}, ValueError, ("0 or more", "-1")),
        ({"retries": True}, TypeError, ("whole number", "True")),
        ({"local_address": 5}, TypeError, ("5",)),
        ({"local_address": "two words"}, ValueError, ("'two words'",)),
        ({"socket_options": 5}, TypeError, ("5",)),
        ({"socket_options": "TCP_NODELAY"}, TypeError, ("TCP_NODELAY",)),
        ({"http1": False}, ValueError, ("http2", "False")),
    ),
)
def test_an_http_argument_is_checked_at_construction(http_entry, options, kind, words):
    """K4: the further arguments of the HTTP entry points are checked at construction too."""
    (argument,) = options
    text = refusal(kind, http_entry, URL, **options)
    assert text.startswith(argument)
    assert " must " in text
    assert all(word in text for word in words)


@pytest.mark.parametrize("argument", ["proxy", "mounts", "uds"])
def test_what_would_go_past_the_balancer(http_entry, argument):
    """`proxy=`, `mounts=` and `uds=` are refused; the error names the alternatives, and shows no
    secret of a proxy's URL."""
    text = refusal(ValueError, http_entry, URL, **{argument: f"http://{WHO}:{SECRET}@proxy"})
    assert text.startswith(f"{argument}= would bypass the balancer")
    assert "transport=lambda instance: httpx." in text
    assert "mounts={" in text
    assert SECRET not in text


@pytest.mark.parametrize("argument", ["proxy", "mounts", "uds"])
def test_none_goes_past_nothing(http_entry, argument):
    """`proxy=None` is accepted, since code that passes options on may write it."""
    http_entry(URL, **{argument: None})


@pytest.mark.parametrize(
    "timeout",
    [
        0,
        -1,
        NAN,
        INF,
        True,
        "5",
        object(),
        httpx.Timeout(0),
        httpx.Timeout(5, pool=-1),
        httpx.Timeout(5, read=NAN),
        (1, 2, 3, 0),
        (1,),
        HUGE,
    ],
    ids=_short,
)
def test_timeout(client_entry, timeout):
    """K4: a timeout that is not above 0 is refused at construction by an error that names it."""
    with pytest.raises((TypeError, ValueError)) as caught:
        client_entry(URL, timeout=timeout)
    assert caught.type in (TypeError, ValueError)
    assert str(caught.value).startswith("timeout ")


@pytest.mark.parametrize(
    "timeout", [None, 5, 0.5, httpx.Timeout(None), httpx.Timeout(5, read=60), (1, 2, 3, 4)]
)
def test_timeouts_that_are_fine(client_entry, timeout):
    """All forms of httpx's timeouts are accepted, with the same meaning."""
    assert client_entry(URL, timeout=timeout).timeout == httpx.Timeout(timeout)


def test_a_transport_has_no_timeout():
    """A transport uses the timeouts of its client, as httpx's does: it has no argument
    `timeout`."""
    for entry in (lbclient.Transport, lbclient.AsyncTransport):
        assert "timeout" in refusal(TypeError, entry, URL, timeout=5)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://elsewhere",
        "http://elsewhere:8080/v1",
        "https://10.0.0.1:8080",
        "http://10.0.0.1",
        "//elsewhere/v1",
        f"http://{WHO}:{SECRET}@elsewhere/v1",
        "http://elsewhere:99999",
        "ftp://10.0.0.1:8080",
    ],
)
def test_base_url_of_another_origin(client_entry, base_url):
    """`base_url` is a path of the service; the error says so and shows no password."""
    text = refusal(ValueError, client_entry, URL, base_url=base_url)
    assert text.startswith("base_url ")
    assert "path" in text
    assert SECRET not in text
    assert WHO not in text


@pytest.mark.parametrize(
    ("base_url", "kind"),
    [
        (5, TypeError),
        (None, TypeError),
        (b"/v1", TypeError),
        ("/v1\r\nX: y", ValueError),
        ("/v1?a=b", ValueError),
        ("/v1#f", ValueError),
    ],
)
def test_base_url_that_is_no_path(client_entry, base_url, kind):
    """An invalid `base_url` is refused by an error that names it; no part of it is silently
    dropped."""
    assert refusal(kind, client_entry, URL, base_url=base_url).startswith("base_url ")


@pytest.mark.parametrize(
    ("service", "base_url", "expected"),
    [
        (URL, "", URL + "/"),
        (URL, "/v1", URL + "/v1/"),
        (URL, "v1", URL + "/v1/"),
        (URL + "/api", "/v1", URL + "/api/v1/"),
        (URL + "/api", "", URL + "/api/"),
        (URL + "/api", URL + "/v2", URL + "/v2/"),
        (
            "http+srv://orders.example.com",
            "http://orders.example.com/v1",
            "http://orders.example.com/v1/",
        ),
    ],
)
def test_base_url_that_is_fine(client_entry, service, base_url, expected):
    """The path of `base_url` is added to the service's own; `base_url` may also be the service's
    URL with a path."""
    assert str(client_entry(service, base_url=base_url).base_url) == expected


# What one call asks


class Calls:
    """Makes requests of one client to an instance that refuses, sync or async."""

    def __init__(self, entry, service):
        self.entry = entry
        self.service = service

    def get(self, url="/", **request):
        if self.entry is lbclient.Client:
            with lbclient.Client(self.service, retry=None) as client:
                return client.get(url, **request)

        async def main():
            async with lbclient.AsyncClient(self.service, retry=None) as client:
                return await client.get(url, **request)

        return anyio.run(main)


@pytest.fixture
def calls(client_entry, dead_port):
    return Calls(client_entry, f"http://127.0.0.1:{dead_port}")


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    **named(
        ({"deadlin": 1}, ValueError, ("deadline, idempotent, key", "'deadlin'")),
        (
            {"attempts": 1, "timeout": 2},
            ValueError,
            ("deadline, idempotent, key", "'attempts', 'timeout'"),
        ),
        ({"deadline": 0}, ValueError, ("['deadline']", "above 0")),
        ({"deadline": -1}, ValueError, ("['deadline']", "above 0")),
        ({"deadline": NAN}, ValueError, ("['deadline']", "finite")),
        ({"deadline": INF}, ValueError, ("['deadline']", "finite")),
        ({"deadline": True}, TypeError, ("['deadline']", "number")),
        ({"deadline": "1"}, TypeError, ("['deadline']", "number")),
        ({"idempotent": "no"}, TypeError, ("['idempotent']", "True or False")),
        ({"idempotent": 1}, TypeError, ("['idempotent']", "True or False")),
    ),
)
def test_what_a_request_asks_is_checked(calls, asked, kind, words):
    """`extensions={"lbclient": {...}}` is checked before anything is sent."""
    text = refusal(kind, calls.get, extensions={"lbclient": asked})
    assert text.startswith("extensions['lbclient']")
    assert all(word in text for word in words)


@pytest.mark.parametrize("asked", ["deadline", 5, True, ["deadline"], [], 0], ids=_short)
def test_what_a_request_asks_is_a_dict(calls, asked):
    """`extensions={"lbclient": ...}` must be a dict; otherwise a TypeError says so."""
    text = refusal(TypeError, calls.get, extensions={"lbclient": asked})
    assert text.startswith("extensions['lbclient'] must be a dict")


@pytest.mark.parametrize(
    "asked", [{}, None, {"deadline": None, "key": None, "idempotent": None}], ids=_short
)
def test_a_request_may_ask_nothing(calls, asked):
    """Empty options are the same as none."""
    with pytest.raises(httpx.ConnectError):
        calls.get(extensions={"lbclient": asked})


@pytest.mark.parametrize("deadline", [0, -1, NAN, INF])
def test_a_deadline_of_the_balancers_calls(deadline):
    """An invalid `deadline=` of `call`, `acall` and `acquire` is refused by an error that names
    it."""
    balancer = lbclient.Balancer(URL)
    for make in (balancer.call, balancer.acquire):
        arguments = [] if make == balancer.acquire else [str]
        assert refusal(ValueError, make, *arguments, deadline=deadline).startswith("deadline ")

    async def main():
        await balancer.acall(str, deadline=deadline)

    assert refusal(ValueError, anyio.run, main).startswith("deadline ")


@pytest.mark.parametrize(
    "url",
    ["http://elsewhere/", "https://127.0.0.1/", f"http://{WHO}:{SECRET}@elsewhere/?a={SECRET}"],
)
def test_a_request_to_another_origin(calls, url):
    """A client balances its own origin; for any other the error names an alternative, and shows no
    secret."""
    with pytest.raises(lbclient.LoadBalancingError, match=r"httpx\.Client") as caught:
        calls.get(url)
    assert "mounts={" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("made", [5, httpx.Client(), None], ids=["number", "client", "None"])
def test_what_a_factory_makes(client_entry, made):
    """A factory that does not make a transport causes a TypeError at the first call, which says
    what it must make."""
    options = {"transport": lambda _: made}
    kind = "Base" if client_entry is lbclient.Client else "AsyncBase"

    def call():
        if client_entry is lbclient.Client:
            return lbclient.Client(URL, **options).get("/")

        async def main():
            return await lbclient.AsyncClient(URL, **options).get("/")

        return anyio.run(main)

    text = refusal(TypeError, call)
    assert text.startswith("transport= must make")
    assert f"httpx.{kind}Transport" in text


# Instance and Answer


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        ({"host": ""}, ValueError, ("host name",)),
        ({"host": "two words"}, ValueError, ("host name", "'two words'")),
        ({"host": "a\r\nb"}, ValueError, ("host name", r"'a\r\nb'")),
        ({"host": "http://h"}, ValueError, ("host name", "'http://h'")),
        ({"host": "h:80"}, ValueError, ("host name", "'h:80'")),
        ({"host": "[::1]"}, ValueError, ("IP address", "'[::1]'")),
        ({"host": None}, TypeError, ("host name", "None")),
        ({"host": b"h"}, TypeError, ("host name",)),
        ({"port": 0}, ValueError, ("1 to 65535", "0")),
        ({"port": 65536}, ValueError, ("1 to 65535", "65536")),
        ({"port": -1}, ValueError, ("1 to 65535", "-1")),
        ({"port": "80"}, TypeError, ("whole number from 1 to 65535", "'80'")),
        ({"port": 80.0}, TypeError, ("whole number", "80.0")),
        ({"port": True}, TypeError, ("whole number", "True")),
        ({"port": None}, TypeError, ("whole number", "None")),
        *bad_times("weight"),
        ({"weight": None}, TypeError, ("number", "None")),
        ({"priority": -1}, ValueError, ("0 or more", "-1")),
        ({"priority": 0.5}, TypeError, ("whole number", "0.5")),
        ({"priority": True}, TypeError, ("whole number", "True")),
        ({"metadata": 5}, TypeError, ("5",)),
        ({"addresses": "127.0.0.1"}, TypeError, ("'127.0.0.1'",)),
        ({"addresses": ["elsewhere"]}, ValueError, ("IP address", "'elsewhere'")),
        ({"addresses": [5]}, TypeError, ("5",)),
    ),
)
def test_instance_is_checked(options, kind, words):
    """K2: an invalid field of an instance is refused; the error begins with the field."""
    (field,) = options
    text = refusal(kind, Instance, **{"host": "10.0.0.1", "port": 80, **options})
    assert text.startswith(field)
    assert " must " in text
    assert all(word in text for word in words)


def test_an_instance_is_its_host_and_port():
    """Instances are equal by host and port: weight, priority, metadata and addresses do not
    count."""
    one = Instance("10.0.0.1", 80)
    same = Instance("10.0.0.1", 80, 5, 2, {"zone": "a"}, ("10.0.0.9",))
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same, Instance("10.0.0.1", 81), Instance("10.0.0.2", 80)}) == 3
    assert one != ("10.0.0.1", 80)


@pytest.mark.parametrize(
    ("host", "written", "shown"),
    [
        ("10.0.0.1", "10.0.0.1", "10.0.0.1:80"),
        ("Orders.Example.COM.", "orders.example.com", "orders.example.com:80"),
        ("0:0:0:0:0:0:0:1", "::1", "[::1]:80"),
        ("2001:DB8::1", "2001:db8::1", "[2001:db8::1]:80"),
        ("b\xfccher.example", "xn--bcher-kva.example", "xn--bcher-kva.example:80"),
        ("_srv_host", "_srv_host", "_srv_host:80"),
    ],
)
def test_an_instances_host_has_one_spelling(host, written, shown):
    """A host is stored in one spelling, so that two spellings are one instance; `str` puts an IPv6
    address in brackets."""
    one = Instance(host, 80)
    assert one.host == written
    assert str(one) == shown
    assert one == Instance(written, 80)


def test_an_instance_is_frozen_and_owns_its_metadata():
    """An instance cannot be changed, neither through its fields nor through the dict it was made
    from."""
    metadata = {"zone": "a"}
    one = Instance("10.0.0.1", 80, metadata=metadata)
    metadata["zone"] = "b"
    assert one.metadata == {"zone": "a"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.weight = 2
    with pytest.raises(TypeError):
        one.metadata["zone"] = "c"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_instance_can_be_pickled(protocol):
    """Instances and answers can be pickled for another process."""
    one = Instance("::1", 80, 2.5, 1, {"zone": "a"}, ("::1",))
    answer = lbclient.Answer(
        [one], ttl=5, refused=[lbclient.RejectedRecord("0 0 0 x.", "its port is 0")]
    )
    back = pickle.loads(pickle.dumps(one, protocol))
    for field in dataclasses.fields(Instance):
        assert getattr(back, field.name) == getattr(one, field.name)
    assert pickle.loads(pickle.dumps(answer, protocol)) == answer
    assert copy.deepcopy(one) == one
    assert copy.copy(one).metadata == {"zone": "a"}


def test_an_instance_can_be_replaced():
    """`dataclasses.replace` changes one field and checks it."""
    one = Instance("10.0.0.1", 80, metadata={"zone": "a"})
    heavy = dataclasses.replace(one, weight=3)
    assert (heavy.weight, heavy.metadata) == (3, {"zone": "a"})
    assert refusal(ValueError, dataclasses.replace, one, weight=-1).startswith("weight must")


def test_a_repr_tells_what_matters():
    """The repr of an instance is readable, and does not show metadata, which may be secret."""
    one = Instance("10.0.0.1", 80, metadata={"token": SECRET})
    assert repr(one) == "Instance(host='10.0.0.1', port=80, weight=1, priority=0)"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    **named(
        ({"instances": [5]}, TypeError, ("lbclient.Instance", "5")),
        ({"instances": ["http://10.0.0.1"]}, TypeError, ("lbclient.Instance",)),
        ({"instances": None}, TypeError, ("lbclient.Instance", "None")),
        ({"instances": Instance("h", 80)}, TypeError, ("lbclient.Instance",)),
        *bad_times("ttl"),
    ),
)
def test_answer_is_checked(options, kind, words):
    """An invalid answer is refused; the error begins with the field."""
    (field,) = options
    text = refusal(kind, lbclient.Answer, **{"instances": [], **options})
    assert text.startswith(field)
    assert all(word in text for word in words)


def test_an_answer_is_a_set():
    """K5: an answer accepts any iterable. Of duplicates, the lowest priority counts, then the
    largest weight; each keeps its first position."""
    one = Instance("10.0.0.1", 80, weight=1, priority=1)
    better = Instance("10.0.0.1", 80, weight=1, priority=0)
    heavier = Instance("10.0.0.1", 80, weight=2, priority=0)
    other = Instance("10.0.0.2", 80)
    answer = lbclient.Answer(iter([one, other, heavier, better]), ttl=0)
    assert answer.instances == (one, other)
    assert (answer.instances[0].weight, answer.instances[0].priority) == (2, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.ttl = 5


@pytest.mark.parametrize("weights", [(0, 0, 0), (1, 1, 1)])
def test_weights_all_zero_are_uniform(weights):
    """K2: if all weights are zero, or all are equal, the shares are equal."""
    service = [Instance(f"10.0.0.{place}", 80, weight=one) for place, one in enumerate(weights)]
    balancer = lbclient.Balancer(service)
    seen = [balancer.call(lambda instance: instance.host) for _ in range(30)]
    assert sorted(seen.count(host) for host in set(seen)) == [10, 10, 10]


# After close


def test_a_closed_client():
    """C20: a client may be closed twice; a later call raises a RuntimeError that says why."""
    client = lbclient.Client(URL)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("/")


async def test_a_closed_async_client():
    """C20: an async client may be closed twice; a later call raises a RuntimeError that says
    why."""
    client = lbclient.AsyncClient(URL)
    await client.aclose()
    await client.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("/")


def test_a_closed_transport():
    """C20: a call over a closed transport raises an error that says so."""
    transport = lbclient.Transport(URL)
    transport.close()
    transport.close()
    with pytest.raises(RuntimeError, match=r"the balancer of 10\.0\.0\.1:8080 is closed"):
        transport.handle_request(httpx.Request("GET", URL))


@pytest.mark.parametrize("zone", ["\r\nX: y", "a b", "\xe9", "a" * 65, "%"])
def test_a_zone_is_a_word(zone):
    """S4: the zone of an IPv6 address must be a word, since it appears in headers and logs."""
    with pytest.raises(ValueError, match="host must be"):
        Instance(f"fe80::1%{zone}", 80)
    with pytest.raises(ValueError, match="addresses must"):
        Instance("a.test", 80, addresses=(f"fe80::1%{zone}",))
    assert Instance("fe80::1%eth0.1", 80).host == "fe80::1%eth0.1"


async def test_a_closed_async_transport():
    """C20: a call over a closed async transport raises an error that says so."""
    transport = lbclient.AsyncTransport(URL)
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(RuntimeError, match=r"the balancer of 10\.0\.0\.1:8080 is closed"):
        await transport.handle_async_request(httpx.Request("GET", URL))


@pytest.mark.parametrize("service", [URL, Resolver()], ids=["list", "discovery"])
async def test_a_closed_balancer(service):
    """C20: a closed balancer refuses calls, leases and refreshes, but still has a snapshot."""
    balancer = lbclient.Balancer(service, name="orders")
    balancer.close()
    balancer.close()
    await balancer.aclose()
    for use in (lambda: balancer.call(str), balancer.acquire, balancer.refresh):
        with pytest.raises(RuntimeError, match="the balancer of orders is closed"):
            use()
    for ause in (lambda: balancer.acall(str), balancer.arefresh):
        with pytest.raises(RuntimeError, match="the balancer of orders is closed"):
            await ause()
    assert balancer.snapshot().service == "orders"
    assert repr(balancer) == "<Balancer orders: closed>"


def test_closing_a_client_closes_its_balancer():
    """C20: the balancer inside a closed client is closed with it."""
    client = lbclient.Client(URL)
    balancer = client.balancer
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        balancer.call(str)


# The environment


PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]


@pytest.fixture
def a_proxy_in_the_environment(monkeypatch, servers, tmp_path):
    """A proxy and a netrc that would apply to every request."""
    (proxy,) = servers(tells_port)
    for name in PROXIES:
        monkeypatch.setenv(name, proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {WHO} password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    return proxy


@pytest.mark.parametrize("trust_env", [True, False])
def test_proxies_of_the_environment_never_apply(a_proxy_in_the_environment, servers, trust_env):
    """K7: HTTP_PROXY, similar variables and netrc are ignored by clients."""
    (server,) = servers(tells_port)
    with lbclient.Client(server.url, trust_env=trust_env) as client:
        assert client.get("/x").text == str(server.port)
    with httpx.Client(transport=lbclient.Transport(server.url)) as client:
        assert client.get("http://orders/x").text == str(server.port)
    _came_straight(server, a_proxy_in_the_environment)


@pytest.mark.parametrize("trust_env", [True, False])
async def test_proxies_never_apply_async(a_proxy_in_the_environment, servers, trust_env):
    """K7: HTTP_PROXY, similar variables and netrc are ignored by async clients."""
    (server,) = servers(tells_port)
    async with lbclient.AsyncClient(server.url, trust_env=trust_env) as client:
        assert (await client.get("/x")).text == str(server.port)
    async with httpx.AsyncClient(transport=lbclient.AsyncTransport(server.url)) as client:
        assert (await client.get("http://orders/x")).text == str(server.port)
    _came_straight(server, a_proxy_in_the_environment)


def _came_straight(server, proxy):
    assert proxy.accepted == 0
    assert [request.target for request in server.requests] == ["/x", "/x"]
    assert all("authorization" not in request.headers for request in server.requests)


class Answers(http.server.BaseHTTPRequestHandler):
    """Requests get 200, and nothing is logged."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def https_url(authority):
    """A server whose certificate is signed by this authority alone."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def status_of(client_entry, url, **options):
    """The status of one request, or its error."""
    try:
        if client_entry is lbclient.Client:
            with lbclient.Client(url, retry=None, **options) as client:
                return client.get("/").status_code

        async def main():
            async with lbclient.AsyncClient(url, retry=None, **options) as client:
                return (await client.get("/")).status_code

        return anyio.run(main)
    except httpx.ConnectError as error:
        return str(error)


@pytest.fixture
def no_authorities(monkeypatch):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_authorities")
def test_certificates_are_checked(client_entry, https_url):
    """By default a certificate of an unknown authority is refused."""
    assert "CERTIFICATE_VERIFY_FAILED" in str(status_of(client_entry, https_url))


@pytest.mark.usefixtures("no_authorities")
def test_ssl_cert_file(client_entry, https_url, authority, monkeypatch, tmp_path):
    """K7: SSL_CERT_FILE names trusted authorities, unless `trust_env` is False."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert status_of(client_entry, https_url) == 200
    refused = status_of(client_entry, https_url, trust_env=False)
    assert "CERTIFICATE_VERIFY_FAILED" in str(refused)


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl names the files of a directory"
)
@pytest.mark.usefixtures("no_authorities")
def test_ssl_cert_dir(client_entry, https_url, authority, monkeypatch, tmp_path):
    """K7: SSL_CERT_DIR names a directory of trusted authorities."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(bundle)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    Path(tmp_path / f"{name}.0").write_bytes(bundle.read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert status_of(client_entry, https_url) == 200


@pytest.mark.usefixtures("no_authorities")
def test_verify_of_the_callers_own(client_entry, https_url, authority):
    """A context passed as `verify=` is used."""
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    assert status_of(client_entry, https_url, verify=tls) == 200


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_connections": 3}, r"max_connections belongs to limits=httpx\.Limits\("),
        ({"keepalive_expiry": 3}, r"keepalive_expiry belongs to limits=httpx\.Limits\("),
        ({"tolerance": 2}, r"tolerance belongs to limit=lbclient\.AdaptiveLimit\("),
        ({"probe": "/load"}, r"probe belongs to strategy=lbclient\.Prequal\(probe="),
        ({"stategy": "random"}, "did you mean strategy"),
        ({"transport": httpx.HTTPTransport}, "transport must be a function that makes"),
        ({"limits": httpx.Limits(max_keepalive_connections="4")}, "max_keepalive_connections"),
        ({"limits": httpx.Limits(keepalive_expiry="4")}, "keepalive_expiry"),
        ({"timeout": "soon"}, r"timeout must be seconds, None or httpx\.Timeout"),
    ],
)
def test_where_it_belongs(wrong, told):
    """K: an argument in the wrong place, or nearly right, causes an error at construction that
    names the right one."""
    with pytest.raises((TypeError, ValueError), match=told):
        lbclient.Client("http://127.0.0.1:1", **wrong)
