"""What the tests of gRPC may ask for."""

from __future__ import annotations

import pytest

from tests.support.rpc import Rpcs, RpcServer


@pytest.fixture(params=["threads", "asyncio"])
def kind(request):
    """On threads and on asyncio; `test_interop.py` also runs on uvloop."""
    return request.param


@pytest.fixture
def rpc_servers():
    """Start servers: `rpc_servers(2)`; all are stopped at the end."""
    started: list[RpcServer] = []

    def start(number=1, tls=None):
        new = [RpcServer(tls) for _ in range(number)]
        started.extend(new)
        return new

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def rpcs(kind):
    """Open a channel: `rpcs(servers, ...)`; all are closed at the end."""
    opened: list[Rpcs] = []

    def open_to(service, **options):
        if isinstance(service, list):
            service = [getattr(one, "address", one) for one in service]
        new = Rpcs(kind, service, **options)
        opened.append(new)
        return new

    yield open_to
    for one in opened:
        one.close()
