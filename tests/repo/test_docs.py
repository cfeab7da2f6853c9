"""All Python in the README and in docs/ runs unchanged."""

import ast
import asyncio
import contextlib
import dataclasses
import inspect
import json
import re
import textwrap
from pathlib import Path
from types import ModuleType

import httpx
import pytest

import lbclient
from lbclient import simulation
from lbclient._internal.signals import Pause
from lbclient.balancer import balancer
from lbclient.balancer.threads import sleep
from lbclient.discovery.resolver import StaticResolver
from lbclient.protocol import bind
from tests.support.http import says

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = {
    "deploying.md",  # whole files: the tests in tests/deploying/ run them
    "extending.md",  # whole files: test_extending.py writes and tests them
    "grpc.md",  # tests/grpc/test_page.py runs it, with a server
    "llm.md",  # one program for scripted endpoints: test_llm_page.py runs it
}
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name not in RUN_ELSEWHERE
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    )
    if not code.startswith("# example.py")  # a program; test_blocks.py runs it
]
ORDER = {"id": 42}


class Answer:
    """A result that can be awaited, so that one `fn` does for `call` and for `acall`."""

    def __await__(self):
        yield from ()
        return self


class MyProtocolBusy:
    """The answer of a snippet's protocol."""


@pytest.fixture
def instance(servers, monkeypatch):
    """Whatever service a snippet names, its only instance is on loopback, and nothing asks DNS or
    any other discovery. Lists are unchanged, as are simulated services."""
    (server,) = servers(says(200, json.dumps(ORDER).encode()))
    here = lbclient.Instance("127.0.0.1", server.port, metadata={"distance": 1})
    target_of = balancer.target_of

    def known(*service, **options):
        target = target_of(*service, **options)
        if isinstance(target.resolver, StaticResolver):
            return target
        return dataclasses.replace(target, resolver=StaticResolver((here,)))

    monkeypatch.setattr(balancer, "target_of", known)
    return here


@pytest.fixture
def unregistered(monkeypatch):
    """A registration is checked but not entered, since its registry would be sent an update. Only
    the file of the key is replaced."""
    registration = lbclient.Registration

    def checked(*given, **options):
        if "via" not in options:
            assert isinstance(options["key"], Path)
            options["key"] = "registrar:c2VjcmV0"
        registration(*given, **options)
        return contextlib.nullcontext()

    monkeypatch.setattr(lbclient, "Registration", checked)


@pytest.fixture
def names(instance):
    """Names that snippets use and do not define."""
    pytest.importorskip("httpx2")
    servers = [simulation.Server(name, simulation.answers(lambda *_: 0.1)) for name in "ab"]
    service = [f"http://{instance}"]
    with lbclient.Client(service) as client, lbclient.Balancer(service) as made:
        yield {
            "MyProtocolBusy": MyProtocolBusy,
            "Pause": Pause,
            "call": bind(made).begin(),
            "client": client,
            "fetch": lambda host, port: (host, port),
            "fn": lambda _: Answer(),
            "httpx": httpx,
            "instance": instance,
            "lbclient": lbclient,
            "order": ORDER,
            "proxy": "http://127.0.0.1:9",
            "report": simulation.simulate(simulation.Scenario(servers, simulation.Open(30, 3))),
            "rest": sleep,
            "send": lambda attempt: attempt.instance,
            "serve": lambda: None,
            "service": service,
        }


def as_function(code):
    """The snippet as an async function, since a page may use `await` or show a function's body. It
    returns all names that the snippet defines."""
    body = textwrap.indent(code, "    ", lambda line: bool(line.strip()))
    tree = ast.parse(f"async def snippet():\n{body}\n    return locals()\n")
    return compile(tree, "a snippet", "exec")


async def closed(made):
    """Close what a snippet has left open."""
    for value in made.values():
        close = getattr(value, "aclose", None) or getattr(value, "close", None)
        if close is not None and not isinstance(value, type | ModuleType):
            waiting = close()
            if inspect.isawaitable(waiting):
                await waiting


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("code", SNIPPETS)
def test_every_snippet_runs(code, names, tmp_path, monkeypatch):
    """Each piece of Python runs unchanged, given the names that its page mentions."""
    monkeypatch.chdir(tmp_path)

    async def run():
        exec(as_function(code), names)
        made = await names["snippet"]()
        await closed(made if isinstance(made, dict) else {})

    with contextlib.redirect_stdout(None):
        asyncio.run(run())


def test_there_are_snippets_on_many_pages():
    """None of the pages that have Python is left out."""
    pages = {str(one.id).rpartition("-")[0] for one in SNIPPETS}
    assert {"README.md", "usage.md", "discovery.md", "resilience.md", "simulation.md"} <= pages


def test_the_judge_of_the_usage_page():
    """It repeats busy answers and failures, and never a good answer."""
    (code,) = (one.values[0] for one in SNIPPETS if "MyProtocolBusy" in one.values[0])
    names = {"MyProtocolBusy": MyProtocolBusy, "lbclient": lbclient}
    exec(code, names)
    instances = [lbclient.Instance(f"10.0.0.{number}", 1) for number in (1, 2, 3)]
    for first, sends in (("good", 1), (MyProtocolBusy(), 2), (ConnectionResetError(), 2)):
        outcomes = [first, "good"]

        def send(_, outcomes=outcomes):
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        with lbclient.Balancer(instances, judge=names["judge"]) as made:
            assert made.call(send, idempotent=True) == "good"
        assert len(outcomes) == 2 - sends


def test_files_that_the_design_names():
    """Each file and folder that docs/design.md names exists."""
    layout, text = re.fullmatch(
        r".*?^```\nlbclient/\n(.*?)^```$(.*)",
        (ROOT / "docs/design.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    ).groups()
    missing = {
        one
        for one in re.findall(r"`([\w./]+/|[\w./]+\.py)`", text)
        if not any((at / one).exists() for at in (ROOT, ROOT / "lbclient"))
    }
    there = {one.name for one in (ROOT / "lbclient").rglob("*.py*")}
    assert missing | set(re.findall(r"\w+\.pyi?\b", layout)) - there == set()
