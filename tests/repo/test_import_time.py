"""What `import lbclient` loads, and what is loaded when it is first used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lbclient
from tests.support.dns import Liar
from tests.support.http import tells_port

ROOT = Path(__file__).parents[2]
LATE = {"dns", "h2", "hpack", "httpcore", "httpcore2", "httpx2", "rich", "trio", "uvloop"}
"""What DNS, HTTP/2, the other flavour, the commands and trio bring along."""
FIRST_USES_AT_ONCE = """
import lbclient, sys, threading

together, statuses = threading.Barrier(8), []

def call():
    together.wait()
    with lbclient.Client(
        "http+srv://shop.test", nameservers=[sys.argv[1]], allow=["127.0.0.0/8"]
    ) as client:
        statuses.append(client.get("/").status_code)

threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(statuses)
"""
NAMES_AT_ONCE = """
import lbclient, sys, threading

sys.setswitchinterval(1e-6)
together, names = threading.Barrier(len(lbclient.__all__)), []

def ask(name):
    together.wait()
    getattr(lbclient, name)
    names.append(name)

threads = [threading.Thread(target=ask, args=[name]) for name in lbclient.__all__]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*sorted(names))
"""

WITHOUT_POSIX = """
import asyncio, os, select, sys  # asyncio itself needs fcntl here

sys.modules["fcntl"] = sys.modules["resource"] = None
del os.fork, os.register_at_fork, select.poll
import lbclient

with lbclient.Client(sys.argv[1:]) as client:
    print(client.get("/").status_code)

async def call():
    async with lbclient.AsyncClient(sys.argv[1:]) as client:
        print((await client.get("/")).status_code)

asyncio.run(call())
"""


def run(program, *arguments):
    """What a separate process prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def loaded_by(program):
    """The modules that are loaded after it, except those of Python itself."""
    shown = run(f"{program}\nimport json, sys\nprint(json.dumps(list(sys.modules)))")
    return {
        name
        for name in json.loads(shown)
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "__main__", "__mp_main__"}
    }


def rooms_of(modules):
    ours = {name for name in modules if name.startswith("lbclient.")}
    return {room for name in ours for room in name.split(".")[1:]}


def packages_of(modules):
    return {name.partition(".")[0] for name in modules}


def test_import_loads_nothing():
    """The import alone loads nothing else: each name is loaded when it is first asked for."""
    assert loaded_by("import lbclient") == loaded_by("") | {"lbclient"}


def test_balancer_loads_the_engine_alone():
    """A balancer loads neither HTTP nor DNS, commands or simulator, and about 160 modules."""
    modules = loaded_by("import lbclient\nlbclient.Balancer('http://127.0.0.1:1')")
    assert not packages_of(modules) & {*LATE, "h11", "httptools", "httpx"}
    assert not rooms_of(modules) & {"cli", "http", "httpx2", "registration", "simulation"}
    assert len(modules) <= 170


def test_calls_load_no_names():
    """After a client is made, each name that a call may need is loaded, so that loading takes none
    of the call's time."""
    made = "import lbclient\nlbclient.Client('http://127.0.0.1:1')"
    later = {"Consul", "Etcd", "Kubernetes", "Registration", "RegistrationError", "Zone"}
    names = sorted(set(lbclient.__all__) - later)
    assert loaded_by(f"{made}\nfrom lbclient import {', '.join(names)}") == loaded_by(made)


@pytest.mark.parametrize("kind", ["Client", "AsyncClient", "Transport", "AsyncTransport"])
def test_client_loads_http_alone(kind):
    """A client of a list of URLs loads no DNS, no HTTP/2 and no trio, and about 190 modules more
    than httpx, which loads its command line if click is installed."""
    modules = loaded_by(f"import lbclient\nlbclient.{kind}('http://127.0.0.1:1')")
    modules -= loaded_by("import httpx")
    assert not packages_of(modules) & LATE
    assert not rooms_of(modules) & {"cli", "httpx2", "registration", "simulation"}
    assert len(modules) <= 195


def test_client_of_a_service_in_dns_loads_dnspython():
    """It is loaded when the client is made, so that the deadline of a first call is not spent on
    it, or on the record types that it asks for."""
    modules = loaded_by("import lbclient\nlbclient.Balancer('http+srv://shop.test')")
    kinds = {f"dns.rdtypes.IN.{kind}" for kind in ("A", "AAAA", "SRV")}
    assert {"dns.resolver", *kinds} <= modules


def test_first_uses_in_threads(servers):
    """Threads that use everything for the first time at the same moment do not wait for each
    other's imports in a circle."""
    (server,) = servers(tells_port)
    with Liar() as liar:
        liar.put("_http._tcp.shop.test", "SRV", f"0 1 {server.port} a.shop.test.")
        liar.put("a.shop.test", "A", "127.0.0.1")
        assert run(FIRST_USES_AT_ONCE, liar.address).split() == str([200] * 8).split()


def test_names_in_threads():
    """Threads that each use another name for the first time, at the same moment, get it."""
    assert run(NAMES_AT_ONCE).split() == sorted(lbclient.__all__)


def test_late_names_are_as_good_as_others():
    """All public names can be imported by `*` and are listed; others raise AttributeError."""
    program = "import lbclient\nprint(*dir(lbclient))\nfrom lbclient import *\nprint(*dir())"
    before, after = (set(line.split()) for line in run(program).splitlines())
    assert set(lbclient.__all__) <= before
    assert set(lbclient.__all__) <= after
    with pytest.raises(AttributeError, match="module 'lbclient' has no attribute 'Clinet'"):
        _ = lbclient.Clinet
    with pytest.raises(ImportError, match="cannot import name 'Clinet' from 'lbclient'"):
        from lbclient import Clinet  # noqa: F401


@pytest.mark.parametrize("module", ["asgi", "errors", "protocol", "simulation", "wsgi"])
def test_submodules_are_attributes(module):
    """A public submodule is found as an attribute of the package without an import of its own."""
    assert run(f"import lbclient\nprint(lbclient.{module}.__name__)") == f"lbclient.{module}\n"


def test_systems_without_fork_and_limits(servers, dead_port):
    """A client works on a Python without `resource`, `fcntl`, `poll` and fork, as on Windows, even
    if an instance refuses connections."""
    (server,) = servers(tells_port)
    urls = [server.url, f"http://127.0.0.1:{dead_port}"]
    assert run(WITHOUT_POSIX, *urls).split() == ["200", "200"]
