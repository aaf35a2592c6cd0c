"""The client's end of a link: `ClientConnection` over frames of the link. See `link`."""

from collections.abc import Callable
from typing import Any

from onelane.errors import caused
from onelane.wire import framing
from onelane.wire.client import (
    ClientConnection,
    ClientStream,
    ConnectionLost,
    Event,
    Finished,
    GoingAway,
    Pong,
    Ready,
    WholeAnswer,
)
from onelane.wire.framing import BadWire, Headers, HeaderTuple, Metadata
from onelane.wire.http2 import ErrorCode
from onelane.wire.limits import Limits
from onelane.wire.link import LinkSession
from onelane.wire.link_blocks import UNKNOWN, SentBlocks, check_block
from onelane.wire.link_frames import (
    ANSWER,
    DATA,
    ENDS,
    GOAWAY,
    GOODBYE,
    HEADERS,
    KNOWN,
    MALFORMED,
    NUMBER,
    PONG,
    RESET,
    TRAILERS,
    UNSAMPLED_CALL,
    WHOLE,
    Frame,
    LinkBroken,
    are_valid,
    read_block,
    write_block,
)


class WholeStream(ClientStream):
    """A call that was sent in one frame, to which the answer may come so; else its messages are kept as frames."""

    __slots__ = ()


class LinkClient(ClientConnection):
    """See the module."""

    def __init__(self, limits: Limits) -> None:
        self.link = LinkSession(server=False, limits=limits)
        super().__init__(limits, session=self.link)
        self._limits = limits
        self._sent = SentBlocks(self.link)
        self._known: dict[int, Metadata] = {}
        """Trailers of whole answers, by the numbers of their blocks."""

    def forward(
        self,
        common: HeaderTuple,
        write: Callable[[HeaderTuple], Headers],
        own: Headers,
        message: bytes,
        call: Any,
        *,
        deadline_at: float | None,
        epoch: int,
        is_unsampled: bool,
        limit: int,
    ) -> ClientStream | None:
        """Send a call of one message and one answer in one frame; None where it is to be sent as any other, since its
        headers are new to the peer, or it is large. A whole answer is told as a `WholeAnswer`.

        common: what many calls of a client have in common, of which `write` makes their headers. own: the other ones.
        """
        if len(message) > WHOLE:
            return None
        block = self._sent.number_of(common, write)
        if block == UNKNOWN:
            return None
        flags = ENDS | UNSAMPLED_CALL if is_unsampled else ENDS
        number = self.link.call(block, write_block(own) if own else b"", message, deadline_at, epoch, flags)
        stream = WholeStream(number, call, limit)
        stream.ended = True
        self.streams[number] = stream
        self._unsent.append(number)
        return stream

    def receive(self, data: bytes | memoryview) -> list[Event]:
        events: list[Event] = []
        had_fault = bool(self.link.fault)
        frames = self.link.frames(data)
        if not self._has_settings and self.link.peer_limits is not None:
            self._greeted(events)
        try:
            for frame in frames:
                self._frame(frame, events)
        except LinkBroken as error:
            self.link.fail(str(error))
        except MALFORMED:
            self.link.fail("a frame is shorter than its kind")
        if self.link.fault and not had_fault:
            events.append(ConnectionLost(f"the link has failed: {self.link.fault}"))
        return events

    def take(self) -> bytes:
        self._unsent.clear()
        return self.link.take()

    @property
    def has_no_link(self) -> bool:
        """The peer has said something else than HELLO, or no version that this end speaks."""
        return bool(self.link.fault) and not self._has_settings

    def _greeted(self, events: list[Event]) -> None:
        self._has_settings = True
        self._max_streams = self.link.max_streams()
        self.max_headers = min(self._max_block, self.link.max_header_list())
        events.append(Ready())

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        kind, flags, number, payload = frame
        if kind == ANSWER:
            self._whole(number, payload, events)
        elif kind == DATA:
            self.link.count_data(number, len(payload), flags)
            if number in self.streams:
                self._in_parts(number)
                self._data(number, payload, bool(flags & ENDS), events)
        elif kind in (HEADERS, TRAILERS):
            self._in_parts(number)
            self._headers(number, self._read(payload), bool(flags & ENDS), events)
        elif kind == RESET:
            self._reset(number, NUMBER.unpack_from(payload)[0], events)
        elif kind == KNOWN:
            self._learn(number, payload)
        elif kind == PONG:
            events.append(Pong())
        elif kind == GOAWAY:
            self._going_away(payload, events)
        else:
            self.link.control(kind, number, payload)

    def _read(self, block: bytes) -> HeaderTuple:
        headers = read_block(block, self._limits.max_headers)
        if not are_valid(headers):
            raise LinkBroken("a header that HTTP/2 does not take")
        return headers

    def _in_parts(self, number: int) -> None:
        """The answer of a call does not come whole."""
        stream = self.streams.get(number)
        if isinstance(stream, WholeStream) and not stream.keeps_frames:
            stream.keep_frames()

    def _whole(self, number: int, payload: bytes, events: list[Event]) -> None:
        """A whole answer: trailers and one message, without initial metadata."""
        (block,) = NUMBER.unpack_from(payload)
        trailers = self._known.get(block)
        if trailers is None:
            raise LinkBroken(f"trailers {block}, which were not sent")
        stream = self.streams.pop(number, None)
        self.link.close(number)
        if stream is not None:
            if not isinstance(stream, WholeStream) or stream.keeps_frames:
                raise LinkBroken(f"a whole answer on stream {number}, which takes none")
            events.append(WholeAnswer(stream, payload[NUMBER.size :], trailers))

    def _learn(self, number: int, block: bytes) -> None:
        check_block(number, block)
        try:
            self._known[number] = framing.read_metadata(self._read(block))
        except BadWire as error:
            raise caused(LinkBroken(f"trailers to be remembered: {error}"), error) from error

    def _headers(self, number: int, headers: HeaderTuple, ended: bool, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            if ended:
                self.link.close(number)
        elif ended:
            self._finished(number, headers, events)
            self.link.close(number)
        elif stream.answered:
            raise LinkBroken("a server has sent initial metadata twice")
        else:
            stream.answered = True
            self._first_answer(stream, headers, events)

    def _reset(self, number: int, error: int, events: list[Event]) -> None:
        self.link.close(number)
        stream = self.streams.pop(number, None)
        if stream is not None:
            text = f"Received RST_STREAM with error code {error}"
            is_refused = error == ErrorCode.REFUSED_STREAM
            events.append(Finished(stream, framing.status_of_reset(error), text, unprocessed=is_refused))

    def _going_away(self, payload: bytes, events: list[Event]) -> None:
        last, error = GOODBYE.unpack_from(payload)
        text = payload[GOODBYE.size :].decode("utf-8", "replace")
        self.going_away = True
        events.append(GoingAway(error, text))
        self._end_unprocessed(last, events)
        if error:
            events.append(ConnectionLost(f"the link has failed: {text}"))
