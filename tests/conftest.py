"""What every test may ask for."""

from __future__ import annotations

import gc
import os
import sys

import pytest
from hypothesis import settings
from opentelemetry import trace

from lbclient._internal.deadline import CURRENT
from tests.support import http
from tests.support.faults import NAMESPACE
from tests.support.telemetry import Telemetry

# Tests start hundreds of processes, and with this variable each would compile the project again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Each run tries the same inputs, so a failure comes from the change that is tested.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("search", database=None, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config):
    """The whole suite runs with two workers a core, since for half of the time tests wait. What the
    command line names runs in this process, unless it says `-n`: workers take longer to start.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # a worker, which must not start workers of its own
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if whole and not config.option.usepdb and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = 2 * (os.cpu_count() or 1)
        config.option.dist = "worksteal"


def pytest_collection_finish():
    """What the imported modules hold stays until the end, so collections need not look at it. Many
    tests collect, and the modules of all packages that are tested hold a million objects."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session, exitstatus):
    """Fail if a test was skipped although everything is installed.

    Tests that need a permission which the machine does not give may still be skipped.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker, whose results the first process counts
        return
    skipped = [
        one for one in reporter.stats.get("skipped", []) if NAMESPACE not in str(one.longrepr)
    ]
    if os.environ.get("LBCLIENT_NO_SKIPS") and skipped and not exitstatus:
        reporter.write_line("tests were skipped, and LBCLIENT_NO_SKIPS forbids it", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _no_deadline_stays():
    """No test leaves an ambient deadline behind in its thread."""
    yield
    assert CURRENT.get() is None


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def servers():
    """Start instances: `servers(behaviour, ...)`; all are stopped at the end."""
    started: list[http.Server] = []

    def start(*behaviours: http.Behaviour) -> list[http.Server]:
        new = [http.Server(behaviour) for behaviour in behaviours]
        started.extend(new)
        return new

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def dead_port():
    """A port on loopback that refuses connections."""
    with http.refused_port() as port:
        yield port


@pytest.fixture
def telemetry():
    """At the end every span has ended, nothing is in flight, and no span is current."""
    made = Telemetry()
    yield made
    assert made.open == []
    assert made.total("lbclient.in_flight") == 0
    assert trace.get_current_span() is trace.INVALID_SPAN
    made.tracers.shutdown()
    made.meters.shutdown()
