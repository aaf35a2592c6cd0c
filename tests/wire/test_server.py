"""The server's end of a gRPC connection, fed with bytes: no socket, no loop, no clock."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.wire.framing import frame
from onelane.wire.http2 import (
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    Http2,
    Limits,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from onelane.wire.server import Broken, ConnectionLost, Ended, Messages, Opened, ServerConnection, Stream

from tests import frames

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/t.T/M"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


DEFAULT = Limits()


class Wire:
    """A server's end, and a bare HTTP/2 client that speaks to it by passing bytes."""

    def __init__(self, limits: Limits = DEFAULT, *, max_message: int = 1000, joins: bool = False) -> None:
        self.server = ServerConnection(limits, max_message=max_message, joins=joins)
        self.client = Http2(server=False, limits=Limits())
        self.events: list[Any] = []
        self.seen: list[Any] = []
        self.pass_bytes()

    def pass_bytes(self) -> None:
        """Both ways, until nobody has anything to say."""
        while True:
            up, down = self.client.take(), self.server.take()
            if not up and not down:
                return
            if up:
                self.events += self.server.receive(up)
            if down:
                self.seen += self.client.receive(down)

    def request(self, *messages: bytes, end: bool = True, headers: Any = REQUEST) -> int:
        stream = self.client.send_request(headers, end_stream=not messages and end)
        for n, message in enumerate(messages):
            self.client.send_data(stream, message, end_stream=end and n == len(messages) - 1)
        self.pass_bytes()
        return stream

    def of(self, kind: type) -> list[Any]:
        return [event for event in (*self.events, *self.seen) if type(event) is kind]

    def answer(self) -> tuple[dict[bytes, bytes], bytes, dict[bytes, bytes]]:
        """Headers, body and trailers that the client has seen."""
        headers = {k: v for event in self.of(ResponseReceived) for k, v in event.headers}
        trailers = {k: v for event in self.of(TrailersReceived) for k, v in event.headers}
        return headers, b"".join(event.data for event in self.of(DataReceived)), trailers


def test_a_unary_call_is_heard_and_answered() -> None:
    wire = Wire()
    wire.request(frame(b"hi"))
    (opened,), (messages,) = wire.of(Opened), wire.of(Messages)
    assert (opened.stream.path, messages.messages, messages.stream.ended) == (b"/t.T/M", [b"hi"], True)
    wire.server.answer(opened.stream, b"ho")
    wire.pass_bytes()
    headers, body, trailers = wire.answer()
    assert (headers[b":status"], headers[b"content-type"]) == (b"200", b"application/grpc")
    assert (body, trailers) == (frame(b"ho"), {b"grpc-status": b"0"})
    assert wire.server.streams == {}


def test_calls_whose_one_message_comes_with_their_headers_are_one_event_each() -> None:
    wire = Wire(joins=True)
    for number in range(200):
        # More than the connection's window in all, so what is read must be acknowledged.
        for _ in range(3):
            stream = wire.client.send_request(REQUEST)
            wire.client.send_data(stream, frame(b"x" * 900), end_stream=True)
        wire.pass_bytes()
        opened = wire.of(Opened)[-3:]
        assert [event.message for event in opened] == [b"x" * 900] * 3, number
        assert not wire.of(Messages)
        for event in opened:
            wire.server.answer(event.stream, b"y")
        wire.pass_bytes()
    assert wire.answer()[2][b"grpc-status"] == b"0"


@pytest.mark.parametrize("body", [frame(b"a") + frame(b"b"), frame(b"a")[:3], frame(b"x" * 1001), b""])
def test_what_is_not_one_whole_message_is_told_as_ever(body: bytes) -> None:
    events_of_both = []
    for joins in (True, False):
        wire = Wire(joins=joins)
        stream = wire.client.send_request(REQUEST)
        wire.client.send_data(stream, body, end_stream=True)
        wire.pass_bytes()
        assert wire.of(Opened)[0].message is None
        events_of_both.append([(type(event), getattr(event, "messages", None)) for event in wire.events])
    assert events_of_both[0] == events_of_both[1]


def test_a_failure_is_headers_alone() -> None:
    wire = Wire()
    wire.request(frame(b""))
    wire.server.finish(wire.of(Opened)[0].stream, 5, "nö thing", (("x-why", "so"), ("x-bin", b"\xff")))
    wire.pass_bytes()
    headers, body, trailers = wire.answer()
    assert headers[b"grpc-status"] == b"5"
    assert headers[b"grpc-message"] == b"n%C3%B6 thing"
    assert (headers[b"x-why"], headers[b"x-bin"]) == (b"so", b"/w")
    assert (body, trailers) == (b"", {})


def test_an_answer_that_comes_before_the_request_has_ended_arrives_whole_and_stops_it() -> None:
    wire = Wire()
    wire.request(frame(b"one"), end=False)
    wire.server.answer(wire.of(Opened)[0].stream, b"enough")
    wire.pass_bytes()
    assert wire.answer()[1:] == (frame(b"enough"), {b"grpc-status": b"0"})
    assert [event.error_code for event in wire.of(StreamReset)] == [ErrorCode.NO_ERROR]


@given(
    st.lists(st.binary(max_size=9), max_size=4),
    st.lists(st.integers(0, 60), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_what_is_read_in_one_piece_is_one_event_whatever_frames_it_came_in(
    messages: list[bytes], cuts: list[int], ends_alone: bool, joins: bool
) -> None:
    wire = Wire(joins=joins)
    body = b"".join(map(frame, messages))
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    frames = [body[a:b] for a, b in itertools.pairwise(places)] + ([b""] if ends_alone or not body else [])
    number = wire.client.send_request(REQUEST)
    sent = wire.client.take()
    for place, piece in enumerate(frames, start=1):
        wire.client.send_data(number, piece, end_stream=place == len(frames))
        # Taken at once, or libnghttp2 would make one frame of them.
        sent += wire.client.take()
    opened, *arrived = wire.server.receive(sent)
    assert isinstance(opened, Opened)
    if opened.message is not None:
        assert ([opened.message], arrived) == (messages, [])
    else:
        assert arrived == [Messages(opened.stream, messages, last=True)]


def test_a_stream_passes_in_both_directions() -> None:
    wire = Wire()
    number = wire.request(frame(b"1") + frame(b"2"), frame(b"3"), end=False)
    stream = wire.of(Opened)[0].stream
    wire.server.send_headers(stream, (("x-first", "a"),))
    wire.server.send_message(stream, frame(b"a"))
    wire.client.end_stream(number)
    wire.pass_bytes()
    wire.server.send_message(stream, frame(b"b"))
    wire.server.finish(stream, 0)
    wire.pass_bytes()
    assert [m for event in wire.of(Messages) for m in event.messages] == [b"1", b"2", b"3"]
    assert stream.ended
    headers, body, trailers = wire.answer()
    assert (headers[b"x-first"], body, trailers[b"grpc-status"]) == (b"a", frame(b"a") + frame(b"b"), b"0")


def test_a_client_that_resets_ends_its_call_once() -> None:
    wire = Wire()
    number = wire.request(frame(b"hi"), end=False)
    wire.client.reset(number, ErrorCode.CANCEL)
    wire.pass_bytes()
    assert len(wire.of(Ended)) == 1
    assert wire.server.streams == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (frame(b"x" * 1001), b"8"),
        (b"\x01\0\0\0\x01x", b"13"),
        (b"\0\0\0\0\x09half", b"13"),
    ],
)
def test_a_message_that_breaks_the_rules_is_answered_with_its_status(body: bytes, status: bytes) -> None:
    wire = Wire()
    wire.request(body)
    (broken,) = wire.of(Broken)
    assert str(broken.code).encode() == status
    wire.server.finish(broken.stream, broken.code, broken.details)
    wire.pass_bytes()
    assert wire.answer()[0][b"grpc-status"] == status
    assert wire.of(Messages) == []


@given(st.lists(st.integers(0, 40), max_size=6))
def test_messages_before_one_that_breaks_the_rules_are_reported_first(cuts: list[int]) -> None:
    body = frame(b"1") + frame(b"2") + frame(b"x" * 1001) + frame(b"3")
    ends = [0, *sorted(cuts), len(body)]
    wire = Wire()
    wire.request(*(body[a:b] for a, b in itertools.pairwise(ends) if a < b), end=False)
    kinds = [type(event) for event in wire.events if type(event) in (Messages, Broken)]
    assert (kinds[-1], kinds.count(Broken)) == (Broken, 1)
    assert [message for event in wire.of(Messages) for message in event.messages] == [b"1", b"2"]


def test_a_client_that_sends_on_after_it_has_broken_the_rules_fills_its_window_alone() -> None:
    wire = Wire()
    number = wire.request(frame(b"x" * 1001), end=False)
    stream = wire.of(Opened)[0].stream
    for _ in range(200):
        wire.client.send_data(number, frame(b"y" * 16_000))
        wire.pass_bytes()
    assert wire.client.queued(number)
    assert len(wire.of(Broken)) == 1
    wire.server.finish(stream, 8)
    wire.pass_bytes()
    wire.request(frame(b"hi"))
    assert wire.of(Messages)[-1].messages == [b"hi"]


def test_what_is_not_grpc_is_refused_in_http() -> None:
    wire = Wire()
    wire.request(headers=[*REQUEST[:-1], (b"content-type", b"text/html")])
    assert wire.answer()[0][b":status"] == b"415"
    other = Wire()
    other.request(headers=[(b":method", b"PUT"), *REQUEST[1:]])
    assert other.answer()[0][b":status"] == b"405"


def test_trailers_of_the_client_end_its_request() -> None:
    """gRPC's clients send none, but HTTP/2 lets them."""
    wire = Wire()
    number = wire.request(frame(b"hi"), end=False)
    wire.client.send_trailers(number, [(b"x-late", b"1")])
    wire.pass_bytes()
    assert [m for event in wire.of(Messages) for m in event.messages] == [b"hi"]
    assert wire.of(Opened)[0].stream.ended


def test_a_reader_that_does_not_read_holds_the_client_back() -> None:
    """The client may send the window and not a byte more, until the server says that it has consumed."""
    wire = Wire(Limits(window=70_000, wide_streams=0), max_message=1_000_000)
    number = wire.request(*[frame(b"x" * 995)] * 200, end=False)
    stream = wire.of(Opened)[0].stream
    assert stream.unread == 70_000
    assert wire.client.queued(number) == 200_000 - 70_000
    wire.server.consumed(stream)
    wire.pass_bytes()
    assert stream.unread == 70_000


def unread_streams(wire: Wire, number: int) -> list[Stream]:
    """Streams on which the client has sent all that their windows take, and that nobody reads."""
    before = len(wire.of(Opened))
    for _ in range(number):
        wire.request(*[frame(b"x" * 995)] * 2000, end=False)
    return [event.stream for event in wire.of(Opened)[before:]]


def test_streams_that_nobody_reads_hold_little_and_hold_up_no_other() -> None:
    wire = Wire()
    streams = unread_streams(wire, 100)
    wire.request(frame(b"hi"))
    assert [event.messages for event in wire.of(Messages)][-1] == [b"hi"]
    assert sum(stream.unread for stream in streams) <= 100 * DEFAULT.window


def test_a_stream_that_is_read_may_send_more_at_once_and_only_so_many_of_them() -> None:
    """Else a client that has each of its streams read once could fill a thousand wide windows."""
    wire = Wire(Limits(window=64 * 1024, wide_streams=2))
    streams = unread_streams(wire, 4)
    for stream in streams:
        wire.server.consumed(stream)
    wire.pass_bytes()
    narrow = 64 * 1024
    assert [stream.unread > 8 * narrow for stream in streams] == [True, True, False, False]
    assert [stream.unread for stream in streams[2:]] == [narrow, narrow]
    wire.client.reset(streams[0].id, ErrorCode.CANCEL)
    wire.pass_bytes()
    wire.server.consumed(streams[2])
    wire.pass_bytes()
    assert streams[2].unread > 8 * narrow


def test_a_message_larger_than_the_window_comes_whole() -> None:
    wire = Wire(Limits(window=70_000), max_message=1_000_000)
    wire.request(frame(b"x" * 500_000))
    assert [len(m) for event in wire.of(Messages) for m in event.messages] == [500_000]


def test_a_client_that_does_not_read_is_seen_in_what_is_queued() -> None:
    wire = Wire()
    number = wire.request(frame(b"hi"))
    stream = wire.of(Opened)[0].stream
    wire.server.send_message(stream, frame(b"x" * 3_000_000))
    wire.pass_bytes()
    assert wire.server.http2.queued(number) > 1_000_000


@pytest.mark.parametrize("message", [b"", b"a", b"x" * 200_000], ids=len)
def test_messages_arrive_with_their_prefix_and_their_sender_is_told_what_waits(message: bytes) -> None:
    wire = Wire()
    number = wire.request(frame(b"hi"))
    stream = wire.of(Opened)[0].stream
    assert wire.server.send_uncompressed(stream, message) == len(frame(message))
    assert wire.server.send_uncompressed(stream, b"next") == wire.server.http2.queued(number)
    wire.server.finish(stream, 0)
    wire.pass_bytes()
    assert wire.answer()[1] == frame(message) + frame(b"next")


def test_a_message_of_a_stream_that_has_ended_goes_nowhere() -> None:
    wire = Wire()
    wire.request(frame(b"hi"))
    stream = wire.of(Opened)[0].stream
    wire.server.finish(stream, 0)
    assert wire.server.send_uncompressed(stream, b"late") == 0


def test_garbage_ends_the_connection_and_raises_nothing() -> None:
    server = ServerConnection(Limits(), max_message=10)
    events = server.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
    assert isinstance(events[-1], ConnectionLost)
    assert server.receive(b"more") == []


@pytest.mark.parametrize(
    "headers",
    [REQUEST, REQUEST[:-1], [(b":method", b"PUT"), *REQUEST[1:]], [*REQUEST, (b"x-big", b"x" * 20_000)]],
)
def test_a_stream_that_is_opened_and_reset_in_one_piece_may_be_answered_in_vain(headers: Any) -> None:
    wire = Wire()
    number = wire.client.send_request(headers)
    up = wire.client.take()
    wire.client.reset(number, ErrorCode.CANCEL)
    for event in (events := wire.server.receive(up + wire.client.take())):
        if isinstance(event, Opened):
            wire.server.finish(event.stream, 12)
    assert [type(event) for event in events] in ([Opened, Ended], [])
    wire.request(frame(b"hi"))
    assert len(wire.of(Opened)) == 1


def test_answers_on_a_connection_that_broke_go_nowhere() -> None:
    wire = Wire()
    wire.request(frame(b"one"), end=False)
    stream = wire.of(Opened)[0].stream
    bad_ping = b"\0\0\x08\6\0\0\0\0\3" + bytes(8)
    assert wire.server.receive(bad_ping) == []
    assert b"PING: stream_id != 0" in wire.server.take()
    assert wire.server.http2.is_over
    wire.server.send_headers(stream)
    wire.server.send_message(stream, frame(b"two"))
    wire.server.consumed(stream)
    wire.server.finish(stream, 0)
    wire.server.answer(stream, b"three")
    wire.server.http2.shutdown_notice()
    wire.server.http2.go_away()
    assert (wire.server.take(), wire.server.receive(b"more")) == (b"", [])


def test_more_streams_than_the_limit_are_refused() -> None:
    wire = Wire(Limits(max_streams=2))
    wire.client.receive(b"")
    for _ in range(4):
        wire.client.send_request(REQUEST)
    wire.pass_bytes()
    assert len(wire.of(Opened)) == 2


def test_rapid_resets_end_the_connection_even_if_nothing_is_written_meanwhile() -> None:
    """A loop may read many times before it writes; a burst of resets is allowed, and what came in the same piece."""
    wire = Wire()
    up = b""
    for _ in range(5_000):
        number = wire.client.send_request(REQUEST)
        up += wire.client.take()
        wire.client.reset(number, ErrorCode.CANCEL)
        up += wire.client.take()
    pieces = [up[n : n + 10_000] for n in range(0, len(up), 10_000)]
    opened = [event for piece in pieces for event in wire.server.receive(piece) if isinstance(event, Opened)]
    assert 1_000 < len(opened) < 2_000
    assert wire.server.http2.is_over
    assert len(wire.server.take()) > 0


def test_metadata_over_the_limit_is_refused_by_itself() -> None:
    wire = Wire(Limits(max_metadata=2_000))
    wire.request(headers=[*REQUEST, (b"x-big", b"x" * 5_000)])
    assert wire.of(Opened) == []
    assert wire.answer()[0][b"grpc-status"] == b"8"
    wire.request(frame(b"hi"))
    assert len(wire.of(Opened)) == 1


def test_a_header_bomb_ends_the_connection() -> None:
    wire = Wire(Limits(max_metadata=2_000))
    wire.request(headers=[*REQUEST, (b"x-bomb", b"x" * 20_000)])
    assert wire.of(Opened) == []
    assert len(wire.of(ConnectionLost)) == 1


def test_going_away_takes_no_new_stream_and_finishes_the_old() -> None:
    wire = Wire()
    wire.request(frame(b"hi"))
    wire.server.http2.shutdown_notice()
    wire.pass_bytes()
    wire.server.http2.go_away()
    wire.pass_bytes()
    wire.server.answer(wire.of(Opened)[0].stream, b"ho")
    wire.pass_bytes()
    assert len(wire.of(GoAwayReceived)) == 2
    assert wire.answer()[2] == {b"grpc-status": b"0"}


def test_a_call_whose_client_breaks_http2_ends_though_nothing_else_comes() -> None:
    """libnghttp2 resets the stream of a malformed request while it writes, and tells it only then."""
    wire = Wire()
    stream = wire.request(end=False)
    wire.server.receive(frames.headers(stream, frames.field(b"x-a", b"1")))
    assert not wire.server.late
    wire.server.take()
    (ended,) = wire.server.take_late()
    assert isinstance(ended, Ended)
    assert ended.stream.id == stream
    assert (wire.server.streams, wire.server.late) == ({}, [])
