"""The command line: `lbclient demo` and `lbclient resolve`."""

from __future__ import annotations

import os
import sys

from lbclient.cli.demo.stage import ChildFailed
from lbclient.cli.parser import parser
from lbclient.errors import LoadBalancingError

__all__ = ["main"]

_INTERRUPTED = 130
"""128 + SIGINT, as in shells."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, and return its exit status. None means the command line of this
    process.

    Raises SystemExit with status 2 for an invalid command line, and 0 for `--help`.
    """
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except (LoadBalancingError, ChildFailed) as error:
        print(f"lbclient: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe. Without this line, the interpreter would fail at exit when
        # it flushes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
