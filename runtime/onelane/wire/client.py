"""The client's end of one gRPC connection, sans-I/O: it turns calls into bytes, and received bytes into events.

Promises: nothing that a server sends raises; every opened stream ends in exactly one `Finished` or `WholeAnswer`, or
with the connection in `ConnectionLost`; `OK` for a unary response means exactly one message. `Finished.unprocessed`
marks a call that the server has certainly not begun, so that it can be sent again.
Source: grpc/doc/PROTOCOL-HTTP2.md, http-grpc-status-mapping.md, statuscodes.md.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Final

from onelane.wire import framing
from onelane.wire.deframer import Deframer
from onelane.wire.framing import BadWire, FrameCutter, Headers, Metadata
from onelane.wire.http2 import (
    UNLIMITED,
    AnswerReceived,
    Closed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    Http2,
    Limits,
    PingAcknowledged,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

EXPECTED_ONE: Final = "expected one message, the server sent"
"""Followed by `none` or `more`; how many had arrived depends on where their frames were cut."""
OK_TRAILERS: Final = ((b"grpc-status", b"0"),)
MAX_PLAIN_HEADERS: Final = 8
"""Different header blocks without metadata that one connection remembers."""


class ClientStream:
    """One call, as a stream of the connection."""

    __slots__ = ("_deframer", "answered", "call", "encoding", "ended", "id", "limit", "single_response", "unread")

    def __init__(self, number: int, call: Any, limit: int) -> None:
        self.id = number
        self.call = call
        """The channel's own object for the call; opaque here."""
        self.limit = limit
        self.encoding = b""
        self.answered = False
        """The server's headers have arrived."""
        self.ended = False
        """This end has sent its last message."""
        self.single_response = False
        """The response is unary: its headers cause no `Answered` if they hold no metadata. Its message stays `unread`
        until the call ends, so that a second one can be told."""
        self.unread = 0
        """Bytes received that have not been acknowledged."""
        self._deframer: Deframer | FrameCutter | None = None

    def keep_frames(self) -> None:
        """Report messages with their prefix, compressed as they come. To be called before any arrives."""
        self._deframer = FrameCutter()

    def feed(self, data: bytes) -> list[bytes]:
        if self._deframer is None:
            if framing.is_one_message(data, self.limit):
                return [data[framing.PREFIX :]]
            self._deframer = Deframer(limit=self.limit, encoding=self.encoding)
        messages = self._deframer.feed(data)
        if len(messages) > 1 and self.single_response:
            raise BadWire(f"{EXPECTED_ONE} more", code=framing.UNIMPLEMENTED)
        return messages

    @property
    def is_untouched(self) -> bool:
        """No byte of a message has come, and messages are cut out of their frames."""
        return self._deframer is None and not self.unread

    @property
    def keeps_frames(self) -> bool:
        """Messages are sent on as they come."""
        return type(self._deframer) is FrameCutter

    @property
    def missing(self) -> int:
        """Bytes that its incomplete message lacks, as far as they are known."""
        return 0 if self._deframer is None else self._deframer.missing

    @property
    def is_whole(self) -> bool:
        """Whether no message is incomplete."""
        return self._deframer is None or self._deframer.is_between


@dataclass(slots=True)
class Ready:
    """The server's first SETTINGS have arrived: calls may be sent."""


@dataclass(slots=True)
class Answered:
    """The server's initial metadata."""

    stream: ClientStream
    metadata: Metadata


@dataclass(slots=True, init=False)
class Messages:
    """Complete messages have arrived."""

    stream: ClientStream
    messages: list[bytes]

    # Of what each call needs it is written out: a dataclass's own is not compiled.
    def __init__(self, stream: ClientStream, messages: list[bytes]) -> None:
        self.stream = stream
        self.messages = messages


@dataclass(slots=True, init=False)
class WholeAnswer:
    """A call with a unary response has ended with the status OK, and all in one piece: its only message, its trailers.
    It has no initial metadata."""

    stream: ClientStream
    message: bytes
    trailers: Metadata

    def __init__(self, stream: ClientStream, message: bytes, trailers: Metadata) -> None:
        self.stream = stream
        self.message = message
        self.trailers = trailers


@dataclass(slots=True, init=False)
class Finished:
    """A call has ended with this status."""

    stream: ClientStream
    code: int
    details: str
    trailers: Metadata
    unprocessed: bool
    """The server has certainly not begun the call, so it can be repeated (gRFC A6, transparent retries)."""

    def __init__(
        self, stream: ClientStream, code: int, details: str, trailers: Metadata = (), unprocessed: bool = False
    ) -> None:
        self.stream = stream
        self.code = code
        self.details = details
        self.trailers = trailers
        self.unprocessed = unprocessed


@dataclass(slots=True)
class GoingAway:
    """The server has sent GOAWAY: it accepts no further calls here; open calls go on."""

    error: int
    debug: str


@dataclass(slots=True)
class SettingsChanged:
    """The server's limit of concurrent calls may have room again."""


@dataclass(slots=True)
class Pong:
    """The server has acknowledged our ping."""


@dataclass(slots=True)
class ConnectionLost:
    """The connection has ended; so have the calls that are still open."""

    reason: str


Event = Ready | Answered | Messages | WholeAnswer | Finished | GoingAway | SettingsChanged | Pong | ConnectionLost


class ClientConnection:
    """See the module. `receive` and `take` move bytes; the rest makes calls."""

    def __init__(self, limits: Limits, *, session: Any = None) -> None:
        """session: in place of one of HTTP/2."""
        self.http2 = session or Http2(server=False, limits=limits, max_joined=UNLIMITED)
        self.streams: dict[int, ClientStream] = {}
        self.going_away = False
        self._max_block = limits.max_sent_metadata
        self.max_headers = self._max_block
        """Bytes of the largest header list that the server takes, and that we send."""
        self.late: list[Event] = []
        """Events that came up while bytes were taken to be sent: calls that libnghttp2 has ended."""
        self._unsent: list[int] = []
        """Streams opened since the last `take`. If a GOAWAY arrives first, libnghttp2 never sends them."""
        self._has_settings = False
        self._max_streams = 0
        self._plain_headers: set[Any] = set()
        """Response headers without metadata, seen before: most servers send the same block with every response."""

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take bytes from the server; returns the events in them, in order."""
        events: list[Event] = []
        for event in self.http2.receive(data):
            kind = type(event)
            if kind is AnswerReceived:
                self._answer(event, events)
            elif kind is ResponseReceived:
                self._answered(event, events)
            elif kind is DataReceived:
                self._data(event.stream_id, event.data, event.end_stream, events)
            elif kind is TrailersReceived:
                self._finished(event.stream_id, event.headers, events)
            elif kind is StreamClosed or kind is StreamReset:
                self._closed(event, events)
            elif kind is not WindowUpdated:
                self._connection_event(event, events)
        return events

    def take(self) -> bytes:
        """The bytes to send now."""
        self._unsent.clear()
        data = self.http2.take()
        for event in self.http2.events():
            # A malformed answer, or one that breaks HTTP/2: libnghttp2 resets the stream, or ends the connection.
            if type(event) is StreamClosed:
                self._closed(event, self.late)
            elif type(event) is Closed:
                self._connection_event(event, self.late)
        return data

    def take_late(self) -> list[Event]:
        """The events in `late`, once."""
        events, self.late = self.late, []
        return events

    # Calls

    def call(self, headers: Headers, message: bytes, call: Any, *, limit: int) -> ClientStream:
        """Send a unary request. message: framed. limit: bytes of the largest response message."""
        number = self.http2.request(headers, message)
        stream = ClientStream(number, call, limit)
        stream.ended = True
        self.streams[number] = stream
        self._unsent.append(number)
        return stream

    def open(self, headers: Headers, call: Any, *, limit: int) -> ClientStream:
        """Begin a call whose messages are sent later. limit: bytes of the largest response message."""
        stream = ClientStream(self.http2.send_request(headers), call, limit)
        self.streams[stream.id] = stream
        self._unsent.append(stream.id)
        return stream

    def send_message(self, stream: ClientStream, message: bytes) -> None:
        """Send one framed message."""
        if stream.id in self.streams:
            self.http2.send_data(stream.id, message)

    def end(self, stream: ClientStream) -> None:
        """Half-close a call: no message will follow."""
        stream.ended = True
        if stream.id in self.streams:
            self.http2.end_stream(stream.id)

    def cancel(self, stream: ClientStream, error: int = ErrorCode.CANCEL) -> None:
        """Cancel a call: reset its stream, with this HTTP/2 error code."""
        if self.streams.pop(stream.id, None) is not None:
            self._acknowledge(stream)
            self.http2.reset(stream.id, error)

    def consumed(self, stream: ClientStream) -> None:
        """The reader has taken the received messages: let the server send as many bytes again."""
        if stream.unread and stream.id in self.streams:
            if self.http2.is_filled(stream.unread):
                self.http2.widen(stream.id, self.streams)
            self._acknowledge(stream)

    def is_unsent(self, stream: ClientStream) -> bool:
        """Whether the server can know nothing of a call: its headers have not been taken to be written."""
        return stream.id in self._unsent

    def abandon(self) -> list[ClientStream]:
        """Forget all streams, since the connection is lost; returns the streams for the caller to end."""
        streams = list(self.streams.values())
        self.streams.clear()
        return streams

    @property
    def can_call(self) -> bool:
        """Whether one more call may be sent here now."""
        return not self.going_away and len(self.streams) < self._max_streams and self.http2.can_open

    # Received events

    def _answer(self, event: Any, events: list[Event]) -> None:
        """An ordinary answer, as far as it has come at once."""
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            if event.is_ok and stream.single_response and self._ends_whole(stream, event.data, events):
                return
            stream.answered = True
            if not stream.single_response:
                events.append(Answered(stream, ()))
        if event.data is not None:
            self._data(event.stream_id, event.data, False, events)
        if event.is_ok:
            self._finished(event.stream_id, OK_TRAILERS, events)

    def _ends_whole(self, stream: ClientStream, data: bytes | None, events: list[Event]) -> bool:
        """Whether `data`, one whole message or None, is all of a unary response, before the status OK. It ends the call
        so, as nearly all do, with a third of the steps of the general way."""
        if data is None or not stream.is_untouched or len(data) - framing.PREFIX > stream.limit:
            return False
        number = stream.id
        del self.streams[number]
        self.http2.acknowledge(len(data), number)
        events.append(WholeAnswer(stream, data[framing.PREFIX :], ()))
        if not stream.ended:
            self.http2.reset(number, ErrorCode.CANCEL)
        return True

    def _answered(self, event: Any, events: list[Event]) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        if event.end_stream:
            self._finished(event.stream_id, event.headers, events)
            return
        stream.answered = True
        if event.headers in self._plain_headers:
            if not stream.single_response:
                events.append(Answered(stream, ()))
            return
        self._first_answer(stream, event.headers, events)

    def _first_answer(self, stream: ClientStream, headers: Any, events: list[Event]) -> None:
        status = content = b""
        for name, value in headers:
            if name == b":status":
                status = value
            elif name == b"content-type":
                content = value
            elif name == b"grpc-encoding":
                stream.encoding = value
        if status != b"200" or not content.startswith(b"application/grpc"):
            code = framing.status_of_http(int(status)) if status.isdigit() else framing.UNKNOWN
            text = f"HTTP status {status.decode('latin-1')}, content-type {content.decode('latin-1')!r}"
            self._drop(stream, code, text, events)
            return
        if stream.encoding not in framing.KNOWN_ENCODINGS and not stream.keeps_frames:
            text = f"grpc-encoding {stream.encoding.decode('latin-1')!r} of the answer is not supported"
            self._drop(stream, framing.INTERNAL, text, events)
            return
        try:
            metadata = framing.read_metadata(headers)
        except BadWire as error:
            self._drop(stream, error.code, str(error), events)
            return
        events.append(Answered(stream, metadata))
        if not metadata and not stream.encoding and len(self._plain_headers) < MAX_PLAIN_HEADERS:
            self._plain_headers.add(headers)

    def _data(self, number: int, data: bytes, ended: bool, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            self.http2.acknowledge(len(data), number)
            return
        try:
            messages = stream.feed(data)
        except BadWire as error:
            if error.messages and not stream.single_response:
                events.append(Messages(stream, error.messages))
            self.http2.acknowledge(len(data), stream.id)
            self._drop(stream, error.code, str(error), events)
            return
        if stream.unread:
            if messages and stream.single_response:
                self.http2.acknowledge(len(data), stream.id)
                self._drop(stream, framing.UNIMPLEMENTED, f"{EXPECTED_ONE} more", events)
                return
            stream.unread += len(data)
        elif messages:
            stream.unread = len(data)
        else:
            # An incomplete message, which no reader can take: `limit` bounds it, so let the server send the rest.
            self.http2.acknowledge(len(data), stream.id)
            if self.http2.is_filled(stream.missing):
                self.http2.widen(stream.id, self.streams)
        if messages:
            events.append(Messages(stream, messages))
        if ended:
            self._drop(stream, framing.UNKNOWN, "the server ended the stream without a status", events)

    def _finished(self, number: int, headers: tuple[tuple[bytes, bytes], ...], events: list[Event]) -> None:
        stream = self.streams.pop(number, None)
        if stream is None:
            return
        has_message = stream.unread
        if has_message:
            self.http2.acknowledge(has_message, number)
            stream.unread = 0
        if headers == OK_TRAILERS and stream.is_whole:
            if has_message or not stream.single_response:
                events.append(Finished(stream, framing.OK, ""))
            else:
                events.append(Finished(stream, framing.UNIMPLEMENTED, f"{EXPECTED_ONE} none"))
        else:
            events.append(_status(stream, headers, has_message=bool(has_message)))
        if not stream.ended:
            self.http2.reset(number, ErrorCode.CANCEL)

    def _closed(self, event: Any, events: list[Event]) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is None:
            return
        self._acknowledge(stream)
        error = event.error_code
        code, is_refused = framing.status_of_reset(error), error == ErrorCode.REFUSED_STREAM
        if type(event) is StreamReset:
            text = f"Received RST_STREAM with error code {error}"
        elif event.local_error is None:
            text = f"the server's answer breaks HTTP/2 (error code {error})"
        else:
            code, text, is_refused = framing.RESOURCE_EXHAUSTED, f"the call cannot be sent: {event.local_error}", False
        events.append(Finished(stream, code, text, unprocessed=is_refused))

    def _connection_event(self, event: Any, events: list[Event]) -> None:
        kind = type(event)
        if kind is SettingsReceived:
            self._max_streams = self.http2.max_streams()
            self.max_headers = min(self._max_block, self.http2.max_header_list())
            events.append(SettingsChanged() if self._has_settings else Ready())
            self._has_settings = True
        elif kind is PingAcknowledged:
            events.append(Pong())
        elif kind is GoAwayReceived:
            self.going_away = True
            events.append(GoingAway(event.error_code, event.debug_data.decode("latin-1")))
            self._end_unprocessed(event.last_stream_id, events)
        elif kind is Closed:
            events.append(ConnectionLost(f"HTTP/2 error {event.error_code}: {event.debug_data.decode('latin-1')}"))

    def _end_unprocessed(self, last: int, events: list[Event]) -> None:
        """End the calls that the server will not look at: those above `last`, and those that were not sent."""
        unsent = set(self._unsent)
        # The newest only, since numbers grow: a server may send GOAWAY again and again.
        numbers = list(itertools.takewhile(lambda number: number > last or number in unsent, reversed(self.streams)))
        for number in reversed(numbers):
            stream = self.streams.pop(number)
            events.append(Finished(stream, framing.UNAVAILABLE, "the server is going away", unprocessed=True))

    def _drop(self, stream: ClientStream, code: int, details: str, events: list[Event]) -> None:
        """End a stream on which the server has broken the protocol."""
        if self.streams.pop(stream.id, None) is not None:
            self._acknowledge(stream)
            self.http2.reset(stream.id, ErrorCode.CANCEL)
        events.append(Finished(stream, code, details))

    def _acknowledge(self, stream: ClientStream) -> None:
        if stream.unread:
            self.http2.acknowledge(stream.unread, stream.id)
            stream.unread = 0


def _status(stream: ClientStream, headers: tuple[tuple[bytes, bytes], ...], *, has_message: bool) -> Finished:
    """The end of a call, from its trailers, or from the headers of a trailers-only response."""
    fields = dict(headers)
    status = fields.get(b"grpc-status")
    try:
        trailers = framing.read_metadata(headers)
    except BadWire as error:
        return Finished(stream, error.code, str(error))
    if status is None:
        http = fields.get(b":status", b"")
        if http.isdigit() and http != b"200":
            return Finished(stream, framing.status_of_http(int(http)), f"HTTP status {http.decode()}", trailers)
        return Finished(stream, framing.UNKNOWN, "the server sent no status", trailers)
    code, details = framing.read_status(status), framing.read_message(fields.get(b"grpc-message", b""))
    if code == framing.OK and not stream.is_whole:
        code, details = framing.INTERNAL, "the stream ended in the middle of a message"
    elif code == framing.OK and stream.single_response and not has_message:
        code, details = framing.UNIMPLEMENTED, f"{EXPECTED_ONE} none"
    elif not details and str(code).encode() != status:
        details = f"the server sent the grpc-status {status.decode('latin-1')!r}"
    return Finished(stream, code, details, trailers)
