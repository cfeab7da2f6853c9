"""Forks: gRPC's threads do not exist in a forked child, so the child makes channels of its own, or
gets an error that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.recipes import ROOT

PROGRAM = ROOT / "tests" / "support" / "forking.py"
SUPPORT = "GRPC_ENABLE_FORK_SUPPORT=1"


def forked(scenario, *addresses, support, **environment):
    """What came of the work in each child: the name of the fork and of the work, and the result."""
    first, *others = addresses
    program = subprocess.run(
        [sys.executable, PROGRAM, first, scenario, *others],
        env={
            **os.environ,
            "GRPC_ENABLE_FORK_SUPPORT": support,
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    found = dict(line.split(": ", 1) for line in program.stdout.splitlines())
    assert found.pop("parent") == "ok"
    return found


def unusual(found):
    return {name: result for name, result in found.items() if result != "ok"}


@pytest.mark.slow
def test_forks_with_support(rpc_servers):
    """With gRPC's support of forks, child and parent go on calling: before and after the first
    call, over known and new channels, while a stream is under way, after a second fork, from
    another thread, and in a pool. Callbacks for the connectivity are called in the child too."""
    (server,) = rpc_servers()
    found = forked("unused_then_used", server.address, support="1")
    assert len(found) > 30
    assert unusual(found) == {}


def test_forks_without_support(rpc_servers):
    """Without gRPC's support, a child whose parent has called nothing calls; any other gets an
    error, also over a channel that the parent has not used."""
    (server,) = rpc_servers()
    found = forked("unused_then_used", server.address, support="0")
    before = {name: result for name, result in found.items() if name.startswith("unused")}
    assert len(before) == 8
    assert unusual(before) == {}
    assert found.pop("child nested") == "ok"
    after = {name: found[name] for name in found.keys() - before.keys()}
    assert {name.split()[0] for name in after} == {
        "another",
        "used",
        "grandchild",
        "stream",
        "thread",
        "multiprocessing",
        "pool",
    }
    assert all(SUPPORT in result for result in after.values())


@pytest.mark.slow
def test_forks_after_use_in_an_event_loop(rpc_servers):
    """A child of a process that has used gRPC in an event loop cannot: an error says so. Channels
    for threads work."""
    (server,) = rpc_servers()
    found = forked("used_in_a_loop", server.address, support="1")
    assert {result for name, result in found.items() if " known" in name or " new" in name} == {
        "ok"
    }
    refused = unusual(found)
    assert len(refused) == 6
    assert all("'spawn'" in result for result in refused.values())


@pytest.mark.slow
def test_forks_with_health_checks(rpc_servers):
    """Child and parent go on calling and checking, whatever the health checks do at the moment of
    the fork; an instance that hangs makes no difference."""
    well, hanging = rpc_servers(2)
    hanging.pause()
    try:
        found = forked("health_checks", well.address, hanging.address, support="1")
    finally:
        hanging.resume()
    assert found
    assert unusual(found) == {}
