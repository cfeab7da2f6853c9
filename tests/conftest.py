"""What every test may ask for."""

from __future__ import annotations

import os

import pytest
from opentelemetry import trace

from tests.support import http
from tests.support.faults import NAMESPACE
from tests.support.telemetry import Telemetry


def pytest_sessionfinish(session, exitstatus):
    """Where everything is installed, a skipped test is one that did not run.

    What a machine does not permit, though, no script can install.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [
        one for one in reporter.stats.get("skipped", []) if NAMESPACE not in str(one.longrepr)
    ]
    if os.environ.get("LBCLIENT_NO_SKIPS") and skipped and not exitstatus:
        reporter.write_line("tests were skipped, and LBCLIENT_NO_SKIPS forbids it", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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
