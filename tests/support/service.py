"""A service in a chain: `python -m tests.support.service KIND NEXT`.

KIND is "asgi" (under uvicorn), "wsgi" (under wsgiref) or "werkzeug" (WSGI, and the server tells the
connection of a request); NEXT is the URL of the service that it calls. It prints what happens to it
as JSON, one event a line, each with the time: the clock is the same for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import subprocess
import sys
import time
from wsgiref.simple_server import WSGIRequestHandler, make_server

import lbclient
import lbclient.asgi
import lbclient.wsgi

OPTIONS = {"deadline_header": "x-deadline-ms", "retry": None, "breaker": None}
"""Of clients: each request is one event in each service."""
STATUS = {"ok": 200, "late": 504}


def tell(event, **details):
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **details}) + "\n")
    sys.stdout.flush()


def asgi(url):
    """`/work` calls the next service. `/watch` calls it, waits until its own caller has gone, and
    calls again."""
    client = lbclient.AsyncClient(url, **OPTIONS)

    async def get(path):
        try:
            response = await client.get(path)
        except lbclient.DeadlineExceeded as error:
            return "late", str(error)
        return ("ok" if response.is_success else "late"), ""

    async def gone(receive):
        while (await receive())["type"] != "http.disconnect":
            pass
        tell("gone")

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        tell("arrived", left=lbclient.time_left())
        watches = asyncio.create_task(gone(receive)) if scope["path"] == "/watch" else None
        outcome, error = await get(scope["path"])
        if watches is not None:
            await watches
            outcome, error = await get("/again")
        tell("ended", outcome=outcome, error=error)
        status = STATUS[outcome]
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    tell("listening", port=listener.getsockname()[1])
    config = uvicorn.Config(lbclient.asgi.DeadlineMiddleware(app), log_level="error")
    uvicorn.Server(config).run(sockets=[listener])


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        """Write nothing."""


def wsgi_app(url):
    """`/work` calls the next service, while the response is generated. `/watch` calls it, waits
    until its own caller has gone, and calls again."""
    client = lbclient.Client(url, **OPTIONS)

    def get(path):
        try:
            response = client.get(path)
        except lbclient.DeadlineExceeded as error:
            return "late", str(error)
        return ("ok" if response.is_success else "late"), ""

    def app(environ, start_response):
        tell("arrived", left=lbclient.time_left())
        outcome, error = get(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/watch":
            select.select([environ["werkzeug.socket"]], [], [])
            tell("gone")
            outcome, error = get("/again")
        tell("ended", outcome=outcome, error=error)
        start_response(f"{STATUS[outcome]} X", [("Content-Length", "0")])
        yield b""

    return lbclient.wsgi.DeadlineMiddleware(app)


def wsgi(url):
    server = make_server("127.0.0.1", 0, wsgi_app(url), handler_class=Quiet)
    tell("listening", port=server.server_port)
    server.serve_forever()


def werkzeug(url):
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, wsgi_app(url))
    tell("listening", port=server.server_port)
    server.serve_forever()


class Service:
    """One, as a test starts it."""

    def __init__(self, kind, url):
        command = [sys.executable, "-m", __spec__.name, kind, url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.next('listening')['port']}"

    def next(self, event):
        """Wait for an event, which is the next one."""
        said = json.loads(self.process.stdout.readline())
        assert said["event"] == event, said
        return said

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    {"asgi": asgi, "wsgi": wsgi, "werkzeug": werkzeug}[sys.argv[1]](sys.argv[2])
