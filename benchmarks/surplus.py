"""POSTs to a server that sends bytes which belong to no response, after every third response.

Each POST has a number, which its response repeats; the server counts how often it carries out
each. The bytes come in the same segment as the response, or in one of their own: at once, or 0.3 ms
later, when the next request may be on its way already. No client can tell the difference then.
Clients take turns in short blocks, since what the machine does besides decides who meets that.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import aiohttp
import anyio
import children
import httpx

import lbclient

KINDS = {
    "408": b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    "408 and close": b"HTTP/1.1 408 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "half a head": b"HTTP/1.1 500 Oops\r\nX-A: ",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "CRLF": b"\r\n",
    "after chunks": b"x",
}
ARRIVALS = {"same segment": None, "next segment": 0.0, "0.3 ms later": 0.0003}
AT_ONCE = 16
ROUNDS = 10

Found = Counter[str]


class Service(asyncio.Protocol):
    """One connection to the server. `/KIND/ARRIVAL` says what is to come after responses."""

    carried_out: ClassVar[Counter[str]] = Counter()
    answered = itertools.count()

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        while True:
            head, end, rest = self.data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            size = int(length or 0)
            if not end or len(rest) < size:
                return
            self.data = rest[size:]
            self.answer(head.split(b" ")[1].decode(), rest[:size])

    def answer(self, target, body):
        _, kind, arrival = target.replace("%20", " ").split("/")
        if kind == "counts":
            known, Service.carried_out = Service.carried_out, Counter()
            found = {
                "once": sum(n == 1 for n in known.values()),
                "more": sum(n > 1 for n in known.values()),
            }
            body = json.dumps(found).encode()
        else:
            self.carried_out[body.decode()] += 1
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        if kind == "after chunks":
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
        surplus = KINDS.get(kind, b"")
        if not surplus or next(self.answered) % 3:
            self.transport.write(whole)
        elif (delay := ARRIVALS[arrival]) is None:
            self.transport.write(whole + surplus)
        else:
            self.transport.write(whole)
            loop = asyncio.get_running_loop()
            if delay:
                loop.call_later(delay, self.follow, surplus)
            else:
                self.transport.write(surplus)

    def follow(self, surplus):
        if not self.transport.is_closing():
            self.transport.write(surplus)


async def serve(port):
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", port)
    await server.serve_forever()


def judged(number, status, body):
    return "own" if (status, body) == (200, number.encode()) else "another's"


async def at_once(post: Callable, numbers: Sequence[str]) -> Found:
    """So many tasks at once, each with one POST after another."""
    left, found = iter(numbers), Counter()

    async def work():
        for number in left:
            try:
                found[judged(number, *await post(number))] += 1
            except (httpx.TransportError, aiohttp.ClientError):
                found["error"] += 1

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)
    return found


def by_threads(url, target, numbers):
    return posted(lbclient.Client([url], breaker=None), target, numbers)


def by_httpx(url, target, numbers):
    return posted(httpx.Client(base_url=url, limits=httpx.Limits()), target, numbers)


def posted(client, target, numbers):
    with client:

        def post(number):
            try:
                response = client.post(target, content=number.encode())
                return judged(number, response.status_code, response.content)
            except httpx.TransportError:
                return "error"

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return Counter(threads.map(post, numbers))


async def by_tasks(url, target, numbers):
    async with lbclient.AsyncClient([url], breaker=None) as client:

        async def post(number):
            response = await client.post(target, content=number.encode())
            return response.status_code, response.content

        return await at_once(post, numbers)


async def by_aiohttp(url, target, numbers):
    async with aiohttp.ClientSession() as session:

        async def post(number):
            async with session.post(url + target, data=number.encode()) as response:
                return response.status, await response.read()

        return await at_once(post, numbers)


def on_loop(main, backend, **options):
    return lambda *given: anyio.run(main, *given, backend=backend, backend_options=options)


CLIENTS = {
    "threads": by_threads,
    "asyncio": on_loop(by_tasks, "asyncio"),
    "uvloop": on_loop(by_tasks, "asyncio", use_uvloop=True),
    "trio": on_loop(by_tasks, "trio"),
    "bare httpx, threads": by_httpx,
    "raw aiohttp, asyncio": on_loop(by_aiohttp, "asyncio"),
    "raw aiohttp, uvloop": on_loop(by_aiohttp, "asyncio", use_uvloop=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        asyncio.run(serve(given.serve))  # each write is a segment; uvloop joins them
    (port,) = children.free_ports(1)
    url = f"http://127.0.0.1:{port}"
    calls = 120 if given.quick else given.calls
    print(f"{calls:,} POSTs by {AT_ONCE} callers, with surplus after every third response")
    print(
        f"  {'client':22}{'surplus':14}{'own':>7}{'wrong':>7}{'error':>7}{'twice':>7}{'never':>7}"
    )
    with children.running([sys.executable, __file__, "--serve", str(port)], [port]):
        for arrival in ARRIVALS:
            found = {name: Counter() for name in CLIENTS}
            for turn in range(rounds := 1 if given.quick else ROUNDS):
                for kind, (name, client) in itertools.product(KINDS, CLIENTS.items()):
                    count = calls // len(KINDS) // rounds
                    numbers = [f"{kind}-{turn}-{number}" for number in range(count)]
                    one = client(url, f"/{kind}/{arrival}", numbers)
                    counts = httpx.get(f"{url}/counts/").json()
                    one["twice"] = counts["more"]
                    one["never"] = count - counts["once"] - counts["more"]
                    found[name] += one
            for name, total in found.items():
                columns = ("own", "another's", "error", "twice", "never")
                row = "".join(f"{total[column]:7}" for column in columns)
                print(f"  {name:22}{arrival:14}{row}", flush=True)


if __name__ == "__main__":
    main()
