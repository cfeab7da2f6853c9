"""The command line, against real DNS, real instances and real processes."""

from __future__ import annotations

import argparse
import functools
import http.client
import itertools
import json
import os
import pty
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import lbclient
from lbclient.cli import demo as demo_module
from lbclient.cli import main
from lbclient.cli.demo import demo
from lbclient.cli.demo.director import Director, Kill
from lbclient.cli.demo.stage import CAST, Child, ChildFailed
from lbclient.cli.report import as_arguments, changes, shares
from lbclient.cli.resolve import Reporter
from lbclient.discovery.registry import URL_SOURCES, UrlSource, pushed
from lbclient.errors import DiscoveryError
from tests.support.dns import Bind, Liar, silence
from tests.support.watchers import Scripted, until

MAIN = "import sys; from lbclient.cli import main; sys.exit(main())"
SHORT = """
import sys
from argparse import Namespace
from lbclient.cli.demo import demo
sys.exit(demo(Namespace(seconds=1.5, strategy="weighted", plain=False, grpc=False)))
"""
ZONE = """\
$ORIGIN demo.test.
$TTL 30
@ SOA ns hostmaster 1 60 60 60 1
@ NS ns
ns A 127.0.0.1
a A 127.0.0.1
b A 10.0.0.3
two A 10.0.0.3
two A 127.0.0.1
c A 10.0.0.4
meta A 169.254.169.254
"""
SRV = """\
_http._tcp.orders SRV 0 3 8001 a
_http._tcp.orders SRV 0 1 8002 b
_http._tcp.orders SRV 7 0 8003 c
_http._tcp.orders SRV 7 0 8004 c
_http._tcp.orders SRV 7 1 0 c
_http._tcp.orders SRV 7 1 80 meta
_http._tcp.absent SRV 0 0 0 .
_http._tcp.unusable SRV 0 0 0 a
"""


@pytest.fixture(scope="module")
def server():
    child = Child("dns_server")
    yield child
    child.kill()


@pytest.fixture
def resolve(server, capsys):
    server.tell(ZONE + SRV)

    def run(*arguments):
        status = main(["resolve", *arguments, "--nameserver", f"127.0.0.1:{server.port}"])
        return status, *capsys.readouterr()

    return run


def begun(*arguments):
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(*arguments):
    """A running demo: its first line has come, so its processes are running."""
    process = begun("demo", "--plain", *arguments)
    assert process.stdout.readline().startswith("lbclient demo: ")
    return process


def ended(process):
    """Its output, once all processes that share its standard error have ended."""
    with process:
        return process.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [[], ["--grpc"]], ids=["http", "grpc"])
def test_the_demo_loses_no_call_and_reports_every_event(protocol):
    """Killed, slowed and added instances fail no call, and each event is shown with its outcome."""
    process = started("--seconds", "6", *protocol)
    out, err = ended(process)
    assert process.returncode == 0, err
    assert (out.isascii(), "\x1b" in out, err) == (True, False, "")
    summary = out.partition("\n6.0 s: ")[2]
    assert re.match(r"\d{3,} calls, 0 failed, \d+ retries\n", summary)
    for event in (
        r"\d\.\d s  orders-2 killed, still in DNS\n +-> breaker open at \d\.\d s, \d+ retries",
        r"\d\.\d s  orders-3 slowed from 30 to 300 ms\n +-> traffic halved at \d\.\d s, share \d+%",
        r"\d\.\d s  orders-6 added to DNS\n +-> first call at \d\.\d s, share 0% to \d\d%",
    ):
        assert re.search(event, summary), summary
    assert summary.count("0 calls failed") == 3


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)]
)
def test_no_process_outlives_the_demo(sent, status):
    """Whatever ends the demo, its DNS server and its instances end too."""
    process = started()
    process.send_signal(sent)
    _, err = ended(process)
    assert (process.returncode, err) == (status, "")


def test_a_closed_pipe_ends_the_demo_quietly():
    """With `| head -1` the demo ends at its next line, without a traceback, and cleans up."""
    process = started("--seconds", "5")
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_failed_call_is_an_exit_status_of_1(monkeypatch, capsys):
    """If all instances die, calls fail: the summary counts them and the status is 1."""
    acts = [Kill(0.1, one) for one in CAST]
    monkeypatch.setattr(demo_module, "Director", functools.partial(Director, acts=acts))
    assert demo(argparse.Namespace(seconds=1.5, strategy="random", plain=True, grpc=False)) == 1
    out, err = capsys.readouterr()
    assert re.search(r"calls, [1-9]\d* failed", out)
    assert err.startswith("the last failed call: ")


def test_the_live_view_on_a_terminal():
    """On a terminal the demo draws a table with bars, breaker states and the events."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHORT],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "PYTHONUTF8": "1"},
    )
    os.close(theirs)
    with process:
        drawn = b"".join(iter(functools.partial(read_screen, ours), b"")).decode()
    os.close(ours)
    assert process.returncode == 0
    assert all(one in drawn for one in ("\x1b[", "share of traffic", "█", "● open", "→ breaker"))


def read_screen(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the other side of a terminal is closed
        return b""


def test_without_rich_the_demo_is_plain_and_says_why(monkeypatch, capsys):
    """Without rich a terminal gets plain text, and a line says how to get the live view."""
    monkeypatch.setattr(demo_module, "_can_draw", lambda: True)
    monkeypatch.setitem(sys.modules, "lbclient.cli.demo.screen", None)
    demo(argparse.Namespace(seconds=0.1, strategy="least-busy", plain=False, grpc=False))
    out = capsys.readouterr().out
    assert out.startswith("For the live view: pip install 'lbclient[cli]'\nlbclient demo: ")


def test_resolve_shows_tiers_weights_and_shares(resolve):
    """Instances are listed by tier, with weight, share of the tier and checked addresses; TTL and
    age are shown."""
    status, out, err = resolve("http+srv://orders.demo.test", "--allow", "127.0.0.0/8")
    assert (status, err) == (0, "")
    first, _, rest = out.partition("\n")
    assert first == "orders.demo.test: 4 instances in 2 tiers, TTL 30 s, age 0 s"
    assert [line.split() for line in rest.partition("refused")[0].splitlines() if line] == [
        ["priority", "0,", "serves", "first"],
        ["instance", "weight", "share", "addresses"],
        ["a.demo.test:8001", "3", "75.0%", "127.0.0.1"],
        ["b.demo.test:8002", "1", "25.0%", "10.0.0.3"],
        ["priority", "7,", "serves", "while", "no", "better", "tier", "can"],
        ["instance", "weight", "share", "addresses"],
        ["c.demo.test:8003", "0", "50.0%", "10.0.0.4"],
        ["c.demo.test:8004", "0", "50.0%", "10.0.0.4"],
    ]


def test_resolve_says_what_was_refused_and_how_to_allow_it(resolve):
    """Each refused record is listed with its reason, in terms of the command line."""
    _, out, _ = resolve("http+srv://orders.demo.test")
    refused = out.partition("\nrefused\n")[2]
    for line in (
        r"  0 3 8001 a\.demo\.test\.  +127\.0\.0\.1 is loopback; pass --allow 127\.0\.0\.0/8",
        r"  7 1 0 c\.demo\.test\.  +its port is 0\n",
        r"  7 1 80 meta\.demo\.test\.  +169\.254\.169\.254 is a cloud metadata address;",
    ):
        assert re.search(line, refused), refused


def test_resolve_holds_targets_to_a_domain(resolve):
    """`--within` refuses targets outside the domain; if no instance is left, the status is 1."""
    status, out, err = resolve("http+srv://orders.demo.test", "--within", "else.test")
    assert (status, err) == (1, "lbclient resolve: there is no usable instance\n")
    assert out.count("it is not within the domain else.test") == 5


def test_resolve_of_addresses_and_of_a_list(resolve):
    """`http+dns` gives an instance an address; a static list is shown as it is, without a TTL."""
    status, out, _ = resolve("http+dns://two.demo.test:8080")
    assert (status, out.split("\n")[0]) == (
        0,
        "two.demo.test: 1 instance in 1 tier, TTL 30 s, age 0 s",
    )
    assert "  10.0.0.3:8080       1  100.0%  10.0.0.3\n" in out
    assert re.search(r"\nrefused\n  two\.demo\.test.* 127\.0\.0\.1 is loopback", out)
    status, out, _ = resolve("http://10.0.0.1:8080", "http://orders:8080")
    assert out.startswith("10.0.0.1:8080: 2 instances in 1 tier, it never changes\n")
    assert "  10.0.0.1:8080       1  50.0%  10.0.0.1\n" in out
    assert "  orders:8080         1  50.0%  looked up at connect\n" in out


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("http+srv://nobody.demo.test", "_http._tcp.nobody.demo.test. does not exist (NXDOMAIN)"),
        ("http+srv://_http._tcp.absent.demo.test", "declares that the service is not offered"),
        ("http+dns://orders.demo.test", "orders.demo.test. does not exist (NXDOMAIN)"),
        ("http+srv://unusable.demo.test", "there is no usable instance"),
    ],
)
def test_resolve_without_an_answer(resolve, service, reason):
    """If discovery finds nothing usable, stderr gets the reason and the status is 1."""
    status, _, err = resolve(service)
    assert status == 1
    assert err.startswith("lbclient")
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["orders"], "SERVICE must be one of"),
        (["http+srv://x.test", "--nameserver", "here"], "--nameserver must contain addresses"),
        (["http+srv://x.test", "--allow", "loopback"], "--allow must contain networks"),
        (["http+srv://x.test", "--within", "-"], "--within must be a host name"),
        (["http+srv://x.test", "--sticky", "-1"], "--sticky (seconds) must be a finite number"),
        (
            ["http://10.0.0.1:80", "--sticky", "9"],
            "--sticky applies to services in DNS only, such as",
        ),
        (
            ["http://10.0.0.1:80", "--family", "ipv4"],
            "--family applies to services in DNS only, such as",
        ),
    ],
)
def test_resolve_with_bad_arguments(capsys, arguments, named):
    """An invalid argument is named on stderr, and the status is 2."""
    assert main(["resolve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"lbclient resolve: {named}")) == ("", True)


@pytest.mark.parametrize(("family", "address"), [("ipv4", "10.0.0.1"), ("ipv6", "fd00::1")])
def test_resolve_of_a_family(capsys, family, address):
    """`--family` shows the addresses of one family."""
    with Liar() as liar:
        liar.put("orders.test", "A", "10.0.0.1")
        liar.put("orders.test", "AAAA", "fd00::1")
        asked = ["http+dns://orders.test:80", "--nameserver", liar.address, "--family", family]
        assert main(["resolve", *asked]) == 0
    out, err = capsys.readouterr()
    assert ("orders.test: 1 instance in 1 tier" in out, address in out, err) == (True, True, "")


def test_resolve_does_not_wait_for_a_silent_family(capsys):
    """Answers that DNS does not give in time are not waited for, and stderr says so."""
    with Liar() as liar:
        liar.put("orders.test", "A", "10.0.0.1")
        liar.fault(silence, "orders.test", "AAAA")
        asked = ["http+dns://orders.test:80", "--nameserver", liar.address]
        assert main(["resolve", *asked]) == 0
    out, err = capsys.readouterr()
    assert "10.0.0.1" in out
    assert err.startswith("lbclient resolve: DNS has not answered all questions yet; --watch")


def test_watch_keeps_what_is_sticky():
    """With `--sticky` an address that DNS no longer returns is shown as left later."""
    with Liar() as liar:
        liar.put("orders.test", "A", "10.0.0.1", ttl=1)
        asked = ["http+dns://orders.test:80", "--nameserver", liar.address, "--sticky", "2"]
        with Watching(*asked) as watching:
            watching.until(r".* watching, next lookup in 1 s")
            liar.put("orders.test", "A", "10.0.0.2", ttl=1)
            assert " joined 10.0.0.2:80: priority 0, weight 1, share 50.0%" in watching.line()
            watching.until(r".* left 10.0.0.1:80")
            watching.end()


def test_bad_arguments_are_told_without_python():
    """Errors on the command line leave out advice that is for Python only."""
    with pytest.raises(ValueError) as told:
        lbclient.Balancer("orders")
    text = as_arguments(str(told.value))
    assert text.endswith("'https://host:port', or several of the latter; 'orders' has no scheme")
    with pytest.raises(ValueError) as told:
        lbclient.Balancer("http://me:secret@orders")
    assert as_arguments(str(told.value)) == "SERVICE must not contain a user name or password"


def test_resolve_says_what_a_nameserver_over_https_needs(monkeypatch, capsys):
    """Without the extra for DNS over HTTPS, stderr says how to install it, and the status is 2."""
    monkeypatch.setattr("dns.query.have_doh", False)
    asked = ["http+srv://x.test", "--nameserver", "https://dns.example/dns-query"]
    assert main(["resolve", *asked]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith("lbclient resolve: --nameserver with https:// need")) == ("", True)
    assert "pip install" in err


def test_resolve_of_a_file(tmp_path, capsys):
    """`http+file` shows the instances of a file, and its refused entries."""
    file = tmp_path / "instances"
    file.write_text("10.0.0.1:80 weight=3\n10.0.0.2:80\nnonsense\n")
    assert main(["resolve", f"http+file://{file}"]) == 0
    out, err = capsys.readouterr()
    assert (out.split("\n")[0], err) == (f"{file}: 2 instances in 1 tier, TTL 1 s, age 0 s", "")
    assert "  10.0.0.1:80       3  75.0%  10.0.0.1\n" in out
    assert "\nrefused\n  line 3 nonsense  must be host:port" in out


def instance(host, weight=1, priority=0, addresses=("10.0.0.1",)):
    return lbclient.Instance(host, 80, weight, priority, addresses=addresses)


def answer(*instances, refused=()):
    return lbclient.Answer(instances, 30, [lbclient.RejectedRecord(*one) for one in refused])


def test_a_share_is_of_the_tier():
    """The shares of a tier add up to one; a weight of 0 among others is a small one."""
    found = shares([instance("a", 1), instance("b", 0), instance("c", 0, 7), instance("d", 0, 7)])
    known = {one.host: share for one, share in found.items()}
    assert known == pytest.approx({"a": 1 / 1.1, "b": 0.1 / 1.1, "c": 0.5, "d": 0.5})


@pytest.mark.parametrize(
    ("now", "lines"),
    [
        ([instance("b", 3), instance("a", addresses=("10.0.0.2", "10.0.0.1"))], []),
        ([instance("a", addresses=("10.0.0.1", "10.0.0.2"))], ["left b:80"]),
        (
            [
                instance("a", addresses=("10.0.0.1", "10.0.0.2")),
                instance("b", 3),
                instance("c", 4, addresses=()),
            ],
            ["joined c:80: priority 0, weight 4, share 50.0%, addresses looked up at connect"],
        ),
        (
            [instance("a", 3, 2, ["10.0.0.3"]), instance("b", 3)],
            [
                (
                    "changed a:80: priority 0 to 2, weight 1 to 3, "
                    "addresses 10.0.0.1, 10.0.0.2 to 10.0.0.3, share now 100.0%"
                )
            ],
        ),
    ],
)
def test_changes_of_instances(now, lines):
    """Each difference between two sets is a line; the order of records and addresses is no
    difference."""
    before = answer(instance("a", addresses=("10.0.0.1", "10.0.0.2")), instance("b", 3))
    assert list(changes(before, answer(*now))) == lines


def test_changes_of_metadata():
    """A change of metadata alone is a line, which shows the values that differ, shortened and
    without control characters."""

    def known(metadata):
        return answer(lbclient.Instance("a", 80, metadata=metadata))

    before = known({"zone": "x", "tags": ["v1"], "node": "n"})
    now = known({"zone": "y", "tags": ["v1", "\x1b[2J"], "rack\n": "r" * 999, "node": "n"})
    (line,) = changes(before, now)
    assert line.startswith("changed a:80: rack\\n None to 'rrr")
    assert "rrr..., tags ['v1'] to ['v1', '\\x1b[2J'], zone 'x' to 'y', share now 100.0%" in line
    assert len(line) < 500
    assert not list(changes(now, now))


def test_changes_of_refusals():
    """A record that is refused for the first time, or for another reason, is a line; so is one that
    is gone."""
    before = answer(refused=[("one", "old"), ("two", "same"), ("three", "old")])
    now = answer(
        refused=[("two", "same"), ("one", "new"), ("four", "pass allow=['::1/128'] to permit it")]
    )
    assert list(changes(before, now)) == [
        "refused four: pass --allow ::1/128 to permit it",
        "refused one: new",
        "no longer refused three",
    ]


class Script:
    """A resolver that returns scripted answers, and the clock of its subscription."""

    def __init__(self):
        self.now = 100.0

    def resolve(self):
        if isinstance(self.next, BaseException):
            raise self.next
        return self.next


@pytest.fixture
def told(capsys):
    script = Script()
    watch = Reporter("orders", script, lambda: script.now).subscription

    def run(outcome):
        """What a round with this outcome prints, 20 s after the last one, without time stamps."""
        script.next, script.now = outcome, max(script.now + 20, watch.next_at)
        assert watch.claim()
        watch.run()
        out, err = (
            re.sub(r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ", "", one) for one in capsys.readouterr()
        )
        return (out or f"stderr: {err}" if out or err else "").splitlines()

    return run


def test_the_first_answer_is_shown_in_full(told):
    """Until there is an answer, each failure goes to stderr once; the answer is then shown in
    full."""
    failure = lbclient.DiscoveryError("no answer")
    line = "stderr: lookup failed, no instance is known, next try in 1 s: no answer"
    assert told(failure) == [line]
    assert told(failure) == []
    assert told(ValueError()) == [re.sub("1 s.*", "4 s: ValueError", line)]
    first, *_, last = told(answer(instance("a")))
    assert first == "orders: 1 instance in 1 tier, TTL 30 s, age 0 s"
    assert re.fullmatch("watching, next lookup in (27|28|29|30|31|32|33) s", last)


def test_failed_lookups_are_told_once_with_the_age_of_what_is_in_use(told):
    """A failure is shown once for each reason, with age and next try; its end is shown too."""
    told(answer(instance("a")))
    (line,) = told(lbclient.DiscoveryError("no answer"))
    shown = re.fullmatch(
        r"lookup failed, 1 instance still in use, age (\d+) s, next try in 1 s: no answer", line
    )
    assert 20 <= int(shown[1]) <= 33
    assert told(lbclient.DiscoveryError("no answer")) == []
    assert "in 4 s: refused" in told(lbclient.DiscoveryError("refused"))[0]
    (line,) = told(answer(instance("a")))
    assert line == f"lookup works again, age was {int(shown[1]) + 60} s"


def test_a_service_declared_absent_and_offered_again(told):
    """After absence all instances are dropped; failures then say that none is known, and later all
    are shown to join."""
    told(answer(instance("a"), instance("b"), refused=[("c", "its port is 0")]))
    absent = lbclient.ServiceAbsent("not offered")
    assert told(absent) == [
        "service declared absent, 2 instances dropped, next try in 1 s: not offered"
    ]
    assert told(absent) == []
    assert told(answer(instance("a"))) == [
        "offered again",
        "joined a:80: priority 0, weight 1, share 100.0%, addresses 10.0.0.1",
    ]
    told(absent)
    assert told(ValueError("odd")) == [
        "lookup failed, no instance is known, next try in 2 s: ValueError: odd"
    ]
    assert told(answer(instance("a")))[0] == "lookup works again"


def test_an_interrupted_question_is_no_failed_lookup(told):
    """Ctrl-C during a question ends the watch without output."""
    with pytest.raises(KeyboardInterrupt):
        told(KeyboardInterrupt())


def test_a_list_that_never_changes_is_not_watched(capfd):
    """`--watch` of a list shows it, says that it never changes, and ends with status 0."""
    assert main(["resolve", "http://10.0.0.1:8080", "--watch"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("10.0.0.1:8080: 1 instance in 1 tier, it never changes\n")
    assert out.endswith(" nothing to watch: this never changes\n")
    assert err == ""


class Watching:
    """`lbclient resolve --watch` as a process, its lines as they come."""

    def __init__(self, *arguments):
        self.process = begun("resolve", "--watch", *arguments)
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(20)
        self.process.stdout.close()
        self.process.stderr.close()

    def line(self):
        return self._lines.get(timeout=20)

    def until(self, pattern):
        """The first line that matches, and those before it."""
        before = []
        while (match := re.fullmatch(pattern, line := self.line())) is None:
            before.append(line)
        return match, before

    def end(self):
        """Its status and its stderr, after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20), self.process.stderr.read()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("the end")


ORDERS = "_http._tcp.orders.zone.test"
RECORDS = """\
_http._tcp.orders 1 SRV 0 3 8001 a
_http._tcp.orders 1 SRV 0 1 8002 b
a A 10.0.0.1
b A 10.0.0.2
c A 10.0.0.3
lo A 127.0.0.1
"""


@pytest.fixture
def bind(tmp_path):
    with Bind(tmp_path, "zone.test.", f"{ORDERS}.", RECORDS) as running:
        yield running


@pytest.mark.slow
def test_watch_shows_what_happens_in_dns(bind):
    """While a zone changes and its server stops and starts, each change is one line with the
    time."""

    def comes(watching, *patterns):
        for pattern in patterns:
            assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d {pattern}", watching.line())

    with Watching("http+srv://orders.zone.test", "--nameserver", bind.address) as watching:
        assert watching.line() == "orders.zone.test: 2 instances in 1 tier, TTL 1 s, age 0 s"
        _, picture = watching.until(r".* watching, next lookup in 1 s")
        assert "  a.zone.test:8001       3  75.0%  10.0.0.1" in picture
        bind.update(f"update add {ORDERS} 1 SRV 0 4 8003 c.zone.test.")
        comes(watching, "joined c.zone.test:8003: priority 0, weight 4, share 50.0%, .* 10.0.0.3")
        bind.update(
            f"update delete {ORDERS} SRV 0 1 8002 b.zone.test.",
            f"update delete {ORDERS} SRV 0 3 8001 a.zone.test.",
            f"update add {ORDERS} 1 SRV 0 6 8001 a.zone.test.",
            f"update add {ORDERS} 1 SRV 0 1 8004 lo.zone.test.",
        )
        comes(
            watching,
            "left b.zone.test:8002",
            "changed a.zone.test:8001: weight 3 to 6, share now 60.0%",
            "refused 0 1 8004 lo.zone.test.: 127.0.0.1 is loopback; pass --allow 127.0.0.0/8 .*",
        )
        bind.update(f"update delete {ORDERS} SRV 0 1 8004 lo.zone.test.")
        comes(watching, "no longer refused 0 1 8004 lo.zone.test.")
        bind._stop()
        comes(watching, r"lookup failed, 2 instances still in use, age \d+ s, next try in 1 s: .*")
        assert bind._begin()
        _, failures = watching.until(r".* lookup works again, age was \d+ s")
        assert all(" lookup failed, 2 instances " in one for one in failures)
        bind.update(f"update delete {ORDERS} SRV", f"update add {ORDERS} 1 SRV 0 0 0 .")
        comes(watching, "service declared absent, 2 instances dropped, next try in 1 s: .* '\\.'.*")
        bind.update(
            f"update delete {ORDERS} SRV", f"update add {ORDERS} 1 SRV 2 1 8001 a.zone.test."
        )
        comes(watching, "offered again", "joined a.zone.test:8001: priority 2, .*")
        assert watching.end() == (130, "")


def test_a_closed_pipe_ends_the_watch_at_once(bind):
    """With `| head` the watch ends without waiting for the next change."""
    process = begun(
        "resolve", "http+srv://orders.zone.test", "--watch", "--nameserver", bind.address
    )
    while " watching, " not in process.stdout.readline():
        pass
    process.stdout.close()
    with process:
        try:
            status = process.wait(20)
        finally:
            process.kill()
        assert (status, process.stderr.read()) == (1, "")


def test_an_interrupt_ends_a_question_that_nobody_answers():
    """Ctrl-C ends the watch without output while a nameserver is silent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(20)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Watching("http+srv://orders.test", "--nameserver", address) as watching:
            silent.recv(512)
            assert watching.end() == (130, "")
            assert watching.line() == "the end"


def test_the_dns_server_answers_what_it_was_told_last(server, resolve):
    """A new zone is served from the answer line on, at any size (by TCP if necessary)."""
    assert resolve("http+srv://big.demo.test")[0] == 1
    server.tell(ZONE + "".join(f"_http._tcp.big SRV 0 1 {8000 + n} c\n" for n in range(200)))
    status, out, _ = resolve("http+srv://big.demo.test")
    assert (status, out.count("c.demo.test:8")) == (0, 200)


def test_an_instance_keeps_its_connection():
    """An instance speaks HTTP/1.1 keep-alive, answers after its delay, and names itself."""
    child = Child("backend", "orders-9", "0")
    connection = http.client.HTTPConnection("127.0.0.1", child.port)
    for path in ("/one", "/two"):
        connection.request("GET", path)
        answer = json.load(connection.getresponse())
        assert answer == {"path": path, "instance": "orders-9"}
        sock = connection.sock
    assert connection.sock is sock is not None
    connection.close()
    child.kill()


def test_a_process_that_has_gone_is_told_of():
    """A child that ended by itself causes an error that names it."""
    child = Child("backend", "orders-9", "0")
    assert child.port
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildFailed, match=f"backend \\(pid {child.pid}\\) has ended"):
        child.tell(0.1)
    child.kill()


@pytest.mark.parametrize(
    ("argv", "status", "shown"),
    [
        (["--version"], 0, f"lbclient {lbclient.__version__}\n"),
        (["--help"], 0, "watch instances fail and the traffic move to others"),
        (["demo", "--help"], 0, "pip install 'lbclient[cli]'"),
        (["resolve", "--help"], 0, "lbclient resolve http+dns://orders.example.com:8080"),
        ([], 2, "required: COMMAND"),
        (["balance"], 2, "invalid choice: 'balance'"),
        (["resolve"], 2, "required: SERVICE"),
        (["demo", "--strategy", "best"], 2, "least-busy"),
        (
            ["demo", "--seconds", "soon"],
            2,
            "must be a number of seconds from 5 to 3600, not 'soon'",
        ),
        (["demo", "--seconds", "1"], 2, "must be a number of seconds from 5 to 3600, not '1'"),
        (["demo", "--seconds", "nan"], 2, "must be a number of seconds from 5 to 3600, not 'nan'"),
    ],
)
def test_words_of_the_command_line(capsys, argv, status, shown):
    """Help and version go to stdout with status 0, usage errors to stderr with status 2."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert ended.value.code == status
    assert shown in (err if status else out)


# Watched services


@pytest.fixture
def registry(monkeypatch):
    """The URL `http+mine://NAME` of a registry whose watch the test controls."""
    scripted = Scripted(lambda update, _, __: update(answer(instance("10.0.0.1"))), "orders")
    module = types.SimpleNamespace(from_url=lambda _url, _query: scripted)
    monkeypatch.setitem(sys.modules, "lbclient.discovery.pushed.mine", module)
    monkeypatch.setitem(URL_SOURCES, "mine", UrlSource(pushed("mine"), "name"))
    return scripted


def test_resolve_of_a_watched_service(registry, capfd):
    """A watched service is shown once with its first answer, and its watch is stopped."""
    assert main(["resolve", "http+mine://orders"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("orders: 1 instance in 1 tier, watched, age 0 s\n")
    assert err == ""
    assert registry.stopped == 1


def test_resolve_of_a_watch_that_fails(registry, capfd, caplog):
    """If the watch fails before its first answer, the error is shown once, and the status is 1."""
    registry.script = lambda _, __, ended: ended(DiscoveryError("no leader"))
    assert main(["resolve", "http+mine://orders"]) == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", "lbclient: no leader\n")
    assert not caplog.messages


def test_watch_of_a_watched_service(registry, monkeypatch, tmp_path):
    """With `--watch` each update is shown at once; a failed watch is told with its next try, and
    after an interrupt the watch is stopped."""
    path = tmp_path / "shown"  # to empty capfd while a line is written would lose the line
    shown = path.open("w", buffering=1)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    numbers = itertools.count()
    over = threading.Event()

    def printed(number):
        assert not over.is_set()
        return path.read_text().count("\n") > number

    def next_line():
        """What is printed next, without its time."""
        until(partial(printed, number := next(numbers)))
        return re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ", "", path.read_text().split("\n")[number])

    def script():
        try:
            while next_line() != "watching":
                pass
            update, _, ended = registry.watches[0]
            update(answer(instance("10.0.0.2")))
            said = [next_line(), next_line()]
            ended(DiscoveryError("no leader"))
            said += [next_line(), next_line()]
        finally:
            if not over.is_set():
                signal.raise_signal(signal.SIGINT)
        return said

    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(script)
        try:
            assert main(["resolve", "http+mine://orders", "--watch"]) == 130
        finally:
            over.set()
            shown.close()
    left, joined, failed, again = said.result()
    assert left == "left 10.0.0.1:80"
    assert joined.startswith("joined 10.0.0.2:80: priority 0")
    assert re.fullmatch(r"watch failed, 1 .* in use, age 0 s, next try in 1 s: no leader", failed)
    assert again == "watch works again"
    assert registry.stopped == 1
