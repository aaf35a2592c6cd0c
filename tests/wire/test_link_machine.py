"""Both ends of a link under random orders of all that may happen, cut into random pieces.

The model is what each end has sent. As `test_server_machine`, which has HTTP/2 below.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from onelane.wire.client import ClientStream, Finished, WholeAnswer
from onelane.wire.client import Messages as Answers
from onelane.wire.framing import HeaderTuple, frame
from onelane.wire.http2 import Limits
from onelane.wire.link_client import LinkClient
from onelane.wire.link_server import ForwardedStream, LinkServer
from onelane.wire.server import Broken, ConnectionLost, Ended, Messages, Opened, Stream

from tests.wire.test_link import SERVED, forward, left
from tests.wire.test_server import REQUEST

WINDOW, WIDE, LARGEST, MOST_STREAMS, MAX_ROUNDS = 1_000, 2_500, 30_000, 6, 10_000
sizes = st.integers(0, 50) | st.integers(0, 3_000) | st.integers(16_000, LARGEST)
which = st.integers(0, MOST_STREAMS - 1)
lengths = st.just(1_000_000) | st.integers(1, 2_000) | st.integers(1, 20)


@dataclass
class Model:
    """What has happened to one stream."""

    stream: ClientStream
    sent: list[bytes] = field(default_factory=list)
    got: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    answered: list[bytes] = field(default_factory=list)
    at_server: Stream | None = None
    status: int | None = None
    expected: int | None = None
    opened: int = 0
    ends: int = 0
    """At the server: by the client, or by an answer."""
    finishes: int = 0
    cancelled: bool = False


class Link(RuleBasedStateMachine):
    """Both ends, and the bytes between them that have not arrived."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(window=WINDOW, wide_window=WIDE, wide_streams=2, max_streams=MOST_STREAMS * 2)
        self.client, self.server = LinkClient(limits), LinkServer(limits, max_message=LARGEST)
        self.up, self.down = bytearray(), bytearray()
        self.models: dict[int, Model] = {}
        self.common: HeaderTuple = ((b":path", b"/a/B"),)
        self.pump()

    # What a client may do

    @precondition(lambda self: len(self.client.streams) < MOST_STREAMS)
    @rule(size=sizes, whole=st.booleans())
    def call(self, size: int, whole: bool) -> None:
        message = b"c" * size
        stream = forward(self.client, message, self.common, limit=LARGEST) if whole else None
        stream = stream or self.client.call(REQUEST, frame(message), None, limit=LARGEST)
        self.models[stream.id] = Model(stream, sent=[message])

    @rule(n=st.integers(0, 3))
    def other_client(self, n: int) -> None:
        """From now on calls of another client are forwarded: by their second one its headers are known."""
        self.common = ((b":path", b"/a/B"), (b"x-client", b"%d" % n))

    @precondition(lambda self: len(self.client.streams) < MOST_STREAMS)
    @rule()
    def open(self) -> None:
        stream = self.client.open(REQUEST, None, limit=LARGEST)
        self.models[stream.id] = Model(stream)

    @precondition(lambda self: self.sending())
    @rule(n=which, size=sizes)
    def send(self, n: int, size: int) -> None:
        model = pick(self.sending(), n)
        self.client.send_message(model.stream, frame(b"s" * size))
        model.sent.append(b"s" * size)

    @precondition(lambda self: self.sending())
    @rule(n=which)
    def end(self, n: int) -> None:
        self.client.end(pick(self.sending(), n).stream)

    @precondition(lambda self: self.client.streams)
    @rule(n=which)
    def cancel(self, n: int) -> None:
        stream = pick(self.client.streams, n)
        self.models[stream.id].cancelled = True
        self.client.cancel(stream)

    @precondition(lambda self: self.client.streams)
    @rule(n=which)
    def client_reads(self, n: int) -> None:
        self.client.consumed(pick(self.client.streams, n))

    # What a server may do

    @precondition(lambda self: self.server.streams)
    @rule(n=which)
    def server_reads(self, n: int) -> None:
        self.server.consumed(pick(self.server.streams, n))

    @precondition(lambda self: self.server.streams)
    @rule(n=which, size=sizes)
    def answer(self, n: int, size: int) -> None:
        stream = pick(self.server.streams, n)
        self.server.send_message(stream, frame(b"a" * size))
        self.models[stream.id].answers.append(b"a" * size)

    @precondition(lambda self: self.server.streams)
    @rule(n=which, size=sizes, whole=st.booleans())
    def finish(self, n: int, size: int, whole: bool) -> None:
        """It may come before the client has ended."""
        self.finish_stream(pick(self.server.streams, n), b"w" * size if whole else None)

    # What the network may do

    @rule(length=lengths)
    def carry_up(self, length: int) -> None:
        self.up += self.client.take()
        piece, self.up = bytes(self.up[:length]), self.up[length:]
        for event in self.server.receive(piece):
            assert not isinstance(event, ConnectionLost | Broken)
            model = self.models[event.stream.id] if isinstance(event, Opened | Messages | Ended) else None
            if isinstance(event, Opened) and model is not None:
                model.opened += 1
                model.at_server = event.stream
                model.got += [] if event.message is None else [event.message]
            elif isinstance(event, Messages) and model is not None:
                model.got += event.messages
            elif model is not None:
                model.ends += 1

    @rule(length=lengths)
    def carry_down(self, length: int) -> None:
        self.down += self.server.take()
        for late in self.server.take_late():
            assert not isinstance(late, Ended)
        piece, self.down = bytes(self.down[:length]), self.down[length:]
        for event in self.client.receive(piece):
            if isinstance(event, Answers):
                keeps_frames = event.stream.keeps_frames
                self.models[event.stream.id].answered += [m[5:] if keeps_frames else m for m in event.messages]
            elif isinstance(event, WholeAnswer):
                model = self.models[event.stream.id]
                model.answered.append(event.message)
                model.status = 0
                model.finishes += 1
            elif isinstance(event, Finished):
                self.models[event.stream.id].status = event.code
                self.models[event.stream.id].finishes += 1

    # What must hold

    @invariant()
    def messages_come_in_order(self) -> None:
        for model in self.models.values():
            assert model.got == model.sent[: len(model.got)]
            assert model.answered == model.answers[: len(model.answered)]

    @invariant()
    def a_stream_opens_and_ends_at_most_once(self) -> None:
        assert all(model.opened <= 1 and model.ends <= 1 and model.finishes <= 1 for model in self.models.values())

    @invariant()
    def what_is_unread_is_bounded_by_the_credit(self) -> None:
        for stream in self.server.streams.values():
            assert stream.unread <= max(WIDE, LARGEST)
        for end in (self.client.link, self.server.link):
            assert all(flow is None or 0 <= flow.allowed <= WIDE for flow in end.flows.values())

    def teardown(self) -> None:
        """Once everybody reads, everything arrives, and nothing is left."""
        for model in self.sending():
            self.client.end(model.stream)
        self.pump()
        for stream in list(self.server.streams.values()):
            self.finish_stream(stream, None)
        self.pump()
        assert left(self.client, self.server) == 0
        assert self.server.held == self.server.link.queued_in_all() == self.client.link.queued_in_all() == 0
        for model in self.models.values():
            if not model.cancelled:
                assert (model.opened, model.ends, model.finishes) == (1, 1, 1)
                assert model.status == model.expected
                assert model.answered == model.answers

    # How it is done

    def sending(self) -> list[Model]:
        return [self.models[number] for number, stream in self.client.streams.items() if not stream.ended]

    def finish_stream(self, stream: Stream, whole: bytes | None) -> None:
        model = self.models[stream.id]
        model.ends += 1
        model.expected = 5 if whole is None or stream.sent_headers else 0
        if model.expected:
            self.server.finish(stream, 5, "done")
        elif whole is not None:
            model.answers.append(whole)
            if not isinstance(stream, ForwardedStream) or not self.server.answer_whole(stream, whole, SERVED):
                self.server.send_message(stream, frame(whole))
                self.server.finish(stream, 0, "", SERVED)

    def pump(self) -> None:
        """Both ends read until neither has anything to send."""
        for _ in range(MAX_ROUNDS):
            for stream in list(self.server.streams.values()):
                self.server.consumed(stream)
            for reading in list(self.client.streams.values()):
                self.client.consumed(reading)
            self.up += self.client.take()
            self.down += self.server.take()
            if not (self.up or self.down):
                return
            self.carry_up(len(self.up))
            self.carry_down(len(self.down))
        raise AssertionError(f"they never fall silent: {bytes(self.up[:99])!r}, {bytes(self.down[:99])!r}")


def pick(among: Any, n: int) -> Any:
    """One of a list's items, or of a dictionary's values."""
    items = list(among.values()) if isinstance(among, dict) else among
    return items[n % len(items)]


def test_whatever_happens_messages_arrive_whole_and_in_order_and_every_stream_ends_once() -> None:
    budget = settings(
        max_examples=40,
        stateful_step_count=60,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(Link, settings=budget)
