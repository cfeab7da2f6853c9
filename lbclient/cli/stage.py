"""What the demo plays on: a DNS server and some instances, all real, all on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lbclient.cli.child import Child

__all__ = ["CAST", "NEWCOMER", "SERVICE", "Machine", "Stage", "stage"]

SERVICE = "http+srv://orders.demo.test"
_ZONE = """\
$ORIGIN demo.test.
$TTL 1
@ SOA ns hostmaster 1 60 60 60 1
@ NS ns
ns A 127.0.0.1
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance to be: its `name`, its `weight` in DNS, and its `delay` in seconds a call."""

    name: str
    weight: int
    delay: float


CAST = (
    Machine("orders-1", 3, 0.020),
    Machine("orders-2", 2, 0.025),
    Machine("orders-3", 2, 0.030),
    Machine("orders-4", 1, 0.040),
    Machine("orders-5", 1, 0.060),
)
NEWCOMER = Machine("orders-6", 3, 0.020)


class Stage:
    """The processes, each ended by `children` on the way out. Made by `stage()`."""

    def __init__(self, children: contextlib.ExitStack, machines: Iterable[Machine]) -> None:
        self._children = children
        self._dns = self._start("dns_server")
        self._running: dict[Machine, Child] = {}
        self.add(*machines)

    @property
    def nameserver(self) -> str:
        """The address of the DNS server, such as `127.0.0.1:5353`."""
        return f"127.0.0.1:{self._dns.port}"

    def add(self, *machines: Machine) -> None:
        """Start them, and name them in DNS."""
        for one in machines:
            self._running[one] = self._start("backend", one.name, str(one.delay))
        self._dns.tell(_ZONE + "".join(map(self._records, self._running)))

    def kill(self, machine: Machine) -> None:
        """End its process as a crash would; DNS goes on naming it."""
        self._running[machine].kill()

    def slow(self, machine: Machine, delay: float) -> None:
        """From now on it takes `delay` seconds a call."""
        self._running[machine].tell(delay)

    def _start(self, program: str, *arguments: str) -> Child:
        child = Child(program, *arguments)
        self._children.callback(child.kill)
        return child

    def _records(self, machine: Machine) -> str:
        port = self._running[machine].port
        return (
            f"_http._tcp.orders SRV 0 {machine.weight} {port} {machine.name}\n"
            f"{machine.name} A 127.0.0.1\n"
        )


@contextlib.contextmanager
def stage(machines: Iterable[Machine] = CAST) -> Iterator[Stage]:
    """Five instances in DNS; none of the processes outlives the block."""
    with contextlib.ExitStack() as children:
        yield Stage(children, machines)
