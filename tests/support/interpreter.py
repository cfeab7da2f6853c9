"""How long an interpreter takes to exit."""

from __future__ import annotations

import subprocess
import sys
import time

_PLAIN = "import asyncio, time, trio, lbclient; print(time.time())"


def ended_soon(last_line: str) -> bool:
    """True if an interpreter that has ended just now did so within two seconds of its last line, in
    which it printed `time.time()`.

    On a busy machine the end of any interpreter takes longer: then it may also take up to five
    times as long as one that only imports the package takes at this moment.
    """
    took = time.time() - float(last_line)
    if took < 2:
        return True
    command = [sys.executable, "-c", _PLAIN]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return took < 2 + 5 * (time.time() - float(plain.stdout))
