"""The programs of docs/deploying.md, as real servers run them, and the load on them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.orders import HANGS, Instance, eventually

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
THREADS = 4
CALLS = 40
"""How many calls are made, at least, in each state of the instances."""


def programs():
    """The Python programs of the page, by the file name in their first line."""
    blocks = re.findall(r"^```python\n(# (\S+\.py)\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return {name: text for text, name in blocks}


def command(start, *more, **instead):
    """The command of the page that begins with `start`, with other values of some options."""
    pytest.importorskip(start.partition(" ")[0])
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (line,) = (line for block in blocks for line in block.splitlines() if line.startswith(start))
    words = shlex.split(line)
    for option, value in instead.items():
        words[words.index(f"--{option.replace('_', '-')}") + 1] = value
    return [sys.executable, "-m", *words, *more]


def uvicorn(start, *more, **instead):
    """A command of uvicorn, with a free port."""
    return command(start, "--host", "127.0.0.1", "--port", "0", *more, **instead)


def gunicorn(start, *more, **instead):
    """A command of gunicorn, with a free port."""
    return command(start, "--bind", "127.0.0.1:0", "--no-control-socket", *more, **instead)


def python(name):
    """The command that runs a program of the page by itself."""
    return [sys.executable, "-W", "error", name]


class Orders:
    """Three instances of the service `orders`, and the file that names them."""

    def __init__(self, folder):
        self._folder = folder
        self.instances = [Instance(folder) for _ in range(3)]
        file = folder / "instances"
        file.write_text("".join(f"127.0.0.1:{one.port}\n" for one in self.instances))
        self.url = f"http+file://{file}"

    def arrived(self):
        """Wait until a call of order 0 has arrived at an instance, since this was called last."""
        arrived = self._folder / "arrived"
        eventually(arrived.exists, "the arrival of order 0")
        arrived.unlink()

    def release(self):
        """Let all calls of order 0 have their response, from now on."""
        (self._folder / "released").touch()

    def kill(self):
        for one in self.instances:
            one.kill()


class Program:
    """A process that runs programs of the page, in a folder of its own."""

    def __init__(self, folder, command, **environment):
        for name, text in programs().items():
            (folder / name).write_text(text)
        self._log = folder / "log"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # workers end with their parent, also if a test fails
            )

    @property
    def log(self):
        return self._log.read_text(encoding="utf-8", errors="replace")

    def url(self):
        """Wait until it listens, and return its URL. It logs the port, perhaps before that."""

        def listens():
            assert self.process.poll() is None, self.log
            if (logged := re.search(r"http://127\.0\.0\.1:(\d+)", self.log)) is None:
                return None
            with socket.socket() as sock:
                return None if sock.connect_ex(("127.0.0.1", int(logged[1]))) else logged[0]

        return eventually(listens, "the start of the server")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def rest(self):
        """Wait for its end, and return the rest of its output."""
        return self.process.communicate(timeout=HANGS)[0]

    def ended(self):
        """Wait for its end, and return its status."""
        self.rest()
        return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


class Load:
    """Calls `call` again and again on several threads; it returns the id of an instance."""

    def __init__(self, call, threads=THREADS):
        self._call = call
        self._ended = threading.Event()
        self.answers = []
        self.failures = []
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self):
        while not self._ended.is_set():
            try:
                self.answers.append(self._call())
            except Exception as error:  # noqa: BLE001  # each is counted
                self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self):
        """Wait until more calls have ended."""
        before = self._ends()
        eventually(lambda: self._ends() >= before + CALLS, f"the end of {CALLS} calls")

    def reaches(self, instance):
        """Wait until an instance has answered a call."""
        eventually(
            lambda: instance.pid in self.answers or self.failures, f"{instance.pid}'s answer"
        )

    def _ends(self):
        return len(self.answers) + len(self.failures)


def outlives_an_instance(call, orders, threads=THREADS):
    """Kill one of three instances under load, and start it again. Return the failed calls."""
    first = orders.instances[0]
    with Load(call, threads) as load:
        for instance in orders.instances:
            load.reaches(instance)
        first.kill()
        load.goes_on()
        first.restart()
        load.reaches(first)
        load.goes_on()
    return load.failures
