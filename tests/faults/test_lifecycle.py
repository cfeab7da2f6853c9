"""Event loops, forks and the exit of the interpreter: what a client must survive.

Whatever forks, or ends an interpreter, runs in its own process; servers stay here.
"""

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio
import trustme

import lbclient
from lbclient._internal.blocking import run_blocking
from tests.support.http import says, tells_port, transports_of
from tests.support.interpreter import ended_soon
from tests.support.slow import slow_rows

LOOPS = FORKS = 100


def script(text: str, *arguments: str, options=("-W", "error", "-W", "ignore:.*fork:")):
    """Run code in its own interpreter. Returns its status and its output."""
    command = [sys.executable, *options, "-c", textwrap.dedent(text), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


# Event loops, one after another and side by side


def test_one_client_in_a_hundred_loops(servers):
    """C9: an async client that is used in a hundred event loops in turn works in each, and leaves
    nothing open from an earlier loop."""
    urls = [server.url for server in servers(tells_port, tells_port)]
    text = f"""
    import asyncio, sys, lbclient
    from pathlib import Path
    client = lbclient.AsyncClient(sys.argv[1:], strategy="round-robin")
    async def job():
        assert len({{(await client.get("/")).text for _ in range(3)}}) == 2
    def run():
        asyncio.run(job())
        return len(list(Path("/proc/self/fd").iterdir()))
    assert len({{run() for _ in range({LOOPS})}}) == 1
    assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 0
    asyncio.run(client.aclose())
    """
    assert script(text, *urls) == (0, "", "")


def test_asyncio_and_trio_by_turns(servers):
    """C9: the loops may be of different kinds."""
    (server,) = servers(says(200))
    client = lbclient.AsyncClient([server.url])

    async def job():
        return (await client.get("/")).status_code

    for run in (asyncio.run, trio.run) * 10:
        assert run(job) == 200 if run is trio.run else run(job()) == 200
        assert transports_of(client) == []
    trio.run(client.aclose)


def test_one_client_in_two_loops_at_once(servers):
    """C9, C25: loops in several threads share a client, and each has its own connections."""
    urls = [server.url for server in servers(*[says(200)] * 3)]
    client = lbclient.AsyncClient(urls)
    together = threading.Barrier(4)

    async def job():
        await asyncio.to_thread(together.wait, 10)
        statuses = [(await client.get("/")).status_code for _ in range(50)]
        await asyncio.gather(*[client.get("/") for _ in range(20)])
        return statuses

    with ThreadPoolExecutor(4) as pool:
        for statuses in pool.map(lambda _: asyncio.run(job()), range(4)):
            assert statuses == [200] * 50
    assert transports_of(client) == []
    assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 0


def test_body_dropped_in_a_loop_that_ended(servers):
    """C9, C14: a response that was dropped unread in one loop does not disturb the next loop."""
    (server,) = servers(says(200, b"x" * 1_000_000))
    client = lbclient.AsyncClient([server.url], max_in_flight=1)

    async def drop():
        await client.send(client.build_request("GET", "/"), stream=True)

    async def read():
        return len((await client.get("/")).content)

    def forget():
        asyncio.run(drop())
        gc.collect()

    for _ in range(3):
        with pytest.warns(ResourceWarning, match="never closed"):
            forget()
        assert asyncio.run(read()) == 1_000_000


def test_closing_in_one_loop_ends_all(servers):
    """C20: after `aclose` in one loop, calls in any other raise RuntimeError."""
    (server,) = servers(says(200))
    client = lbclient.AsyncClient([server.url])

    async def call():
        await client.get("/")

    asyncio.run(call())
    asyncio.run(client.aclose())
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(call())


@pytest.mark.anyio
async def test_closing_twice_at_once(servers):
    """C20: two tasks may close one client together."""
    (server,) = servers(says(200))
    transport = lbclient.AsyncTransport([server.url])
    async with lbclient.AsyncClient([server.url]) as client:
        await client.get("/")
        await client._transport.aclose()
        await client._transport.aclose()
    await transport.aclose()


def test_loop_that_was_not_ended_properly(servers):
    """C9: if a loop is closed without ending its generators, its connections are lost (with
    asyncio's own warning), but the next call works and no memory is kept."""
    (server,) = servers(says(200))
    text = """
    import asyncio, gc, sys, lbclient
    from pathlib import Path
    client = lbclient.AsyncClient(sys.argv[1])
    async def call():
        assert (await client.get("/")).status_code == 200
    def crude():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(call())
        loop.close()
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))
    assert len({crude() for _ in range(10)}) == 1
    """
    assert script(text, server.url, options=("-W", "ignore")) == (0, "", "")


def test_forgotten_client_costs_nothing(servers):
    """S7, D22: a client without references is collected with its subscription, and asks no more."""
    (server,) = servers(says(200))

    class Mine:
        rounds = 0

        def resolve(self):
            self.rounds += 1
            return lbclient.Answer([lbclient.Instance("127.0.0.1", server.port)], 0)

    resolver = Mine()
    client = lbclient.Client(resolver, name="orders.test")
    assert client.get("/").status_code == 200
    watch = weakref.ref(client.balancer._engine.subscription)
    # Its sockets would be warned of, as any that is left open.
    run_blocking(client._transport._transports.aclose)
    del client
    until = time.monotonic() + 5
    while watch() is not None and time.monotonic() < until:
        gc.collect()  # a round under way may hold it for a moment
    assert watch() is None


# Forks

WARM = """
    import os, sys, lbclient
    url = sys.argv[1]
    def wait(child):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
    def forked(work):
        if (child := os.fork()) == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        return child
"""


def test_a_hundred_forks_with_a_warm_client(servers):
    """C8: children of a process whose client has open connections make calls with it, four at a
    time, and so does the process itself; no call gets another's response."""
    urls = [server.url for server in servers(tells_port, tells_port)]
    work = f"""
    client = lbclient.Client(sys.argv[1:], strategy="round-robin")
    def work():
        assert len({{client.get("/").text for _ in range(4)}}) == 2
    work()
    for _ in range({FORKS} // 4):
        children = [forked(work) for _ in range(4)]
        work()
        for child in children:
            wait(child)
    client.close()
    """
    assert script(WARM + work, *urls) == (0, "", "")


@pytest.mark.parametrize("kind", ["asyncio", *slow_rows("trio")])
def test_forks_with_a_warm_async_client(servers, kind):
    """C8, C9: children run their own loops with an async client that was used in their parent, even
    if that loop is still running."""
    (server,) = servers(says(200))
    work = f"""
    import {kind}
    client = lbclient.AsyncClient(url)
    async def call():
        assert (await client.get("/")).status_code == 200
    def run(job):
        {kind}.run(job() if "{kind}" == "asyncio" else job)
    def child():
        import threading  # a loop cannot run in a thread that has one
        errors = []
        thread = threading.Thread(target=lambda: (run(call), errors.append(0)))
        thread.start()
        thread.join()
        assert errors == [0]
    async def parent():
        await call()
        for _ in range(20):
            children = [forked(child) for _ in range(2)]
            await call()
            for one in children:
                wait(one)
            await call()
    run(parent)
    wait(forked(child))
    run(parent)
    """
    assert script(WARM + work, server.url) == (0, "", "")


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_child_keeps_no_connection_of_its_parent(servers, kind):
    """C8: when the parent closes its connections, they are closed, even while a child is
    running."""
    work = f"""
    import asyncio
    ready, go = os.pipe(), os.pipe()
    def child():
        os.write(ready[1], b"x")
        os.read(go[0], 1)
    if "{kind}" == "sync":
        client = lbclient.Client(url)
        client.get("/")
        one = forked(child)
        os.read(ready[0], 1)
        client.close()
    else:
        client = lbclient.AsyncClient(url)
        async def parent():
            await client.get("/")
            one = forked(child)
            os.read(ready[0], 1)
            await client.aclose()
            return one
        one = asyncio.run(parent())
    print("closed", flush=True)
    sys.stdin.read(1)
    os.write(go[1], b"x")
    wait(one)
    """
    ended = threading.Event()

    def behaviour(connection, _):
        connection.answer()
        connection.sock.settimeout(30)
        if connection.sock.recv(1) == b"":
            ended.set()

    (server,) = servers(behaviour)
    command = [sys.executable, "-c", textwrap.dedent(WARM + work), server.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "closed\n"
        assert ended.wait(10)
        process.communicate("x", timeout=30)
        assert process.returncode == 0


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_child_does_not_end_tls_of_its_parent(kind, tmp_path):
    """C8: a child that ends sends nothing on a TLS connection of its parent."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("orders.test").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as sock:
            for _ in range(2):
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    if not (more := sock.recv(4096)):
                        return
                    request += more
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    work = f"""
    import asyncio, gc
    options = {{"name": "orders.test", "verify": sys.argv[2]}}
    def child():
        gc.collect()
    if "{kind}" == "sync":
        client = lbclient.Client([url], **options)
        client.get("/")
        wait(forked(child))
        client.get("/")
        client.close()
    else:
        async def main():
            async with lbclient.AsyncClient([url], **options) as client:
                await client.get("/")
                wait(forked(child))
                await client.get("/")
        asyncio.run(main())
    """
    thread = threading.Thread(target=serve)
    thread.start()
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    # One connection is all that is accepted: a second request needs the first one's.
    options = ("-W", "ignore")
    assert script(WARM + work, url, str(tmp_path / "ca.pem"), options=options) == (0, "", "")
    thread.join(10)
    listener.close()
    assert not thread.is_alive()


# Signals


def test_signals_that_a_program_blocks():
    """C4: a signal that a program blocks in its own threads is not taken by lbclient's background
    threads. Resolvers and listeners run with no blocked signals, and so do the processes that they
    start.
    """
    work = """
    import os, re, signal, threading, time, lbclient
    from pathlib import Path
    blocked, heard, listeners = [], threading.Semaphore(0), []
    def note(*events):
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        listeners.extend(threading.get_native_id() for _ in events)
        heard.release()
    class Mine:
        def resolve(self):
            note()
            return lbclient.Answer([lbclient.Instance("127.0.0.1", 9)], ttl=3600)
    balancer = lbclient.Balancer(Mine(), name="orders", listener=note)
    for _ in range(2):
        balancer.call(str)
    for _ in range(4):  # the resolver, the instance that joined, two picks
        assert heard.acquire(timeout=30)
    for thread in threading.enumerate():
        if thread.name == "lbclient-lookup":
            thread.join()
    status = Path(f"/proc/self/task/{listeners[-1]}/status")
    while not int(re.search("SigBlk:(.*)", status.read_text())[1], 16):  # until it waits again
        time.sleep(0.01)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.sigtimedwait([signal.SIGTERM], 30).si_signo == signal.SIGTERM
    assert blocked == [set()] * 4
    """
    assert script(work) == (0, "", "")


# The end of the interpreter


@pytest.mark.parametrize(
    "work",
    [
        "client = lbclient.Client(url); client.get('/')",
        "client = lbclient.Client(url); stack.enter_context(client.stream('GET', '/'))",
        "client = lbclient.AsyncClient(url); asyncio.run(call())",
        "client = lbclient.AsyncClient(url); trio.run(call)",
        """\
class Mine:
    def resolve(self):
        return lbclient.Answer([lbclient.Instance("127.0.0.1", 9)], 0)
client = lbclient.Balancer(Mine())
client.refresh()""",
        """\
client = lbclient.Balancer('http+srv://a.test', nameservers=['192.0.2.1:9'])
threading.Thread(target=client.refresh, daemon=True).start()""",
    ],
    ids=["sync", "stream", "asyncio", "trio", "refreshed", "silent"],
)
def test_interpreter_ends_with_an_open_client(servers, work):
    """C10: an interpreter with an open client exits within a second of its last line, and prints
    nothing."""
    (server,) = servers(says(200, b"x" * 100_000))
    text = f"""
import asyncio, contextlib, sys, threading, time, trio, lbclient
url, stack = sys.argv[1], contextlib.ExitStack()
async def call():
    await client.get("/")
{work}
print(time.time())
"""
    status, said, errors = script(text, server.url, options=())
    assert (status, errors) == (0, "")
    assert ended_soon(said)
