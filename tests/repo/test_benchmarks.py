"""The benchmarks run; their results are not tested."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.etcd import NEEDED
from tests.support.slow import slow_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_overhead_prints_its_ratios():
    """`overhead.py --quick` measures every row over the null transport and names its goals."""
    command = [sys.executable, BENCHMARKS / "overhead.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert {"sync", "async", "noise:"} <= {row[0] for row in rows if row}
    assert "<= 1.25" in done.stdout


def quick(script: str, *options: str) -> list[str]:
    """Its output when it only shows that it runs."""
    command = [sys.executable, BENCHMARKS / script, "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow
def test_churn_prints_its_rows():
    """`churn.py --quick` measures both sources and names its goal."""
    said = quick("churn.py")
    assert "goal 25" in said[1]
    assert sum("by DNS" in line or "by a resolver" in line for line in said) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    ["Kubernetes", "Consul", pytest.param("etcd", marks=NEEDED), "a Watcher"],
)
def test_discovery_prints_its_rows(source):
    """`discovery.py --quick` measures each source, and names its goals."""
    said = quick("discovery.py", source)
    assert sum(f"  {source}: " in line for line in said) == 5
    assert sum("goal" in line for line in said) == 4


@pytest.mark.slow
def test_rpc_prints_its_rows():
    """`rpc.py --quick` measures each channel on threads and in asyncio, and names its goals."""
    said = quick("rpc.py")
    assert sum("lbclient, " in line and "goal" not in line for line in said) == 4
    assert sum("grpcio, " in line for line in said) == 6
    assert sum("goal" in line for line in said) == 2


@pytest.mark.slow
def test_surplus_prints_its_rows():
    """`surplus.py --quick` counts for each client, and each way in which surplus arrives."""
    said = quick("surplus.py")
    rows = [
        line.split() for line in said if line.split()[0] in {"threads", "asyncio", "uvloop", "trio"}
    ]
    assert len(rows) == 12
    assert all(row[-2] == "0" for row in rows)  # none twice


@pytest.mark.slow
def test_outage_loses_no_call():
    """`outage.py --quick` makes calls during each fault, and none fails."""
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("nginx is not installed")
    rows = [line.split() for line in quick("outage.py")[2:]]
    assert len(rows) == 14
    assert {row[-5] for row in rows} == {"0"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("scoreboard.py", "## one_big_spike"),
        *slow_rows(
            ("replicas.py", "At 110 % of capacity"),
        ),
    ],
)
def test_simulated_benchmarks_run(script, said):
    """The benchmarks in virtual time run, each to its last table."""
    assert said in quick(script)


@pytest.mark.slow
def test_the_figures_of_the_page_on_choosing():
    """The first table of docs/choosing.md is what `choosing.py` prints, to the digit."""
    page = (BENCHMARKS.parent / "docs" / "choosing.md").read_text().splitlines()
    printed = quick("choosing.py")
    assert "Equal instances, calls alike, 70 % busy" in printed
    assert set(printed) <= set(page)


@pytest.fixture(scope="module")
def performance():
    """What `performance.py --quick` prints."""
    return [line.strip() for line in quick("performance.py")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "needs"),
    [
        ("+ breaker: the defaults", ()),
        ("noise: bare httpx again", ()),
        ("lbclient", ("nginx", "the package httptools")),
        ("bare httpx through HAProxy", ("nginx", "haproxy")),
        ("raw aiohttp", ("nginx", "the package aiohttp")),
        ("httpx over httpx-aiohttp", ("nginx", "the package httpx-aiohttp")),
        ("lbclient.httpx2", ("nginx", "the package httpx2")),
        ("lbclient without httptools", ("nginx",)),
        ("lbclient, spans recorded", ("nginx", "the package httptools")),
        ("asyncio, TLS: calls a second, by concurrent calls", ("nginx", "the package trustme")),
        ("uvloop: calls a second, by concurrent calls", ("nginx", "the package uvloop")),
        ("trio: calls a second, by concurrent calls", ("nginx", "the package trio")),
        ("threads, TLS: calls a second, by threads", ("nginx", "the package trustme")),
        ("urllib3", ("nginx", "the package urllib3")),
        ("http.client, a connection a thread", ("nginx",)),
        ("threads: milliseconds of a call; ratio to bare httpx (quartiles)", ()),
        ("`weighted`", ()),
        ("100 instances", ()),
        ("known, never called", ()),
    ],
)
def test_performance_runs_or_says_why_not(performance, row, needs):
    """`performance.py --quick` runs each row, or says which package is not installed."""
    skipped = [one for one in needs if f"skipped: {one} is not installed" in performance]
    assert (row in performance) != bool(skipped)


@pytest.mark.slow
def test_performance_compares_two_versions():
    """`performance.py --before PATH` compares with the lbclient of that path, without httptools."""
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("nginx is not installed")
    said = quick("performance.py", "before", "--before", str(BENCHMARKS.parent))
    rows = {line.strip() for line in said}
    assert {"lbclient without httptools", "lbclient, the earlier version"} <= rows


@pytest.mark.slow
def test_the_performance_page_has_each_goal(performance):
    """The page lists each goal of the benchmarks and its result, without changes."""
    page = (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    goals = [line.removeprefix("goal: ") for line in performance if line.startswith("goal: ")]
    assert goals
    missing = [goal for goal in goals if f"| {goal} |" not in page]
    assert not missing, "run python benchmarks/performance.py --write"
