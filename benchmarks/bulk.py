"""A server of long bodies on loopback, with blocking sockets: `python bulk.py PORT`. It is faster
than any client in Python, and reads all of a request before it answers."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator

MEGABYTES = 10
CHUNKS = 2000
DOWN, UP, UP_IN_PIECES, CHUNKED = "down", "up", "up-in-pieces", "chunks"
EXCHANGES = {
    DOWN: f"{MEGABYTES} MB download",
    UP: f"{MEGABYTES} MB upload, bytes",
    UP_IN_PIECES: f"{MEGABYTES} MB upload, iterator",
    CHUNKED: f"download in {CHUNKS:,} chunks",
}
"""Each is the path of a request; in words."""
_BODY = bytes(MEGABYTES * 1_000_000)
_PIECES = [_BODY[:50_000]] * (len(_BODY) // 50_000)
_CHUNK = b"64\r\n" + bytes(100) + b"\r\n"
_LAST = b"0\r\n\r\n"
_SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
_ANSWERS = {
    DOWN: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY),
    CHUNKED: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS * _CHUNK + _LAST,
}


def content(exchange: str) -> Callable[[], bytes | Iterator[bytes]] | None:
    """What makes the body of each request, if it has one."""
    return {UP: lambda: _BODY, UP_IN_PIECES: lambda: iter(_PIECES)}.get(exchange)


def async_content(exchange: str) -> Callable[[], bytes | AsyncIterator[bytes]] | None:
    """The same for an event loop."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in _PIECES:
            yield piece

    return pieces if exchange == UP_IN_PIECES else content(exchange)


def _serve(connection: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    with connection, contextlib.suppress(OSError):  # the client may have gone
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (path := _request(connection, buffer)) is not None:
            connection.sendall(_ANSWERS.get(path, _SHORT))


def _request(connection: socket.socket, buffer: bytearray) -> str | None:
    """Read one request to its end; its path, or None where the client has gone."""
    head = bytearray()
    while (end := head.find(b"\r\n\r\n")) < 0:
        if not (got := connection.recv(1 << 16)):
            return None
        head += got
    if length := re.search(rb"(?i)\ncontent-length: *(\d+)", head[:end]):
        left = int(length[1]) - (len(head) - end - 4)
        while left > 0 and (read := connection.recv_into(buffer)):
            left -= read
    elif b"chunked" in head[:end].lower():
        tail = bytes(head[-len(_LAST) :])
        while tail != _LAST and (read := connection.recv_into(buffer)):
            tail = (tail + buffer[max(read - len(_LAST), 0) : read])[-len(_LAST) :]
    return head.split(b" ", 2)[1][1:].decode()


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
