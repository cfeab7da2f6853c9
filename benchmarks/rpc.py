"""A unary RPC through lbclient beside bare grpcio: one at a time, in paired blocks that take turns.

Bare grpcio calls one server with `pick_first`, and three with its own `round_robin`. lbclient calls
one server, and three. All are processes on loopback.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from concurrent import futures

import grpc

import lbclient.grpc
import lbclient.grpc.aio

METHOD = "/bench.Bench/Unary"
GOALS = {"threads": 1.35, "asyncio": 1.5}
"""How long an RPC may take, in those of bare grpcio to one server."""
ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
REQUEST = b"x" * 64


def serve():
    """Be a server that returns what it gets."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    echo = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    handlers = grpc.method_handlers_generic_handler("bench.Bench", {"Unary": echo})
    server.add_generic_rpc_handlers((handlers,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


@contextlib.contextmanager
def servers(number):
    """The ports of servers in processes of their own."""
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    try:
        yield [int(one.stdout.readline()) for one in started]
    finally:
        for one in started:
            with one:
                one.kill()


def block_of(call, number):
    """Microseconds for each RPC: by the wall clock, and of this process's processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(number):
        call(REQUEST, timeout=10.0)
    return times(wall, processor, number)


async def async_block_of(call, number):
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(number):
        await call(REQUEST, timeout=10.0)
    return times(wall, processor, number)


def times(wall, processor, number):
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return 1e6 * wall / number, 1e6 * processor / number


def channels(kind, ports):
    """Each channel by its name; bare grpcio to one server first."""
    bare, ours = (grpc, lbclient.grpc) if kind == "threads" else (grpc.aio, lbclient.grpc.aio)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    robin = [("grpc.service_config", ROUND_ROBIN)]
    return {
        "grpcio, pick_first, 1 server": bare.insecure_channel(addresses[0]),
        "grpcio, the same again (noise)": bare.insecure_channel(addresses[0]),
        "grpcio, round_robin, 3 servers": bare.insecure_channel(
            "ipv4:" + ",".join(addresses), options=robin
        ),
        "lbclient, 1 server": ours.channel(addresses[:1]),
        "lbclient, 3 servers": ours.channel(addresses),
    }


def measure_threads(ports, rounds, number):
    opened = channels("threads", ports)
    calls = {name: one.unary_unary(METHOD) for name, one in opened.items()}
    for call in calls.values():
        block_of(call, number)
    found = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            found[name].append(block_of(calls[name], number))
    for one in opened.values():
        one.close()
    return found


async def measure_asyncio(ports, rounds, number):
    opened = channels("asyncio", ports)
    calls = {name: one.unary_unary(METHOD) for name, one in opened.items()}
    for call in calls.values():
        await async_block_of(call, number)
    found = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            found[name].append(await async_block_of(calls[name], number))
    for one in opened.values():
        await one.close()
    return found


def show(kind, found):
    """Print the rows of one kind, and return the ratio of lbclient to bare grpcio, one server."""
    first = next(iter(found))
    print(f"{kind}: microseconds, processor time, ratio with its quartiles")
    ratio = {}
    for name, blocks in found.items():
        pairs = zip(blocks, found[first], strict=True)
        ratios = sorted(one[0] / bare[0] for one, bare in pairs)
        low, ratio[name], high = statistics.quantiles(ratios, n=4)
        wall, processor = (statistics.median(one[at] for one in blocks) for at in (0, 1))
        print(
            f"  {name:32}{wall:6.0f}{processor:6.0f}   {ratio[name]:.2f} ({low:.2f} to {high:.2f})"
        )
    print(f"  goal for lbclient, 1 server: at most {GOALS[kind]:.2f}")
    return ratio["lbclient, 1 server"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a goal is missed")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    rounds, number = (3, 20) if options.quick else (25, 150)
    gc.disable()
    with servers(3) as ports:
        reached = {
            "threads": show("threads", measure_threads(ports, rounds, number)),
            "asyncio": show("asyncio", asyncio.run(measure_asyncio(ports, rounds, number))),
        }
    missed = options.check and any(reached[kind] > goal for kind, goal in GOALS.items())
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
