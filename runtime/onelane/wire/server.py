"""The server's end of one gRPC connection, sans-I/O: it turns received bytes into calls, and answers into bytes.

Promises: nothing that a client sends raises; a stream that breaks gRPC's rules is answered with a status; every opened
stream ends in exactly one `Ended` or in this end's answer. An answer on a stream or connection that has ended is
dropped.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from onelane.wire import framing, header_size
from onelane.wire.deframer import Deframer
from onelane.wire.framing import BadWire, Discarder, Headers, HeaderTuple, Metadata
from onelane.wire.header_size import TooMuchMetadata
from onelane.wire.http2 import (
    Closed,
    DataReceived,
    ErrorCode,
    Http2,
    Limits,
    PingAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

_RESPONSE: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_RESPONSE_SIZE = header_size.size_of(_RESPONSE)
SMALL_CHANGE = 4096
"""Bytes by which what a connection holds may change untold; calls that hold less are not worth ending."""
METHOD_NOT_ALLOWED = 405
EVERY_PEER_TAKES = 1024
"""Bytes of headers, whatever it announces."""


class Stream:
    """One call, as a stream of the connection."""

    unpacks: ClassVar[bool] = True
    is_web: ClassVar[bool] = False
    """A request of another protocol than gRPC's, see `wire.web`."""
    __slots__ = (
        "_application",
        "_deframer",
        "_fields",
        "_timeout",
        "call",
        "encoding",
        "ended",
        "headers",
        "held",
        "id",
        "message",
        "path",
        "refusal",
        "sent_headers",
        "size",
        "unread",
        "waits_left",
        "waits_since",
    )

    def __init__(
        self,
        number: int,
        ended: bool,
        headers: HeaderTuple,
        fields: dict[bytes, bytes] | None,
        path: bytes,
        application: HeaderTuple,
        timeout: float | None,
        size: int,
        refusal: int,
    ) -> None:
        """Called by the session of HTTP/2, which has looked at each header once."""
        self.id = number
        self.headers = headers
        self.path = path
        self.size = size
        """Bytes of its headers, as `header_size` counts them."""
        self.refusal = refusal
        """The HTTP status of a request that is none of gRPC's; 0 otherwise."""
        self.ended = ended
        """The client has half-closed the stream: no message will follow."""
        self.message: bytes | None = None
        """The only message, if it came with its headers and the end of the stream, until its call is reported."""
        self._fields = fields
        self._application = application
        """Headers that are the application's metadata."""
        self._timeout = timeout
        """Seconds; None without one, below zero where it is malformed."""
        self.sent_headers = False
        self.encoding = b""
        """The `grpc-encoding` of the answer, set before its headers; b"" for none."""
        self.unread = 0
        """Bytes received that have not been acknowledged."""
        self.held = 0
        """Bytes received that are held: those of messages not complete and not read, and of the message of a unary
        call to its end. One that came in one piece with its headers is left out: it is small."""
        self.waits_since = 0.0
        """When a message was first seen to be incomplete, or the answer not taken, by the clock of the listener."""
        self.waits_left = -1
        """Bytes of the answer that were not taken then."""
        self.call: Any = None
        """The listener's own object for the call; opaque here."""
        self._deframer: Deframer | Discarder | None = None

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The headers by their names."""
        if self._fields is None:
            self._fields = dict(self.headers)
        return self._fields

    def value(self, name: bytes) -> bytes:
        """The value of one header, or b""."""
        return self.fields.get(name, b"")

    def feed(self, data: bytes, limit: int) -> list[bytes]:
        if self._deframer is None:
            if framing.is_one_message(data, limit):
                return [data[framing.PREFIX :]]
            self._deframer = Deframer(limit=limit, encoding=self.value(b"grpc-encoding"), unpacks=self.unpacks)
        messages = self._deframer.feed(data)
        if messages:
            self.waits_since = 0.0
        return messages

    def discard_partial(self) -> None:
        """Let go of a message that is not complete: the stream has ended."""
        self._deframer = None

    def discard_rest(self) -> None:
        """Drop all that follows: it cannot be read."""
        self._deframer = Discarder()

    @property
    def buffered(self) -> int:
        """Bytes of its incomplete message."""
        return 0 if self._deframer is None else self._deframer.buffered

    @property
    def missing(self) -> int:
        """Bytes that its incomplete message lacks, as far as they are known."""
        return 0 if self._deframer is None else self._deframer.missing

    @property
    def is_whole(self) -> bool:
        """Whether no message is incomplete."""
        return self._deframer is None or self._deframer.is_between

    def end(self) -> list[bytes]:
        """The request has ended where it is not whole; returns the messages that its end completes.

        Raises:
            BadWire: there are none.
        """
        raise BadWire("the stream ended in the middle of a message")

    # Of a request of another protocol, see `wire.web`

    def begin_answer(self, metadata: Headers) -> None:
        raise NotImplementedError

    def send_translated(self, frame: bytes) -> None:
        raise NotImplementedError

    def finish_answer(self, code: int, details: str, trailers: Headers) -> None:
        raise NotImplementedError

    def metadata(self) -> tuple[Metadata, float | None]:
        """The application's metadata, and the timeout of the call in seconds; None without one.

        Raises:
            BadWire: the metadata or the timeout is malformed.
        """
        metadata = framing.read_metadata(self._application) if self._application else ()
        if self._timeout is not None and self._timeout < 0:
            # Raises: it is malformed.
            framing.read_timeout(self.value(b"grpc-timeout"))
        return metadata, self._timeout


class PackingStream(Stream):
    """A stream whose compressed messages are reported as `Packed`."""

    unpacks: ClassVar[bool] = False
    __slots__ = ()


@dataclass(slots=True, init=False)
class Opened:
    """A call has begun: its headers have arrived."""

    stream: Stream
    message: bytes | None
    """The only message, if it and the end of the stream arrived with the headers, as in nearly every unary call; no
    `Messages` follow. None unless the connection `joins`."""

    # Of what each call needs it is written out: a dataclass's own is not compiled.
    def __init__(self, stream: Stream, message: bytes | None = None) -> None:
        self.stream = stream
        self.message = message


@dataclass(slots=True)
class WebOpened:
    """A call of another protocol than gRPC's has begun. Its messages follow, as of any stream."""

    stream: Stream


@dataclass(slots=True, init=False)
class Messages:
    """Complete messages, or the end of the stream, or both, have arrived. At most one per stream and `receive`."""

    stream: Stream
    messages: list[bytes]
    last: bool
    """The client has half-closed the stream: no message will follow."""

    def __init__(self, stream: Stream, messages: list[bytes], last: bool = False) -> None:
        self.stream = stream
        self.messages = messages
        self.last = last


@dataclass(slots=True)
class Ended:
    """The client has reset the stream of a call before it was answered."""

    stream: Stream
    error: int
    """The HTTP/2 error code."""


@dataclass(slots=True)
class Broken:
    """The client has broken gRPC's rules on a stream: after the messages reported so far there will be none. The call
    is to be answered with this status by `finish`."""

    stream: Stream
    code: int
    details: str


@dataclass(slots=True)
class ConnectionLost:
    """The connection has ended; so have the calls that are still open."""

    reason: str


@dataclass(slots=True)
class Pong:
    """The client has acknowledged our ping."""


@dataclass(slots=True)
class Untaken:
    """The number of answers that wait for the client's flow control has changed."""

    change: int


@dataclass(slots=True)
class Held:
    """The connection holds so many bytes now: of received messages, and of answers that the client has not taken.
    Small changes are not told."""

    held: int


@dataclass(slots=True)
class MoreToWrite:
    """`take` has not returned all there is: the connection is to be written to again."""


Event = Opened | WebOpened | Messages | Ended | Broken | ConnectionLost | Pong | Untaken | Held | MoreToWrite


class WebTranslator(Protocol):
    """Translates the requests of other protocols than gRPC's."""

    def open(self, request: Stream, http: Any) -> Stream | None:
        """The stream of gRPC's that a request is; None where it has been answered on `http`, or refused."""


class ServerConnection:
    """See the module. `receive` and `take` move bytes; the rest answers calls."""

    def __init__(
        self,
        limits: Limits,
        *,
        max_message: int,
        joins: bool = False,
        unpacks: bool = True,
        web: WebTranslator | None = None,
        session: Any = None,
    ) -> None:
        """joins: report a call whose only message arrives together with its headers by one event, `Opened`.
        unpacks: compressed messages; else they are reported as `Packed`. web: takes requests that are none of gRPC's;
        without it they are refused. session: another than HTTP/2's, see `wire.http1` and `wire.link`."""
        self._stream_type = Stream if unpacks else PackingStream
        self.http2: Http2 = session or Http2(
            server=True, limits=limits, opens=self._stream_type, max_joined=max_message if joins else -1
        )
        self._web = web
        self.streams: dict[int, Stream] = {}
        self.late: list[Event] = []
        """Events that came up while bytes were taken to be sent: calls that libnghttp2 has ended."""
        self.held = 0
        """Bytes of received messages, see `Stream.held`."""
        self._told_from, self._told_to = -SMALL_CHANGE, SMALL_CHANGE
        """While what is held lies between, it is not told."""
        self.answered: dict[int, Stream] = {}
        """Streams whose answer has not left in full: it waits for `take`, or for the client's flow control."""
        self.untaken = 0
        """Of these, how many were left after the last `take`."""
        self.has_settings = False
        """The client's preface and first SETTINGS have come."""
        self._answered_early: tuple[int, ...] = ()
        """Streams to be reset once their answers have left."""
        self._unsent = b""
        self._max_message = max_message
        self._max_metadata = limits.max_metadata
        self._max_block = limits.max_sent_metadata

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take bytes from the client; returns the events in them, in order."""
        events: list[Event] = []
        resets = False
        arrived: dict[int, Messages] = {}
        """The event of each stream whose messages are in these bytes."""
        stream_type = self._stream_type
        for event in self.http2.receive(data):
            kind = type(event)
            if kind is stream_type:
                self._open(event, events)
            elif kind is DataReceived:
                self._data(event.stream_id, event.data, event.end_stream, events, arrived)
            elif kind is TrailersReceived:
                # gRPC does not use trailers of a client, but they end the stream.
                self._data(event.stream_id, b"", True, events, arrived)
            elif kind is StreamReset or kind is StreamClosed:
                resets = resets or kind is StreamReset
                self.answered.pop(event.stream_id, None)
                ended = self.streams.pop(event.stream_id, None)
                if ended is not None:
                    self._acknowledge(ended)
                    events.append(Ended(ended, event.error_code))
            elif kind is PingAcknowledged:
                events.append(Pong())
            elif kind is Closed:
                events.append(ConnectionLost(f"HTTP/2 error {event.error_code}: {event.debug_data.decode('latin-1')}"))
            elif kind is SettingsReceived:
                self.has_settings = True
        if resets:
            # libnghttp2 ends a connection with too many resets only once its GOAWAY is taken. Without this, a server
            # that reads on before it writes would open further streams.
            self._unsent += self.http2.take()
        return events

    def take(self) -> bytes:
        """The bytes to send now."""
        data = self.http2.take()
        if self._answered_early:
            data += self._reset_answered()
        for event in self.http2.events():
            # Of each stream that has been answered in full; and of one on which the client breaks HTTP/2, which
            # libnghttp2 resets.
            if (
                type(event) is StreamClosed
                and self.answered.pop(event.stream_id, None) is None
                and (ended := self.streams.pop(event.stream_id, None)) is not None
            ):
                self._acknowledge(ended)
                self.late.append(Ended(ended, event.error_code))
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if len(self.answered) != self.untaken:
            self.count_untaken()
        if not self._told_from < self.held + self.http2.queued_in_all() < self._told_to:
            self.weigh()
        return data

    def hold(self, stream: Stream, amount: int) -> None:
        """A call holds so many bytes more: its message has been unpacked so far."""
        if stream.id in self.streams:
            stream.held += amount
            self.held += amount

    def weigh(self) -> int:
        """Tell by an event what is held, and return it."""
        held = self.held + self.http2.queued_in_all()
        self._told_from, self._told_to = held - SMALL_CHANGE, held + SMALL_CHANGE
        self.late.append(Held(held if held >= SMALL_CHANGE else 0))
        return held

    def let_go(self, level: int, details: str, *, keeps_oldest: bool) -> list[Stream]:
        """End calls, the newest first, until at most `level` bytes are held; returns their streams.

        A call whose answer has begun, and waits, cannot be given another: its stream is reset with ENHANCE_YOUR_CALM,
        which is RESOURCE_EXHAUSTED to gRPC.
        """
        queued = self.http2.queued
        sizes = [(stream, stream.held + queued(number)) for number, stream in (self.streams | self.answered).items()]
        newest_first = sorted((pair for pair in sizes if pair[1] >= SMALL_CHANGE), key=lambda pair: -pair[0].id)
        held = self.held + self.http2.queued_in_all()
        ended = []
        for stream, size in newest_first[:-1] if keeps_oldest else newest_first:
            if held <= level:
                break
            held -= size
            ended.append(stream)
            if queued(stream.id):
                self.drop(stream)
            else:
                self.finish(stream, framing.RESOURCE_EXHAUSTED, details)
        return ended

    def drop(self, stream: Stream) -> None:
        """Reset a stream whose answer waits for the client."""
        self.streams.pop(stream.id, None)
        self.answered.pop(stream.id, None)
        self._acknowledge(stream)
        self.http2.reset(stream.id, ErrorCode.ENHANCE_YOUR_CALM)

    def count_untaken(self) -> None:
        """Tell by an event how many answers wait; also where nothing can be taken, since the transport is full."""
        change = len(self.answered) - self.untaken
        if change:
            self.untaken += change
            self.late.append(Untaken(change))

    def take_late(self) -> list[Event]:
        """The events in `late`, once."""
        events, self.late = self.late, []
        return events

    # Answers

    def answer(self, stream: Stream, message: bytes) -> None:
        """Answer a unary call with a message and the status OK."""
        number = stream.id
        self.http2.answer(number, message, stream.unread)
        stream.unread = 0
        self._forget(stream)

    def send_headers(self, stream: Stream, metadata: Metadata = ()) -> None:
        """Send the initial metadata, unless they have been sent.

        Raises:
            TooMuchMetadata: nothing has been sent.
        """
        if not stream.sent_headers:
            more = framing.write_metadata(metadata) if metadata else []
            if more:
                self._check_size([*_RESPONSE, *more])
            if stream.is_web:
                stream.begin_answer(more)
                return
            stream.sent_headers = True
            if stream.encoding:
                more.append((b"grpc-encoding", stream.encoding))
            with suppress(StreamEnded):
                self.http2.send_response(stream.id, [*_RESPONSE, *more])

    def send_message(self, stream: Stream, message: bytes) -> None:
        """Send one framed message, after the headers."""
        if not stream.sent_headers:
            if stream.is_web:
                stream.send_translated(message)
                return
            self.send_headers(stream)
        try:
            self.http2.send_data(stream.id, message)
        except StreamEnded:
            return

    def send_uncompressed(self, stream: Stream, message: bytes) -> int:
        """Send one message, to which this adds its prefix, after the headers. Returns the bytes of the stream that wait
        for the client."""
        if not stream.sent_headers:
            if stream.is_web:
                stream.send_translated(framing.frame(message))
                return self.http2.queued(stream.id)
            self.send_headers(stream)
        try:
            return self.http2.send_message(stream.id, message)
        except StreamEnded:
            return 0

    def finish(self, stream: Stream, code: int, details: str = "", trailers: Metadata = ()) -> Sequence[str]:
        """End the call with a status: in trailers, or as a trailers-only response if nothing was sent before.

        Returns what of details and trailers was cut, since the client takes no more.
        """
        cut: Sequence[str] = ()
        if stream.is_web:
            return self._finish_web(stream, code, details, trailers)
        headers: Headers = [(b"grpc-status", b"%d" % code)]
        if details:
            headers.append((b"grpc-message", framing.write_message(details)))
        if code == framing.UNIMPLEMENTED:
            # compression.md: a client that used an unknown encoding is told the supported ones.
            headers.append((b"grpc-accept-encoding", framing.ENCODINGS))
        if trailers:
            headers += framing.write_metadata(trailers)
        if len(headers) > 1 and (size := header_size.size_of(headers)) > EVERY_PEER_TAKES:
            headers, cut = self._fitting(headers, size)
        with suppress(StreamEnded):
            if stream.sent_headers:
                self.http2.send_trailers(stream.id, headers)
            else:
                self.http2.send_response(stream.id, [*_RESPONSE, *headers], end_stream=True)
        self._forget(stream)
        return cut

    def _finish_web(self, stream: Stream, code: int, details: str, trailers: Metadata) -> Sequence[str]:
        headers = framing.write_metadata(trailers)
        cut: Sequence[str] = ()
        if (size := header_size.size_of(headers)) > EVERY_PEER_TAKES:
            headers, cut = self._fitting(headers, size)
        stream.finish_answer(code, details, headers)
        self._forget(stream)
        return cut

    def consumed(self, stream: Stream) -> None:
        """The reader has taken the received messages: let the client send as many bytes again."""
        if stream.unread and stream.id in self.streams:
            if self.http2.is_filled(stream.unread):
                self.http2.widen(stream.id, self.streams)
            self._acknowledge(stream)
            stream.held = stream.buffered
            self.held += stream.held

    def refuse(self, stream: Stream) -> None:
        """Reset a stream that was not processed, so that the client may send it elsewhere at once."""
        self.streams.pop(stream.id, None)
        self._acknowledge(stream)
        self.http2.reset(stream.id, ErrorCode.REFUSED_STREAM)

    def _fitting(self, headers: Headers, size: int) -> tuple[Headers, Sequence[str]]:
        """The end of a call as the client takes it, and what was cut for that."""
        limit = self._max_sent()
        if size + _RESPONSE_SIZE <= limit:
            return headers, ()
        # Half: between that and what it announces, gRPC's core refuses headers at random.
        return header_size.cut_to(headers, (limit if limit == self._max_block else limit // 2) - _RESPONSE_SIZE)

    def _check_size(self, headers: Headers) -> None:
        size = header_size.size_of(headers)
        if size > EVERY_PEER_TAKES and size > (limit := self._max_sent()):
            raise TooMuchMetadata(size, limit)

    def _max_sent(self) -> int:
        """Bytes of the largest header list that the client takes, and that we send."""
        return max(EVERY_PEER_TAKES, min(self._max_block, self.http2.max_header_list()))

    # Received events

    def _open(self, stream: Stream, events: list[Event]) -> None:
        if stream.refusal:
            self._open_other(stream, events)
        elif stream.size > self._max_metadata:
            text = f"metadata of {stream.size} bytes, at most {self._max_metadata}"
            self.finish(stream, framing.RESOURCE_EXHAUSTED, text)
        else:
            self.streams[stream.id] = stream
            message, stream.message = stream.message, None
            events.append(Opened(stream, message))
            if message is not None:
                stream.ended = True
                stream.unread = framing.PREFIX + len(message)
            elif stream.ended:
                events.append(Messages(stream, [], last=True))

    def _open_other(self, request: Stream, events: list[Event]) -> None:
        """Begin a request that is none of gRPC's, or refuse it."""
        if self._web is None:
            more = [(b"allow", b"POST")] if request.refusal == METHOD_NOT_ALLOWED else []
            with suppress(StreamEnded):
                self.http2.send_response(request.id, [(b":status", b"%d" % request.refusal), *more], end_stream=True)
            self._stop_reading(request)
            return
        stream = self._web.open(request, self.http2)
        if stream is None:
            self._forget(request)
            return
        self.streams[stream.id] = stream
        events.append(WebOpened(stream))
        if stream.ended:
            self._data(stream.id, b"", True, events, {})

    def _data(self, number: int, data: bytes, ended: bool, events: list[Event], arrived: dict[int, Messages]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            # The call has been answered already: these bytes count against the connection's window alone.
            self.http2.acknowledge(len(data), number)
            return
        stream.ended = ended
        stream.held += len(data)
        self.held += len(data)
        broken: Broken | None = None
        try:
            messages = stream.feed(data, self._max_message)
            if ended and not stream.is_whole:
                messages, broken = self._ended_inside(stream, messages)
        except BadWire as error:
            messages, broken = error.messages, Broken(stream, error.code, str(error))
        if broken is not None:
            self._broken(broken, messages, len(data), events, arrived)
            return
        if messages or stream.unread:
            stream.unread += len(data)
        else:
            # An incomplete message, which no reader can take: `limit` bounds it, so let the client send the rest.
            self.http2.acknowledge(len(data), number)
            if self.http2.is_filled(stream.missing):
                self.http2.widen(number, self.streams)
        if not messages and not ended:
            return
        event = arrived.get(number)
        if event is None:
            event = arrived[number] = Messages(stream, [])
            events.append(event)
        event.messages += messages
        event.last = ended

    def _ended_inside(self, stream: Stream, messages: list[bytes]) -> tuple[list[bytes], Broken | None]:
        """The messages of a stream that has ended where it is not whole, and what is wrong with that."""
        try:
            return messages + stream.end(), None
        except BadWire as error:
            return messages, Broken(stream, error.code, str(error))

    def _broken(
        self, event: Broken, messages: list[bytes], size: int, events: list[Event], arrived: dict[int, Messages]
    ) -> None:
        """Report the messages before, and that there will be none. What follows is dropped, and not acknowledged until
        the call has ended: a client cannot send on for ever."""
        stream = event.stream
        stream.discard_rest()
        self._release(stream)
        stream.unread += size
        if messages and stream.id in arrived:
            arrived[stream.id].messages += messages
        elif messages:
            events.append(Messages(stream, messages))
        # No further messages are added to an event before this one.
        arrived.pop(stream.id, None)
        events.append(event)

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is not None:
            self.answered[stream.id] = stream
        self._acknowledge(stream)
        if not stream.ended:
            self._stop_reading(stream)

    def _acknowledge(self, stream: Stream) -> None:
        """Acknowledge the bytes that no reader has taken: they count against the connection's window."""
        if stream.unread:
            self.http2.acknowledge(stream.unread, stream.id)
            stream.unread = 0
        if stream.held:
            self._release(stream)

    def _release(self, stream: Stream) -> None:
        self.held -= stream.held
        stream.held = 0

    def _stop_reading(self, stream: Stream) -> None:
        """Ask the client to stop sending a request that has been answered. RFC 9113, section 8.1."""
        if not stream.ended:
            self._answered_early += (stream.id,)

    def _reset_answered(self) -> bytes:
        # Only once the answer has been sent: libnghttp2 drops queued frames of a stream that is reset.
        early = self._answered_early
        self._answered_early = tuple(number for number in early if self.http2.queued(number))
        sent = set(early).difference(self._answered_early)
        for number in sent:
            self.http2.reset(number, ErrorCode.NO_ERROR)
        return self.http2.take() if sent else b""
