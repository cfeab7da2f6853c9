"""The benchmarks run; what they measure is not for a test to say."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_overhead_prints_its_ratios():
    """`overhead.py --quick` measures every row over the null transport and names its goals."""
    command = [sys.executable, BENCHMARKS / "overhead.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert {"sync", "async", "noise:"} <= {row[0] for row in rows if row}
    assert "<= 1.25" in done.stdout
