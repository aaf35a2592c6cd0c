"""Both ends of a connection under random orders of everything that may happen, cut into random pieces.

The model is what each end has sent; the wire may delay it, and keeps it whole and in order. hypothesis prints the steps
of a run that fails, and a blob that repeats it.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from onelane.wire import framing
from onelane.wire.deframer import Deframer
from onelane.wire.framing import BadWire, frame
from onelane.wire.http2 import (
    Closed,
    DataReceived,
    ErrorCode,
    Http2,
    Limits,
    ResponseReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)
from onelane.wire.limits import FIRST_CONNECTION_WINDOW
from onelane.wire.server import Broken, ConnectionLost, Ended, Messages, Opened, ServerConnection, Stream

from tests.wire.test_server import REQUEST

WINDOW, CLIENT_WINDOW = 16_000, 11_000
CONNECTION_WINDOW = FIRST_CONNECTION_WINDOW
"""Less than the windows of all streams."""
LARGEST = 48_000
MOST_STREAMS = 6
MAX_ROUNDS = 10_000
"""In which all that is queued has arrived."""
sizes = st.integers(0, LARGEST)
which = st.integers(0, MOST_STREAMS - 1)
lengths = st.just(1_000_000) | st.integers(1, 32_000) | st.integers(1, 20)


@dataclass
class Model:
    """What has happened to one stream."""

    sent: list[bytes] = field(default_factory=list)
    got: list[bytes] = field(default_factory=list)
    answers: bytes = b""
    answered: bytes = b""
    status: bytes = b""
    """What the client has seen at the end."""
    expected: bytes = b""
    """What it must see, once the server has finished."""
    opened: int = 0
    ends: int = 0
    """On the server's side: by the client, or by an answer."""
    client_ended: bool = False
    client_reset: bool = False
    too_large: bool = False
    refused: bool = False
    resets: list[int] = field(default_factory=list)
    closed: bool = False
    """On the client's side."""
    unread: int = 0
    """By the client."""


class Wire(RuleBasedStateMachine):
    """A bare HTTP/2 client and our server's end, and the bytes between them that have not arrived."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(window=WINDOW, wide_window=2 * WINDOW, connection_window=CONNECTION_WINDOW)
        self.client = Http2(server=False, limits=Limits(window=CLIENT_WINDOW, connection_window=CONNECTION_WINDOW))
        self.server = ServerConnection(limits, max_message=LARGEST)
        self.up, self.down = bytearray(), bytearray()
        self.streams: dict[int, Model] = {}
        self.at_server: dict[int, Stream] = {}
        self.pump()

    # What a client may do.

    @precondition(lambda self: len(self.client_open()) < MOST_STREAMS)
    @rule(end=st.booleans())
    def open(self, end: bool) -> None:
        number = self.client.send_request(REQUEST, end_stream=end)
        self.streams[number] = Model(client_ended=end)

    @precondition(lambda self: self.client_sending())
    @rule(n=which, size=sizes, end=st.booleans())
    def send(self, n: int, size: int, end: bool) -> None:
        number, model = pick(self.client_sending(), n)
        message = bytes([n]) * size
        self.client.send_data(number, frame(message), end_stream=end)
        model.sent.append(message)
        model.client_ended = end

    @precondition(lambda self: self.client_sending())
    @rule(n=which, more=st.integers(1, 10_000))
    def send_too_much(self, n: int, more: int) -> None:
        number, model = pick(self.client_sending(), n)
        self.client.send_data(number, frame(b"x" * (LARGEST + more)), end_stream=True)
        model.client_ended = model.too_large = True

    @precondition(lambda self: self.client_sending())
    @rule(n=which)
    def end(self, n: int) -> None:
        number, model = pick(self.client_sending(), n)
        self.client.end_stream(number)
        model.client_ended = True

    @precondition(lambda self: self.client_open())
    @rule(n=which)
    def reset(self, n: int) -> None:
        number, model = pick(self.client_open(), n)
        self.client.reset(number, ErrorCode.CANCEL)
        model.client_reset = model.closed = True

    @precondition(lambda self: self.client_open())
    @rule(n=which)
    def client_reads(self, n: int) -> None:
        number, model = pick(self.client_open(), n)
        self.client.acknowledge(model.unread, number)
        model.unread = 0

    # What a server may do.

    @precondition(lambda self: self.server.streams)
    @rule(n=which)
    def consume(self, n: int) -> None:
        _, stream = pick(self.server.streams, n)
        self.server.consumed(stream)

    @precondition(lambda self: self.server.streams)
    @rule(n=which, size=sizes)
    def answer(self, n: int, size: int) -> None:
        number, stream = pick(self.server.streams, n)
        self.server.send_message(stream, frame(b"a" * size))
        self.streams[number].answers += frame(b"a" * size)

    @precondition(lambda self: self.server.streams)
    @rule(n=which, size=sizes, unary=st.booleans())
    def finish(self, n: int, size: int, unary: bool) -> None:
        """It may come before the client has ended."""
        number, stream = pick(self.server.streams, n)
        self.finish_stream(number, stream, b"u" * size if unary and not stream.sent_headers else None)

    @precondition(lambda self: self.server.streams)
    @rule(n=which)
    def refuse(self, n: int) -> None:
        number, stream = pick(self.server.streams, n)
        if not stream.sent_headers:
            self.server.refuse(stream)
            self.streams[number].refused = True
            self.streams[number].ends += 1

    # What the network may do.

    @rule(length=lengths)
    def carry_up(self, length: int) -> None:
        self.up += self.client.take()
        piece, self.up = bytes(self.up[:length]), self.up[length:]
        for event in self.server.receive(piece):
            assert not isinstance(event, ConnectionLost)
            if isinstance(event, Opened):
                self.streams[event.stream.id].opened += 1
                self.at_server[event.stream.id] = event.stream
            elif isinstance(event, Messages):
                self.streams[event.stream.id].got += event.messages
            elif isinstance(event, Ended):
                self.streams[event.stream.id].ends += 1
            elif isinstance(event, Broken) and event.stream.id in self.server.streams:
                self.streams[event.stream.id].ends += 1
                self.server.finish(event.stream, event.code, event.details)

    @rule(length=lengths)
    def carry_down(self, length: int) -> None:
        self.down += self.server.take()
        piece, self.down = bytes(self.down[:length]), self.down[length:]
        for event in self.client.receive(piece):
            assert not isinstance(event, Closed)
            model = self.streams.get(getattr(event, "stream_id", 0))
            if model is None:
                continue
            if isinstance(event, DataReceived):
                model.answered += event.data
                model.unread += len(event.data)
            elif isinstance(event, (ResponseReceived, TrailersReceived)):
                model.status = dict(event.headers).get(b"grpc-status", model.status)
            elif isinstance(event, StreamReset):
                model.resets.append(event.error_code)
                model.closed = True
            elif isinstance(event, StreamClosed):
                model.closed = True

    # What must hold.

    @invariant()
    def messages_come_in_order(self) -> None:
        for model in self.streams.values():
            assert model.got == model.sent[: len(model.got)]
            assert model.answers.startswith(model.answered)

    @invariant()
    def a_stream_opens_and_ends_at_most_once(self) -> None:
        assert all(model.opened <= 1 and model.ends <= 1 for model in self.streams.values())

    @invariant()
    def what_is_unread_is_bounded_by_the_windows(self) -> None:
        unread = [stream.unread for stream in self.server.streams.values()]
        assert all(0 <= amount <= 2 * WINDOW for amount in unread)
        assert sum(unread) <= CONNECTION_WINDOW

    def teardown(self) -> None:
        """Once everybody reads, everything arrives, and nothing is left."""
        for number in self.client_sending():
            self.client.end_stream(number)
            self.streams[number].client_ended = True
        self.pump()
        for number, model in self.streams.items():
            assert model.opened == 1 or model.client_reset
            if not (model.client_reset or model.ends):
                assert model.got == model.sent
                self.finish_stream(number, self.at_server[number], None)
        self.pump()
        assert self.server.streams == {}
        for number, model in self.streams.items():
            assert self.client.queued(number) == self.server.http2.queued(number) == 0
            if not model.client_reset:
                self.check_end(model)
        # No byte has been forgotten: the window of the connection is whole, and lets this much through.
        self.transfer(4 * CONNECTION_WINDOW)

    def check_end(self, model: Model) -> None:
        assert model.ends == 1
        if model.refused:
            assert model.resets == [ErrorCode.REFUSED_STREAM]
        else:
            assert set(model.resets) <= {ErrorCode.NO_ERROR}
            assert model.answered == model.answers
            assert model.status == (model.expected or b"8")
            assert model.expected or model.too_large

    # How it is done.

    def client_open(self) -> dict[int, Model]:
        return {number: model for number, model in self.streams.items() if not model.closed}

    def client_sending(self) -> dict[int, Model]:
        return {number: model for number, model in self.client_open().items() if not model.client_ended}

    def finish_stream(self, number: int, stream: Stream, unary: bytes | None) -> None:
        model = self.streams[number]
        model.ends += 1
        if unary is None:
            model.expected = b"5"
            self.server.finish(stream, 5, "done")
        else:
            model.expected = b"0"
            model.answers += frame(unary)
            self.server.answer(stream, unary)

    def transfer(self, size: int) -> None:
        number = self.client.send_request(REQUEST)
        model = self.streams[number] = Model(client_ended=True)
        for n in range(0, size, LARGEST):
            model.sent.append(bytes(LARGEST))
            self.client.send_data(number, frame(bytes(LARGEST)), end_stream=n + LARGEST >= size)
        self.pump()
        assert model.got == model.sent
        self.finish_stream(number, self.at_server[number], None)
        self.pump()
        assert model.status == b"5"

    def pump(self) -> None:
        """Both ends read until neither has anything to send."""
        for _ in range(MAX_ROUNDS):
            for stream in list(self.server.streams.values()):
                self.server.consumed(stream)
            for number, model in self.streams.items():
                self.client.acknowledge(model.unread, number)
                model.unread = 0
            self.up += self.client.take()
            self.down += self.server.take()
            if not (self.up or self.down):
                return
            self.carry_up(len(self.up))
            self.carry_down(len(self.down))
        raise AssertionError(f"they never fall silent: {bytes(self.up[:99])!r}, {bytes(self.down[:99])!r}")


def pick(among: Any, n: int) -> Any:
    """One of a dictionary's items."""
    items = list(among.items())
    return items[n % len(items)]


def test_whatever_happens_messages_arrive_whole_and_in_order_and_every_stream_ends_once() -> None:
    budget = settings(
        max_examples=60,
        stateful_step_count=80,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(Wire, settings=budget)


wires = st.lists(
    st.binary(max_size=30).map(frame)
    | st.binary(max_size=30).map(partial(framing.frame_compressed, b"gzip"))
    | st.binary(max_size=8),
    max_size=5,
).map(b"".join)


def outcome(pieces: list[bytes]) -> tuple[list[bytes], str, bool]:
    """The messages, the failure, and whether the stream may end there."""
    deframer = Deframer(limit=25, encoding=b"gzip")
    messages: list[bytes] = []
    try:
        for piece in pieces:
            messages += deframer.feed(piece)
    except BadWire as error:
        return messages, f"{error.code} {error}", False
    return messages, "", deframer.is_between


@settings(max_examples=200, deadline=None, print_blob=True)
@given(wires, st.integers(1, 12))
def test_any_bytes_mean_the_same_however_they_are_cut(wire: bytes, step: int) -> None:
    """Those that break the rules too: each refusal is the same. Messages before it may have come, or not."""
    _, failure, between = outcome([wire])
    messages, *rest = outcome([wire[n : n + step] for n in range(0, len(wire), step)])
    assert rest == [failure, between]
    assert all(len(message) <= 25 for message in messages)
    if not failure:
        assert messages == outcome([wire])[0]
