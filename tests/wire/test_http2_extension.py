"""The extension of the wire, where it was built: what C can do wrong, and Python cannot."""

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from onelane.wire import http2
from onelane.wire.framing import frame
from onelane.wire.http2 import DataReceived, Http2, Limits, ResponseReceived, StreamEnded, TrailersReceived
from onelane.wire.server import Stream

from tests import frames
from tests.wire.test_client import HEADERS, Pair

pytestmark = pytest.mark.skipif(Http2.__module__ != "onelane.wire._nghttp2", reason="the extension was not built")

MANY = 2_000
LARGE = bytes(300_000)
"""More than a client lets through at once."""


def linked(opens: Callable[..., Any] | None = Stream) -> tuple[Http2, Http2]:
    """A client and a server that have greeted each other."""
    client = Http2(server=False, limits=Limits(), max_joined=http2.UNLIMITED)
    server = Http2(server=True, limits=Limits(), opens=opens, max_joined=1_000)
    server.receive(client.take())
    client.receive(server.take())
    return client, server


def request(client: Http2, message: bytes = b"hi") -> bytes:
    """The bytes of a whole unary request."""
    client.request(HEADERS, frame(message))
    return client.take()


FAULTS = """
import resource
from onelane.wire.http2 import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    for _ in range(50):
        blocks = [b'x' * (1 << 20), b'y' * (1 << 20), b'z' * (2 << 20)]
        del blocks

use()
before = faults()
use()
by_default = faults() - before
keep_freed_memory()
use()
before = faults()
use()
print(by_default, faults() - before)
"""


def test_memory_of_large_messages_is_kept_for_the_next_ones() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    by_default, afterwards = map(int, run.stdout.split())
    assert afterwards < by_default / 10, f"{by_default} pages by default, {afterwards} afterwards"


WAITING_SESSIONS = """
import re
from pathlib import Path
from onelane.wire.http2 import Http2, Limits

def resident_kib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def sessions(count):
    servers = [Http2(server=True, limits=Limits()) for _ in range(count)]
    for session in servers:
        session.take()
    return servers

first = sessions(200)
before = resident_kib()
waiting = sessions(2000)
print((resident_kib() - before) / len(waiting))
"""


def test_a_session_that_waits_holds_no_frame_buffer_of_its_own() -> None:
    run = subprocess.run([sys.executable, "-c", WAITING_SESSIONS], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 11


def test_a_session_that_writes_in_the_middle_of_another_one_changes_none_of_its_frames() -> None:
    """All servers write their frames into one buffer, one frame after the other."""
    (client, server), (_, other) = linked(), linked()
    streams = [server.receive(request(client))[0].id for _ in range(20)]

    def write(phase: str, info: dict[str, int]) -> None:
        other.ping(b"12345678")
        assert other.take()

    for stream in streams:
        server.send_response(stream, [(b":status", b"200"), (b"x-large", b"%d" % stream * 9_000)])
        server.send_data(stream, b"%d" % stream * 9_000)
        server.send_trailers(stream, [(b"x-end", b"%d" % stream)])
    thresholds = gc.get_threshold()
    gc.callbacks.append(write)
    gc.set_threshold(1)
    try:
        data = server.take()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(write)
    events = client.receive(data)
    large = [event.headers[1][1] for event in events if type(event) is ResponseReceived]
    ends = [event.headers for event in events if type(event) is TrailersReceived]
    body = b"".join(event.data for event in events if type(event) is DataReceived)
    assert large == [b"%d" % stream * 9_000 for stream in streams]
    assert ends == [((b"x-end", b"%d" % stream),) for stream in streams]
    assert sorted(body) == sorted(b"".join(large))


@pytest.fixture(autouse=True)
def _no_garbage() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


def test_calls_leave_nothing_behind() -> None:
    pair = Pair()

    def call() -> None:
        pair.client.call([*HEADERS, (b"x-n", b"%d" % next(numbers))], frame(b"ask"), None, limit=100)
        pair.pass_bytes()
        pair.server.answer(pair.asked_stream, b"reply")
        pair.pass_bytes()
        pair.asked.clear()
        pair.seen.clear()

    numbers = iter(range(2 * MANY))
    for _ in range(100):
        call()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(MANY):
        call()
    gc.collect()
    growth = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert growth < 16_000, f"{growth} bytes after {MANY} calls"


def test_a_message_is_let_go_once_it_is_sent() -> None:
    client, server = linked()
    message = bytes(100_000)
    (stream,) = server.receive(request(client))
    before = sys.getrefcount(message)
    server.answer(stream.id, message, 0)
    assert sys.getrefcount(message) > before
    while server.queued_in_all():
        client.receive(server.take())
        client.acknowledge(1_000, stream.id)
        server.receive(client.take())
    assert sys.getrefcount(message) == before


@pytest.mark.parametrize("end", ["reset by the client", "reset here", "connection broken", "dropped"])
def test_a_message_that_waits_is_let_go_with_its_stream(end: str) -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))
    message = bytes(LARGE)
    before = sys.getrefcount(message)
    server.answer(stream.id, message, 0)
    server.take()
    assert server.queued(stream.id) == server.queued_in_all() > 0
    if end == "reset by the client":
        client.reset(stream.id, 8)
        server.receive(client.take())
    elif end == "reset here":
        server.reset(stream.id, 8)
        server.take()
    elif end == "connection broken":
        server.receive(frames.frame(frames.SETTINGS, b"odd"))
        server.take()
        assert server.is_over
    else:
        del server
        gc.collect()
    assert sys.getrefcount(message) == before


def test_what_makes_the_object_of_a_stream_may_raise() -> None:
    class Odd(Exception):
        pass

    def opens(*_: Any) -> Any:
        raise Odd

    client, server = linked(opens)
    with pytest.raises(Odd):
        server.receive(request(client))
    assert server.is_over
    assert (server.receive(b"more"), server.take(), server.events()) == ([], b"", [])


def test_what_is_called_in_the_middle_of_receiving_may_send_and_moves_no_bytes() -> None:
    moved: list[Any] = []

    def opens(number: int, *_: Any) -> Any:
        server.ping(b"pingping")
        moved.append((server.receive(b"more"), server.take()))
        server.send_response(number, [(b":status", b"200")], end_stream=True)
        gc.collect()
        return Stream(number, *_)

    client, server = linked(opens)
    (stream,) = server.receive(request(client))
    assert (moved, stream.message) == ([([], b"")], b"hi")
    (answer, *_) = client.receive(server.take())
    assert answer.end_stream
    assert answer.headers == ((b":status", b"200"),)


@pytest.mark.parametrize("end", ["receive", "close"])
def test_what_a_collection_of_garbage_runs_may_end_the_connection(end: str) -> None:
    """The queue of a stream is an object that is collected: to make one may run any finalizer."""

    class Finalized:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            server.receive(frames.frame(frames.SETTINGS, b"odd")) if end == "receive" else server.go_away(1)
            server.take()

    client, server = linked()
    (stream,) = server.receive(request(client))
    Finalized()
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        server.answer(stream.id, LARGE, 7)
        gc.collect()
    finally:
        gc.set_threshold(*thresholds)
    assert server.is_over == (end == "receive")
    server.answer(stream.id, LARGE, 7)


def test_after_the_end_every_call_does_nothing() -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))
    server.receive(frames.frame(frames.SETTINGS, b"odd"))
    assert server.take()
    assert server.is_over
    server.answer(stream.id, b"late", 7)
    server.send_response(stream.id, [(b":status", b"200")])
    server.send_data(stream.id, b"late", end_stream=True)
    server.send_trailers(stream.id, [])
    server.acknowledge(5, stream.id)
    server.widen(stream.id, {})
    server.share_window(stream.id)
    server.reset(stream.id, 2)
    server.ping(b"pingping")
    server.go_away()
    server.shutdown_notice()
    assert (server.queued(stream.id), server.queued_in_all(), server.can_open) == (0, 0, False)
    assert server.max_streams() == server.max_header_list() == http2.UNLIMITED
    assert (server.receive(b"more"), server.take()) == ([], b"")


@pytest.mark.parametrize("number", [0, 2, 3, 2**31 - 1, -1])
def test_a_stream_that_is_not_there_can_be_given_nothing(number: int) -> None:
    client, server = linked()
    server.receive(request(client))
    for send in (server.send_response, server.send_trailers):
        with pytest.raises(StreamEnded):
            send(number, [(b":status", b"200")])
    with pytest.raises(StreamEnded):
        server.send_data(number, b"x")
    server.answer(number, b"x", 0)
    server.acknowledge(3, number)
    server.reset(number, 8)
    server.widen(number, {})
    server.share_window(number)
    server.take()
    assert server.queued(number) == 0


def test_a_stream_is_answered_once() -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))
    server.answer(stream.id, b"first", 0)
    server.answer(stream.id, b"second", 0)
    with pytest.raises(StreamEnded):
        server.send_response(stream.id, [(b":status", b"200")])
    with pytest.raises(StreamEnded):
        server.send_data(stream.id, b"x")
    (answer,) = client.receive(server.take())
    assert (answer.data[5:], answer.is_ok) == (b"first", True)


@pytest.mark.parametrize("message", [None, "text", 7, [b"x"]])
def test_what_is_no_message_raises_and_sends_nothing(message: Any) -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))
    with pytest.raises(TypeError):
        server.answer(stream.id, message, 0)
    assert server.take() == b""
    server.answer(stream.id, b"a message after all", 0)
    assert client.receive(server.take())


@pytest.mark.parametrize("headers", [None, 7, [b"x"], [("a", "b")], [(b"a", None)], [(b"a",)], [(b"a", b"b", b"c")]])
def test_what_are_no_headers_raises_and_sends_nothing(headers: Any) -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))
    for send in (lambda: server.send_response(stream.id, headers), lambda: client.send_request(headers)):
        with pytest.raises((TypeError, ValueError)):
            send()
    assert (server.take(), client.take()) == (b"", b"")
    server.answer(stream.id, b"x", 0)
    assert client.receive(server.take())


def test_headers_may_come_from_a_generator_whose_bytes_nobody_else_holds() -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))
    answer = {b":status": b"200"} | {b"x-%d" % n: b"v" * 50 for n in range(50)}
    server.send_response(stream.id, ([bytes(bytearray(name)), answer[name]] for name in answer), end_stream=True)
    assert dict(client.receive(server.take())[0].headers) == answer
    fields: Any = ([bytes(bytearray(name)), bytes(bytearray(value))] for name, value in HEADERS)
    client.end_stream(client.send_request(fields))
    opened = [event for event in server.receive(client.take()) if isinstance(event, Stream)]
    assert [asked.headers for asked in opened] == [tuple(HEADERS)]


def test_headers_may_end_the_connection_while_they_are_read() -> None:
    client, server = linked()
    (stream,) = server.receive(request(client))

    def ending() -> Iterator[tuple[bytes, bytes]]:
        server.receive(frames.frame(frames.SETTINGS, b"odd"))
        server.take()
        yield b":status", b"200"

    server.send_response(stream.id, ending())
    assert server.is_over


def test_a_field_that_comes_again_is_the_same_object() -> None:
    """Most calls of a connection have the same headers: HPACK's tables hold them, and so do we."""
    client, server = linked()
    (first,), (second,) = (server.receive(request(client)) for _ in range(2))
    assert first.path is second.path
    assert all(one_pair is other for one_pair, other in zip(first.headers, second.headers, strict=True))


def test_a_secret_field_is_sent_on_as_a_secret_field() -> None:
    """RFC 7541, section 6.2.3: never indexed, also by those in between."""
    _, server = linked()
    secret = b"\x10" + b"\x06x-pass" + b"\x04word"
    (stream,) = server.receive(frames.headers(1, frames.request(b"/t.T/M", secret)))
    assert (b"x-pass", b"word") in stream.headers
    other, _ = linked()
    other.send_request(stream.headers)
    other.send_request(stream.headers)
    assert other.take().count(b"\x10") >= 2


def test_a_request_that_breaks_its_content_length_hides_no_end_of_another_stream() -> None:
    """libnghttp2 does not tell the end of such a frame. An upload beside it was never over, and the request ran."""
    _, server = linked()
    server.receive(frames.headers(3, frames.request(b"/t.T/Upload")))
    wrong = frames.request(b"/t.T/M", frames.field(b"content-length", b"100"))
    stream, *events = server.receive(
        frames.headers(5, wrong)
        + frames.frame(frames.DATA, frame(b"hi"), stream=5, flags=frames.END_STREAM)
        + frames.frame(frames.DATA, b"", stream=3, flags=frames.END_STREAM)
    )
    assert stream.message is None
    assert [(event.stream_id, event.data, event.end_stream) for event in events] == [
        (5, frame(b"hi"), False),
        (3, b"", True),
    ]


def test_data_that_came_before_a_header_block_that_is_too_large_is_told_first() -> None:
    server = Http2(server=True, limits=Limits(max_metadata=200))
    server.receive(frames.HELLO + frames.headers(1, frames.request(b"/t.T/Upload")))
    data, end = server.receive(
        frames.frame(frames.DATA, frame(b"hi"), stream=1)
        + frames.headers(3, frames.request(b"/t.T/M", frames.field(b"x-large", b"v" * 1_000)))
    )
    assert (data.data, type(end)) == (frame(b"hi"), http2.Closed)
