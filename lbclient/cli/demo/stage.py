"""What the demo plays on: a DNS server and some instances, all real, all on loopback.

Each is a process of our own, which never outlives us.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

__all__ = ["CAST", "NEWCOMER", "SERVICE", "Child", "ChildFailed", "Machine", "Stage", "stage"]

_HERE = Path(__file__).parent

SERVICE = "http+srv://orders.demo.test"
_ZONE = """\
$ORIGIN demo.test.
$TTL 1
@ SOA ns hostmaster 1 60 60 60 1
@ NS ns
ns A 127.0.0.1
"""


class ChildFailed(Exception):
    """A process did not start, or went away."""


class Child:
    """Runs one program of this folder, `backend` or `dns_server`.

    It is told things as lines of JSON on its standard input, and exits when that ends: at `kill`,
    or when this process ends in whatever way.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        self.program = program
        # By its path, not by -m: it starts in a tenth of the time without the package around it.
        # -P: the other files of this folder must not stand in for modules of the same name. A group
        # of its own: Ctrl-C is for the parent, which ends it in order.
        self._process = subprocess.Popen(  # noqa: S603  # our own file
            [sys.executable, "-P", str(_HERE / f"{program}.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._words = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @functools.cached_property
    def port(self) -> int:
        """Where it listens on 127.0.0.1; waits for it to say so."""
        return int(self._line())

    def tell(self, word: object) -> None:
        """Tell it something, and wait until it has taken it over."""
        _ = self.port  # what it says first
        with contextlib.suppress(BrokenPipeError):  # the missing answer says it
            self._words.write(json.dumps(word) + "\n")
            self._words.flush()
        self._line()

    def kill(self) -> None:
        """End it at once, as a crash would. More than once does no harm."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:
            pass  # leaving waits for it and closes its pipes

    def _line(self) -> str:
        if not (line := self._answers.readline()):
            raise ChildFailed(f"the process {self.program} (pid {self.pid}) has ended")
        return line


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
