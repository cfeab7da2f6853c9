"""A scripted HTTP/2 server without negotiation, for `servers`: h2, controlled by a test."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Mapping

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from tests.support.http import Connection, Request

STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
WINDOW = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
NO_ERROR, CANCEL = h2.errors.ErrorCodes.NO_ERROR, h2.errors.ErrorCodes.CANCEL
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION = (
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    9,
)
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame, however invalid."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def goaway(last: int, code: int = 0) -> bytes:
    return frame(GOAWAY, payload=struct.pack(">II", last, code))


_GONE = (h2.exceptions.StreamClosedError, h2.exceptions.StreamIDTooLowError)
"""What h2 raises at a response to a stream that the client has reset meanwhile."""


class Stream:
    """One request on one connection. Any thread may use it."""

    def __init__(self, connection: H2Connection, number: int, headers: Mapping[str, str]) -> None:
        self.connection = connection
        self.number = number
        self.headers = headers
        self.body = bytearray()
        self.reset: int | None = None
        """The error code by which the client has reset it."""

    def answer(
        self, status: int = 200, body: bytes | None = b"", *, end: bool = True, **headers: str
    ) -> None:
        """A response; without `end`, more of its body is to follow. None is no DATA."""
        fields = [(":status", str(status)), *headers.items()]
        with self.connection.lock:
            peer = self.connection.peer
            peer.send_headers(self.number, fields, end_stream=end and body is None)
            if body is not None:
                peer.send_data(self.number, body, end_stream=end)
        self.connection.flush()

    def data(self, body: bytes, *, end: bool = False) -> None:
        """Some of the body, as much as the client's windows allow; waits for the rest."""
        left = memoryview(body)
        while True:
            with self.connection.lock:
                peer = self.connection.peer
                room = min(
                    len(left),
                    peer.local_flow_control_window(self.number),
                    peer.max_outbound_frame_size,
                )
                if room or not left:
                    last = room == len(left)
                    peer.send_data(self.number, bytes(left[:room]), end_stream=end and last)
                    left = left[room:]
                    self.connection.flush()
                    if last:
                        return
                    continue
                self.connection.opened.clear()
            if not self.connection.opened.wait(10):
                raise TimeoutError("the client opens no window")

    def refuse(self, code: int) -> None:
        with self.connection.lock:
            self.connection.peer.reset_stream(self.number, code)
        self.connection.flush()

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.connection.flush(data)


class H2Connection:
    """What happened on one connection to the server."""

    def __init__(self, connection: Connection, settings: Mapping[int, int]) -> None:
        self.connection = connection
        self.lock = threading.RLock()
        self.opened = threading.Event()
        self.peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.peer.local_settings = h2.settings.Settings(client=False, initial_values=dict(settings))
        self.streams: dict[int, Stream] = {}

    def flush(self, more: bytes = b"") -> None:
        with self.lock, contextlib.suppress(OSError):
            self.connection.sock.sendall(self.peer.data_to_send() + more)


class Http2:
    """A behaviour for `servers`. `begun` is called as a request begins, `ended` once all of it is
    there, both with its stream; a window opens only as `reads` says."""

    on_accept = True

    def __init__(
        self,
        ended: Callable[[Stream], object] = lambda _: None,
        begun: Callable[[Stream], object] = lambda _: None,
        settings: Mapping[int, int] | None = None,
        *,
        reads: bool = True,
    ) -> None:
        self.begun, self.ended = begun, ended
        self.settings = settings or {}
        self.reads = reads
        self.streams: list[Stream] = []
        self.frames = threading.Semaphore(0)
        """Released for each stream that the client has reset, and each PING that it has acked."""
        self.pings = 0
        self.most = 0
        """So many streams of one connection were open at once."""
        self.faults: list[Exception] = []
        self.connections: list[H2Connection] = []

    def __call__(self, connection: Connection, _: Request) -> None:
        made = H2Connection(connection, self.settings)
        self.connections.append(made)
        made.peer.initiate_connection()
        made.flush()
        try:
            while data := connection.sock.recv(65_536):
                with made.lock:
                    events = made.peer.receive_data(data)
                made.flush()
                for event in events:
                    with contextlib.suppress(*_GONE):
                        self._take(made, event)
                    made.flush()
        except h2.exceptions.ProtocolError as error:
            self.faults.append(error)

    def _take(self, made: H2Connection, event: h2.events.Event) -> None:
        stream = made.streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.RequestReceived):
            headers = {name.decode(): value.decode() for name, value in event.headers}
            stream = made.streams[event.stream_id] = Stream(made, event.stream_id, headers)
            self.streams.append(stream)
            self.most = max(self.most, made.peer.open_inbound_streams)
            self.begun(stream)
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data
            if self.reads:
                with made.lock:
                    made.peer.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
        elif isinstance(event, h2.events.StreamEnded):
            self.ended(stream)
        elif isinstance(event, h2.events.StreamReset):
            stream.reset = int(event.error_code)
            made.opened.set()
            self.frames.release()
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            made.opened.set()
        elif isinstance(event, h2.events.PingAckReceived):
            self.pings += 1
            self.frames.release()


def says_ok(stream: Stream) -> None:
    """200, with the length of the request's body."""
    stream.answer(200, b"got %d" % len(stream.body))
