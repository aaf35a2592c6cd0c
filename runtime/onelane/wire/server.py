"""The server's end of one gRPC connection, sans-I/O: bytes in, calls out.

Promises: what a peer sends never raises; a stream that breaks gRPC's rules is answered with its status and goes on
nowhere; every opened stream ends in exactly one `Ended` or in this end's answer. An answer to a stream that has ended
meanwhile, or on a connection that has, goes nowhere.
"""

from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from onelane.wire import framing
from onelane.wire.framing import BadWire, Deframer, Headers, Metadata
from onelane.wire.http2 import (
    Closed,
    DataReceived,
    ErrorCode,
    Http2,
    Limits,
    PingAcknowledged,
    RequestReceived,
    StreamClosed,
    StreamGone,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

_RESPONSE: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
FIELD_OVERHEAD = 32
"""What RFC 9113 counts for each header field beside its bytes."""
_OK: Headers = [(b"grpc-status", b"0")]


class Stream:
    """One call on the wire."""

    __slots__ = (
        "_deframer",
        "call",
        "encoding",
        "ended",
        "fields",
        "headers",
        "id",
        "limit",
        "path",
        "sent_headers",
        "unread",
    )

    def __init__(self, number: int, headers: tuple[tuple[bytes, bytes], ...], limit: int) -> None:
        self.id = number
        self.headers = headers
        self.fields = dict(headers)
        self.limit = limit
        self.path = self.fields.get(b":path", b"")
        self.ended = False
        """The client has sent its last message."""
        self.sent_headers = False
        self.encoding = b""
        """The `grpc-encoding` of the answer, set before its headers; b"" for none."""
        self.unread = 0
        """Bytes received that have not been acknowledged."""
        self.call: Any = None
        """Whatever the listener keeps here."""
        self._deframer: Deframer | None = None

    def value(self, name: bytes) -> bytes:
        """The value of one header, or b""."""
        return self.fields.get(name, b"")

    def feed(self, data: bytes) -> list[bytes]:
        if self._deframer is None:
            if framing.whole(data, self.limit):
                return [data[framing.PREFIX :]]
            self._deframer = Deframer(limit=self.limit, encoding=self.value(b"grpc-encoding"))
        return self._deframer.feed(data)

    @property
    def is_whole(self) -> bool:
        """No message has been cut off."""
        return self._deframer is None or self._deframer.is_between

    def metadata(self) -> tuple[Metadata, float | None]:
        """The application's metadata, and the seconds that the client gives the call.

        Raises:
            BadWire: one of them is malformed.
        """
        timeout = self.fields.get(b"grpc-timeout")
        metadata = () if self.fields.keys() <= framing.OURS else framing.read_metadata(self.headers)
        return metadata, None if timeout is None else framing.read_timeout(timeout)


@dataclass(slots=True)
class Opened:
    """A call has begun: its headers are there."""

    stream: Stream
    message: bytes | None = None
    """Its one message, where that and the client's last word have come in one piece, as nearly every unary call does;
    no `Messages` follow. Only where it was asked for."""


@dataclass(slots=True)
class Messages:
    """Whole messages have come, or the client's last word, or both: at most one event a read for each stream, whatever
    frames they came in."""

    stream: Stream
    messages: list[bytes]
    last: bool = False
    """The client has said its last word."""


@dataclass(slots=True)
class Ended:
    """The client has ended a call before it was answered."""

    stream: Stream


@dataclass(slots=True)
class Gone:
    """The connection is over."""

    reason: str


@dataclass(slots=True)
class Writable:
    """The peer reads again: streams that were held back may have room."""


@dataclass(slots=True)
class Pong:
    """Our ping has been answered."""


Event = Opened | Messages | Ended | Gone | Writable | Pong


class ServerConnection:
    """See the module. `receive` and `take` move bytes; the rest answers calls."""

    def __init__(self, limits: Limits, *, max_message: int, joins: bool = False) -> None:
        """joins: tell a call whose one message comes with its headers by one event."""
        self._joins = joins
        self.http2 = Http2(server=True, limits=limits)
        self.streams: dict[int, Stream] = {}
        self._answered_early: list[int] = []
        self._taken = b""
        self._max_message = max_message
        self._max_metadata = limits.max_metadata

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the client; what they amount to, in order."""
        events: list[Event] = []
        resets = False
        fresh: dict[int, Opened] = {}
        """Calls whose headers are among these bytes, and so far nothing else."""
        arrived: dict[int, Messages] = {}
        """Of each stream, what of it is among these bytes."""
        for event in self.http2.receive(data):
            kind = type(event)
            if kind is RequestReceived:
                opened = self._open(event.stream_id, event.headers, event.end_stream, events)
                if self._joins and opened is not None:
                    fresh[event.stream_id] = opened
            elif kind is DataReceived:
                if event.end_stream and fresh:
                    # Written out: this is the path of nearly every unary call.
                    opened, data = fresh.get(event.stream_id), event.data
                    if opened is not None and framing.whole(data, self._max_message):
                        stream = opened.stream
                        stream.ended = True
                        stream.unread = len(data)
                        opened.message = data[framing.PREFIX :]
                        continue
                elif fresh:
                    fresh.pop(event.stream_id, None)
                self._data(event.stream_id, event.data, event.end_stream, events, arrived)
            elif kind is TrailersReceived:
                # gRPC has no use for a client's trailers, but they are its last word.
                self._data(event.stream_id, b"", True, events, arrived)
            elif kind is StreamReset or kind is StreamClosed:
                resets = resets or kind is StreamReset
                ended = self.streams.pop(event.stream_id, None)
                if ended is not None:
                    self._acknowledge(ended)
                    events.append(Ended(ended))
            elif kind is WindowUpdated:
                events.append(Writable())
            elif kind is PingAcknowledged:
                events.append(Pong())
            elif kind is Closed:
                events.append(Gone(f"HTTP/2 error {event.error_code}: {event.debug_data.decode('latin-1')}"))
        if resets:
            # libnghttp2 ends a connection with too many resets only once its GOAWAY is taken, and a loop that reads on
            # before it writes would go on opening streams.
            self._taken += self.http2.take()
        return events

    def take(self) -> bytes:
        """The bytes to send now."""
        data = self.http2.take()
        if self._taken:
            data, self._taken = self._taken + data, b""
        return data if not self._answered_early else data + self._reset_answered()

    # Answers

    def answer(self, stream: Stream, message: bytes) -> None:
        """The whole answer of a unary call that went well."""
        http2 = self.http2
        number = stream.id
        try:
            http2.send_response(number, _RESPONSE)
            http2.send_data(number, b"\0" + len(message).to_bytes(4, "big") + message)
            http2.send_trailers(number, _OK)
        except StreamGone:
            pass
        self._left(stream)

    def send_headers(self, stream: Stream, metadata: Metadata = ()) -> None:
        """Initial metadata; once."""
        if not stream.sent_headers:
            more = framing.write_metadata(metadata) if metadata else []
            stream.sent_headers = True
            if stream.encoding:
                more.append((b"grpc-encoding", stream.encoding))
            with suppress(StreamGone):
                self.http2.send_response(stream.id, [*_RESPONSE, *more])

    def send_message(self, stream: Stream, message: bytes) -> None:
        """One framed message, after the headers."""
        self.send_headers(stream)
        with suppress(StreamGone):
            self.http2.send_data(stream.id, message)

    def finish(self, stream: Stream, code: int, details: str = "", trailers: Metadata = ()) -> None:
        """The status, and so the end of the call; as headers alone where nothing was sent before."""
        headers: Headers = [(b"grpc-status", b"%d" % code)]
        if details:
            headers.append((b"grpc-message", framing.write_message(details)))
        if code == framing.UNIMPLEMENTED:
            # compression.md: who used an encoding that is not known here learns which are.
            headers.append((b"grpc-accept-encoding", framing.ENCODINGS))
        if trailers:
            headers += framing.write_metadata(trailers)
        with suppress(StreamGone):
            if stream.sent_headers:
                self.http2.send_trailers(stream.id, headers)
            else:
                self.http2.send_response(stream.id, [*_RESPONSE, *headers], end_stream=True)
        self._left(stream)

    def consumed(self, stream: Stream) -> None:
        """The reader has taken what came: let the client send as much more."""
        if stream.unread and stream.id in self.streams:
            self._acknowledge(stream)

    def refuse(self, stream: Stream) -> None:
        """Reset a stream that was not looked at, so that the client may send it elsewhere at once."""
        self.streams.pop(stream.id, None)
        self._acknowledge(stream)
        self.http2.reset(stream.id, ErrorCode.REFUSED_STREAM)

    # What came

    def _open(
        self, number: int, headers: tuple[tuple[bytes, bytes], ...], ended: bool, events: list[Event]
    ) -> Opened | None:
        stream = Stream(number, headers, self._max_message)
        stream.ended = ended
        fields = stream.fields
        if not fields.get(b"content-type", b"").startswith(b"application/grpc"):
            self._not_grpc(stream, [(b":status", b"415")])
            return None
        if fields.get(b":method") != b"POST":
            self._not_grpc(stream, [(b":status", b"405"), (b"allow", b"POST")])
            return None
        size = sum(map(len, chain.from_iterable(headers))) + FIELD_OVERHEAD * len(headers)
        if size > self._max_metadata:
            self.finish(stream, framing.RESOURCE_EXHAUSTED, f"metadata of {size} bytes, at most {self._max_metadata}")
            return None
        self.streams[number] = stream
        opened = Opened(stream)
        events.append(opened)
        if ended:
            events.append(Messages(stream, [], last=True))
        return opened

    def _not_grpc(self, stream: Stream, headers: Headers) -> None:
        with suppress(StreamGone):
            self.http2.send_response(stream.id, headers, end_stream=True)
        self._stop_reading(stream)

    def _data(self, number: int, data: bytes, ended: bool, events: list[Event], arrived: dict[int, Messages]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            # Of a call that has been answered already: its bytes count against the connection alone.
            self.http2.acknowledge(len(data), number)
            return
        stream.ended = ended
        try:
            messages = stream.feed(data)
            if ended and not stream.is_whole:
                raise BadWire("the stream ended in the middle of a message")
        except BadWire as error:
            self.http2.acknowledge(len(data), number)
            events.append(Ended(stream))
            self.finish(stream, error.code, str(error))
            return
        if messages or stream.unread:
            stream.unread += len(data)
        else:
            # Part of a message, and nothing else to read: `limit` bounds it, so let the client send the rest.
            self.http2.acknowledge(len(data), number)
        if not messages and not ended:
            return
        event = arrived.get(number)
        if event is None:
            event = arrived[number] = Messages(stream, [])
            events.append(event)
        event.messages += messages
        event.last = ended

    def _left(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._acknowledge(stream)
        if not stream.ended:
            self._stop_reading(stream)

    def _acknowledge(self, stream: Stream) -> None:
        """Nobody will read the rest of a stream that is over, but it counts against the connection's window."""
        if stream.unread:
            self.http2.acknowledge(stream.unread, stream.id)
            stream.unread = 0

    def _stop_reading(self, stream: Stream) -> None:
        """The answer is complete: the rest of the request is of no use. RFC 9113, section 8.1."""
        if not stream.ended:
            self._answered_early.append(stream.id)

    def _reset_answered(self) -> bytes:
        # Only once its answer has left: libnghttp2 drops what a reset overtakes.
        for number in (sent := [n for n in self._answered_early if not self.http2.queued(n)]):
            self._answered_early.remove(number)
            self.http2.reset(number, ErrorCode.NO_ERROR)
        return self.http2.take() if sent else b""
