"""Calls while DNS fails, beside calls while it answers: run it, or see README.md."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' DNS server

import loopback

import lbclient
from tests.support import dns

_NAME = "_http._tcp.orders.test."
_RATE, _THREADS = 200, 4
_FAULTS = (
    dns.servfail,
    dns.nxdomain,
    dns.empty,
    dns.silence,
    dns.truncated,
    dns.garbage,
    dns.wrong_id,
)


@dataclass
class Calls:
    """Seconds that calls took, and how many failed."""

    took: list[float] = field(default_factory=list)
    failed: int = 0

    def row(self, name: str, rounds: int) -> str:
        self.took.sort()
        median, p99 = self.took[len(self.took) // 2], self.took[int(0.99 * len(self.took))]
        times = "".join(f"{1e3 * one:>9.2f}" for one in (median, p99, self.took[-1]))
        return f"  {name:<22}{len(self.took):>7}{self.failed:>8}{times}{rounds:>8}"


def calling(client: lbclient.Client, seconds: float) -> Calls:
    """So many calls a second from a few threads, for so long."""
    calls, until = Calls(), time.monotonic() + seconds

    def caller(_: int) -> None:
        due = time.monotonic()
        while (due := due + _THREADS / _RATE) < until:
            time.sleep(max(0.0, due - time.monotonic()))
            begun = time.perf_counter()
            try:
                client.get("/")
            except lbclient.LoadBalancingError:
                calls.failed += 1
            calls.took.append(time.perf_counter() - begun)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(caller, range(_THREADS)))
    return calls


def measure(client: lbclient.Client, server: dns.Liar, fault: dns.Fault, seconds: float) -> Calls:
    """One minute of answers, then one of faults; prints both. Returns the calls of the latter."""
    name = fault.__name__
    for what, lie in ((f"before {name}", None), (name, fault)):
        if lie is not None:
            server.fault(lie)
        asked = server.asked(_NAME)
        calls = calling(client, seconds)
        print(calls.row(what, server.asked(_NAME) - asked), flush=True)
    server.heal()
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each row (default 60)")
    parser.add_argument("--quick", action="store_true", help="half a second: does it run?")
    arguments = parser.parse_args()
    seconds = 0.5 if arguments.quick else arguments.seconds
    if (program := loopback.found()) is None:
        print("nginx is not installed")
        return 2
    logging.disable()
    print(f"{_RATE} calls/s over loopback; times in ms")
    print(
        f"  {'DNS':<22}{'calls':>7}{'failed':>8}{'median':>9}{'p99':>9}{'slowest':>9}{'asked':>8}"
    )
    failed = 0
    with dns.Liar(glue=True) as server, loopback.nginx(program, 3) as instances:
        ports = [url.rpartition(":")[2] for url in instances.urls]
        server.put(_NAME, "SRV", *(f"0 1 {port} here.test." for port in ports), ttl=1)
        server.put("here.test.", "A", "127.0.0.1", ttl=1)
        options = {"nameservers": [server.address], "allow": ["127.0.0.0/8"]}
        with lbclient.Client("http+srv://orders.test", **options) as client:
            client.get("/")
            for fault in _FAULTS:
                failed += measure(client, server, fault, seconds).failed
                client.balancer.refresh()
        assert threading.active_count() < _THREADS + 8
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
