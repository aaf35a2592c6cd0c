"""The client's end of one gRPC connection, sans-I/O: calls out, bytes both ways, answers in.

Promises: what a server sends never raises; every opened stream ends in exactly one `Finished`, or with the connection
in `Gone`. A stream that the server surely never looked at says so, and may be sent again.
"""

from dataclasses import dataclass
from typing import Any

from onelane.wire import framing
from onelane.wire.framing import BadWire, Deframer, Headers, Metadata
from onelane.wire.http2 import (
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

PLAIN_KEPT = 8


class ClientStream:
    """One call on the wire."""

    __slots__ = ("_deframer", "answered", "call", "encoding", "ended", "id", "limit", "one_answer", "unread")

    def __init__(self, number: int, call: Any, limit: int) -> None:
        self.id = number
        self.call = call
        """Whatever the channel keeps here."""
        self.limit = limit
        self.encoding = b""
        self.answered = False
        """The server's headers have come."""
        self.ended = False
        """This end has sent its last message."""
        self.one_answer = False
        """Its caller waits for the end alone: initial metadata that say nothing are not told."""
        self.unread = 0
        """Bytes received that have not been acknowledged."""
        self._deframer: Deframer | None = None

    def feed(self, data: bytes) -> list[bytes]:
        if self._deframer is None:
            if framing.whole(data, self.limit):
                return [data[framing.PREFIX :]]
            self._deframer = Deframer(limit=self.limit, encoding=self.encoding)
        return self._deframer.feed(data)

    @property
    def is_whole(self) -> bool:
        """No message has been cut off."""
        return self._deframer is None or self._deframer.is_between


@dataclass(slots=True)
class Ready:
    """The server has said hello: calls may be sent."""


@dataclass(slots=True)
class Answered:
    """The server's initial metadata."""

    stream: ClientStream
    metadata: Metadata


@dataclass(slots=True)
class Messages:
    """Whole messages have come."""

    stream: ClientStream
    messages: list[bytes]


@dataclass(slots=True)
class Finished:
    """A call is over, with its status."""

    stream: ClientStream
    code: int
    details: str
    trailers: Metadata = ()
    untouched: bool = False
    """The server has surely not looked at it."""


@dataclass(slots=True)
class GoingAway:
    """The server takes no further calls here; those that are open go on."""

    error: int
    debug: str


@dataclass(slots=True)
class Writable:
    """The server reads again, or lets more calls in."""


@dataclass(slots=True)
class Pong:
    """Our ping has been answered."""


@dataclass(slots=True)
class Gone:
    """The connection is over."""

    reason: str


Event = Ready | Answered | Messages | Finished | GoingAway | Writable | Pong | Gone


class ClientConnection:
    """See the module. `receive` and `take` move bytes; the rest makes calls."""

    def __init__(self, limits: Limits) -> None:
        self.http2 = Http2(server=False, limits=limits)
        self.streams: dict[int, ClientStream] = {}
        self.going_away = False
        self._untaken: list[int] = []
        """Streams that were opened and have not left: a GOAWAY that comes first keeps libnghttp2 from sending them."""
        self._greeted = False
        self._most_streams = 0
        self._plain: set[Any] = set()
        """Answers' headers that say nothing of their own: servers send the same with each."""

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the server; what they amount to, in order."""
        events: list[Event] = []
        for event in self.http2.receive(data):
            kind = type(event)
            if kind is ResponseReceived:
                self._answered(event, events)
            elif kind is DataReceived:
                self._data(event, events)
            elif kind is TrailersReceived:
                self._finished(event.stream_id, event.headers, events)
            elif kind is StreamClosed or kind is StreamReset:
                self._closed(event.stream_id, event.error_code, events)
            elif kind is WindowUpdated:
                events.append(Writable())
            else:
                self._of_connection(event, events)
        return events

    def take(self) -> bytes:
        """The bytes to send now."""
        self._untaken.clear()
        return self.http2.take()

    # Calls

    def call(self, headers: Headers, message: bytes, call: Any, *, limit: int) -> ClientStream:
        """Send a whole unary request. `message` is framed; `limit` is of the messages that come back, in bytes."""
        http2 = self.http2
        number = http2.send_request(headers)
        http2.send_data(number, message, end_stream=True)
        stream = ClientStream(number, call, limit)
        stream.ended = True
        self.streams[number] = stream
        self._untaken.append(number)
        return stream

    def open(self, headers: Headers, call: Any, *, limit: int) -> ClientStream:
        """Begin a call whose messages follow."""
        stream = ClientStream(self.http2.send_request(headers), call, limit)
        self.streams[stream.id] = stream
        self._untaken.append(stream.id)
        return stream

    def send_message(self, stream: ClientStream, message: bytes) -> None:
        """Send one framed message."""
        if stream.id in self.streams:
            self.http2.send_data(stream.id, message)

    def end(self, stream: ClientStream) -> None:
        """Say that no message will follow."""
        stream.ended = True
        if stream.id in self.streams:
            self.http2.end_stream(stream.id)

    def cancel(self, stream: ClientStream) -> None:
        """End a call from this side."""
        if self.streams.pop(stream.id, None) is not None:
            self._acknowledge(stream)
            self.http2.reset(stream.id, ErrorCode.CANCEL)

    def consumed(self, stream: ClientStream) -> None:
        """The reader has taken what came: let the server send as much more."""
        if stream.unread and stream.id in self.streams:
            self._acknowledge(stream)

    def abandon(self) -> list[ClientStream]:
        """The connection is lost: the streams that it takes with it, which nothing ends any more."""
        streams = list(self.streams.values())
        self.streams.clear()
        return streams

    @property
    def can_call(self) -> bool:
        """One more call may be sent here now."""
        return not self.going_away and len(self.streams) < self._most_streams and self.http2.can_open

    # What came

    def _answered(self, event: Any, events: list[Event]) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        if event.end_stream:
            self._finished(event.stream_id, event.headers, events)
            return
        stream.answered = True
        if event.headers in self._plain:
            if not stream.one_answer:
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
        try:
            metadata = framing.read_metadata(headers)
        except BadWire as error:
            self._drop(stream, error.code, str(error), events)
            return
        events.append(Answered(stream, metadata))
        if not metadata and not stream.encoding and len(self._plain) < PLAIN_KEPT:
            self._plain.add(headers)

    def _data(self, event: Any, events: list[Event]) -> None:
        data = event.data
        stream = self.streams.get(event.stream_id)
        if stream is None:
            self.http2.acknowledge(len(data), event.stream_id)
            return
        try:
            messages = stream.feed(data)
        except BadWire as error:
            self.http2.acknowledge(len(data), stream.id)
            self._drop(stream, error.code, str(error), events)
            return
        if messages or stream.unread:
            stream.unread += len(data)
        else:
            # Part of a message, and nothing else to read: `limit` bounds it, so let the server send the rest.
            self.http2.acknowledge(len(data), stream.id)
        if messages:
            events.append(Messages(stream, messages))
        if event.end_stream:
            self._drop(stream, framing.INTERNAL, "the server ended the stream without a status", events)

    def _finished(self, number: int, headers: tuple[tuple[bytes, bytes], ...], events: list[Event]) -> None:
        stream = self.streams.pop(number, None)
        if stream is None:
            return
        self._acknowledge(stream)
        if len(headers) == 1 and headers[0] == (b"grpc-status", b"0") and stream.is_whole:
            events.append(Finished(stream, framing.OK, ""))
        else:
            events.append(_status(stream, headers))
        if not stream.ended:
            self.http2.reset(number, ErrorCode.CANCEL)

    def _closed(self, number: int, error: int, events: list[Event]) -> None:
        stream = self.streams.pop(number, None)
        if stream is None:
            return
        self._acknowledge(stream)
        code = framing.status_of_reset(error) if error else framing.UNKNOWN
        text = f"Received RST_STREAM with error code {error}"
        events.append(Finished(stream, code, text, untouched=error == ErrorCode.REFUSED_STREAM))

    def _of_connection(self, event: Any, events: list[Event]) -> None:
        kind = type(event)
        if kind is SettingsReceived:
            self._most_streams = self.http2.most_streams()
            events.append(Writable() if self._greeted else Ready())
            self._greeted = True
        elif kind is PingAcknowledged:
            events.append(Pong())
        elif kind is GoAwayReceived:
            self.going_away = True
            events.append(GoingAway(event.error_code, event.debug_data.decode("latin-1")))
            last = event.last_stream_id
            for stream in [s for n, s in self.streams.items() if n > last or n in self._untaken]:
                del self.streams[stream.id]
                events.append(Finished(stream, framing.UNAVAILABLE, "the server is going away", untouched=True))
        elif kind is Closed:
            events.append(Gone(f"HTTP/2 error {event.error_code}: {event.debug_data.decode('latin-1')}"))

    def _drop(self, stream: ClientStream, code: int, details: str, events: list[Event]) -> None:
        """End a stream that makes no sense any more."""
        if self.streams.pop(stream.id, None) is not None:
            self._acknowledge(stream)
            self.http2.reset(stream.id, ErrorCode.CANCEL)
        events.append(Finished(stream, code, details))

    def _acknowledge(self, stream: ClientStream) -> None:
        if stream.unread:
            self.http2.acknowledge(stream.unread, stream.id)
            stream.unread = 0


def _status(stream: ClientStream, headers: tuple[tuple[bytes, bytes], ...]) -> Finished:
    """The end of a call, from its trailers, or from the headers that were all of its answer."""
    fields = dict(headers)
    code = fields.get(b"grpc-status")
    try:
        trailers = framing.read_metadata(headers)
    except BadWire as error:
        return Finished(stream, error.code, str(error))
    if code is None:
        status = fields.get(b":status", b"")
        if status.isdigit() and status != b"200":
            return Finished(stream, framing.status_of_http(int(status)), f"HTTP status {status.decode()}", trailers)
        return Finished(stream, framing.UNKNOWN, "the server sent no status", trailers)
    details = framing.read_message(fields.get(b"grpc-message", b""))
    if code == b"0" and not stream.is_whole:
        return Finished(stream, framing.INTERNAL, "the stream ended in the middle of a message", trailers)
    number = int(code) if code.isdigit() and len(code) <= 2 else framing.UNKNOWN
    return Finished(stream, number if number <= framing.UNAUTHENTICATED else framing.UNKNOWN, details, trailers)
