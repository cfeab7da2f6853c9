"""The jobs of docs/deploying.md: Celery's, and those with an event loop each."""

import re
import threading
from pathlib import Path

import pytest

from tests.support.deployments import command, outlives_an_instance, python
from tests.support.orders import HANGS, eventually

POLL = 0.01
BROKER = {"polling_interval": POLL, "data_folder_in": "inbox", "data_folder_out": "inbox"}
CONFIG = """
broker_url = "filesystem://"
broker_transport_options = {}
result_backend = "file://{}"
"""
PROBE = """
import os
import jobs

@jobs.app.task
def probe():
    (pid, seen) = os.getpid(), jobs.orders.balancer.snapshot()
    return [pid, [(one.in_flight, one.breaker) for one in seen.instances]]
"""


@pytest.fixture
def tasks(tmp_path):
    """Send a task by its name, and return its result."""
    celery = pytest.importorskip("celery")
    inbox, outbox, results = (tmp_path / name for name in ("inbox", "outbox", "results"))
    for folder in (inbox, outbox, results):
        folder.mkdir()
    (tmp_path / "celeryconfig.py").write_text(CONFIG.format(BROKER, results))
    (tmp_path / "probe.py").write_text(PROBE)
    options = {"data_folder_in": str(inbox), "data_folder_out": str(outbox)}
    app = celery.Celery(
        broker="filesystem://",
        backend=f"file://{results}",
        broker_transport_options={**options, "control_folder": str(tmp_path / "control")},
    )
    lock = threading.Lock()

    def send(name, *arguments, **options):
        with lock:
            sent = app.send_task(name, arguments, **options)
            for file in outbox.iterdir():  # the worker must find none that is half written
                file.rename(inbox / file.name)
        return lambda: sent.get(timeout=HANGS, interval=POLL)

    yield send
    app.close()


@pytest.mark.slow
def test_celery(run, tasks, orders):
    """No task fails while an instance is killed under load and started again. A soft limit in the
    middle of a call gives back what the call held, and its process works on; after a hard limit
    another process does; a worker that is told to end finishes its tasks."""
    worker = run(command("celery --app", "--include", "probe", concurrency="1"))

    def call():
        return tasks("jobs.order", 7)()["instance"]

    assert outlives_an_instance(call, orders) == []
    before, _ = tasks("probe.probe")()
    with pytest.raises(Exception, match="SoftTimeLimitExceeded") as caught:
        tasks("jobs.order", 0, soft_time_limit=0.3)()
    assert type(caught.value).__name__ == "SoftTimeLimitExceeded"
    assert call()
    after, seen = tasks("probe.probe")()
    assert after == before
    assert seen == [[0, "closed"]] * 3
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        tasks("jobs.order", 0, time_limit=0.3)()
    eventually(lambda: not Path(f"/proc/{before}").exists(), "the end of the process")
    assert call()
    assert tasks("probe.probe")()[0] != before
    orders.arrived()
    last = tasks("jobs.order", 0)
    orders.arrived()
    worker.terminate()
    orders.release()
    assert last()["number"] == 0
    assert worker.ended() == 0


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_other_pools_of_celery(run, tasks, orders, pool):
    """No task fails under load in Celery's other pools, either."""
    run(command("celery --app", pool=pool))
    assert outlives_an_instance(lambda: tasks("jobs.order", 7)()["instance"], orders) == []


@pytest.mark.parametrize("name", ["nightly.py", "nightly_runner.py"])
def test_event_loops(run, orders, name):
    """No job fails while an instance is killed and started again, whether each has an event loop of
    its own or all have one; and the program ends at once, without a word."""
    program = run(python(name))
    answers = threading.Lock()

    def call():
        with answers:
            program.process.stdin.write("7\n")
            program.process.stdin.flush()
            return int(re.search(r"'instance': (\d+)", program.process.stdout.readline())[1])

    assert outlives_an_instance(call, orders, threads=1) == []
    assert program.ended() == 0
    assert program.log == ""
