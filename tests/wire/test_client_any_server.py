"""Whatever frames a server sends, however they are cut: every call ends once, or can still end."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from onelane.wire.client import ClientConnection, ConnectionLost, Finished, Messages, WholeAnswer
from onelane.wire.framing import frame
from onelane.wire.http2 import Limits

from tests import frames
from tests.wire.test_client import HEADERS

STREAMS = (1, 3, 5)
LIMIT = 100
BLOCKS = st.sampled_from(
    [
        ((b":status", b"200"), (b"content-type", b"application/grpc")),
        ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"content-length", b"9")),
        ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"5")),
        ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", b"zstd")),
        ((b":status", b"103"),),
        ((b":status", b"503"), (b"content-type", b"text/html")),
        ((b"grpc-status", b"0"),),
        ((b"grpc-status", b"x"), (b"x-bin", b"!!!")),
        ((b"Bad-Name", b"1"),),
        (),
    ]
)
NUMBERS = st.sampled_from(STREAMS)
FRAMES = st.one_of(
    st.builds(lambda n, block, last: frames.response(n, *block, last=last), NUMBERS, BLOCKS, st.booleans()),
    st.builds(
        lambda n, data, last: frames.frame(frames.DATA, data, flags=int(last), stream=n),
        NUMBERS,
        st.sampled_from([b"", frame(b"hi"), frame(b"hi") * 2, frame(b"hi")[:-1], b"\1\0\0\0\2hi", frame(b"x" * 101)]),
        st.booleans(),
    ),
    st.builds(
        lambda n, code: frames.frame(frames.RST_STREAM, frames.number(code), stream=n),
        NUMBERS,
        st.sampled_from([0, 1, 7, 8]),
    ),
    st.builds(
        lambda n, last: frames.frame(frames.GOAWAY, frames.number(last) + bytes(4)), NUMBERS, st.sampled_from([0, 3, 9])
    ),
    st.builds(
        lambda n, size: frames.frame(frames.WINDOW_UPDATE, frames.number(size), stream=n),
        NUMBERS,
        st.sampled_from([0, 1, frames.MAX_WINDOW]),
    ),
    st.just(frames.frame(frames.PING, bytes(8))),
    st.just(frames.frame(frames.PING, b"short")),
    st.just(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
)


class Calls:
    """A connection with three calls: two of one response, of which one has not ended its request, and a stream."""

    def __init__(self) -> None:
        self.client = ClientConnection(Limits())
        self.client.receive(frames.settings())
        self.client.take()
        self.streams = [
            self.client.call(HEADERS, frame(b"hi"), None, limit=LIMIT),
            self.client.open(HEADERS, None, limit=LIMIT),
            self.client.call(HEADERS, frame(b"hi"), None, limit=LIMIT),
        ]
        self.streams[0].single_response = self.streams[1].single_response = True
        self.client.take()
        self.ends: dict[int, list[int]] = {}
        self.messages: Counter[int] = Counter()
        self.is_lost = False

    def receive(self, data: bytes) -> None:
        events: list[Any] = self.client.receive(data)
        self.client.take()
        for event in (*events, *self.client.take_late()):
            if isinstance(event, Messages):
                assert event.stream.id not in self.ends
                self.messages[event.stream.id] += len(event.messages)
            elif isinstance(event, WholeAnswer):
                self.messages[event.stream.id] += 1
                self.ends.setdefault(event.stream.id, []).append(0)
            elif isinstance(event, Finished):
                self.ends.setdefault(event.stream.id, []).append(event.code)
            elif isinstance(event, ConnectionLost):
                self.is_lost = True


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(FRAMES, max_size=12), st.integers(1, 60))
def test_every_call_ends_once_or_can_still_end(sent: list[bytes], step: int) -> None:
    calls = Calls()
    data = b"".join(sent)
    for at in range(0, len(data), step):
        calls.receive(data[at : at + step])
    for stream in calls.streams:
        ends = calls.ends.get(stream.id, [])
        assert len(ends) == (stream.id not in calls.client.streams)
        assert all(0 <= code <= 16 for code in ends)
        if ends == [0] and stream.single_response:
            assert calls.messages[stream.id] == 1
        # Where the connection is over, its driver ends the rest.
        assert ends or calls.client.http2.is_over or calls.client.http2.has_stream(stream.id)
    assert calls.is_lost == calls.client.http2.is_over
