"""Scripted endpoints on loopback that speak the APIs of OpenAI and Anthropic.

Each one answers every prompt with its own name, as JSON or as a stream of server-sent events. The
`openai` and `anthropic` SDKs parse what it sends, so the examples need no account and no network.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MODEL = "scripted"


@dataclass(frozen=True)
class Request:
    """A request that an endpoint has received. Header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class Endpoint:
    """One endpoint of an LLM API, at `url`. It is a context manager.

    It answers 404 outside its base path, and 401 to a request without its key. After
    `answer_with(429, retry_after="30")` it answers everything with this status and header, until
    `recover()`. After `pause()` a stream stops after its first event, until `resume()`.
    """

    def __init__(
        self, name: str, *, key: str = "", path: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.name = name
        self.key = key
        self.path = path
        self.headers: dict[str, str] = {}
        """Headers of every response."""
        self.requests: list[Request] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.flowing = threading.Event()
        self.flowing.set()
        self._server = _Server(self, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}{path}"
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer_with(self, status: int, **headers: str) -> None:
        """Answer with this status from now on. In names of headers, `_` stands for `-`."""
        self.refusal = status, {name.replace("_", "-"): text for name, text in headers.items()}

    def recover(self) -> None:
        """Answer prompts again."""
        self.refusal = None

    def pause(self) -> None:
        """Stop streams after their first event."""
        self.flowing.clear()

    def resume(self) -> None:
        """Send the rest of the streams."""
        self.flowing.set()

    def stop(self) -> None:
        """End all connections and refuse new ones, as if the process had died."""
        self.resume()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `server_close` waits for them
    request_queue_size = 128

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = endpoint
        self.connections: set[socket.socket] = set()
        if tls is not None:  # the handshake comes with the first read, in the connection's thread
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def server_close(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error in the thread of a connection, except for a client that hangs up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as in the base class
        """Print nothing."""

    def do_POST(self) -> None:  # the name that http.server calls
        endpoint = self.server.endpoint
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        endpoint.requests.append(Request(self.path, headers, body))
        if endpoint.refusal is not None:
            status, extra = endpoint.refusal
            self._answer(status, {"error": {"message": f"{endpoint.name}: {status}"}}, extra)
        elif endpoint.key and headers.get("authorization") != f"Bearer {endpoint.key}":
            self._answer(401, {"error": {"message": f"{endpoint.name}: a wrong key"}})
        elif self.path == f"{endpoint.path}/chat/completions":
            self._complete(body, _openai_answer, _openai_events)
        elif self.path == f"{endpoint.path}/v1/messages":
            self._complete(body, _anthropic_answer, _anthropic_events)
        else:
            self._answer(404, {"error": {"message": f"{endpoint.name}: no {self.path}"}})

    def _complete(self, body: Mapping[str, Any], answer: Any, events: Any) -> None:
        if body.get("stream"):
            self._stream(events(self.server.endpoint.name))
        else:
            self._answer(200, answer(self.server.endpoint.name))

    def _answer(
        self, status: int, content: object, headers: Mapping[str, str] | None = None
    ) -> None:
        data = json.dumps(content).encode()
        self._head(
            status,
            {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **(headers or {}),
            },
        )
        self.wfile.write(data)

    def _stream(self, events: Iterator[str]) -> None:
        endpoint = self.server.endpoint
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for event in events:
            data = event.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            endpoint.flowing.wait()
        self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.server.endpoint.headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _words(name: str) -> list[str]:
    return ["This ", "is ", f"{name}."]


def _openai_answer(name: str) -> object:
    message = {"role": "assistant", "content": "".join(_words(name)), "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def _openai_events(name: str) -> Iterator[str]:
    first = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time())}
    deltas = [{"role": "assistant", "content": ""}, *({"content": one} for one in _words(name)), {}]
    for delta in deltas:
        reason = None if delta else "stop"
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield f"data: {json.dumps({**first, 'model': MODEL, 'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


def _anthropic_answer(name: str, *, words: bool = True) -> dict[str, object]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "".join(_words(name))}] if words else [],
        "stop_reason": "end_turn" if words else None,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3 if words else 0},
    }


def _anthropic_events(name: str) -> Iterator[str]:
    start = {"type": "text", "text": ""}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    deltas = [{"type": "text_delta", "text": one} for one in _words(name)]
    events: list[dict[str, object]] = [
        {"type": "message_start", "message": _anthropic_answer(name, words=False)},
        {"type": "content_block_start", "index": 0, "content_block": start},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
