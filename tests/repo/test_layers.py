"""The architecture as a test: which package may import which."""

import ast
from pathlib import Path

import pytest

import lbclient

ROOT = Path(lbclient.__file__).parent
LEVELS = [
    # The lowest level first. A package imports only from lower levels.
    {"errors", "_internal"},
    {"endpoint"},  # one instance, and what a client knows of it
    {"telemetry", "discovery", "strategy", "resilience"},  # where from, whom, how often, and spans
    {"core", "discovery/registration"},  # one call's decisions; a service's own record
    {"balancer"},  # calls carried out: threads, event loops, background
    {"protocol"},  # what the binding of a protocol uses of that
    # what is called: HTTP, or servers in virtual time; what a service is called by
    {"http", "grpc", "simulation", "asgi", "wsgi"},
    {"httpx2", ""},  # "" is lbclient/__init__.py
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ONLY_IN = {
    # third-party package: the files, or the folders, that may import it
    "dns": ("discovery/dns/", "discovery/registration/", "cli/demo/dns_server.py"),
    "grpc": ("grpc/", "cli/demo/rpc_backend.py"),
    "h11": ("http/connections/parsers.py",),
    "h2": ("http/",),
    "httpcore": (),
    "httpcore2": (),
    "httptools": ("http/connections/parsers.py",),
    "httpx": ("http/_compat.py", "cli/demo/", "discovery/pushed/api.py"),
    "httpx2": ("httpx2/_compat.py",),
    "opentelemetry": ("telemetry/",),
    "pybreaker": ("endpoint/breaker.py",),
    "rich": ("cli/demo/screen.py",),
    "tenacity": ("resilience/retry.py",),
}
CONTROL_PLANE = (
    "discovery/scheduler.py",
    "discovery/watched.py",
    "discovery/pushed/",
    "discovery/registration/",
)
"""What runs in the background below `balancer`: it has threads, and looks at the clock."""
IMPURE = {"time", "datetime", "asyncio", "threading", "anyio", "trio"}
GREEN = {"_thread", "os", "queue", "select", "selectors", "signal", "socket", "ssl", "subprocess"}
GREEN |= {"threading", "time"}
FILES = sorted(ROOT.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def name_of(path):
    """The dotted name of a file below `lbclient`: `http.client`; a package's is its folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(name):
    """The package that a module belongs to: the longest of its folders that has a level."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        if "/".join(parts[:size]) in LEVEL:
            return "/".join(parts[:size])
    raise AssertionError(f"{name} has no level")


def imports_of(path):
    """The dotted name of every module that a file imports, except for types only."""
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
            base = node.module or ""
            if node.level:
                above = len(path.relative_to(ROOT.parent).parts) - node.level
                folder = path.relative_to(ROOT.parent).parts[:above]
                base = ".".join(filter(None, [*folder, base]))
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole.removeprefix("lbclient.") in MODULES else base


def own_imports(path):
    """The modules of `lbclient` that a file imports."""
    for name in imports_of(path):
        if name.partition(".")[0] == "lbclient":
            inner = name.removeprefix("lbclient").removeprefix(".")
            again = inner.replace("httpx2.", "http.", 1)  # the same file, loaded a second time
            yield inner if inner in MODULES else again


LOADED = {name: set(own_imports(path)) for name, path in MODULES.items()}


@each_file
def test_imports_go_one_way(path):
    """A package imports only packages of lower levels."""
    room = room_of(name_of(path))
    for name in own_imports(path):
        other = room_of(name)
        lower = LEVEL[other] < LEVEL[room]
        assert other == room or lower, f"{room or 'lbclient'} imports {name or 'lbclient'}"


def test_no_cycles():
    """No file imports itself through others, neither when it is loaded nor later."""
    waiting = {name: set(own_imports(path)) - {name} for name, path in MODULES.items()}
    while free := {name for name, needed in waiting.items() if not needed & set(waiting)}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    assert not waiting, f"these import each other: {sorted(waiting)}"


@each_file
def test_a_package_that_loads_its_files_is_entered_by_itself(path):
    """No file imports a file of another package whose `__init__` imports that package's files: if
    two threads entered it in two places at the same moment, one would fail. Commands have one
    thread."""
    here = f"{name_of(path)}."
    for name in set() if room_of(name_of(path)) == "cli" else own_imports(path):
        for package in (above for above in MODULES if name.startswith(f"{above}.")):
            loads = [other for other in LOADED[package] if other.startswith(f"{package}.")]
            assert here.startswith(f"{package}.") or not loads, f"{name}: {package} loads {loads}"


def test_the_top_stays_small():
    """The top level has at most 17 entries, besides the files that Python requires."""
    named_by_python = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}
    entries = {path.name for path in ROOT.iterdir()} - named_by_python
    assert len(entries) <= 17, sorted(entries)


@each_file
def test_each_dependency_has_its_place(path):
    """Each third-party package is imported in its own place only."""
    here = str(path.relative_to(ROOT))
    for name in imports_of(path):
        places = ONLY_IN.get(name.partition(".")[0])
        assert places is None or here.startswith(places), f"{here} imports {name}"


@each_file
def test_http_names_no_flavour(path):
    """A file that is loaded for httpx and for httpx2 imports neither, nor its own package by name:
    it uses `._compat`."""
    twice = room_of(name_of(path)) in {"http", "httpx2"}
    assert not twice or "from lbclient.http" not in path.read_text()
    assert twice or "\nfrom ." not in path.read_text()
    for name in own_imports(path):
        assert room_of(name) != "http" or twice or name_of(path) == "", f"{path} imports {name}"


@each_file
def test_decisions_neither_wait_nor_look_at_the_clock(path):
    """Below `balancer`, except in the control plane, nothing uses threads, event loops or the
    clock."""
    here = str(path.relative_to(ROOT))
    if LEVEL[room_of(name_of(path))] < LEVEL["balancer"] and not here.startswith(CONTROL_PLANE):
        assert not {name.partition(".")[0] for name in imports_of(path)} & IMPURE


@each_file
def test_dice_are_handed_in(path):
    """Nothing uses the generator of the module `random`, which is imported only for its type, or to
    make a generator."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
    ]
    assert {node.attr for node in calls} <= {"Random"}


@each_file
def test_what_gevent_replaces_is_looked_up_late(path):
    """What gevent and eventlet replace in a module is looked up there when it is used: it is
    neither imported by name nor subclassed at import."""
    tree = ast.parse(path.read_text())
    by_name = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not by_name & GREEN
    bases = [base for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
    assert not {ast.unparse(base).partition(".")[0] for base in bases} & GREEN


def test_every_package_has_a_level():
    """These rules list exactly the existing packages."""
    assert {room_of(name) for name in MODULES} == set(LEVEL)
