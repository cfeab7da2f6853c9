"""The processes of the demo: a real DNS server and real instances, all on the loopback interface.

No process outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

__all__ = [
    "CAST",
    "NEWCOMER",
    "Child",
    "ChildFailed",
    "Machine",
    "Stage",
    "service_of",
    "stage",
]

_HERE = Path(__file__).parent

_PROGRAMS = {"http": "backend", "grpc": "rpc_backend"}
"""The program that each instance runs, by the URL scheme of the service."""
_ZONE = """\
$ORIGIN demo.test.
$TTL 1
@ SOA ns hostmaster 1 60 60 60 1
@ NS ns
ns A 127.0.0.1
"""


def service_of(scheme: str) -> str:
    """Return the URL of the service: `http+srv://orders.demo.test`."""
    return f"{scheme}+srv://orders.demo.test"


class ChildFailed(Exception):
    """A process did not start, or has ended."""


class Child:
    """Runs one program of this folder: `backend`, `rpc_backend` or `dns_server`.

    The program reads lines of JSON from its standard input. It exits when its standard input ends:
    after `kill`, or when this process ends in any way.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        self.program = program
        # The program is started by its path, not with -m: without an import of the package it
        # starts in a tenth of the time. With -P, the other files of this folder do not shadow
        # modules of the same name. The child has its own process group, so that Ctrl-C goes only to
        # the parent, which ends the child in an orderly way.
        self._process = subprocess.Popen(  # noqa: S603  # the program is a file of lbclient
            [sys.executable, "-P", str(_HERE / f"{program}.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._requests = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @functools.cached_property
    def port(self) -> int:
        """The port on which the process listens on 127.0.0.1. Waits until it has printed the
        port."""
        return int(self._line())

    def tell(self, value: object) -> None:
        """Send a value to the process, and wait until the process has applied it."""
        _ = self.port  # waits until the process has printed its port
        with contextlib.suppress(BrokenPipeError):  # ChildFailed is raised below
            self._requests.write(json.dumps(value) + "\n")
            self._requests.flush()
        self._line()

    def kill(self) -> None:
        """End the process at once, as a crash would. A second call does nothing."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:
            pass  # leaving the block waits for the process and closes its pipes

    def _line(self) -> str:
        if not (line := self._answers.readline()):
            raise ChildFailed(f"the process {self.program} (pid {self.pid}) has ended")
        return line


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance to start: its `name`, its `weight` in DNS, and its `delay` in seconds per
    call."""

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
    """The processes of the demo. `children` ends all of them when it is closed. `scheme` is the URL
    scheme of the service. `stage()` creates this object."""

    def __init__(
        self, children: contextlib.ExitStack, machines: Iterable[Machine], scheme: str
    ) -> None:
        self._children = children
        self._scheme = scheme
        self._dns = self._start("dns_server")
        self._running: dict[Machine, Child] = {}
        self.add(*machines)

    @property
    def nameserver(self) -> str:
        """The address of the DNS server, such as `127.0.0.1:5353`."""
        return f"127.0.0.1:{self._dns.port}"

    def add(self, *machines: Machine) -> None:
        """Start instances, and add them to DNS."""
        for machine in machines:
            self._running[machine] = self._start(
                _PROGRAMS[self._scheme], machine.name, str(machine.delay)
            )
        self._dns.tell(_ZONE + "".join(map(self._records, self._running)))

    def kill(self, machine: Machine) -> None:
        """End the process of an instance as a crash would. DNS still returns it."""
        self._running[machine].kill()

    def slow(self, machine: Machine, delay: float) -> None:
        """Make an instance take `delay` seconds per call from now on."""
        self._running[machine].tell(delay)

    def _start(self, program: str, *arguments: str) -> Child:
        child = Child(program, *arguments)
        self._children.callback(child.kill)
        return child

    def _records(self, machine: Machine) -> str:
        port = self._running[machine].port
        return (
            f"_{self._scheme}._tcp.orders SRV 0 {machine.weight} {port} {machine.name}\n"
            f"{machine.name} A 127.0.0.1\n"
        )


@contextlib.contextmanager
def stage(machines: Iterable[Machine] = CAST, scheme: str = "http") -> Generator[Stage]:
    """Start the instances and the DNS server. All processes end with the block."""
    with contextlib.ExitStack() as children:
        yield Stage(children, machines, scheme)
