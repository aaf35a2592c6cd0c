"""HTTP/2 on the package ngh2, which wraps libnghttp2. The only file that imports it; see `http2`."""

from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any

import ngh2
from ngh2 import Connection, Priority
from ngh2.config import Configuration, Role
from ngh2.enums import ErrorCode, Setting
from ngh2.events import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from ngh2.exceptions import ConnectionStateError, NGH2Error

from onelane.wire import framing
from onelane.wire.framing import Headers
from onelane.wire.limits import UNLIMITED, Limits
from onelane.wire.requests import look_at

__all__ = [
    "AnswerReceived",
    "Body",
    "ConnectionClosed",
    "DataReceived",
    "GoAwayReceived",
    "PingAcknowledged",
    "RequestReceived",
    "ResponseReceived",
    "Session",
    "SettingsReceived",
    "StreamClosed",
    "StreamEnded",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "keep_freed_memory",
]

ENGINE: str = f"ngh2 {ngh2.__version__}"
StreamEnded = NGH2Error
"""By its base class: StreamProtocolError, or ConnectionStateError where the connection has ended, too, and its last
bytes have not been taken."""
GOAWAY_FRAME = 7
_IN_TURNS = Priority(incremental=True)
_RESPONSE: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_OK: Headers = [(b"grpc-status", b"0")]


def keep_freed_memory() -> None:
    """Python has no word with the C library: see the extension."""


class Body:
    """The bytes so far of a message that is not complete. No list of chunks: a peer may send them byte by byte."""

    __slots__ = ("_data",)

    def __init__(self, full: int) -> None:
        """full: its bytes in the end."""
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes | memoryview) -> None:
        self._data += data

    def take(self) -> bytes:
        """The message."""
        return bytes(self._data)


class AnswerReceived:
    """The beginning of an ordinary answer to a unary call, without metadata, and what came with it. Never made here:
    it would cost more than it saves."""

    stream_id: int
    data: bytes | None
    is_ok: bool


class Session:
    """One end of one connection: bytes in, events out, bytes to send."""

    __slots__ = (
        "_acknowledge",
        "_connection",
        "_is_server",
        "_last_headers",
        "_limits",
        "_max_joined",
        "_opens",
        "_wide",
        "end_stream",
        "events",
        "is_over",
        "queued_in_all",
        "send_data",
        "send_response",
        "send_trailers",
        "sent_error",
    )

    def __init__(
        self, *, server: bool, limits: Limits, opens: Callable[..., Any] | None = None, max_joined: int = -1
    ) -> None:
        """opens: makes the object that is the event of a new stream, of what `_open` gives it; without, the event is
        `RequestReceived`. max_joined: bytes of the only message of a call that is put into this object, as its
        `message`; below zero for none."""
        self._opens = opens
        self._max_joined = max_joined
        self._last_headers: tuple[Any, ...] = (None,)
        """Those of the last request, as `look_at` sees them: most calls of a connection have the same."""
        self._connection = Connection(
            Role.SERVER if server else Role.CLIENT,
            Configuration(
                auto_window_update=False,
                peer_max_concurrent_streams=100,
                max_inbound_header_list_size=limits.max_metadata * 4,
                max_send_header_block_length=limits.max_sent_metadata,
                max_inbound_header_count=limits.max_headers,
                max_continuations=limits.continuations,
                stream_reset_rate_limit=limits.resets,
            ),
        )
        self._is_server = server
        self._limits = limits
        self._wide: set[int] = set()
        """Streams with a `wide_window`; of those that have ended, some."""
        self.is_over = False
        """Nothing more is read or written. Set by the `take` that returns the last bytes."""
        self.sent_error = 0
        """The error of the GOAWAY with which libnghttp2 has ended the connection: its peer has broken HTTP/2."""
        settings = {
            Setting.INITIAL_WINDOW_SIZE: limits.window,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_metadata,
            Setting.MAX_FRAME_SIZE: 65_536,
        }
        if server:
            settings[Setting.MAX_CONCURRENT_STREAMS] = limits.max_streams
            settings[Setting.NO_RFC7540_PRIORITIES] = 1  # `share_window` needs the priorities of RFC 9218.
        else:
            settings[Setting.ENABLE_PUSH] = 0
        self._connection.initiate_connection(settings)
        self._connection.set_local_window_size(limits.connection_window)
        # Bound methods of the connection, looked up once: they run for every call.
        self.send_response: Callable[..., None] = self._connection.send_response
        self.send_data: Callable[..., None] = self._connection.send_data
        self.send_trailers: Callable[..., None] = self._connection.send_trailers
        self.end_stream: Callable[..., None] = self._connection.end_stream
        self.events: Callable[[], list[Any]] = self._connection.events
        """Takes the events that have come up since the last `receive`: what libnghttp2 itself refuses to send or to
        accept, it says while it writes."""
        self.queued_in_all: Callable[[], int] = self._connection.queued_body_size
        """Bytes of all streams that wait for the peer's flow-control windows."""
        self._acknowledge: Callable[..., None] = self._connection.acknowledge_received_data

    def receive(self, data: bytes | memoryview) -> list[Any]:
        """Take bytes from the peer; returns the events in them."""
        if self.is_over:
            return []
        try:
            self._connection.receive_data(data)
        except NGH2Error as error:
            self._end()
            closed = ConnectionClosed(ErrorCode.PROTOCOL_ERROR, str(error).encode())
            return self._composed([*self._connection.events(), closed])
        events = self._connection.events()
        return events if self._opens is None else self._composed(events)

    def take(self) -> bytes:
        """The bytes to send now."""
        if self.is_over:
            return b""
        try:
            data = self._connection.data_to_send()
        except NGH2Error:
            self._end()
            return b""
        if not self._connection.want_read:
            # The last bytes: a GOAWAY for a protocol error of the peer, or the end after an orderly shutdown.
            self.sent_error = _goaway_error(data)
            self._end()
        return data

    def send_request(self, headers: Headers, *, end_stream: bool = False) -> int:
        """Open a stream; returns its number."""
        return self._connection.send_request(headers, end_stream=end_stream)

    def request(self, headers: Headers, message: bytes) -> int:
        """Send a whole unary request, and return the number of its stream. message: framed."""
        number = self._connection.send_request(headers)
        self.send_data(number, message, end_stream=True)
        return number

    def send_message(self, stream: int, message: bytes) -> int:
        """Send one message, not compressed, with its prefix, after what has been queued. Returns the bytes of the
        stream that wait for the peer's flow-control windows."""
        self.send_data(stream, framing.frame(message))
        return self.queued(stream)

    def answer(self, stream: int, message: bytes, unread: int) -> None:
        """Answer a unary call with a message and the status OK, unless its stream has ended, and acknowledge the
        `unread` bytes of its request. Whatever is no message raises, and then nothing has been sent."""
        framed = framing.frame(message)
        try:
            self.send_response(stream, _RESPONSE)
            self.send_data(stream, framed)
            self.send_trailers(stream, _OK)
        except StreamEnded:
            pass
        if unread:
            self.acknowledge(unread, stream)

    def acknowledge(self, amount: int, stream: int) -> None:
        """Let the peer send `amount` more bytes, on one stream and on the connection."""
        try:
            self._acknowledge(amount, stream)
        except ConnectionStateError:
            # The connection is ending: the peer waits for no window.
            return

    def widen(self, stream: int, open_streams: Container[int]) -> None:
        """Let the peer send more at once on a stream that `window` holds up, if not too many streams have more.

        open_streams: the streams that have not ended.
        """
        limits = self._limits
        if limits.wide_window <= limits.window or stream in self._wide:
            return
        if len(self._wide) >= limits.wide_streams:
            self._wide = {number for number in self._wide if number in open_streams}
            if len(self._wide) >= limits.wide_streams:
                return
        with suppress(NGH2Error):
            self._connection.set_local_window_size(limits.wide_window, stream_id=stream)
            self._wide.add(stream)

    def is_filled(self, amount: int) -> bool:
        """Whether `amount` bytes, of one stream and not acknowledged, leave the peer little of its window."""
        return amount * 2 >= self._limits.window

    def reset(self, stream: int, error: int) -> None:
        self._send_control(self._connection.reset_stream, stream, error)

    def ping(self, payload: bytes) -> None:
        self._send_control(self._connection.ping, payload)

    def shutdown_notice(self) -> None:
        """Announce a GOAWAY; streams that the peer opens until it has read this are still accepted."""
        self._send_control(self._connection.send_shutdown_notice)

    def go_away(self, error: int = 0) -> None:
        """Send GOAWAY: accept no further stream; open streams go on."""
        self._send_control(self._connection.send_goaway, error)

    def queued(self, stream: int) -> int:
        """Bytes of one stream that wait for the peer's flow-control windows."""
        return 0 if self.is_over else self._connection.queued_body_size(stream)

    def share_window(self, stream: int) -> None:
        """Let a stream of this server take turns with others in what the peer's connection window lets through. By
        default libnghttp2 sends all that the oldest stream has before the next one's: an endless stream would starve
        the others. RFC 9218, section 4.2. Does nothing on a client, where HTTP/2 has no such choice."""
        if self._is_server:
            self._send_control(self._connection.set_stream_priority, stream, _IN_TURNS)

    def connection_room(self) -> int:
        """Bytes of all streams that the peer lets this end send now."""
        return 0 if self.is_over else self._connection.remote_window_size

    def has_stream(self, stream: int) -> bool:
        """Whether a stream has not closed: its end is still to be told."""
        with suppress(NGH2Error):
            self._connection.stream_local_window_size(stream)
            return True
        return False

    @property
    def can_open(self) -> bool:
        """Whether the peer's limits allow one more stream now."""
        return not self.is_over and self._connection.can_send_request

    def max_streams(self) -> int:
        """The peer's SETTINGS_MAX_CONCURRENT_STREAMS."""
        return self._remote(Setting.MAX_CONCURRENT_STREAMS)

    def max_header_list(self) -> int:
        """The peer's SETTINGS_MAX_HEADER_LIST_SIZE."""
        return self._remote(Setting.MAX_HEADER_LIST_SIZE)

    def _remote(self, setting: Setting) -> int:
        try:
            return self._connection.remote_settings.get(setting, UNLIMITED)
        except ConnectionStateError:
            # It has ended.
            return UNLIMITED

    def _composed(self, events: list[Any]) -> list[Any]:
        """Put the request of each new stream, and its only message where that and the end of the stream are among the
        same events, into one."""
        composed: list[Any] = []
        fresh: dict[int, Any] = {}
        """Ordinary calls of whose streams only the headers have arrived, and in these bytes."""
        for event in events:
            kind = type(event)
            if kind is RequestReceived:
                opened = self._open(event)
                composed.append(opened)
                if not (event.end_stream or opened.refusal) and opened.size <= self._limits.max_metadata:
                    fresh[event.stream_id] = opened
                continue
            if kind is DataReceived and fresh:
                opened = fresh.pop(event.stream_id, None)
                if opened is not None and event.end_stream and framing.is_one_message(event.data, self._max_joined):
                    opened.message = event.data[framing.PREFIX :]
                    continue
            composed.append(event)
        return composed

    def _open(self, event: RequestReceived) -> Any:
        """The object of a new stream: see `wire.server.Stream`."""
        assert self._opens is not None
        if event.headers != self._last_headers[0]:
            self._last_headers = look_at(event.headers)
        return self._opens(event.stream_id, event.end_stream, *self._last_headers)

    def _send_control(self, send: Callable[..., object], *arguments: Any) -> None:
        """Send a frame of the connection's own, unless the connection is over or has begun to end."""
        if not self.is_over:
            with suppress(NGH2Error):
                send(*arguments)

    def _end(self) -> None:
        """Let every later `send_` do nothing: a call may be answered after its connection is lost."""
        self.is_over = True
        self.send_response = self.send_data = self.send_trailers = self.end_stream = self._acknowledge = _nothing


def _goaway_error(data: bytes) -> int:
    """The error code of the GOAWAY in whole frames; 0 without one. RFC 9113, section 6.8."""
    at, code = 0, 0
    while at + 9 <= len(data):
        if data[at + 3] == GOAWAY_FRAME:
            code = int.from_bytes(data[at + 13 : at + 17], "big")
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return code


def _nothing(*_: object, **__: object) -> None:
    pass
