"""The architecture, run: who may import whom."""

import ast
from pathlib import Path

import pytest

import lbclient

ROOT = Path(lbclient.__file__).parent
ORDER = [
    {
        "_version",
        "checks",
        "closing",
        "complaint",
        "deadline",
        "errors",
        "forking",
        "interruption",
        "lazy",
        "routes",
        "waiting",
    },
    {"instance", "line", "outcome", "terms"},
    {"events"},
    {"breaker", "budget", "news", "subset"},
    {"endpoint"},
    {"sent"},
    {"strategy", "retry", "telemetry", "discovery", "roster"},
    {"pool", "target", "rules"},
    {"membership", "selection"},
    {"rotation"},
    {"charges"},
    {"core"},
    {"info"},
    {"call"},
    {"shell", "snapshot", "calling", "health", "listening", "assembly"},
    {"control", "lease", "options"},
    {"balancer"},
    {"http", "recommended", "registration", "simulation"},
    {"httpx2"},
    {"", "testing"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
ROOM_OF = {
    "pybreaker": {"breaker"},
    "tenacity": {"retry"},
    "opentelemetry": {"telemetry"},
    "dns": {"discovery", "cli"},
    "httpx": {"http", "cli"},
    "h2": {"http"},
    "httpcore": set(),
    "httpx2": {"httpx2"},
    "httpcore2": set(),
    "h11": {"http"},
    "httptools": {"http"},
    "rich": {"cli"},
}
IMPURE = {"time", "datetime", "asyncio", "threading", "anyio", "trio"}
GREEN = {"_thread", "os", "queue", "select", "selectors", "signal", "socket", "ssl", "subprocess"}
GREEN |= {"threading", "time"}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path):
    """The room of a file: the folder, or the file at the top."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports_of(path):
    """Every import of a file, but those for types alone."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"lbclient.{room_of(path)}.{node.module}"
            elif node.module == "lbclient":
                yield from (f"lbclient.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rooms_imported(path):
    for name in imports_of(path):
        if name.startswith("lbclient."):
            room = name.split(".")[1]
            yield room if room in RANK else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    """A room imports only rooms below it."""
    room = room_of(path)
    for other in rooms_imported(path):
        assert other == room or RANK[other] < RANK[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_package_has_its_room(path):
    """Each third-party package is used in its own room only."""
    for name in imports_of(path):
        rooms = ROOM_OF.get(name.split(".")[0])
        assert rooms is None or room_of(path) in rooms, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_http_names_no_flavour(path):
    """What is loaded for httpx and for httpx2 names neither, nor itself: it asks `.flavour`."""
    for name in imports_of(path):
        if room_of(path) == "http":
            assert not name.startswith(("httpx", "httpcore")) or path.name == "flavour.py", name
        assert not name.startswith("lbclient.http.") or room_of(path) in {"", "http"}, name
    twice = room_of(path) in {"http", "httpx2"}
    assert not twice or "from lbclient.http" not in path.read_text()
    assert twice or "\nfrom ." not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_decisions_neither_wait_nor_look_at_the_clock(path):
    """Below `shell` nothing knows threads, loops or the clock, the refresher excepted."""
    if RANK[room_of(path)] >= RANK["shell"] or path.name == "refresher.py":
        return
    assert not {name.split(".")[0] for name in imports_of(path)} & IMPURE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dice_are_handed_in(path):
    """Nobody throws the module's dice: `random` is imported for its type, or to make one's own."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
    ]
    assert {node.attr for node in calls} <= {"Random"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_gevent_replaces_is_looked_up_late(path):
    """What gevent and eventlet replace in a module is looked up there when it is used, and neither
    imported by name nor subclassed when a module is loaded."""
    tree = ast.parse(path.read_text())
    by_name = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not by_name & GREEN
    bases = [base for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
    assert not {ast.unparse(base).partition(".")[0] for base in bases} & GREEN


def test_every_room_has_a_rank():
    """No room is forgotten by these rules."""
    assert {room_of(path) for path in FILES} <= set(RANK)
