"""The command line, against real DNS, real instances and real processes."""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

import lbclient
from lbclient.cli import demo as demo_module
from lbclient.cli import main
from lbclient.cli.acts import Kill
from lbclient.cli.child import Child, ChildFailed
from lbclient.cli.demo import demo
from lbclient.cli.director import Director
from lbclient.cli.stage import CAST

MAIN = "import sys; from lbclient.cli import main; sys.exit(main())"
SHORT = """
import sys
from argparse import Namespace
from lbclient.cli.demo import demo
sys.exit(demo(Namespace(seconds=1.5, strategy="least-busy", plain=False)))
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


def started(*arguments):
    """A demo under way: its first line has come, so its processes are there."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "demo", "--plain", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("lbclient demo: ")
    return process


def ended(process):
    """Its output, once every process that holds its standard error (all do) has ended."""
    with process:
        return process.communicate(timeout=20)


def test_the_demo_loses_no_call_and_reports_every_event():
    """Killed, slowed and added instances cost no call, and each event is told with its outcome."""
    process = started("--seconds", "6")
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
    """However the demo ends, its DNS server and its instances end with it."""
    process = started()
    process.send_signal(sent)
    _, err = ended(process)
    assert (process.returncode, err) == (status, "")


def test_a_closed_pipe_ends_the_demo_quietly():
    """Under `| head -1` the demo ends at its next line, without a traceback, and cleans up."""
    process = started("--seconds", "5")
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_failed_call_is_an_exit_status_of_1(monkeypatch, capsys):
    """Where every instance dies, calls fail: the summary counts them and the status is 1."""
    acts = [Kill(0.1, one) for one in CAST]
    monkeypatch.setattr(demo_module, "Director", functools.partial(Director, acts=acts))
    assert demo(argparse.Namespace(seconds=1.5, strategy="random", plain=True)) == 1
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
    """Where rich is missing a terminal gets plain text, and is told how to get the live view."""
    monkeypatch.setattr(demo_module, "_can_draw", lambda: True)
    monkeypatch.setitem(sys.modules, "lbclient.cli.screen", None)
    demo(argparse.Namespace(seconds=0.1, strategy="least-busy", plain=False))
    out = capsys.readouterr().out
    assert out.startswith("For the live view: pip install 'lbclient[cli]'\nlbclient demo: ")


def test_resolve_shows_tiers_weights_and_shares(resolve):
    """Instances stand by tier, with weight, share of the tier, vetted addresses, and the TTL."""
    status, out, err = resolve("http+srv://orders.demo.test", "--allow", "127.0.0.0/8")
    assert (status, err) == (0, "")
    first, _, rest = out.partition("\n")
    assert first == "orders.demo.test: 4 instances in 2 tiers, TTL 30 s"
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
    """Each refused record stands with its reason, in the words of the command line."""
    _, out, _ = resolve("http+srv://orders.demo.test")
    refused = out.partition("\nrefused\n")[2]
    for line in (
        r"  0 3 8001 a\.demo\.test\.  +127\.0\.0\.1 is loopback; pass --allow 127\.0\.0\.0/8",
        r"  7 1 0 c\.demo\.test\.  +its port is 0\n",
        r"  7 1 80 meta\.demo\.test\.  +169\.254\.169\.254 is a cloud metadata address;",
    ):
        assert re.search(line, refused), refused


def test_resolve_holds_targets_to_a_domain(resolve):
    """`--within` refuses the targets outside the domain; without an instance left, status 1."""
    status, out, err = resolve("http+srv://orders.demo.test", "--within", "else.test")
    assert (status, err) == (1, "lbclient resolve: there is no usable instance\n")
    assert out.count("it is not within else.test") == 5


def test_resolve_of_addresses_and_of_a_list(resolve):
    """`http+dns` gives an instance an address, and a static list what it says, without a TTL."""
    status, out, _ = resolve("http+dns://two.demo.test:8080")
    assert (status, out.split("\n")[0]) == (0, "two.demo.test: 1 instance in 1 tier, TTL 30 s")
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
    """Where discovery knows nothing usable the reason stands on stderr, and the status is 1."""
    status, _, err = resolve(service)
    assert status == 1
    assert err.startswith("lbclient")
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["orders"], "service must be one of"),
        (["http+srv://x.test", "--nameserver", "here"], "nameservers must hold addresses"),
        (["http+srv://x.test", "--allow", "loopback"], "allow must hold networks"),
        (["http+srv://x.test", "--within", "-"], "within must be a host name"),
    ],
)
def test_resolve_with_bad_arguments(capsys, arguments, named):
    """An argument that cannot be used is named on stderr, and the status is 2."""
    assert main(["resolve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"lbclient resolve: {named}")) == ("", True)


def test_the_dns_server_answers_what_it_was_told_last(server, resolve):
    """Once a new zone is taken over, answers come from it, at any size (by TCP where need be)."""
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
    """A child that ended by itself is an error that names it, not silence."""
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
        (["--help"], 0, "watch instances fail and the traffic move"),
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
