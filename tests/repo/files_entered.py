"""How many files of lbclient a warm `Client.get` enters, and how many the outcome of a 503.

Run it with `python -m tests.repo.files_entered`. A reader who follows a call opens so many files.
"""

import sys
from pathlib import Path

import lbclient
from tests.support.http import Server, says

OURS = str(Path(lbclient.__file__).parent)


def entered(step, first=None, last=None):
    """The files whose functions are called by `step`, in the order in which they are entered. With
    `first` and `last`, only from a call of the one to the return of the other, each time."""
    files = {}
    inside = first is None

    def note(frame, event, _):
        nonlocal inside
        code = frame.f_code
        if not code.co_filename.startswith(OURS):
            return
        if event == "call":
            inside = inside or code.co_qualname == first
            if inside:
                files.setdefault(str(Path(code.co_filename).relative_to(OURS)))
        elif event == "return" and code.co_qualname == last:
            inside = False

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return list(files)


def in_two_parts(connection, _):
    """Answer with a body that arrives after its headers."""
    connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
    connection.send(b"ok")


def by_get(url):
    """Files that a warm call enters, from `Client.get` to its return, with the body read."""
    with lbclient.Client([url]) as client:
        for _ in range(5):
            client.get("/")
        return entered(lambda: client.get("/"))


def by_outcome(urls):
    """Files that the outcome of a 503 enters with all rules on: from the end of an attempt to the
    decision to try again, and how soon."""
    options = {
        "strategy": "peak-ewma",
        "retry": lbclient.RetryPolicy(attempts=3),
        "limit": lbclient.AdaptiveLimit(),
        "throttle": lbclient.ThrottlePolicy(),
        "outliers": lbclient.OutlierPolicy(),
        "slow_start": lbclient.SlowStart(),
        "hedge": lbclient.HedgePolicy(),
    }
    with lbclient.Client(urls, **options) as client:
        client.get("/")
        return entered(lambda: client.get("/"), "Attempt.__exit__", "Call._delay_after")


def main():
    """Print all of them."""
    good, slow, *bad = servers = [
        Server(answer)
        for answer in (says(200, b"ok"), in_two_parts, says(503), says(503), says(503))
    ]
    try:
        for what, files in (
            ("a warm Client.get", by_get(good.url)),
            ("a warm Client.get, the body after the headers", by_get(slow.url)),
            ("the outcome of a 503", by_outcome([server.url for server in bad])),
        ):
            print(f"{what}: {len(files)} files")  # noqa: T201  # a script prints
            print(*(f"  {name}" for name in files), sep="\n")  # noqa: T201
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
