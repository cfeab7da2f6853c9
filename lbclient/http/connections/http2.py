"""HTTP/2 without I/O (RFC 9113), over h2: the state of a connection that carries many requests.

A request does not itself write to the connection or read from it. Otherwise a deadline or a
cancellation of the request could leave half a frame on the connection. Instead, a request puts its
frames into a buffer, which a thread or task of the connection writes. Then the request waits until
it is woken, since data has arrived for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from lbclient._internal import fork

from .._compat import httpx
from .connection import Connection, InstanceLiveness, PeerLeft

if TYPE_CHECKING:
    from .pool import ConnectionLease

__all__ = ["ConnectionUnavailable", "Headers", "Http2", "Http2Exchange"]

MAX_STREAMS = 100
"""The maximum number of concurrent requests on one connection. The server may set a lower number.
"""
_MAX_HEADERS = 100 * 1024
_MAX_FRAME = 16 * 1024
_WINDOW = 256 * 1024
"""The maximum number of bytes of one response that wait to be read."""
_HIGH_WATER = 64 * 1024
"""The maximum number of bytes of requests that wait to be written to the socket."""
_MAX_IDLE_FRAMES = 1_000
"""The maximum number of consecutive frames that contain nothing new for a request: PING, SETTINGS,
empty DATA, interim responses."""
_FRAMES_AT_ONCE = 32
_LAST_STREAM = 2**31 - 1
_DATA, _HEADERS, _GOAWAY, _CONTINUATION = 0, 1, 7, 9
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
_CLOSED = "the connection was closed"

Headers = list[tuple[bytes, bytes]]


class ConnectionUnavailable(Exception):
    """Raised if nothing of a request was sent, so that it must be sent on another connection."""


class Http2Exchange:
    """One request and its response on a connection, from the moment when a stream is reserved."""

    __slots__ = (
        "chunks",
        "complete",
        "error",
        "headers",
        "http2",
        "is_head",
        "last",
        "length",
        "moved_at",
        "queued_from",
        "queued_until",
        "received_before",
        "reset",
        "sent",
        "size",
        "status",
        "stop_upload",
        "stream_id",
        "unsent",
        "waiter",
    )

    def __init__(self) -> None:
        self.http2: Http2 | None = None
        self.stream_id: int = 0
        """The number of the stream; 0 until the request has begun."""
        self.is_head: bool = False
        self.received_before: int = 0
        self.status: int = 0
        self.headers: Headers = []
        self.chunks: deque[tuple[bytes, int]] = deque()
        """Parts of the response's body that have arrived and have not been read. Each has the
        number of bytes that it uses of the flow-control windows."""
        self.length: int | None = None
        """The response's Content-Length."""
        self.size: int = 0
        """The number of bytes of the response's body that have arrived."""
        self.complete: bool = False
        """True once the whole response has arrived."""
        self.sent: bool = False
        """True once the whole request is in the buffer."""
        self.reset: bool = False
        """True once the client or the server has reset the stream."""
        self.error: Exception | None = None
        """The error that ended the exchange."""
        self.unsent: memoryview = memoryview(b"")
        """The part of the request's body that waits to be sent."""
        self.last: bool = False
        """True if `unsent` is the last part of the body."""
        self.moved_at: float = 0.0
        """The time when a part of the request was last sent."""
        self.queued_from: int = 0
        self.queued_until: int = 0
        """The positions of the exchange's first and last byte among all bytes that are written to
        the connection."""
        self.waiter: Callable[[], object] | None = None
        """Wakes the call that waits until something happens to this exchange."""
        self.stop_upload: Callable[[], object] | None = None
        """Wakes the call while it waits for a part of the caller's request body."""

    @property
    def answered(self) -> bool:
        """True if the rest of the request should not be sent. In this case a response has arrived
        that rejects the request or does not need the rest, or the stream has failed."""
        return self.complete or self.reset or self.status >= 300 or self.error is not None

    @property
    def bodiless(self) -> bool:
        """True if the response has no body, whatever its Content-Length says."""
        return self.is_head or self.status in {204, 304}

    def wake(self) -> None:
        """Wake the call, so that it checks again whether it must wait."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter()

    def end(self, error: Exception) -> None:
        """End the exchange: its call raises this error. Any thread may call this method."""
        if self.error is None:
            self.error = error
        self.wake()

    def leave(self) -> None:
        """Release the stream. If it has not ended, it is reset. A second call does nothing."""
        if (http2 := self.http2) is not None:
            http2.abandon(self)
            self.http2 = None


class Http2:
    """The state of one HTTP/2 connection. Each method takes the lock, and does not wait for
    anything else.

    A signal handler may raise an exception between any two lines of a call. Then a change of the
    stream, or of the header compression, may be incomplete. So the connection takes no further
    requests, but the other requests on it are completed.
    """

    def __init__(
        self, connection: Connection, liveness: InstanceLiveness, freed: Callable[[], object]
    ) -> None:
        """`freed` is called, while the lock is held, when there may be a stream for another
        request."""
        self.lock: threading.Lock = threading.Lock()
        self._freed = freed
        self._connection, self._liveness = connection, liveness
        self._silent, self._responses_before = False, 0
        self.exchanges: set[Http2Exchange] = set()
        """The exchanges that have a stream, or have reserved a stream."""
        self.lease: ConnectionLease[Connection] | None = None
        """The lease of the connection, while there is an exchange on it."""
        self.over: bool = False
        """True once nothing more will be read."""
        self.writer: Callable[[], object] | None = None
        """Wakes the thread or task that writes, while it waits."""
        self._h2 = h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADERS,
            },
        )
        del h2.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]  # some servers do not know it
        h2.decoder.max_header_list_size = _MAX_HEADERS
        h2.initiate_connection()
        # The window of the connection is large enough for all streams: responses that are not read
        # must not stop other responses.
        h2.increment_flow_control_window(MAX_STREAMS * _WINDOW)
        self._by_stream: dict[int, Http2Exchange] = {}
        self._uploads: deque[Http2Exchange] = deque()
        """The exchanges that have something to send, in the order of their turns."""
        self._limit = MAX_STREAMS
        self._started = False
        """True once the server has said how many streams it accepts."""
        self._in_doubt = False
        self._changing = False
        self._last_stream = _LAST_STREAM
        self._goaway: int | None = None
        """The error code of the server's GOAWAY."""
        self._unwritable: httpx.TransportError | None = None
        self._received = bytearray()
        self._to_write = bytearray()
        self._queued = self._offered = self._written = self._received_count = 0
        self._idle_frames = self._head_size = 0
        self._unseen_resets = self._resets_in_ping = 0
        self._queue()
        fork.track(self)

    def after_fork(self) -> None:
        """In a forked child: replace the lock, since a thread of the parent may hold it."""
        self.lock = threading.Lock()
        self.over = True
        self.exchanges, self._by_stream = set(), {}

    @property
    def usable(self) -> bool:
        """True if another request can begin once there is a stream for it."""
        return not (
            self.over
            or self._connection.closed
            or self._in_doubt
            or self._changing
            or self._goaway is not None
            or self._unwritable is not None
            or self._connection.generation != self._liveness.generation
            or self._h2.highest_outbound_stream_id >= _LAST_STREAM - 2
        )

    @property
    def free(self) -> bool:
        """True if another request can begin now."""
        return (
            self.usable
            and not self._connection.single_use
            and len(self.exchanges) + self._unseen_resets < self._limit
        )

    def adopt(self, exchange: Http2Exchange, lease: ConnectionLease[Connection]) -> bool:
        """Begin to use the connection that `lease` has leased. Returns False if the connection
        takes no requests."""
        with self.lock:
            if not self.usable or self._unseen_resets >= self._limit:
                return False
            exchange.http2 = self
            self.exchanges.add(exchange)
            self.lease = lease
            return True

    def reserve(self, exchange: Http2Exchange) -> bool:
        """Use the connection for another exchange. Returns False if there is no stream for it."""
        with self.lock:
            if self.lease is None or not self.free:
                return False
            exchange.http2 = self
            self.exchanges.add(exchange)
            return True

    def begin(self, exchange: Http2Exchange, headers: Headers, *, end: bool) -> bool | None:
        """Send the head of a request. Returns None if the server has not yet said how many streams
        it accepts; then call this method again later.

        Raises ConnectionUnavailable if another connection must be used, and LocalProtocolError for
        headers that must not be sent.
        """
        with self.lock:
            if exchange.error is not None:
                raise exchange.error
            if not self.usable:
                raise ConnectionUnavailable
            begun = len(self._by_stream) + self._unseen_resets
            if begun and not self._started:
                return None
            if begun >= self._limit:
                raise ConnectionUnavailable
            self._changing = True
            exchange.queued_from = self._queued
            exchange.is_head = headers[0][1] == b"HEAD"
            exchange.received_before = self._received_count
            stream_id = self._h2.get_next_available_stream_id()
            self._by_stream[stream_id] = exchange
            exchange.stream_id = stream_id
            try:
                self._h2.send_headers(stream_id, headers, end_stream=end)
            except (ProtocolError, ValueError) as error:
                raise httpx.LocalProtocolError(str(error)) from error
            exchange.sent = end
            self._silent, self._responses_before = True, self._liveness.responses
            self._progress(exchange)
            self._changing = False
            return True

    def started(self, exchange: Http2Exchange) -> bool | None:
        """Return True once the head of the request is written. If an error ended the exchange
        before, raises that error."""
        with self.lock:
            if exchange.error is not None:
                raise exchange.error
            return True if self.is_written(exchange) or self._unwritable is not None else None

    def push(self, exchange: Http2Exchange, part: bytes, *, last: bool) -> bool | None:
        """Send a part of a request's body as soon as the flow-control windows allow it. Returns the
        same as `pushed`."""
        with self.lock:
            was, self._changing = self._changing, True
            exchange.unsent, exchange.last = memoryview(part), last
            self._uploads.append(exchange)
            self._upload()
            self._changing = was
        return self.pushed(exchange)

    def pushed(self, exchange: Http2Exchange) -> bool | None:
        """Return True once the part of `push` has been sent, False if no more of the body should be
        sent, and None before that."""
        with self.lock:
            if exchange.answered or self.over or self._unwritable is not None:
                return False
            return None if exchange in self._uploads else True

    def head(self, exchange: Http2Exchange) -> bool | None:
        """Return True once the head of the response has arrived, and None before. Raises the error
        that ended the exchange."""
        with self.lock:
            if exchange.status:
                return True
            if exchange.error is not None:
                raise exchange.error
            return None

    def take(self, exchange: Http2Exchange) -> bytes | None:
        """Return the bytes of the response's body that have arrived; b"" at its end, None if no
        bytes have arrived. Raises the error that ended the exchange."""
        with self.lock:
            if exchange.chunks:
                was, self._changing = self._changing, True
                parts, size = [], 0
                while exchange.chunks:
                    part, taken = exchange.chunks.popleft()
                    parts.append(part)
                    size += taken
                self._acknowledge(exchange.stream_id, size)
                self._changing = was
                return parts[0] if len(parts) == 1 else b"".join(parts)
            if exchange.error is not None:
                raise exchange.error
            return b"" if exchange.complete else None

    def abandon(self, exchange: Http2Exchange) -> None:
        """Release the exchange of a call that no longer needs it."""
        lease = None
        with self.lock:
            if exchange in self.exchanges:
                was, self._changing = self._changing, True
                self._abandon(exchange)
                self._changing = was
            if not self.exchanges:
                lease, self.lease = self.lease, None
        if lease is not None:
            lease.end(reusable=self.usable and not self._connection.single_use)
            self._freed()  # before this line, the connection counted as used

    def timed_out(self, exchange: Http2Exchange) -> None:
        """Record that a call has waited for its whole timeout. If nothing at all has arrived on the
        connection meanwhile, it is not used for further requests."""
        with self.lock:
            if exchange.stream_id and exchange.received_before == self._received_count:
                self._in_doubt = True
                if self._responses_before == self._liveness.responses:
                    self._ended_in_silence()

    def is_written(self, exchange: Http2Exchange) -> bool:
        """Return True once everything that was sent of a request has been written to the socket."""
        return self._written >= exchange.queued_until

    # Called by the reader and the writer of the connection

    def outgoing(self, wake: Callable[[], object]) -> bytes:
        """Return the bytes that must be written now. If there are none, `wake` is called once there
        are some."""
        with self.lock:
            self.writer = None if self._to_write or self.over else wake
            self._offered = self._queued
            return bytes(self._to_write)

    def written(self, size: int) -> None:
        """Record that this many bytes were written."""
        with self.lock:
            del self._to_write[:size]
            self._written += size
            self._upload()
            for exchange in self.exchanges:
                if not exchange.sent:
                    exchange.wake()

    def writing_failed(self, error: httpx.TransportError) -> None:
        """Record that nothing more can be written. Data that the server has already sent may still
        arrive."""
        with self.lock:
            self._unwritable = error
            self._to_write.clear()
            self._upload()

    def receive(self, data: bytes) -> bool:
        """Process bytes that have arrived. If this method returns True, there are more to process:
        call it again with b""."""
        with self.lock:
            if data:
                self._silent = False
                self._received_count += 1
                self._liveness.responses += 1
                self._received += data
            if len(self.exchanges) > len(self._by_stream):
                for exchange in self.exchanges:
                    if not exchange.stream_id:
                        exchange.wake()
            try:
                more = self._frames()
            except Exception as error:  # noqa: BLE001  # also hpack's; nothing else would report it
                self._end(httpx.RemoteProtocolError(f"HTTP/2: {error or type(error).__name__}"))
                more = False
            self._queue()
            return more

    def end(self, error: httpx.TransportError | None = None) -> None:
        """Record that nothing more will be read, since the server has closed the connection, or it
        has failed."""
        with self.lock:
            if self._connection.closed:
                error = httpx.ReadError(_CLOSED)
            else:
                self._ended_in_silence()
            self._end(error)

    def close(self) -> None:
        """Record that no more bytes need to be read from this connection."""
        with self.lock:
            self._end(httpx.ReadError(_CLOSED))

    def _frames(self) -> bool:
        """Process some frames, one by one. If h2 got several frames at once and one of them was
        faulty, the events of the other frames would be lost."""
        buffer = self._received
        for _ in range(_FRAMES_AT_ONCE):
            if self.over or len(buffer) < 9:
                return False
            size = int.from_bytes(buffer[:3], "big")
            if size > _MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes")
            if len(buffer) < 9 + size:
                return False
            frame = bytes(buffer[: 9 + size])
            del buffer[: 9 + size]
            self._frame(frame)
        return True

    def _frame(self, frame: bytes) -> None:
        self._idle_frames += 1
        if self._idle_frames > _MAX_IDLE_FRAMES:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            raise ValueError(f"more than {_MAX_IDLE_FRAMES} frames that advance no request")
        self._started = True
        if frame[3] == _GOAWAY and len(frame) >= 17:  # h2 would accept no frame after GOAWAY
            last, code = int.from_bytes(frame[9:13], "big"), int.from_bytes(frame[13:17], "big")
            self._went_away(last & _LAST_STREAM, code)
            return
        if frame[3] in {_HEADERS, _CONTINUATION}:
            self._head_size += len(frame) - 9
            if self._head_size > _MAX_HEADERS:
                raise ValueError(f"headers of more than {_MAX_HEADERS} bytes")
            if frame[4] & _END_HEADERS:
                self._head_size = 0
        elif frame[3] == _DATA:
            exchange = self._by_stream.get(int.from_bytes(frame[5:9], "big") & _LAST_STREAM)
            if exchange is not None and not exchange.reset:
                self._data(exchange, frame)
        for event in self._h2.receive_data(frame):
            self._event(event)

    def _data(self, exchange: Http2Exchange, frame: bytes) -> None:
        """Check the length of a body. For h2, a wrong length is an error of the whole connection.
        So this method resets only the stream, before h2 gets the frame."""
        size, ends = len(frame) - 9, frame[4] & _END_STREAM
        if frame[4] & _PADDED and size:
            size -= 1 + frame[9]
        exchange.size += size
        length = exchange.length
        if exchange.bodiless:
            if not size and (exchange.is_head or not length):
                return
            exchange.complete = True  # bytes after the end belong to no request
        elif length is not None and (exchange.size > length or (ends and exchange.size < length)):
            exchange.error = _misfit(exchange)
        else:
            return
        exchange.reset = True
        self._h2.reset_stream(exchange.stream_id, ErrorCodes.PROTOCOL_ERROR)
        self._stop(exchange)

    def _event(self, event: Event) -> None:
        exchange = self._by_stream.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, DataReceived):
            size = event.flow_controlled_length or 0
            if exchange is not None and exchange.error is None and event.data:
                self._idle_frames = 0
                exchange.chunks.append((event.data, size))
                exchange.wake()
            else:
                self._acknowledge(event.stream_id or 0, size)
        elif isinstance(event, WindowUpdated):
            self._upload()
        elif exchange is not None:
            self._of_response(exchange, event)
        elif isinstance(event, RemoteSettingsChanged):
            streams = self._h2.remote_settings.get(SettingCodes.MAX_CONCURRENT_STREAMS)
            self._limit = MAX_STREAMS if streams is None else min(streams, MAX_STREAMS)
            for other in self.exchanges:
                other.wake()
            self._upload()
            self._freed()
        elif isinstance(event, PingAckReceived):
            self._unseen_resets -= self._resets_in_ping
            self._resets_in_ping = 0
            self._ping()
            self._freed()

    def _of_response(self, exchange: Http2Exchange, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            self._idle_frames = 0
            for name, value in event.headers or ():
                if name == b":status":
                    exchange.status = int(value)
                    continue
                exchange.headers.append((bytes(name), bytes(value)))
                if name == b"content-length":
                    exchange.length = int(value)
            self._connection.served += 1
        elif isinstance(event, StreamEnded):
            exchange.complete = True
            if exchange.length not in {None, exchange.size} and not exchange.bodiless:
                exchange.error = _misfit(exchange)
        elif isinstance(event, StreamReset):
            exchange.reset = True
            if not exchange.complete and exchange.error is None:
                exchange.error = _was_reset(exchange, int(event.error_code or 0))
        exchange.wake()
        if exchange.answered and exchange.stop_upload is not None:
            exchange.stop_upload()

    def _went_away(self, last: int, code: int) -> None:
        """Process GOAWAY: the server takes no more requests, and answers only the streams up to
        `last` (RFC 9113, 6.8)."""
        self._last_stream = min(last, self._last_stream)
        self._goaway = code
        for exchange in self.exchanges:
            unanswered = exchange.error is None and not exchange.status
            if unanswered and exchange.stream_id > self._last_stream:
                exchange.error = _unprocessed("the connection is going away")
                self._stop(exchange)
            elif not exchange.stream_id:
                exchange.wake()

    def _end(self, error: httpx.TransportError | None) -> None:
        if self.over:
            return
        self.over = True
        del self._to_write[self._offered - self._written :]  # these are sent on other connections
        for exchange in self.exchanges:
            if not exchange.complete and exchange.error is None:
                exchange.error = self._lost(exchange, error)
            self._stop(exchange)
        self._wake_writer()
        self._freed()

    def _lost(self, exchange: Http2Exchange, error: httpx.TransportError | None) -> Exception:
        """Return the error of an exchange that is not complete when the connection ends."""
        if not exchange.stream_id or exchange.queued_from >= self._offered:
            return ConnectionUnavailable()
        if self._goaway is not None:
            gone = httpx.RemoteProtocolError(
                f"the connection went away (error code {self._goaway}) before the response was "
                "complete"
            )
            if self._goaway == ErrorCodes.NO_ERROR:
                gone.__cause__ = PeerLeft(unprocessed=False)
            return gone
        if not exchange.sent and self._unwritable is not None:
            error = self._unwritable
        if error is None:
            where = "in the middle of" if exchange.status else "without"
            return httpx.RemoteProtocolError(f"the connection ended {where} a response")
        lost = type(error)(str(error))
        lost.__cause__ = error
        return lost

    # Called with the lock held

    def _ended_in_silence(self) -> None:
        """Record that this connection and the other connections may have been dead while they were
        idle."""
        if self._silent and self._connection.served and not self.over:
            self._liveness.generation += 1

    def _upload(self) -> None:
        """Put DATA frames into the buffer while there is room, one frame of each exchange in
        turn."""
        uploads, blocked = self._uploads, 0
        while blocked < len(uploads):
            exchange = uploads[0]
            if exchange.answered or exchange.sent or self.over or self._unwritable is not None:
                uploads.popleft()
                exchange.wake()
            elif not self._upload_frame(exchange):
                uploads.rotate(-1)
                blocked += 1
            elif exchange.unsent:
                uploads.rotate(-1)
                blocked = 0
            else:
                uploads.popleft()
                exchange.wake()

    def _upload_frame(self, exchange: Http2Exchange) -> bool:
        """Put one DATA frame of an exchange into the buffer, if there is room for it."""
        unsent, h2 = exchange.unsent, self._h2
        room = min(
            len(unsent),
            h2.local_flow_control_window(exchange.stream_id),
            h2.max_outbound_frame_size,
            _HIGH_WATER - len(self._to_write),
        )
        if room <= 0 and unsent:
            return False
        exchange.unsent = unsent[room:] if unsent else unsent
        exchange.sent = exchange.last and not exchange.unsent
        h2.send_data(exchange.stream_id, bytes(unsent[:room]), end_stream=exchange.sent)
        self._progress(exchange)
        return True

    def _progress(self, exchange: Http2Exchange) -> None:
        self._idle_frames = 0
        self._queue()
        exchange.queued_until, exchange.moved_at = self._queued, time.monotonic()

    def _queue(self) -> None:
        """Pass the bytes that h2 wants to send to the writer."""
        if data := self._h2.data_to_send():
            if self._unwritable is None:
                self._to_write += data
                self._queued += len(data)
            self._wake_writer()

    def _acknowledge(self, stream_id: int, size: int) -> None:
        if size and not self.over:
            self._h2.acknowledge_received_data(size, stream_id)
            self._queue()

    def _abandon(self, exchange: Http2Exchange) -> None:
        """Forget an exchange, and reset its stream if it has not ended. The stream counts as open
        until the server has received the reset. Otherwise the client might open more streams than
        the server accepts. This also limits the number of resets, since many resets look like an
        attack."""
        stream_id = exchange.stream_id
        if stream_id and not self.over:
            if not exchange.reset and not (exchange.complete and exchange.sent):
                done = exchange.complete
                code = ErrorCodes.NO_ERROR if done else ErrorCodes.CANCEL
                exchange.reset = True
                if not done:
                    self._unseen_resets += 1
                self._h2.reset_stream(stream_id, code)
                self._ping()
            unread = sum(size for _, size in exchange.chunks)
            self._acknowledge(stream_id, unread)
            self._queue()
        if exchange in self._uploads:
            self._uploads.remove(exchange)
        self._by_stream.pop(stream_id, None)
        self.exchanges.discard(exchange)
        self._freed()

    def _ping(self) -> None:
        """Send a PING, unless the answer to a PING is still to come. The answer shows that the
        server has received the resets that were sent before the PING."""
        if self._unseen_resets and not self._resets_in_ping:
            self._resets_in_ping = self._unseen_resets
            self._h2.ping(b"lbclient")

    def _stop(self, exchange: Http2Exchange) -> None:
        exchange.wake()
        if exchange.stop_upload is not None:
            exchange.stop_upload()

    def _wake_writer(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            writer()


def _misfit(exchange: Http2Exchange) -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError(
        f"the response has {exchange.size} bytes, and its Content-Length is {exchange.length}"
    )


def _unprocessed(what: str) -> httpx.RemoteProtocolError:
    error = httpx.RemoteProtocolError(f"{what}, and the request was not processed")
    error.__cause__ = PeerLeft(unprocessed=True)
    return error


def _was_reset(exchange: Http2Exchange, code: int) -> Exception:
    if code == ErrorCodes.REFUSED_STREAM and not exchange.status:
        return _unprocessed("the stream was refused")
    return httpx.RemoteProtocolError(f"the stream was reset by the peer (error code {code})")
