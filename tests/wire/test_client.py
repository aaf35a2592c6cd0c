"""The client's end of a gRPC connection, fed with bytes by the server's: no socket, no loop, no clock."""

from collections.abc import Iterator
from typing import Any

import pytest
from onelane.wire import server
from onelane.wire.client import Answered, ClientConnection, Finished, GoingAway, Messages, Ready, WholeAnswer
from onelane.wire.framing import OK, RESOURCE_EXHAUSTED, UNIMPLEMENTED, frame
from onelane.wire.http2 import ErrorCode, Limits

from tests import frames as h2

HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/t.T/M"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]

MIB = 1024 * 1024
CHANNEL = Limits(window=MIB, connection_window=4 * MIB)
"""As a channel's, but for the window of the connection."""


class Pair:
    """Both ends, and what each has seen."""

    def __init__(self, **limits: Any) -> None:
        self.client = ClientConnection(CHANNEL)
        self.server = server.ServerConnection(Limits(**limits), max_message=10_000_000)
        self.seen: list[Any] = []
        self.asked: list[Any] = []
        self.pass_bytes()

    def pass_bytes(self) -> None:
        while True:
            up, down = self.client.take(), self.server.take()
            if not up and not down:
                return
            if up:
                self.asked += self.server.receive(up)
            if down:
                self.seen += self.client.receive(down)

    def call(self, message: bytes = b"hi", *, limit: int = 1_000_000) -> Any:
        stream = self.client.call(HEADERS, frame(message), None, limit=limit)
        self.pass_bytes()
        return stream

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def asked_stream(self) -> server.Stream:
        return next(e.stream for e in reversed(self.asked) if isinstance(e, server.Opened))


def test_a_connection_is_ready_once_the_server_has_said_hello() -> None:
    assert len(Pair().of(Ready)) == 1


@pytest.mark.parametrize("size", [16 * 1024, 1024 * 1024])
def test_metadata_as_large_as_a_setting_allows_arrives(size: int) -> None:
    limits = Limits(max_metadata=size)
    client, served = ClientConnection(limits), server.ServerConnection(limits, max_message=100)
    client.receive(served.take())
    metadata = [(b"x-%d" % n, b"~" * 2_000) for n in range(size // 2_100 - 1)]
    client.call([*HEADERS, *metadata], frame(b""), None, limit=100)
    (opened,) = (event for event in served.receive(client.take()) if isinstance(event, server.Opened))
    assert [pair for pair in opened.stream.headers if pair[0].startswith(b"x-")] == metadata


def test_a_call_is_answered_with_messages_and_a_status() -> None:
    pair = Pair()
    stream = pair.call()
    pair.server.send_headers(pair.asked_stream, (("x-a", "1"), ("x-b-bin", b"\0\xff")))
    pair.server.send_message(pair.asked_stream, frame(b"answer"))
    pair.server.finish(pair.asked_stream, 5, "not there, ü", (("x-t", "2"),))
    pair.pass_bytes()
    assert pair.of(Answered) == [Answered(stream, (("x-a", "1"), ("x-b-bin", b"\0\xff")))]
    assert [e.messages for e in pair.of(Messages)] == [[b"answer"]]
    assert pair.of(Finished) == [Finished(stream, 5, "not there, ü", (("x-t", "2"),))]
    assert pair.client.streams == {}


def test_a_status_alone_ends_a_call() -> None:
    pair = Pair()
    stream = pair.call()
    pair.server.finish(pair.asked_stream, 16, "who are you?")
    pair.pass_bytes()
    assert pair.of(Finished) == [Finished(stream, 16, "who are you?")]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([(b":status", b"404")], 12),
        ([(b":status", b"503"), (b"content-type", b"text/html")], 14),
        ([(b":status", b"200"), (b"content-type", b"text/html")], 2),
        ([(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"99")], 2),
        ([(b":status", b"200"), (b"content-type", b"application/grpc")], 2),
        ([(b":status", b"200"), (b"content-type", b"application/grpc"), (b"x-a-bin", b"!")], 13),
    ],
)
def test_an_answer_that_is_not_grpc_has_a_status_all_the_same(headers: Any, code: int) -> None:
    pair = Pair()
    stream = pair.call()
    pair.server.http2.send_response(pair.asked_stream.id, headers, end_stream=True)
    pair.pass_bytes()
    (end,) = pair.of(Finished)
    assert (end.stream, end.code) == (stream, code)


def test_a_stream_that_ends_without_a_status_is_unknown() -> None:
    pair = Pair()
    pair.call()
    pair.server.send_headers(pair.asked_stream)
    pair.server.http2.send_data(pair.asked_stream.id, frame(b"x"), end_stream=True)
    pair.pass_bytes()
    assert [end.code for end in pair.of(Finished)] == [2]


@pytest.mark.parametrize(("limit", "message", "code"), [(10, frame(b"x" * 11), 8), (10, b"\2\0\0\0\1x", 13)])
def test_a_message_that_may_not_be_ends_the_call(limit: int, message: bytes, code: int) -> None:
    pair = Pair()
    pair.call(limit=limit)
    pair.server.send_message(pair.asked_stream, message)
    pair.pass_bytes()
    assert [end.code for end in pair.of(Finished)] == [code]
    assert any(isinstance(event, server.Ended) for event in pair.asked)


@pytest.mark.parametrize(
    ("error", "code", "unprocessed"),
    [(ErrorCode.REFUSED_STREAM, 14, True), (ErrorCode.CANCEL, 1, False), (ErrorCode.ENHANCE_YOUR_CALM, 8, False)],
)
def test_a_reset_is_a_status(error: int, code: int, unprocessed: bool) -> None:
    pair = Pair()
    pair.call()
    pair.server.http2.reset(pair.asked_stream.id, error)
    pair.pass_bytes()
    assert [(end.code, end.unprocessed) for end in pair.of(Finished)] == [(code, unprocessed)]


def test_cancelling_tells_the_server_and_is_not_answered() -> None:
    pair = Pair()
    stream = pair.call()
    pair.client.cancel(stream)
    pair.pass_bytes()
    assert any(isinstance(event, server.Ended) for event in pair.asked)
    assert pair.of(Finished) == []


def test_what_came_too_late_for_a_server_that_goes_away_may_be_sent_again() -> None:
    """Both what had left and what had not: nothing of either was looked at."""
    pair = Pair()
    early = pair.call()
    pair.server.http2.go_away()
    farewell = pair.server.take()
    late = pair.client.call(HEADERS, frame(b"late"), None, limit=100)
    sent = pair.client.take()
    later = pair.client.call(HEADERS, frame(b"later"), None, limit=100)
    pair.seen += pair.client.receive(farewell)
    assert not pair.client.can_call
    assert len(pair.of(GoingAway)) == 1
    assert {end.stream for end in pair.of(Finished) if end.unprocessed} == {late, later}
    assert [event for event in pair.server.receive(sent) if isinstance(event, server.Opened)] == []
    pair.server.answer(pair.asked_stream, b"well")
    pair.pass_bytes()
    assert pair.of(Finished)[-1] == Finished(early, 0, "")


def test_a_server_that_says_again_and_again_that_it_goes_away_has_each_call_looked_at_once() -> None:
    looks, repeats = 0, 500

    class Counted(dict[int, Any]):
        def __reversed__(self) -> Iterator[int]:
            for number in super().__reversed__():
                nonlocal looks
                looks += 1
                yield number

        def items(self) -> Any:
            nonlocal looks
            looks += len(self)
            return super().items()

    pair = Pair()
    open_calls = [pair.call() for _ in range(50)]
    pair.client.streams = Counted(pair.client.streams)
    pair.client.receive(h2.frame(h2.GOAWAY, h2.number(open_calls[-1].id) + bytes(4)) * repeats)
    assert list(pair.client.streams.values()) == open_calls
    assert looks <= repeats + len(open_calls)


def test_a_notice_of_going_away_keeps_what_has_left_and_returns_what_has_not() -> None:
    pair = Pair()
    early = pair.call()
    pair.server.http2.shutdown_notice()
    notice = pair.server.take()
    late = pair.client.call(HEADERS, frame(b"late"), None, limit=100)
    pair.seen += pair.client.receive(notice)
    assert [end.stream for end in pair.of(Finished)] == [late]
    pair.server.answer(pair.asked_stream, b"well")
    pair.pass_bytes()
    assert pair.of(Finished)[-1] == Finished(early, 0, "")


def test_no_more_calls_at_once_than_the_server_allows() -> None:
    pair = Pair(max_streams=2)
    pair.call()
    assert pair.client.can_call
    pair.call()
    assert not pair.client.can_call
    pair.server.answer(pair.asked_stream, b"")
    pair.pass_bytes()
    assert pair.client.can_call


def test_a_reader_that_does_not_read_holds_the_server_back_and_a_large_message_comes_whole() -> None:
    pair = Pair()
    stream = pair.client.open(HEADERS, None, limit=10_000_000)
    pair.pass_bytes()
    asked = pair.asked_stream
    for _ in range(3000):
        pair.server.send_message(asked, frame(b"x" * 1000))
    pair.pass_bytes()
    assert stream.unread <= CHANNEL.window
    assert pair.server.http2.queued(asked.id) > 0
    pair.client.consumed(stream)
    pair.pass_bytes()
    pair.client.consumed(stream)
    pair.pass_bytes()
    pair.server.send_message(asked, frame(b"y" * 5_000_000))
    pair.pass_bytes()
    pair.client.consumed(stream)
    pair.pass_bytes()
    assert sum(len(m) for event in pair.of(Messages) for m in event.messages) == 8_000_000


def test_bytes_that_are_no_http2_end_the_connection() -> None:
    pair = Pair()
    pair.client.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
    pair.client.take()
    assert pair.client.http2.is_over
    assert not pair.client.can_call


def unread_streams(end: Any) -> int:
    """Make 100 calls whose answers nobody reads, each ended by `end(pair, stream)`; the server's window after that."""
    pair = Pair(resets=(10_000, 10_000), connection_window=CHANNEL.connection_window)
    for _ in range(100):
        stream = pair.client.open(HEADERS, None, limit=100_000)
        pair.pass_bytes()
        for _ in range(5):
            pair.client.send_message(stream, frame(b"x" * 20_000))
            pair.server.send_message(pair.asked_stream, frame(b"x" * 20_000))
        pair.pass_bytes()
        end(pair, stream)
        pair.pass_bytes()
    return min(pair.server.http2.connection_room(), pair.client.http2.connection_room())


def test_what_nobody_read_of_a_stream_that_ended_does_not_stay_in_the_window() -> None:
    """Else some forty calls that were cancelled in the middle would silence a connection for good."""
    half = CHANNEL.connection_window // 2
    assert unread_streams(lambda pair, stream: pair.client.cancel(stream)) > half
    assert (
        unread_streams(lambda pair, _: pair.server.http2.reset(pair.asked_stream.id, ErrorCode.INTERNAL_ERROR)) > half
    )
    assert unread_streams(lambda pair, _: pair.server.finish(pair.asked_stream, 0)) > half


def outcome(events: list[Any]) -> tuple[list[bytes], list[int]]:
    """The messages and the ends of calls, in whichever events they have come."""
    messages: list[bytes] = []
    ends: list[int] = []
    for event in events:
        match event:
            case Messages(_, more):
                messages += more
            case WholeAnswer(_, message, _):
                messages.append(message)
                ends.append(OK)
            case Finished(_, code):
                ends.append(code)
    return messages, ends


@pytest.mark.parametrize("step", [1, 9, MIB])
@pytest.mark.parametrize(("size", "end"), [(0, OK), (100, OK), (101, RESOURCE_EXHAUSTED)])
def test_a_unary_answer_is_one_message_and_one_end_however_it_is_cut(step: int, size: int, end: int) -> None:
    pair = Pair()
    stream = pair.call(limit=100)
    stream.single_response = True
    pair.server.answer(pair.asked_stream, b"x" * size)
    down = pair.server.take()
    events: list[Any] = []
    for at in range(0, len(down), step):
        events += pair.client.receive(down[at : at + step])
    assert outcome(events) == ([b"x" * size] if end == OK else [], [end])
    assert {event.stream for event in events} == {stream}
    assert not pair.client.streams


def test_answers_that_come_whole_do_not_stay_in_the_window() -> None:
    """They are taken without being told of as messages; 400 of 16,000 bytes are more than the connection's window."""
    pair = Pair()
    for _ in range(400):
        pair.call().single_response = True
        pair.server.answer(pair.asked_stream, b"x" * 16_000)
        pair.pass_bytes()
    messages, ends = outcome(pair.seen)
    assert (len(messages), set(ends), len(ends)) == (400, {OK}, 400)


def test_an_answer_that_comes_before_the_request_has_ended_ends_the_call_and_its_stream() -> None:
    pair = Pair()
    stream = pair.client.open(HEADERS, None, limit=100)
    stream.single_response = True
    pair.client.send_message(stream, frame(b"part"))
    pair.pass_bytes()
    pair.server.answer(pair.asked_stream, b"enough")
    pair.pass_bytes()
    assert outcome(pair.seen) == ([b"enough"], [OK])
    assert (pair.client.streams, pair.server.streams) == ({}, {})


def test_a_second_answer_that_ends_a_unary_call_does_not_stay_in_the_window() -> None:
    """Else a server that sends two would, in time, close the window of the connection for all its calls."""
    pair = Pair()
    for _ in range(300):
        pair.call().single_response = True
        pair.server.send_message(pair.asked_stream, frame(b"first"))
        pair.pass_bytes()
        pair.server.send_message(pair.asked_stream, frame(b"x" * 16_000))
        pair.pass_bytes()
    assert {event.code for event in pair.of(Finished)} == {UNIMPLEMENTED}
    assert len(pair.of(Finished)) == 300


def test_a_call_that_cannot_be_sent_ends_though_nothing_comes() -> None:
    """libnghttp2 sends no header block over its limit, and tells that only while it writes."""
    pair = Pair()
    stream = pair.client.call([*HEADERS, (b"x-a", b"a" * 300_000)], frame(b"hi"), None, limit=1)
    assert pair.client.take() == b""
    (end,) = pair.client.take_late()
    assert isinstance(end, Finished)
    assert (end.stream, end.code, end.unprocessed) == (stream, 8, False)
    assert (pair.client.streams, pair.client.late) == ({}, [])
