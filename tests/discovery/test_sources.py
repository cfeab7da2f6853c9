"""Instances from a file, and several sources as one."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbclient import Answer, AsyncClient, Balancer, Client, DiscoveryError, Instance, ServiceAbsent
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import FirstOf, Union
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.file import FileResolver
from lbclient.discovery.registry import URL_SOURCES, Target, UrlSource, target_of
from lbclient.discovery.resolver import StaticResolver
from lbclient.discovery.service_url import ParsedService, path_of, shown
from tests.support.dns import Liar, servfail
from tests.support.http import tells_port

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (Instance(f"10.0.0.{n}", 80) for n in (1, 2, 3))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "instances"


@pytest.fixture
def liar():
    with Liar() as one:
        yield one


def said(path: Path, content: str | bytes) -> list[str]:
    """The instances of a file with this content."""
    return [str(one) for one in answer(path, content).instances]


def answer(path: Path, content: str | bytes) -> Answer:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return FileResolver(path).resolve()


def refusals(path: Path, content: str) -> list[tuple[str, str]]:
    """The entry that is left out of a file which also has a good one."""
    found = answer(path, content)
    assert ("good", 1) in [(one.host, one.port) for one in found.instances]
    return [(one.record, one.reason) for one in found.refused]


def failure(resolver) -> str:
    """The failure of a resolver; it must be the same each time."""
    texts = set()
    for _ in range(2):
        with pytest.raises(DiscoveryError) as caught:
            resolver.resolve()
        texts.add(str(caught.value))
    (text,) = texts
    assert text.isprintable()
    return text


def replace(path: Path, content: str) -> None:
    """Replace the file as a whole, as `mv` does."""
    beside = path.with_name("beside")
    beside.write_text(content)
    beside.replace(path)


def lines(*servers) -> str:
    return "".join(f"127.0.0.1:{server.port}\n" for server in servers)


# A file: lines


def test_a_line_is_an_instance(path):
    """Each line is an instance, with weight and priority; blanks and comments are ignored."""
    found = answer(
        path,
        "# orders\n\n10.0.0.1:8080\n  [::1]:8080\tweight=3  priority=1 # the old one\n"
        "Orders.Example.:80 priority=2 weight=0.5\n",
    )
    assert [(str(one), one.weight, one.priority) for one in found.instances] == [
        ("10.0.0.1:8080", 1, 0),
        ("[::1]:8080", 3, 1),
        ("orders.example:80", 0.5, 2),
    ]
    assert (found.ttl, found.refused) == (1, ())


@pytest.mark.parametrize(
    ("content", "instances"),
    [
        (b"a:1\r\nb:2\r\n", ["a:1", "b:2"]),
        (b"\xef\xbb\xbfa:1\n", ["a:1"]),
        (b'\xef\xbb\xbf["a:1"]', ["a:1"]),
        (b"a:1", ["a:1"]),
        (b"\n\n \t\n[::1]:80\n[::2]:80\n", ["[::1]:80", "[::2]:80"]),
        (b"[fe80::1%eth0]:80\n", ["[fe80::1%eth0]:80"]),
        ("b\xfccher.example:80\n".encode(), ["xn--bcher-kva.example:80"]),
        (b"a:1\na:1\n", ["a:1"]),
    ],
    ids=["CRLF", "BOM", "BOM and JSON", "no end", "IPv6 first", "zone", "IDNA", "twice"],
)
def test_lines_of_every_editor(path, content, instances):
    """Line ends, byte order marks and blanks of any editor are ignored."""
    assert said(path, content) == instances


@pytest.mark.parametrize(
    ("line", "record", "reason"),
    [
        ("host", "host", "must be host:port"),
        ("host:", "host:", "must be host:port"),
        ("host:0", "host:0", "port must be from 1 to 65535"),
        ("host:65536", "host:65536", "port must be from 1 to 65535"),
        ("host:\uff18\uff10", "host:\uff18\uff10", "must be host:port"),
        ("::1:80", "::1:80", "must be host:port or [address]:port"),
        ("[orders]:80", "[orders]:80", "must be host:port or [address]:port"),
        ("[1::2::3]:80", "[1::2::3]:80", "host must be"),
        ("a..b:80", "a..b:80", "host must be"),
        ("http://h:80", "http://h:80", "must be host:port"),
        ("http://alice:hunter2@h:80", "h:80", "must be host:port"),
        ("h:80 weight=", "h:80", "weight must be a plain number, not ''"),
        ("h:80 weight=nan", "h:80", "weight must be a plain number, not 'nan'"),
        ("h:80 weight=1e999", "h:80", "weight must be a plain number"),
        ("h:80 weight=1_0", "h:80", "weight must be a plain number"),
        ("h:80 weight=-1", "h:80", "weight must be a plain number"),
        ("h:80 priority=0.5", "h:80", "priority must be a plain number"),
        ("h:80 priority=" + "9" * 200, "h:80", "priority must be a plain number"),
        ("h:80 weight=1 weight=2", "h:80", "weight is given twice"),
        ("h:80 wieght=3", "h:80", "unknown option 'wieght'; the options are weight, priority"),
        ("h:80 drained", "h:80", "unknown option 'drained'"),
        ("h\x00h:80", r"h\x00h:80", "host must be"),
        ("[fe80::1%\xe9]:80", "[fe80::1%\xe9]:80", "must"),
        ("[fe80::1%" + "a" * 280 + "]:80", "[fe80::1%", "must"),
        ("h\x1b[2J:80", r"h\x1b[2J:80", "must be host:port"),
        ("[fe80::1%a\x00b]:80", r"[fe80::1%a\x00b]:80", "must"),
        ("h:80\x0bweight=3", "h:80", "must be host:port"),
        ("h" * 400 + ":80", "h" * 300 + "...", "at most 300 characters"),
    ],
)
def test_a_bad_line_is_left_out(path, line, record, reason):
    """A line that is not an instance is left out, with its number and the reason, and without
    secrets; the rest is used."""
    ((number_and_record, why),) = refusals(path, f"good:1\n\n{line}\n")
    assert number_and_record.startswith(f"line 3 {record}")
    assert reason in why
    assert "hunter2" not in why
    assert (number_and_record + why).isprintable()


def test_not_all_of_many_refusals_are_told(path):
    """A hundred refusals are listed one by one, and the number of the others."""
    found = refusals(path, "good:1\n" + "bad\n" * 1000)
    assert len(found) == 101
    assert found[-1] == ("900 more", "not listed one by one")


# A file: JSON


@pytest.mark.parametrize("wrap", ["{}", ' \n{{"instances": {}}}\n'], ids=["list", "object"])
def test_json_entries(path, wrap):
    """JSON is a list, alone or under `instances`, of strings and of objects with every field."""
    entries = [
        "10.0.0.1:80",
        "[::1]:80",
        {"host": "b", "port": 2, "weight": 0.5, "priority": 1, "metadata": {"zone": ["x"]}},
        {"host": "c.example", "port": 3, "addresses": ["10.0.0.3", "::3"]},
    ]
    found = answer(path, wrap.format(json.dumps(entries)))
    assert [str(one) for one in found.instances] == [
        "10.0.0.1:80",
        "[::1]:80",
        "b:2",
        "c.example:3",
    ]
    assert (found.instances[2].weight, found.instances[2].priority) == (0.5, 1)
    assert found.instances[2].metadata == {"zone": ["x"]}
    assert found.instances[3].addresses == ("10.0.0.3", "::3")
    assert found.refused == ()


@pytest.mark.parametrize(
    ("entry", "record", "reason"),
    [
        ('"h"', "h", "must be host:port"),
        ('"h:80 weight=3"', "h:80 weight=3", "host:port"),
        ('"\\ud800:80"', r"\ud800:80", "host must be"),
        ("5", "", 'must be "host:port", or an object'),
        ("null", "", 'must be "host:port", or an object'),
        ('["h:80"]', "", 'must be "host:port", or an object'),
        ("{}", "", "must have host and port"),
        ('{"host": "h"}', "h", "must have port"),
        ('{"host": "h", "port": "80"}', "h:80", "port must be a whole number"),
        ('{"host": "h", "port": true}', "h:True", "port must be a whole number"),
        ('{"host": "h", "port": 80.5}', "h", "port must be a whole number"),
        ('{"host": 5, "port": 80}', "5:80", "host must be"),
        ('{"host": "h\\r\\nX: y", "port": 80}', r"h\r\nX: y:80", "host must be"),
        ('{"host": "fe80::1%\\r\\n", "port": 80}', r"fe80::1%\r\n:80", "must"),
        (
            '{"host": "h", "port": 80, "wieght": 3}',
            "h:80",
            "unknown key 'wieght'; the keys are host,",
        ),
        ('{"host": "h", "port": 80, "weight": 1e999}', "h:80", "weight must be a finite number"),
        ('{"host": "h", "port": 80, "weight": -1}', "h:80", "weight must be a finite number"),
        ('{"host": "h", "port": 80, "weight": null}', "h:80", "weight must be a number"),
        ('{"host": "h", "port": 80, "priority": -1}', "h:80", "priority must be 0 or more"),
        ('{"host": "h", "port": 80, "metadata": []}', "h:80", "metadata must be a dict"),
        ('{"host": "h", "port": 80, "addresses": "10.0.0.1"}', "h:80", "addresses must be"),
        ('{"host": "h", "port": 80, "addresses": ["h"]}', "h:80", "addresses must contain IP"),
        ('{"host": "h", "port": 80, "addresses": ["::1%\\n"]}', "h:80", "must"),
        ('{"host": "h", "port": 80, "addresses": [5]}', "h:80", "addresses must contain IP"),
        ('{"host": "u:hunter2@h", "port": 80}', "h:80", "host must be"),
        ('{"host": "h", "port": ' + "9" * 4000 + "}", "h:9", "port must be from 1 to 65535"),
        ('{"host": ' + "[" * 400 + "]" * 400 + ', "port": 80}', "80", ""),
    ],
)
def test_a_bad_json_entry_is_left_out(path, entry, record, reason):
    """An entry that is not an instance is left out, with its index and the reason; the rest is
    used."""
    ((shown, why),) = refusals(path, f'["good:1", {entry}]')
    assert shown.startswith(f"[1] {record}".rstrip())
    assert reason in why
    assert "hunter2" not in shown + why
    assert (shown + why).isprintable()
    assert len(shown + why) < 800


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it lists no instance"),
        ("\n# nobody\n", "it lists no instance"),
        ("[]", "it lists no instance"),
        ('{"instances": []}', "it lists no instance"),
        ("hello\nworld\n", "it lists no instance; refused line 1 hello: must be host:port"),
        ("[1, 2]\n", "it lists no instance; refused line 1 [1,"),
        ("{}", 'it must contain a list, or {"instances": [...]}'),
        ('{"instances": {}}', "it must contain a list"),
        ('{"' + "k" * 9999 + '": 5}', "unknown key 'kkkk"),
        ('{"instances": ["a:1"], "ttl": 5}', "unknown key 'ttl'; the keys are instances"),
        ('{"host": "a", "port": 1}', "unknown key 'host'; the keys are instances"),
        ('["a:1"', "it is not valid JSON: "),
        ('["a:1", ]', "it is not valid JSON: "),
        ('["a:1"] x', "it is not valid JSON: Extra data"),
        ('["a:1"]["b:2"]', "it is not valid JSON: Extra data"),
        ("[", "it is not valid JSON: "),
        ('[{"host": "a", "host": "b", "port": 1}]', "an object has the same key twice"),
        ('[{"host": "a", "port": 1, "weight": NaN}]', "NaN is not a number"),
        ('[{"host": "a", "port": 1, "weight": -Infinity}]', "-Infinity is not a number"),
        ('[{"host": "a", "port": ' + "9" * 5000 + "}]", "it is not valid JSON: "),
        ('["a\x01:1"]', "it is not valid JSON: Invalid control character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"instances":' * 100_000, "nested too deeply"),
        (b"\xff\xfea\x00:\x001\x00", "it is not UTF-8"),
        (b"a:1\nb\xe9:2\n", "it is not UTF-8: invalid continuation byte at byte 5"),
    ],
    ids=range(25),
)
def test_what_is_no_list_of_instances(path, content, reason):
    """A file without instances, or with an invalid format, fails with its path and the reason."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = failure(FileResolver(path))
    assert text.startswith(f"{path}: ")
    assert reason in text
    assert len(text) < 1000


# A file: reading it


def test_a_file_that_cannot_be_read(tmp_path):
    """A missing file, a directory, a pipe, a socket, a device or a file that is too large fails
    with its own reason, and nothing blocks."""
    missing, pipe, large = (tmp_path / name for name in ("missing", "pipe", "large"))
    loop, listening = tmp_path / "loop", tmp_path / "socket"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    large.write_bytes(b"#" * (4 << 20) + b"\n")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(listening))
        assert f"{listening}: " in failure(FileResolver(listening))
    assert failure(FileResolver(missing)) == f"{missing}: No such file or directory"
    assert failure(FileResolver(missing / "x")) == f"{missing / 'x'}: No such file or directory"
    assert failure(FileResolver(tmp_path)) == f"{tmp_path}: Is a directory"
    assert failure(FileResolver(pipe)) == f"{pipe}: it is not a regular file"
    assert failure(FileResolver("/dev/zero")) == "/dev/zero: it is not a regular file"
    assert failure(FileResolver(large)) == f"{large}: it is larger than 4 MiB"
    assert failure(FileResolver(loop)).startswith(f"{loop}: Too many levels of symbolic links")


def test_permission_lost(path, monkeypatch):
    """A file whose permission is taken away fails with the reason of the operating system, and is
    read again once it is permitted."""

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    path.write_text("a:1\n")
    resolver = FileResolver(path)
    good = resolver.resolve()
    with monkeypatch.context() as patched:
        patched.setattr("lbclient.discovery.file.os.open", denied)
        assert failure(resolver) == f"{path}: Permission denied"
    assert resolver.resolve() is good


def test_the_same_bytes_are_the_same_answer(path):
    """A file is parsed if its bytes differ, whatever its times are; otherwise the answer is the
    same object."""
    path.write_text("a:1\n")
    resolver = FileResolver(path, interval=7)
    before = resolver.resolve()
    assert before.ttl == 7
    replace(path, "a:1\n")
    assert resolver.resolve() is before
    times = path.stat()
    path.write_text("a:2\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [str(one) for one in resolver.resolve().instances] == ["a:2"]


def test_a_relative_path_stays_where_it_was(path, monkeypatch, tmp_path):
    """A relative path counts from the directory at construction; links are followed each time."""
    path.write_text("a:1\n")
    monkeypatch.chdir(tmp_path)
    resolver = FileResolver(path.name)
    monkeypatch.chdir("/")
    assert resolver.resolve().instances[0].host == "a"
    assert str(resolver) == str(path)


@pytest.mark.parametrize("before", ["x:9\n", "10.0.0.1:8080\n10.0.0.2:8080\n10.0.0.3:8080\n"])
def test_a_half_written_line_is_no_instance(path, before):
    """Wherever a rewrite in place is cut, no answer has an instance that the file does not list,
    and a cut that can be detected fails."""
    after = "10.0.0.1:8080\n10.0.0.20:8080 weight=25\n[2001:db8::1]:8080\n"
    whole = {"10.0.0.1:8080": 1, "10.0.0.20:8080": 25, "[2001:db8::1]:8080": 1}
    for cut in range(len(after)):
        path.write_text(before)
        resolver = FileResolver(path)
        resolver.resolve()
        path.write_text(after[:cut])
        if cut == 0 or after[cut - 1] != "\n":
            with pytest.raises(DiscoveryError):
                resolver.resolve()
        else:
            found = {str(one): one.weight for one in resolver.resolve().instances}
            assert found.items() <= whole.items()
        path.write_text(after)
        assert {str(one): one.weight for one in resolver.resolve().instances} == whole


def test_half_written_json_is_no_answer(path):
    """JSON that is cut anywhere fails as a whole."""
    whole = '{"instances": ["a:1", {"host": "b", "port": 80}, "[::1]:80"]}'
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        with pytest.raises(DiscoveryError):
            FileResolver(path).resolve()


def test_a_last_line_without_end_is_taken_the_second_time(path):
    """A last line without a newline is used at once if nothing is known yet, otherwise if it is the
    same at the next reading."""
    path.write_text("a:1")
    resolver = FileResolver(path)
    assert len(resolver.resolve().instances) == 1
    for content in ("a:1\nb:80", "a:1\nb:8080"):
        path.write_text(content)
        with pytest.raises(DiscoveryError, match=r": its last line has no newline, so it may be"):
            resolver.resolve()
    assert [str(one) for one in resolver.resolve().instances] == ["a:1", "b:8080"]


def test_a_file_rewritten_while_it_is_read(path):
    """A reader of a file that is being replaced gets one state of it, never a mixture."""
    states = [f"{name}:1\n{name}:2\n{name}:3\n" for name in "ab"]
    path.write_text(states[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for state in states:
                replace(path, state)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        resolver, seen = FileResolver(path), set()
        for _ in range(100_000):
            seen.add(tuple(map(str, resolver.resolve().instances)))
            if len(seen) == 2:
                break
    finally:
        stop.set()
        writer.join()
    assert seen == {tuple(state.split()) for state in states}


class ConfigMap:
    """A volume as Kubernetes makes it: the file is a link through `..data`, which is swapped."""

    def __init__(self, root: Path) -> None:
        self.root, self.turn = root, 0
        self.path = root / "instances"
        self.path.symlink_to("..data/instances")

    def put(self, content: str) -> None:
        self.turn += 1
        data, new, old = self.root / "..data", self.root / f"..{self.turn}", f"..{self.turn - 1}"
        new.mkdir()
        (new / "instances").write_text(content)
        (self.root / "..data_tmp").symlink_to(new.name)
        (self.root / "..data_tmp").rename(data)
        if (self.root / old).exists():
            (self.root / old / "instances").unlink()
            (self.root / old).rmdir()


def test_a_configmap_is_swapped(tmp_path):
    """The swap of a ConfigMap's links is noticed at the next reading."""
    volume = ConfigMap(tmp_path)
    volume.put("a:1\n")
    resolver = FileResolver(volume.path)
    assert resolver.resolve().instances[0].host == "a"
    volume.put("b:1\n")
    assert resolver.resolve().instances[0].host == "b"


# A file: any bytes


def legal(answer: Answer) -> bool:
    """Every field can be connected to, logged, and used in a Host header."""
    texts = [str(one) for one in answer.instances]
    texts += [address for one in answer.instances for address in one.addresses]
    told = [text for one in answer.refused for text in (one.record, one.reason)]
    return (
        bool(answer.instances)
        and all(text.isprintable() and text.isascii() and " " not in text for text in texts)
        and all(text.isprintable() and len(text) < 2000 for text in told)
        and all(1 <= one.port <= 65535 for one in answer.instances)
    )


def legal_or_refused(resolver: FileResolver, path: Path) -> bool:
    try:
        return legal(resolver.resolve())
    except DiscoveryError as error:
        return str(error).startswith(f"{path}: ") and str(error).isprintable()


WORDS = st.sampled_from(
    ["h:80", "[::1]:80", "weight=3", "priority=1", "NaN", "1e999", "-1", "\r\n", "\u2028", "\ufeff"]
) | st.sampled_from('h:[]{}",#= \t\n\x00\x85@%')
FIELDS = st.sampled_from(["host", "port", "weight", "priority", "metadata", "addresses", "x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
HOSTS = st.sampled_from(["h", "::1", "fe80::1%", "10.0.0.1", "u:p@h"])
JSON = st.recursive(
    LEAVES | HOSTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)
ENTRY = st.fixed_dictionaries(
    {"host": HOSTS | st.builds("{}{}".format, HOSTS, st.text(max_size=4)), "port": st.just(80)},
    optional={"weight": LEAVES, "priority": LEAVES, "metadata": JSON, "addresses": JSON},
)
CONTENT = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(WORDS, max_size=30).map(lambda words: "".join(words).encode())
    | st.lists(ENTRY | JSON, max_size=5).map(lambda one: json.dumps(one).encode())
    | JSON.map(lambda one: json.dumps({"instances": one}).encode())
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT, after=CONTENT)
def test_any_bytes_are_an_answer_or_an_error(path, content, after):
    """D17, S4: whatever a file contains, the result is valid instances or a DiscoveryError of one
    line."""
    resolver = FileResolver(path)
    for one in (content, after, after):
        path.write_bytes(one)
        assert legal_or_refused(resolver, path)


# A file as a service


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: FileResolver(5), TypeError, "path must be a str or a pathlib.Path, not int"),
        (lambda: FileResolver(b"/x"), TypeError, "path must be a str"),
        (lambda: FileResolver(""), ValueError, "path must name a file, not ''"),
        (lambda: FileResolver("a\ud800b"), ValueError, r"path must name a file, not 'a\\ud800b'"),
        (lambda: FileResolver("a\0b"), ValueError, r"path must name a file, not 'a\\x00b'"),
        (lambda: FileResolver("/x", interval=0), ValueError, r"interval \(seconds\) must be"),
        (lambda: FileResolver("/x", interval="1"), TypeError, r"interval \(seconds\) must be"),
        (lambda: Balancer("http+file://etc/x"), ValueError, r"absolute path.*http\+file://etc/x"),
        (lambda: Balancer("https+file://"), ValueError, r"as in https\+file:///etc/orders"),
        (lambda: Balancer("http+file:/etc/x"), ValueError, "has no scheme"),
        (lambda: Balancer("http+file:///x?y"), ValueError, "query or a fragment"),
        (lambda: Balancer("http+file:///x%00"), ValueError, "path must name a file"),
        (lambda: Balancer(["http+file:///x"]), ValueError, "cannot be in a list"),
        (lambda: Balancer("http+file:///x", scheme="https"), ValueError, "contradicts the URL"),
        (lambda: Balancer(FileResolver), TypeError, "not the class FileResolver"),
    ],
    ids=range(15),
)
def test_what_is_no_file(make, error, words):
    """K1: an invalid path, interval or URL of a file is refused by an error that names it."""
    with pytest.raises(error, match=words):
        make()


def target(service, **options) -> Target:
    given = {"name": None, "scheme": "http", "clock": lambda: 0.0, **options}
    return target_of(service, dns=Dns([]), address_filter=AddressFilter(), **given)


@pytest.mark.parametrize(
    ("service", "options", "expected"),
    [
        ("http+file:///etc/a%20b", {}, ("/etc/a b", "http", None, "http://fileresolver.invalid")),
        ("https+file://localhost/x", {}, ("/x", "https", None, "https://fileresolver.invalid")),
        ("http+file:///x%0A", {}, (r"/x\n", "http", None, "http://fileresolver.invalid")),
        (FileResolver("/x"), {}, ("/x", "http", None, "http://fileresolver.invalid")),
        (FileResolver("/x"), {"scheme": "https", "name": "o"}, ("o", "https", "o", "https://o")),
        ("https+file:///x", {"name": "orders"}, ("orders", "https", "orders", "https://orders")),
    ],
)
def test_names_of_a_file(service, options, expected):
    """The name of a file's service is the given one, else its path; with the path it has no Host of
    its own."""
    found = target(service, **options)
    assert (found.name, found.scheme, found.host, found.origin) == expected


def test_calls_follow_the_file(path, servers):
    """When a file is read again in the background, calls follow it, and none fails."""
    first, second = servers(tells_port, tells_port)
    path.write_text(lines(first))
    service = FileResolver(path, interval=0.01)
    with Client(service, name="orders", min_refresh=0.01) as client:
        assert client.get("/").text == str(first.port)
        replace(path, lines(second))
        while not second.hits:
            assert client.get("/").status_code == 200
        client.balancer.refresh()
        before = first.hits
        assert client.get("/").text == str(second.port)
        assert first.hits == before
    assert second.requests[-1].headers["host"] == "orders"


async def test_async_calls_follow_the_file(tmp_path, servers):
    """The same on event loops, and for the swap of a ConfigMap."""
    first, second = servers(tells_port, tells_port)
    volume = ConfigMap(tmp_path)
    volume.put(lines(first))
    async with AsyncClient(f"http+file://{volume.path}") as client:
        assert (await client.get("/")).text == str(first.port)
        volume.put(lines(second))
        await client.balancer.arefresh()
        assert (await client.get("/")).text == str(second.port)
    assert second.requests[-1].headers["host"] == f"127.0.0.1:{second.port}"


async def test_a_balancer_over_a_file(path):
    """Without HTTP, `call` and `acall` use the file's instances too, loopback included."""
    path.write_text("127.0.0.1:1\n")
    balancer = Balancer(f"http+file://{path}")

    async def shown(instance):
        return str(instance)

    assert balancer.call(str) == "127.0.0.1:1"
    replace(path, '["169.254.169.254:2"]')
    await balancer.arefresh()
    assert await balancer.acall(shown) == "169.254.169.254:2"
    balancer.close()


@pytest.mark.parametrize("fault", ["", "nonsense\n", '["127.0.0.1:1"', None])
def test_a_file_that_goes_bad_keeps_the_set(path, fault):
    """D2: while a file cannot be used, the last good set stays in use, and the error and its age
    are reported."""
    path.write_text("127.0.0.1:1\n")
    balancer = Balancer(f"http+file://{path}")
    assert balancer.call(str) == "127.0.0.1:1"
    path.unlink()
    if fault is not None:
        path.write_text(fault)
    with pytest.raises(DiscoveryError, match=r"refresh of .* failed"):
        balancer.refresh()
    assert balancer.call(str) == "127.0.0.1:1"
    assert str(path) in str(balancer.snapshot().error)
    replace(path, "127.0.0.1:2\n")
    balancer.refresh()
    assert (balancer.call(str), balancer.snapshot().error) == ("127.0.0.1:2", None)
    balancer.close()


def test_calls_while_a_file_is_rewritten_in_place(path, servers):
    """No call fails while a file is repeatedly truncated and written again."""
    one, two = servers(tells_port, tells_port)
    path.write_text(lines(one, two))
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for content in (lines(one), lines(two), lines(one, two)):
                path.write_text(content)

    service = FileResolver(path, interval=0.001)
    writer = threading.Thread(target=write)
    with Client(service, min_refresh=0.001) as client:
        assert client.get("/").status_code == 200
        writer.start()
        try:
            statuses = {client.get("/").status_code for _ in range(300)}
        finally:
            stop.set()
            writer.join()
    assert statuses == {200}


# Several sources as one


class Source:
    """A resolver that returns, or raises, what the test sets."""

    def __init__(self, *instances: Instance, ttl: float | None = 30) -> None:
        self.says(*instances, ttl=ttl)
        self.asked = 0

    def says(self, *instances: Instance, ttl: float | None = 30) -> None:
        self.result: object = Answer(instances, ttl)

    def fails(self, error: object = None) -> None:
        self.result = DiscoveryError("down") if error is None else error

    def resolve(self) -> Answer:
        self.asked += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Other(Source):
    """The same under another name."""


class Third(Source):
    """The same under another name."""


class Trial:
    """A composite of sources, with a clock of the test's."""

    def __init__(self, kind, *sources, **options) -> None:
        self.now = 1000.0
        self.resolver = target(kind(*sources, **options), clock=lambda: self.now).resolver

    def hosts(self) -> list[str]:
        return [one.host.rpartition(".")[2] for one in self.resolver.resolve().instances]

    @property
    def ttl(self) -> float | None:
        return self.resolver.resolve().ttl

    def failure(self, kind=DiscoveryError) -> str:
        with pytest.raises(DiscoveryError) as caught:
            self.resolver.resolve()
        assert type(caught.value) is kind
        return str(caught.value)


ABSENT = ServiceAbsent("not offered")


def test_first_that_answers():
    """The first part with an answer is used; those after it are not asked."""
    first, second = Source(ONE), Other(TWO)
    trial = Trial(FirstOf, first, second)
    assert (trial.hosts(), trial.ttl, second.asked) == (["1"], 30, 0)


@pytest.mark.parametrize("ttl", [None, 30, 5])
def test_a_later_one_serves_for_now(ttl):
    """While a later part is used, the earlier ones are asked again within seconds, even if the
    later one would never be asked again; they are used again as soon as they answer."""
    first, second = Source(ONE, ttl=None), Other(TWO, ttl=ttl)
    first.fails()
    trial = Trial(FirstOf, first, second)
    assert (trial.hosts(), trial.ttl) == (["2"], 5)
    first.says(ONE, ttl=None)
    assert (trial.hosts(), trial.ttl) == (["1"], None)


@pytest.mark.parametrize(
    "result", [DiscoveryError("down"), OSError("down"), Answer(()), "nonsense", None]
)
def test_one_lost_packet_moves_no_traffic(result):
    """A part in use that only fails is kept for `patience` seconds after its first failure. Then
    the next is used, and the first again as soon as it answers."""
    first, second = Source(ONE), Other(TWO)
    trial = Trial(FirstOf, first, second, patience=10)
    trial.hosts()
    trial.now += 3600  # its TTL: it has not failed in all this time
    first.result = result
    assert trial.failure().startswith("Source: ")
    trial.now += 9.9
    trial.failure()
    assert second.asked == 0
    trial.now += 0.1
    assert trial.hosts() == ["2"]
    first.says(ONE)
    assert trial.hosts() == ["1"]


def test_patience_begins_anew():
    """A successful answer restarts the patience."""
    first, second = Source(ONE), Other(TWO)
    trial = Trial(FirstOf, first, second, patience=10)
    for _ in range(3):
        first.says(ONE)
        assert trial.hosts() == ["1"]
        first.fails()
        trial.failure()
        trial.now += 9


def test_without_patience_the_next_serves_at_once():
    """With a patience of 0 the next part is used at the first failure."""
    first, second = Source(ONE), Other(TWO)
    trial = Trial(FirstOf, first, second, patience=0)
    trial.hosts()
    first.fails()
    assert trial.hosts() == ["2"]


def test_absence_is_believed_at_once():
    """If a part is declared absent, the next one is used at once, without patience."""
    first, second = Source(ONE), Other(TWO)
    trial = Trial(FirstOf, first, second)
    trial.hosts()
    first.fails(ABSENT)
    assert trial.hosts() == ["2"]
    first.fails()
    assert trial.hosts() == ["2"]


def test_who_serves_has_patience_whatever_its_place():
    """A part in use is kept while it only fails, even if it is not the first; a part that is not in
    use is not."""
    first, second, third = Source(ONE), Other(TWO), Third(THREE)
    trial = Trial(FirstOf, first, second, third, patience=10)
    trial.hosts()
    first.fails(ABSENT)
    assert trial.hosts() == ["2"]
    second.fails()
    assert trial.failure() == "Other: down"
    trial.now += 10
    assert trial.hosts() == ["3"]


def test_none_of_all_answers():
    """If no part answers, the error has each part's reason, in one line; it is ServiceAbsent if all
    are absent."""
    first, second = Source(), Other()
    first.fails(DiscoveryError("a\nb"))
    second.fails(ABSENT)
    trial = Trial(FirstOf, first, second)
    assert trial.failure() == r"Source: a\nb; Other: not offered"
    first.fails(ABSENT)
    assert trial.failure(ServiceAbsent) == "Source: not offered; Other: not offered"


def test_union_of_all():
    """The parts' instances are combined. Of duplicates, the lowest priority counts, then the
    largest weight; the shortest TTL counts."""
    heavy = Instance(TWO.host, TWO.port, weight=9)
    trial = Trial(
        Union, Source(ONE, TWO, ttl=None), Other(heavy, THREE, ttl=20), Third(ONE, ttl=30)
    )
    found = trial.resolver.resolve()
    assert [(one.host, one.weight) for one in found.instances] == [
        ("10.0.0.1", 1),
        ("10.0.0.2", 9),
        ("10.0.0.3", 1),
    ]
    assert found.ttl == 20


def test_union_of_what_never_changes():
    """A union of lists never changes either."""
    trial = Trial(Union, ["http://10.0.0.1"], [TWO])
    assert (trial.hosts(), trial.ttl) == (["1", "2"], None)


def test_union_keeps_what_fails():
    """A part that fails keeps its last answer, is listed with its reason, and is asked again within
    seconds; an absent part has no instances."""
    first, second = Source(ONE, ttl=None), Other(TWO, ttl=None)
    trial = Trial(Union, first, second)
    assert trial.hosts() == ["1", "2"]
    second.fails()
    found = trial.resolver.resolve()
    assert (len(found.instances), found.ttl) == (2, 5)
    assert [(one.record, one.reason) for one in found.refused] == [("Other", "down")]
    second.fails(ABSENT)
    assert trial.hosts() == ["1"]
    second.fails()
    assert trial.hosts() == ["1"]
    second.says(THREE, ttl=None)
    assert (trial.hosts(), trial.ttl) == (["1", "3"], None)


def test_union_of_failures():
    """If all parts fail, so does the round, with all reasons. If one that was known fails, and the
    others are absent, its instances are kept alone."""
    first, second = Source(), Other()
    first.fails()
    trial = Trial(Union, first, second)
    assert trial.failure() == "Source: down; Other: the answer holds no usable instance"
    first.says(ONE)
    second.says(TWO)
    trial.hosts()
    first.fails()
    second.fails(OSError())
    assert trial.failure() == "Source: down; Other: OSError"
    second.fails(ABSENT)
    assert trial.hosts() == ["1"]
    first.fails(ABSENT)
    trial.failure(ServiceAbsent)


def test_path_alone_is_no_service(tmp_path):
    """K1: a path, which has a `resolve` of its own, is refused; the error says how to pass it."""
    with pytest.raises(TypeError, match=r"pass lbclient\.FileResolver\(path\)"):
        Balancer(tmp_path / "instances")


def test_list_of_what_discovery_resolves_is_a_union():
    """K1: URLs that are not allowed in a list are refused; the error says how to combine them."""
    with pytest.raises(ValueError, match=r"cannot be in a list; use lbclient\.Union"):
        Balancer(["http+srv://a.test", "http+srv://b.test"])


def test_emptied_file_names_nobody(path):
    """An empty file does not count as half-written."""
    path.write_text("10.0.0.1:80\n")
    resolver = FileResolver(path)
    resolver.resolve()
    path.write_text("")
    with pytest.raises(DiscoveryError, match="it lists no instance"):
        resolver.resolve()


@pytest.mark.parametrize("kind", [FirstOf, Union])
def test_absent_part_is_called_no_more_though_another_fails(kind):
    """D7: if the part in use is declared absent, and nothing is known about the others, the whole
    is absent and the set is dropped."""
    first, second = Source(ONE), Other()
    second.fails()
    trial = Trial(kind, first, second)
    assert trial.hosts() == ["1"]
    first.fails(ABSENT)
    assert trial.failure(ServiceAbsent) == "Source: not offered; Other: down"


def test_what_a_part_refused_is_told(path):
    """Records that a part has refused are in the answer of the whole, unchanged."""
    path.write_text("a:1\nb\n")
    for kind in (FirstOf, Union):
        (refused,) = Trial(kind, FileResolver(path), [TWO]).resolver.resolve().refused
        assert (refused.record, refused.reason.split(" or")[0]) == ("line 2 b", "must be host:port")


def test_composites_of_composites():
    """A part may itself be a composite."""
    inner, last = Source(), Other(THREE)
    inner.fails()
    trial = Trial(Union, [ONE], FirstOf(inner, last))
    assert (trial.hosts(), trial.ttl) == (["1", "3"], 5)
    inner.says(TWO)
    assert trial.hosts() == ["1", "2"]


@pytest.mark.parametrize("kind", [FirstOf, Union])
@pytest.mark.parametrize(
    ("services", "options", "expected"),
    [
        (
            ("http+srv://a.test", "http+dns://b.test:8080"),
            {},
            ("a.test", "http", "a.test", "http://a.test", ""),
        ),
        (
            (["https://10.0.0.1/v1"], "https+dns://b.test:8080/v1"),
            {},
            ("b.test", "https", "b.test:8080", "https://b.test:8080", "/v1"),
        ),
        (
            ("https+srv://a.test/v1", FileResolver("/x"), [ONE], Source(ONE), "https+file:///x"),
            {"name": "orders"},
            ("orders", "https", "orders", "https://orders", "/v1"),
        ),
        (([ONE], FileResolver("/x")), {"scheme": "https"}, (None, "https", None, None, "")),
    ],
    ids=["first name", "only name", "given name", "no name"],
)
def test_a_composite_is_one_service(kind, services, options, expected):
    """Scheme and base path are those of the parts that have one, the name is that of the first part
    that has one; `name=` overrides it."""
    found = target(kind(*services), **options)
    name, scheme, authority, origin, path = expected
    assert (found.scheme, found.authority, found.path) == (scheme, authority, path)
    assert found.name == (name or f"{kind.__name__}(10.0.0.1:80, /x)")
    assert origin in (None, found.origin)
    assert found.host == name


@pytest.mark.parametrize("kind", [FirstOf, Union])
@pytest.mark.parametrize(
    ("services", "options", "error", "words"),
    [
        ((), {}, TypeError, "must be given at least one service"),
        (("http+srv://a", "https+srv://a"), {}, ValueError, "one scheme for all: http, https"),
        (("http+srv://a/v1", "http://a"), {}, ValueError, "one base path for all: /, /v1"),
        (("http+srv://a", 5), {}, TypeError, "service must be one of .*; not int"),
        (("http+srv://a", []), {}, ValueError, "must not be an empty list"),
        (("http+srv://a", FirstOf), {}, TypeError, "not the class FirstOf"),
        (("http+srv://u:hunter2@a", "http://b"), {}, ValueError, "pass auth= instead"),
        (("http+srv://a", "http://b"), {"scheme": "https"}, ValueError, "contradicts the URL"),
        (([FileResolver("/x")],), {}, TypeError, "not a list of FileResolver"),
    ],
    ids=range(9),
)
def test_what_is_no_composite(kind, services, options, error, words):
    """K1: parts that are not services, or not of one scheme and path, are refused."""
    with pytest.raises(error, match=words) as caught:
        Balancer(kind(*services), **options)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("patience", [-1, float("nan"), float("inf"), "1", None, True])
def test_what_is_no_patience(patience):
    """K4: a patience is a finite number of seconds, 0 or more."""
    with pytest.raises((ValueError, TypeError), match=r"^patience \(seconds\) must be"):
        FirstOf("http://a", patience=patience)


def test_a_description_serves_many():
    """One description can be used by any number of balancers, even if the parts were an
    iterator."""
    service = Union(iter(["http://10.0.0.1:80"]), (one for one in [TWO]))
    for _ in range(2):
        balancer = Balancer(service)
        assert {balancer.call(str) for _ in range(2)} == {"10.0.0.1:80", "10.0.0.2:80"}
        balancer.close()


def test_a_file_behind_dns(liar, path, servers):
    """`nameservers=` and `allow=` apply to each part: while DNS fails the file is used, then DNS,
    and only DNS is filtered."""
    first, second = servers(tells_port, tells_port)
    path.write_text(lines(second))
    liar.fault(servfail)
    service = FirstOf(f"http+dns://pods.test:{first.port}", FileResolver(path))
    with Client(service, nameservers=[liar.address], allow=["127.0.0.0/8"]) as client:
        assert client.get("/").text == str(second.port)
        liar.heal()
        liar.put("pods.test", "A", "127.0.0.1")
        client.balancer.refresh()
        assert client.get("/").text == str(first.port)
    assert second.requests[0].headers["host"] == f"pods.test:{first.port}"
    with Client(service, nameservers=[liar.address]) as client:
        assert client.get("/").text == str(second.port)
    with Client(Union(*service.services), nameservers=[liar.address]) as client:
        assert client.get("/").text == str(second.port)
        (refused,) = client.balancer.target.resolver.resolve().refused
        assert refused.record == f"http+dns://pods.test:{first.port}"
        assert "127.0.0.1 is loopback" in refused.reason


async def test_async_union_of_tiers(path, servers, dead_port):
    """A second source with a higher priority serves while the instances of the first fail."""
    (second,) = servers(tells_port)
    path.write_text(f"127.0.0.1:{dead_port}\n")
    spare = [Instance("127.0.0.1", second.port, priority=1)]
    async with AsyncClient(Union(f"http+file://{path}", spare)) as client:
        for _ in range(5):
            assert (await client.get("/")).text == str(second.port)


def test_a_source_is_one_function_and_one_entry(monkeypatch):
    """A URL of a kind in the registry is parsed by its function, and errors list it."""
    read = []

    def from_url(url, scheme, sources):
        read.append((url.netloc, scheme, sources.clock()))
        return ParsedService(StaticResolver([ONE]), shown(url), scheme, path_of(url), "mine.test")

    monkeypatch.setitem(URL_SOURCES, "mine", UrlSource(from_url, "name"))
    found = target("https+mine://mine.test/base")
    assert read == [("mine.test", "https", 0.0)]
    assert (found.name, found.origin, found.path) == ("mine.test", "https://mine.test", "/base")
    with pytest.raises(ValueError, match=r"'http\+mine://name', 'https\+mine://name'"):
        target("http+other://x")
