"""The link between two shards of one app: calls of gRPC as frames of one length, one kind and one stream each.

In place of HTTP/2 where both ends know it, with the same methods as `http2.Http2` for `wire/server` and `wire/client`,
and no compression of headers: both ends are on one machine. One frame holds a small unary request with its headers, one
a small answer with its trailers. Sans-I/O: bytes in, frames out, bytes to send.

Promises: nothing that a peer sends raises; a frame that breaks the rules below ends the connection with a sentence.
What a peer may make this end hold is bounded: a frame by its kind, the bytes of a stream by the credit it has, the
streams by the number in HELLO, answers to pings by a count. The connection has no credit of its own: what one client
does not read must hold up no other.

A connection begins with MAGIC and HELLO from both ends: the versions that each speaks, and its limits. Each frame has
`HEAD` before it. An end that gets anything else first speaks HTTP/2, as older releases do.
"""

from collections import deque
from collections.abc import Container, Sequence

from onelane.wire import framing
from onelane.wire.http2 import StreamEnded
from onelane.wire.limits import UNLIMITED, Limits
from onelane.wire.link_frames import (
    ANSWER,
    ANSWER_HEAD,
    CALL,
    CALL_FIELDS,
    CALL_HEAD,
    CREDIT,
    DATA,
    ENDS,
    GOAWAY,
    GOODBYE,
    HAS_DEADLINE,
    HEADERS,
    HELLO,
    HELLO_FIELDS,
    KNOWN,
    MAGIC,
    MALFORMED,
    MAX_FRAME,
    MAX_PONGS,
    MAX_STREAM,
    NEWEST,
    NUMBER,
    OK_BLOCK,
    OLDEST,
    PING,
    PONG,
    REQUEST,
    RESET,
    RESPONSE_BLOCK,
    TRAILERS,
    WHOLE,
    Frame,
    LinkBroken,
    frame,
    write_block,
)
from onelane.wire.link_reader import FrameReader, PeerLimits


class Flow:
    """The credit of one stream, in both directions, and what waits for it."""

    __slots__ = (
        "allowed",
        "begin",
        "credit",
        "full",
        "is_wide",
        "peer_ended",
        "queue",
        "queued",
        "tail",
        "unacknowledged",
    )

    def __init__(self, credit: int, allowed: int) -> None:
        self.credit = credit
        """Bytes that may be sent."""
        self.allowed = allowed
        """Bytes that the peer may send."""
        self.full = allowed
        """The same, where all that came was read."""
        self.unacknowledged = 0
        """Bytes that were read, and not given back to the peer as credit."""
        self.is_wide = False
        self.peer_ended = False
        self.queue: deque[bytes] = deque()
        self.begin = 0
        """Bytes of the first in the queue that have been sent."""
        self.queued = 0
        self.tail = b""
        """The last frame, sent behind the queue."""


class LinkSession:
    """See the module: one end of one connection. `frames` and `take` move bytes; the rest are `Http2`'s methods."""

    def __init__(self, *, server: bool, limits: Limits) -> None:
        self.is_over = False
        self.sent_error = 0
        self.flows: dict[int, Flow | None] = {}
        """The streams that are open; None for one whose messages need no credit."""
        self.last = 0
        """The highest stream that was opened."""
        self.fault = ""
        """Why this end ends the connection."""
        self.ended: list[int] = []
        """Streams whose last bytes are in what was taken: for a server to tell."""
        self._is_server = server
        self._limits = limits
        self._refuses_above = MAX_STREAM
        self._wide = 0
        self._queued = 0
        self._ending: list[int] = []
        self._pongs = 0
        self._reader = FrameReader(limits)
        hello = HELLO_FIELDS.pack(NEWEST, OLDEST, limits.window, limits.max_metadata * 4, limits.max_streams)
        self._out: list[bytes] = [MAGIC, frame(HELLO, 0, hello)]

    # Bytes in, bytes out

    def frames(self, data: bytes | memoryview) -> list[Frame]:
        """Take bytes from the peer; returns the frames in them. Sets `fault` where one breaks the protocol."""
        if self.fault or self.is_over:
            return []
        frames: list[Frame] = []
        try:
            self._reader.read(data, frames)
        except LinkBroken as fault:
            self.fail(str(fault))
        except MALFORMED:
            self.fail("a frame is shorter than its kind")
        return frames

    def take(self) -> bytes:
        """The bytes to send now."""
        if self.is_over:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        self._pongs = 0
        if self._ending:
            self.ended += self._ending
            self._ending.clear()
        self.is_over = bool(self.fault)
        return data

    def fail(self, fault: str) -> None:
        """End the connection, with a sentence for the peer."""
        self.fault = fault
        self.sent_error = 1
        self._out.append(frame(GOAWAY, 0, GOODBYE.pack(self.last, 1) + fault.encode()))

    @property
    def peer_limits(self) -> PeerLimits | None:
        """Of the peer's HELLO; None before."""
        return self._reader.peer_limits

    # Frames of flow control and of the connection

    def count_data(self, stream: int, size: int, flags: int) -> None:
        """A frame of data has come.

        Raises:
            LinkBroken: it may not.
        """
        if stream not in self.flows:
            # It has ended here; the peer did not know yet.
            return
        flow = self.flow(stream)
        if flow.peer_ended:
            raise LinkBroken(f"the peer has sent data on stream {stream}, which it had ended")
        flow.allowed -= size
        flow.peer_ended = bool(flags & ENDS)
        if flow.allowed < 0:
            raise LinkBroken(f"the peer has sent {-flow.allowed} bytes more than its credit on stream {stream}")

    def control(self, kind: int, stream: int, payload: bytes) -> None:
        """Act on a frame of the connection's own.

        Raises:
            LinkBroken: it may not come.
        """
        if kind == CREDIT:
            (amount,) = NUMBER.unpack_from(payload)
            flow = self.flows.get(stream)
            if flow is not None:
                flow.credit = min(flow.credit + amount, UNLIMITED)
                self._send_queued(stream, flow)
        elif kind == PING:
            self._pongs += 1
            if self._pongs > MAX_PONGS:
                raise LinkBroken(f"the peer has sent {MAX_PONGS} pings and does not read the answers")
            self._out.append(frame(PONG, 0, payload))
        else:
            raise LinkBroken(f"a frame of kind {kind}, which may not come here")

    def flow(self, stream: int) -> Flow:
        """The flow of an open stream."""
        flow = self.flows[stream]
        if flow is None:
            credit = self.peer_limits[0] if self.peer_limits is not None else 0
            flow = self.flows[stream] = Flow(credit, self._limits.window)
            # A client that has not ended its stream has a flow there from the start.
            flow.peer_ended = self._is_server
        return flow

    def close(self, stream: int) -> None:
        """A stream has ended in both directions."""
        flow = self.flows.pop(stream, None)
        if flow is not None:
            self._queued -= flow.queued
            self._wide -= flow.is_wide

    # A client's streams

    def request(self, headers: Sequence[tuple[bytes, bytes]], message: bytes) -> int:
        """Send a whole unary request, and return the number of its stream. message: framed."""
        number = self._opened()
        block = write_block(headers)
        if len(message) <= WHOLE:
            self._out.append(frame(REQUEST, number, NUMBER.pack(len(block)) + block + message, ENDS))
        else:
            self._out.append(frame(REQUEST, number, NUMBER.pack(len(block)) + block))
            self.send_data(number, message, end_stream=True)
        return number

    def send_request(self, headers: Sequence[tuple[bytes, bytes]], *, end_stream: bool = False) -> int:
        """Open a stream; returns its number."""
        number = self._opened()
        block = write_block(headers)
        self._out.append(frame(REQUEST, number, NUMBER.pack(len(block)) + block, ENDS if end_stream else 0))
        return number

    def call(self, block: int, own: bytes, message: bytes, deadline_at: float | None, epoch: int, flags: int) -> int:
        """Send a whole call that is forwarded, and return the number of its stream. block: of headers that the peer
        knows. own: the block of its other headers. message: of `WHOLE` bytes at most."""
        number = self._opened()
        if deadline_at is not None:
            flags |= HAS_DEADLINE
        size = CALL_FIELDS.size + len(own) + len(message)
        head = CALL_HEAD.pack(size, number, CALL, flags, block, deadline_at or 0.0, epoch, len(own))
        self._out.append(head + own + message if own else head + message)
        return number

    def _opened(self) -> int:
        number = self.last = self.last + 1
        self.flows[number] = None
        return number

    def tell_block(self, number: int, block: bytes) -> None:
        """Have the peer know a header block by a number, in place of the one that had it."""
        self._send_control(frame(KNOWN, number, block))

    # A server's streams

    def open(self, stream: int, *, ended: bool) -> bool:
        """The peer opens a stream; False where this end takes none any more.

        Raises:
            LinkBroken: it may not.
        """
        if stream <= self.last:
            raise LinkBroken(f"stream {stream} was opened after stream {self.last}")
        if stream > self._refuses_above:
            return False
        if len(self.flows) >= self._limits.max_streams:
            raise LinkBroken(f"more than {self._limits.max_streams} streams at once")
        self.last = stream
        self.flows[stream] = None
        if not ended:
            self.flow(stream).peer_ended = False
        return True

    def answer(self, stream: int, message: bytes, unread: int) -> None:
        """See `Http2`."""
        if self.fault or stream not in self.flows:
            return
        self._out.append(frame(HEADERS, stream, RESPONSE_BLOCK))
        self.send_data(stream, framing.frame(message))
        self._finish(stream, frame(TRAILERS, stream, OK_BLOCK, ENDS))

    def answer_whole(self, stream: int, block: int, message: bytes) -> None:
        """Answer a whole call with one message of `WHOLE` bytes at most, and trailers that the peer knows."""
        if not self.fault and stream in self.flows:
            size = NUMBER.size + len(message)
            self._out.append(ANSWER_HEAD.pack(size, stream, ANSWER, ENDS, block) + message)
            self._sent_all(stream, self.flows[stream])

    def send_response(self, stream: int, headers: Sequence[tuple[bytes, bytes]], *, end_stream: bool = False) -> None:
        if not self._is_open(stream):
            return
        if end_stream:
            self._finish(stream, frame(HEADERS, stream, write_block(headers), ENDS))
        else:
            self._out.append(frame(HEADERS, stream, write_block(headers)))

    def send_trailers(self, stream: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if self._is_open(stream):
            self._finish(stream, frame(TRAILERS, stream, write_block(headers), ENDS))

    def _is_open(self, stream: int) -> bool:
        """Whether anything can be sent on a stream. On a link that has failed nothing is.

        Raises:
            StreamEnded: a server's stream has ended meanwhile.
        """
        if self.fault or self.is_over:
            return False
        if stream not in self.flows and self._is_server:
            raise StreamEnded("the stream has ended")
        return stream in self.flows

    # Streams of either end

    def send_message(self, stream: int, message: bytes) -> int:
        """Send one message, not compressed, with its prefix. Returns the bytes of the stream that wait for credit."""
        self.send_data(stream, framing.frame(message))
        return self.queued(stream)

    def send_data(self, stream: int, data: bytes, end_stream: bool = False) -> None:
        if not self._is_open(stream):
            return
        flow = self.flow(stream)
        if flow.tail:
            return
        if not flow.queue and len(data) <= flow.credit and len(data) <= MAX_FRAME and not end_stream:
            flow.credit -= len(data)
            self._out.append(frame(DATA, stream, data))
            return
        flow.queue.append(data)
        flow.queued += len(data)
        self._queued += len(data)
        if end_stream:
            self.end_stream(stream)
        else:
            self._send_queued(stream, flow)

    def end_stream(self, stream: int) -> None:
        if self._is_open(stream):
            self._finish(stream, frame(DATA, stream, b"", ENDS))

    def _finish(self, stream: int, tail: bytes) -> None:
        flow = self.flows[stream]
        if flow is None or not flow.queue:
            self._out.append(tail)
            self._sent_all(stream, flow)
        else:
            flow.tail = tail
            self._send_queued(stream, flow)

    def _send_queued(self, stream: int, flow: Flow) -> None:
        """Send what the credit allows."""
        while flow.queue and flow.credit > 0:
            data = flow.queue[0]
            begin = flow.begin
            size = min(len(data) - begin, flow.credit, MAX_FRAME)
            flow.begin = begin + size
            if flow.begin == len(data):
                flow.queue.popleft()
                flow.begin = 0
            flow.credit -= size
            flow.queued -= size
            self._queued -= size
            self._out.append(frame(DATA, stream, data[begin : begin + size]))
        if flow.tail and not flow.queue:
            self._out.append(flow.tail)
            flow.tail = b""
            self._sent_all(stream, flow)

    def _sent_all(self, stream: int, flow: Flow | None) -> None:
        """The last frame of this end is on its way. A client's stream ends with the answer."""
        if self._is_server and (flow is None or flow.peer_ended):
            self.close(stream)
            self._ending.append(stream)

    def reset(self, stream: int, error: int) -> None:
        if stream in self.flows:
            self.close(stream)
            if self._is_server:
                self._ending.append(stream)
            self._out.append(frame(RESET, stream, NUMBER.pack(error)))

    def acknowledge(self, amount: int, stream: int) -> None:
        """Let the peer send `amount` more bytes on a stream."""
        flow = self.flows.get(stream)
        if flow is not None:
            # What came whole has used no credit, and gives none back.
            flow.unacknowledged = min(flow.unacknowledged + amount, flow.full - flow.allowed)
            if flow.unacknowledged * 2 >= self._limits.window:
                self._grant(stream, flow, flow.unacknowledged)
                flow.unacknowledged = 0

    def widen(self, stream: int, open_streams: Container[int]) -> None:
        """Let the peer send more at once on a stream, if not too many streams have more."""
        flow, limits = self.flows.get(stream), self._limits
        if flow is not None and not flow.is_wide and self._wide < limits.wide_streams and not self.fault:
            flow.is_wide = True
            self._wide += 1
            flow.full = limits.wide_window
            self._grant(stream, flow, limits.wide_window - limits.window)

    def _grant(self, stream: int, flow: Flow, amount: int) -> None:
        flow.allowed += amount
        self._out.append(frame(CREDIT, stream, NUMBER.pack(amount)))

    def is_filled(self, amount: int) -> bool:
        return amount * 2 >= self._limits.window

    def queued(self, stream: int) -> int:
        """Bytes of one stream that wait for credit."""
        flow = self.flows.get(stream)
        return 0 if flow is None else flow.queued

    def queued_in_all(self) -> int:
        """Bytes that wait for credit, or to be taken."""
        return self._queued + sum(map(len, self._out))

    def share_window(self, stream: int) -> None:
        """Each stream has credit of its own."""

    # The connection

    def ping(self, payload: bytes) -> None:
        self._send_control(frame(PING, 0, payload))

    def shutdown_notice(self) -> None:
        """Announce a GOAWAY; streams that the peer opens until it has read this are still accepted."""
        self._send_control(frame(GOAWAY, 0, GOODBYE.pack(MAX_STREAM, 0)))

    def go_away(self, error: int = 0) -> None:
        """Accept no further stream; open streams go on."""
        self._refuses_above = self.last
        self._send_control(frame(GOAWAY, 0, GOODBYE.pack(self.last, error)))

    def _send_control(self, frame: bytes) -> None:
        if not self.is_over and not self.fault:
            self._out.append(frame)

    @property
    def can_open(self) -> bool:
        return not self.is_over and not self.fault and self.last < MAX_STREAM

    def max_streams(self) -> int:
        return UNLIMITED if self.peer_limits is None else self.peer_limits[2]

    def max_header_list(self) -> int:
        return UNLIMITED if self.peer_limits is None else self.peer_limits[1]
