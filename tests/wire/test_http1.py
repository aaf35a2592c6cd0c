"""HTTP/1.1 as the wire reads it, by bytes alone: what is refused, what waits, when the connection closes."""

from typing import Any

import pytest
from onelane.wire.framing import Headers
from onelane.wire.http1 import MAX_PIPELINED, MAX_WRITE, Http1Connection
from onelane.wire.http2 import Limits
from onelane.wire.server import Ended, Messages, Pong, Stream, WebOpened
from onelane.wire.web import WebStream

LIMITS = Limits(window=1000, max_metadata=2000)
HEAD = b"POST /t.T/M HTTP/1.1\r\nhost: h\r\n"
FINE = HEAD + b"content-length: 2\r\n\r\nhi"


class Whole:
    """A body that is one message."""

    is_whole = False
    buffered = 0

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> list[bytes]:
        self.data += data
        return []

    def end(self) -> list[bytes]:
        return [self.data]


class Taking:
    """Takes every POST, and refuses the rest with 405."""

    def open(self, request: Stream, http: Any) -> Stream | None:
        if request.fields[b":method"] == b"POST":
            return WebStream(request, request.path, (), (), None, Whole(), None)
        http.send_response(request.id, [(b":status", b"405")], end_stream=True)
        return None


class Wire:
    def __init__(self) -> None:
        self.throttled: list[bool] = []
        self.server = Http1Connection(LIMITS, max_message=10_000, web=Taking(), throttle=self.throttled.append)
        self.events: list[Any] = []

    def send(self, data: bytes) -> bytes:
        """What the server answers at once."""
        self.events += self.server.receive(data)
        return self.taken()

    def taken(self) -> bytes:
        data = self.server.take()
        self.events += self.server.take_late()
        return data

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    def answer(self, stream: Stream, body: bytes = b"ok") -> bytes:
        headers: Headers = [(b":status", b"200"), (b"content-length", b"%d" % len(body))]
        self.server.http2.send_response(stream.id, headers)
        self.server.http2.send_data(stream.id, body, end_stream=True)
        self.server._forget(stream)
        return self.taken()

    @property
    def is_over(self) -> bool:
        return self.server.http2.is_over


@pytest.mark.parametrize("data", [FINE, HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n"])
def test_a_request_is_read_however_it_is_cut_and_the_connection_serves_the_next(data: bytes) -> None:
    wire = Wire()
    for _ in range(2):
        for at in range(len(data)):
            wire.send(data[at : at + 1])
        assert wire.of(WebOpened)[-1].stream.path == b"/t.T/M"
        assert [(event.messages, event.last) for event in wire.of(Messages)][-1] == ([b"hi"], True)
        assert wire.answer(wire.of(WebOpened)[-1].stream) == b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok"
        assert not wire.is_over


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi", 400),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (HEAD + b"content-length: +2\r\n\r\nhi", 400),
        (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n", 501),
        (HEAD + b"transfer-encoding : chunked\r\n\r\n", 400),
        (b"POST /t.T/M HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffffffffff\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST /t.T/M HTTP/1.1\r\n\r\n", 400),
        (b"POST /t.T/M HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"POST /t.T/M HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"POST /a b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (HEAD + b"x: " + b"y" * 3000, 431),
        (HEAD + b"x: y\r\n" * 1000, 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_and_the_connection_closed(data: bytes, status: int) -> None:
    wire = Wire()
    answer = wire.send(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()
    assert wire.is_over
    assert wire.send(FINE) == b""
    assert len(wire.of(WebOpened)) == len(wire.of(Ended))


def test_a_body_that_breaks_after_its_beginning_ends_its_call() -> None:
    wire = Wire()
    wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nh\r\n")
    assert wire.send(b"nonsense\r\n").startswith(b"HTTP/1.1 400 ")
    assert wire.of(Ended)[0].stream is wire.of(WebOpened)[0].stream


@pytest.mark.parametrize(
    "data", [b"INVALID CONNECTION PREFACE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"\r\n\r\n\r\n"]
)
def test_who_does_not_speak_http_is_closed_without_an_answer(data: bytes) -> None:
    wire = Wire()
    assert wire.send(data) == b""
    assert wire.is_over


def test_a_request_in_absolute_form_is_read() -> None:
    wire = Wire()
    wire.send(FINE.replace(b"/t.T/M", b"http://elsewhere:80/t.T/M"))
    assert wire.of(WebOpened)[0].stream.path == b"/t.T/M"


def test_an_upgrade_is_not_taken_and_the_request_served() -> None:
    wire = Wire()
    more = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    wire.send(HEAD + more + b"content-length: 2\r\n\r\nhi")
    assert wire.answer(wire.of(WebOpened)[0].stream).startswith(b"HTTP/1.1 200 ")


def test_requests_that_come_early_are_served_in_order_and_one_at_a_time() -> None:
    wire = Wire()
    wire.send(FINE * 3)
    for served in range(1, 4):
        assert len(wire.of(WebOpened)) == served
        wire.answer(wire.of(WebOpened)[-1].stream)
    assert [event.messages for event in wire.of(Messages)] == [[b"hi"]] * 3


def test_a_client_that_sends_many_requests_early_is_read_no_further() -> None:
    wire = Wire()
    wire.send(FINE)
    wire.send(b"x" * (MAX_PIPELINED + 1))
    assert wire.throttled == [True]


def test_a_client_sends_no_more_than_is_read() -> None:
    wire = Wire()
    wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    stream = wire.of(WebOpened)[0].stream
    stream.unread = 1
    wire.send(b"5dc\r\n" + bytes(1500) + b"\r\n")
    assert wire.throttled == [True]
    wire.server.consumed(stream)
    assert wire.throttled == [True, False]


def test_a_client_that_asks_whether_to_go_on_is_told() -> None:
    wire = Wire()
    assert wire.send(HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    assert wire.send(b"hi") == b""
    assert wire.answer(wire.of(WebOpened)[0].stream).startswith(b"HTTP/1.1 200 ")


def test_a_request_that_is_refused_leaves_the_connection_open_unless_its_body_follows() -> None:
    wire = Wire()
    for _ in range(2):
        assert wire.send(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert not wire.is_over
    assert b"connection: close" in wire.send(b"PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n").lower()
    assert wire.is_over


def test_an_answer_before_the_end_of_its_request_closes_the_connection() -> None:
    wire = Wire()
    wire.send(HEAD + b"content-length: 9\r\n\r\nhi")
    assert b"connection: close" in wire.answer(wire.of(WebOpened)[0].stream).lower()
    assert wire.is_over


def test_the_last_request_of_a_client_of_http_1_0_closes_the_connection() -> None:
    wire = Wire()
    wire.send(b"POST /t.T/M HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi")
    wire.answer(wire.of(WebOpened)[0].stream)
    assert wire.is_over


def test_a_large_answer_leaves_in_parts_that_are_counted() -> None:
    wire = Wire()
    wire.send(FINE)
    stream = wire.of(WebOpened)[0].stream
    size = len(wire.answer(stream, bytes(3 * MAX_WRITE)))
    assert size == MAX_WRITE
    assert wire.server.http2.queued(stream.id) > MAX_WRITE
    while data := wire.taken():
        size += len(data)
    assert size > 3 * MAX_WRITE
    assert not wire.server.answered


def test_a_shutdown_is_announced_in_the_next_answer() -> None:
    wire = Wire()
    wire.send(FINE)
    wire.server.http2.shutdown_notice()
    wire.server.http2.ping(b"goodbye!")
    assert wire.taken() == b""
    assert len(wire.of(Pong)) == 1
    assert b"connection: close" in wire.answer(wire.of(WebOpened)[0].stream).lower()
    assert wire.is_over


def test_a_shutdown_closes_a_connection_without_a_request() -> None:
    wire = Wire()
    wire.server.http2.go_away()
    assert wire.taken() == b""
    assert wire.is_over


def test_headers_that_are_not_complete_leave_a_ping_without_an_answer() -> None:
    wire = Wire()
    wire.send(HEAD)
    wire.server.http2.ping(b"complete")
    wire.taken()
    assert wire.of(Pong) == []
    wire.send(b"content-length: 2\r\n\r\nhi")
    assert len(wire.of(Pong)) == 1
