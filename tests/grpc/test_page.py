"""The page `docs/grpc.md` and `examples/grpc/` are run as they stand."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import importlib
import socket
import subprocess
import sys
import textwrap

import grpc
import pytest
from grpc_tools import protoc

import lbclient
import lbclient.grpc
import lbclient.grpc.aio
from lbclient.balancer import balancer
from lbclient.discovery.resolver import StaticResolver
from tests.repo.test_blocks import blocks_of
from tests.support.recipes import ROOT

EXAMPLES = ROOT / "examples" / "grpc"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """The folder of the example's stubs, from which they can be imported."""
    folder = tmp_path_factory.mktemp("stubs")
    made = protoc.main(
        [
            "protoc",
            f"--proto_path={EXAMPLES}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            "orders.proto",
        ]
    )
    assert made == 0
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


class Server:
    """The server of the example, as a program."""

    def __init__(self, stubs):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "server.py"), str(self.port)],
            env={"PYTHONPATH": f"{stubs}:{ROOT}"},
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)

    def stop(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(stubs):
    one = Server(stubs)
    yield one
    one.stop()


def test_the_page(server, monkeypatch, capsys):
    """Each piece of Python of the page runs, against one server whatever service it names."""
    here = lbclient.Instance("127.0.0.1", server.port)
    target_of = balancer.target_of

    def known(*service, **options):
        target = target_of(*service, **options)
        return dataclasses.replace(target, resolver=StaticResolver((here,)))

    monkeypatch.setattr(balancer, "target_of", known)
    names = {"lbclient": lbclient, "grpc": grpc}
    for page_code in blocks_of("docs/grpc.md", "python"):
        body = textwrap.indent(page_code, "    ", lambda line: bool(line.strip()))
        code = f"async def snippet():\n{body}\n    return locals()\n"
        exec(compile(ast.parse(code), "a snippet", "exec"), names)
        with contextlib.suppress(ValueError):  # a channel that an earlier snippet has closed
            names |= asyncio.run(names["snippet"]())
        for made in list(names.values()):
            if isinstance(made, lbclient.grpc.BalancedChannel):
                made.close()
    assert names["order"].served_by == str(server.port)
    assert capsys.readouterr().out == "0\n1\n2\n"
    importlib.import_module("orders_pb2")


def test_the_commands():
    """The extra that the page names exists."""
    (command,) = blocks_of("docs/grpc.md", "console")
    assert command == "pip install 'lbclient[grpc]'\n"
    assert "\ngrpc = [" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_the_example(stubs):
    """The client of the example goes on while one of two servers is stopped."""
    servers = [Server(stubs) for _ in range(2)]
    client = subprocess.Popen(
        [
            sys.executable,
            "-u",
            str(EXAMPLES / "client.py"),
            *(f"127.0.0.1:{one.port}" for one in servers),
        ],
        env={"PYTHONPATH": f"{stubs}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [client.stdout.readline() for _ in range(4)]
        servers[0].stop()
        lines += [client.stdout.readline() for _ in range(6)]
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
        for one in servers:
            one.stop()
    assert all("served by" in line for line in lines)
    assert all(f"served by {one.port}" in "".join(lines[:4]) for one in servers)
    assert all(f"served by {servers[1].port}" in line for line in lines[-3:])
