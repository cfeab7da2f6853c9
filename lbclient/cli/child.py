"""A process of our own, which never outlives us."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

__all__ = ["Child", "ChildFailed"]

_HERE = Path(__file__).parent


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
