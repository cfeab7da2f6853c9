"""Servers that run as our children for the time of a block, each ended by its id."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_PATIENCE = 5.0
# Debian keeps servers out of a user's PATH.
_WHERE = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def found(name: str) -> str | None:
    """Where the program is, if it is installed."""
    return shutil.which(name, path=_WHERE)


@contextlib.contextmanager
def running(command: Sequence[str], ports: Sequence[int]) -> Iterator[int]:
    """Run it until the block ends; it is there once it answers on all ports. Yields its id."""
    # Ctrl-C is ours: we stop it after our own clients.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        for port in ports:
            _await_port(port, process)
        yield process.pid
    finally:
        _stop(process)


@contextlib.contextmanager
def on_one_cpu(pids: Iterable[int]) -> Iterator[None]:
    """Have processes share one CPU for the time of a block, where the system is Linux."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = {pid: os.sched_getaffinity(pid) for pid in pids}
    cpu = max(os.sched_getaffinity(0))
    try:
        for pid in before:
            _run_on(pid, {cpu})
        yield
    finally:
        for pid, cpus in before.items():
            _run_on(pid, cpus)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _run_on(pid: int, cpus: set[int]) -> None:
    """Have each thread of a process run on these CPUs. Those that it starts later inherit that."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cpus)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args} does not answer on port {port}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
