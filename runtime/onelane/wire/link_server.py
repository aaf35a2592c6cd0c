"""The server's end of a link: `ServerConnection` over frames of the link. See `link`."""

from onelane.core import hop
from onelane.core.hop import Hop
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.errors import caused
from onelane.wire import framing, header_size
from onelane.wire.framing import BadWire, HeaderTuple, Metadata
from onelane.wire.http2 import ErrorCode
from onelane.wire.limits import Limits
from onelane.wire.link import LinkSession
from onelane.wire.link_blocks import UNKNOWN, SentBlocks, check_block
from onelane.wire.link_frames import (
    CALL,
    CALL_FIELDS,
    DATA,
    ENDS,
    FAR,
    GOAWAY,
    HAS_DEADLINE,
    KNOWN,
    MALFORMED,
    NUMBER,
    PONG,
    REQUEST,
    RESET,
    UNSAMPLED_CALL,
    WHOLE,
    Frame,
    LinkBroken,
    are_valid,
    read_block,
)
from onelane.wire.requests import LookedAt, look_at
from onelane.wire.server import (
    ConnectionLost,
    Ended,
    Event,
    Messages,
    PackingStream,
    Pong,
    ServerConnection,
    Stream,
)


class KnownHeaders:
    """Headers that many calls of one client have in common, read once."""

    __slots__ = ("are_valid", "client", "looked_at", "metadata")

    def __init__(self, headers: HeaderTuple) -> None:
        """Raises ValueError where what a sibling has added is malformed."""
        self.are_valid = are_valid(headers)
        """Else each of the calls is reset, as over HTTP/2."""
        self.looked_at: LookedAt = look_at(headers)
        self.client: Hop = hop.read_client(self.looked_at[1])
        self.metadata: Metadata | None
        """None where they cannot be read, for which each of the calls fails."""
        try:
            self.metadata = framing.read_metadata(self.looked_at[3]) if self.are_valid else None
        except BadWire:
            self.metadata = None


class ForwardedStream(PackingStream):
    """A call that a sibling has sent on in one frame."""

    __slots__ = ("client", "deadline_at", "epoch", "known_metadata", "trace")

    def __init__(
        self, number: int, known: KnownHeaders, own: HeaderTuple, deadline_at: float | None, epoch: int
    ) -> None:
        headers, fields, path, application, _, size, refusal = known.looked_at
        self.client = known.client
        self.known_metadata = known.metadata
        self.trace: TraceContext | None = None
        if own:
            headers, fields = headers + own, {**fields, **dict(own)}
            application += tuple([pair for pair in own if pair[0] not in framing.RESERVED])
            size += header_size.size_of(own)
            self.client = hop.read_client(fields)
            self.trace = hop.read_trace(fields)
            self.known_metadata = None
        super().__init__(number, True, headers, fields, path, application, None, size, refusal)
        self.deadline_at = deadline_at
        self.epoch = epoch

    def metadata(self) -> tuple[Metadata, float | None]:
        if self.known_metadata is not None:
            return self.known_metadata, None
        return super().metadata()


class LinkServer(ServerConnection):
    """See the module."""

    def __init__(self, limits: Limits, *, max_message: int) -> None:
        self.link = LinkSession(server=True, limits=limits)
        super().__init__(limits, max_message=max_message, joins=True, unpacks=False, session=self.link)
        self._limits = limits
        self._sent = SentBlocks(self.link)
        self._known: dict[int, KnownHeaders] = {}

    def receive(self, data: bytes | memoryview) -> list[Event]:
        events: list[Event] = []
        arrived: dict[int, Messages] = {}
        had_fault = bool(self.link.fault)
        frames = self.link.frames(data)
        if not self.has_settings and self.link.peer_limits is not None:
            self.has_settings = True
        try:
            for frame in frames:
                self._frame(frame, events, arrived)
        except LinkBroken as error:
            self.link.fail(str(error))
        except MALFORMED:
            self.link.fail("a frame is shorter than its kind")
        if self.link.fault and not had_fault:
            events.append(ConnectionLost(f"the link has failed: {self.link.fault}"))
        return events

    def take(self) -> bytes:
        data = self.link.take()
        if self._answered_early:
            data += self._reset_answered()
        if self.link.ended:
            for number in self.link.ended:
                if self.answered.pop(number, None) is None and (ended := self.streams.pop(number, None)) is not None:
                    self._acknowledge(ended)
                    self.late.append(Ended(ended, 0))
            self.link.ended.clear()
        if len(self.answered) != self.untaken:
            self.count_untaken()
        if not self._told_from < self.held + self.link.queued_in_all() < self._told_to:
            self.weigh()
        return data

    def answer_whole(self, stream: Stream, message: bytes, trailers: Metadata) -> bool:
        """Answer a forwarded call, to which nothing was sent, with a message, trailers and the status OK, in one frame.
        False where it is to be answered as any other: nothing has been sent."""
        if len(message) > WHOLE:
            return False
        block = self._sent.number_of(trailers, framing.write_metadata)
        if block == UNKNOWN:
            return False
        self.link.answer_whole(stream.id, block, message)
        self._forget(stream)
        return True

    def _frame(self, frame: Frame, events: list[Event], arrived: dict[int, Messages]) -> None:
        kind, flags, number, payload = frame
        if kind == CALL:
            self._call(number, payload, flags, events)
        elif kind == REQUEST:
            self._request(number, payload, bool(flags & ENDS), events, arrived)
        elif kind == DATA:
            self.link.count_data(number, len(payload), flags)
            if number in self.streams:
                self._data(number, payload, bool(flags & ENDS), events, arrived)
        elif kind == RESET:
            self._reset(number, NUMBER.unpack_from(payload)[0], events)
        elif kind == KNOWN:
            self._learn(number, payload)
        elif kind == PONG:
            events.append(Pong())
        elif kind != GOAWAY:
            self.link.control(kind, number, payload)

    def _call(self, number: int, payload: bytes, flags: int, events: list[Event]) -> None:
        """A forwarded call of one message and one answer."""
        block, deadline_at, epoch, of_own = CALL_FIELDS.unpack_from(payload)
        known = self._known.get(block)
        end = CALL_FIELDS.size + of_own
        if known is None:
            raise LinkBroken(f"a call with the headers {block}, which were not sent")
        if end > len(payload) or len(payload) - end > WHOLE:
            raise LinkBroken("a call that is no message in one frame")
        if flags & HAS_DEADLINE and not 0 <= deadline_at < FAR:
            raise LinkBroken(f"a call with the deadline {deadline_at}")
        if not self.link.open(number, ended=True):
            return
        own = read_block(payload[CALL_FIELDS.size : end], self._limits.max_headers) if of_own else ()
        if not known.are_valid or (own and not are_valid(own)):
            self.link.reset(number, ErrorCode.PROTOCOL_ERROR)
            return
        stream = self._forwarded(number, known, own, deadline_at if flags & HAS_DEADLINE else None, epoch)
        if flags & UNSAMPLED_CALL:
            stream.trace = UNSAMPLED
        stream.message = payload[end:]
        self._open(stream, events)
        # What came whole used no credit, and is not acknowledged.
        stream.unread = 0

    def _forwarded(
        self, number: int, known: KnownHeaders, own: HeaderTuple, deadline_at: float | None, epoch: int
    ) -> ForwardedStream:
        try:
            return ForwardedStream(number, known, own, deadline_at, epoch)
        except ValueError as error:
            raise caused(LinkBroken(f"a forwarded call has bad headers: {error}"), error) from error

    def _learn(self, number: int, block: bytes) -> None:
        check_block(number, block)
        try:
            self._known[number] = KnownHeaders(read_block(block, self._limits.max_headers))
        except ValueError as error:
            raise caused(LinkBroken(f"headers to be remembered: {error}"), error) from error

    def _reset(self, number: int, error: int, events: list[Event]) -> None:
        self.link.close(number)
        self.answered.pop(number, None)
        ended = self.streams.pop(number, None)
        if ended is not None:
            self._acknowledge(ended)
            events.append(Ended(ended, error))

    def _request(
        self, number: int, payload: bytes, ended: bool, events: list[Event], arrived: dict[int, Messages]
    ) -> None:
        (size,) = NUMBER.unpack_from(payload)
        end = NUMBER.size + size
        if end > len(payload):
            raise LinkBroken("the headers of a request are longer than its frame")
        if not self.link.open(number, ended=ended):
            return
        headers = read_block(payload[NUMBER.size : end], self._limits.max_headers)
        if not are_valid(headers):
            self.link.reset(number, ErrorCode.PROTOCOL_ERROR)
            return
        body = payload[end:]
        stream = self._stream_type(number, ended and not body, *look_at(headers))
        if (
            ended
            and stream.size <= self._max_metadata
            and not stream.refusal
            and framing.is_one_message(body, self._max_message)
        ):
            stream.message = body[framing.PREFIX :]
            self._open(stream, events)
            return
        self._open(stream, events)
        if body:
            self._data(number, body, ended, events, arrived)
