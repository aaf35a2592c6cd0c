"""HTTP/2 by libnghttp2, as far as gRPC needs it. The only file that imports ngh2.

Framing, HPACK, flow control and the limits against abuse are libnghttp2's. Nothing that a peer sends makes a connection
raise: it ends, with `Closed` as its last event.
"""

from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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
from ngh2.exceptions import ConnectionStateError, NGH2Error, StreamProtocolError

from onelane.wire.framing import Headers

__all__ = [
    "Closed",
    "DataReceived",
    "ErrorCode",
    "GoAwayReceived",
    "Http2",
    "Limits",
    "PingAcknowledged",
    "RequestReceived",
    "ResponseReceived",
    "SettingsReceived",
    "StreamClosed",
    "StreamEnded",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
]

Closed = ConnectionClosed
UNLIMITED = 2**31 - 1
HEADERS_FRAME = 16 * 1024
"""Bytes of headers that every peer sends in one frame, RFC 9113, section 4.2."""
GOAWAY_FRAME = 7
_IN_TURNS = Priority(incremental=True)
StreamEnded = StreamProtocolError
"""Raised by every `send_` method, and by `end_stream`, if the stream has ended meanwhile."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a peer may make one connection hold."""

    max_streams: int = 1024
    """Concurrent streams that the peer may open."""
    window: int = 256 * 1024
    """Flow-control window of a stream: bytes that the peer may send before they are acknowledged. Every stream that
    nobody reads may fill it. (Of 64 KiB, it would make a call of 200 KiB a tenth dearer.)"""
    wide_window: int = 1024 * 1024
    """The window of a stream that its reader reads, or whose message is larger than `window`. See `Http2.widen`."""
    wide_streams: int = 32
    """Streams that may have a `wide_window` at once; further ones keep their `window`."""
    connection_window: int = UNLIMITED
    """Flow-control window of the connection. By default it holds nobody back: a stream that nobody reads would use it
    up, and so stop every other call of its connection."""
    max_metadata: int = 16 * 1024
    """Bytes of one header block, decoded. Four times as much ends the connection."""
    resets: tuple[int, int] = (1000, 33)
    """Streams that the peer may reset: as a burst, and per second."""
    max_headers: int = 1024
    """Fields of one header block."""
    max_continuations: int = 8
    """Frames in which one header block goes on, at least: see `continuations`."""
    sent_metadata: int = 0
    """See `max_sent_metadata`; 0 for four times `max_metadata`."""

    @property
    def continuations(self) -> int:
        """Frames in which one header block may go on: as many as the largest one needs."""
        return max(self.max_continuations, self.max_metadata * 4 // HEADERS_FRAME)

    @property
    def max_sent_metadata(self) -> int:
        """Bytes of one header block of ours; libnghttp2 sends none that is larger."""
        return self.sent_metadata or self.max_metadata * 4


SIBLING_LIMITS = Limits(
    max_streams=UNLIMITED,
    window=64 * 1024,
    wide_window=256 * 1024,
    wide_streams=256,
    max_metadata=2 * 1024 * 1024,
    resets=(UNLIMITED, UNLIMITED),
    max_headers=64 * 1024,
    max_continuations=1024,
)
"""Between the shards of one app. One connection carries the calls of many clients, each within its own limits: what one
of them does not read, cancels or sends may hold up no other. A header block has the client's metadata and more. Calls
that are forwarded and not read hold one window each at the shard of their client."""


class Http2:
    """One end of one connection: bytes in, events out, bytes to send."""

    __slots__ = (
        "_acknowledge",
        "_connection",
        "_is_server",
        "_limits",
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

    def __init__(self, *, server: bool, limits: Limits) -> None:
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

    def receive(self, data: bytes) -> list[Any]:
        """Take bytes from the peer; returns the events in them."""
        if self.is_over:
            return []
        try:
            self._connection.receive_data(data)
        except NGH2Error as error:
            self._end()
            return [*self._connection.events(), ConnectionClosed(ErrorCode.PROTOCOL_ERROR, str(error).encode())]
        return self._connection.events()

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

    def terminate(self, error: int = 0) -> None:
        """End the connection as soon as the queued frames have been sent."""
        self._send_control(self._connection.terminate_connection, error)

    def queued(self, stream: int) -> int:
        """Bytes of one stream that wait for the peer's flow-control windows."""
        return 0 if self.is_over else self._connection.queued_body_size(stream)

    def share_window(self, stream: int) -> None:
        """Let a stream of this server take turns with others in what the peer's connection window lets through. By
        default libnghttp2 sends all that the oldest stream has before the next one's: an endless stream would starve
        the others. RFC 9218, section 4.2. Does nothing on a client, where HTTP/2 has no such choice."""
        if self._is_server:
            self._send_control(self._connection.set_stream_priority, stream, _IN_TURNS)

    @property
    def can_open(self) -> bool:
        """Whether the peer's limits allow one more stream now."""
        return not self.is_over and self._connection.can_send_request

    def max_streams(self) -> int:
        """The peer's SETTINGS_MAX_CONCURRENT_STREAMS."""
        return self._connection.remote_settings.get(Setting.MAX_CONCURRENT_STREAMS, UNLIMITED)

    def max_header_list(self) -> int:
        """The peer's SETTINGS_MAX_HEADER_LIST_SIZE."""
        return self._connection.remote_settings.get(Setting.MAX_HEADER_LIST_SIZE, UNLIMITED)

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
