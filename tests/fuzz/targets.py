"""What is fuzzed: functions of any bytes, none of which may raise. The first byte chooses the size of the pieces.

`server` and `client` are one end each, and what a listener or a channel does with what the bytes amount to. In `pair`
the bytes say what two ends do with each other, in any order that a listener, a handler and a channel could think of.
"""

import gc
from collections.abc import Callable
from contextlib import suppress

from onelane.wire import client, framing
from onelane.wire.client import ClientConnection, ClientStream
from onelane.wire.framing import BadWire
from onelane.wire.http2 import Limits
from onelane.wire.link_client import LinkClient
from onelane.wire.link_server import ForwardedStream, LinkServer
from onelane.wire.server import Broken, ConnectionLost, Ended, Messages, Opened, ServerConnection, Stream

LIMITS = Limits(max_streams=8, window=4_096, wide_window=16_384, max_metadata=1_024)
LARGEST = 2_000
REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/t.T/M"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def server(data: bytes) -> None:
    """Give a connection `data`, and answer its calls as a listener might."""
    if not data:
        return
    wire = ServerConnection(LIMITS, max_message=LARGEST, joins=bool(data[0] % 2))
    size = 1 + data[0]
    is_over = False
    ended: set[int] = set()
    for at in range(1, len(data), size):
        for event in wire.receive(data[at : at + size]):
            if isinstance(event, Opened):
                assert event.stream.id not in ended
                try:
                    event.stream.metadata()
                except BadWire as error:
                    wire.finish(event.stream, error.code, str(error))
                if event.message is not None:
                    assert len(event.message) <= LARGEST
                    echo(wire, Messages(event.stream, [event.message], last=True))
            elif isinstance(event, Messages):
                assert all(len(message) <= LARGEST for message in event.messages)
                echo(wire, event)
            elif isinstance(event, Broken):
                wire.finish(event.stream, event.code, event.details)
            elif isinstance(event, Ended):
                assert event.stream.id not in ended
                ended.add(event.stream.id)
            elif isinstance(event, ConnectionLost):
                is_over = True
        wire.take()
        assert wire.http2.is_over or not is_over
        assert len(wire.streams) <= LIMITS.max_streams


def echo(wire: ServerConnection, event: Messages) -> None:
    """Echo what came, on streams that are still there."""
    stream = event.stream
    if stream.id not in wire.streams:
        return
    if stream.unread:
        wire.consumed(stream)
    for message in event.messages:
        wire.send_message(stream, framing.frame(message))
    if stream.ended:
        wire.finish(stream, framing.OK)


def client_end(data: bytes) -> None:
    """Give a channel's end, which has made three calls, `data`."""
    if not data:
        return
    wire = ClientConnection(LIMITS)
    for number in range(3):
        stream = wire.call(REQUEST, framing.frame(b"x"), None, limit=LARGEST)
        stream.single_response = number == 0
    wire.open(REQUEST, None, limit=LARGEST)
    wire.take()
    size = 1 + data[0]
    finished: list[int] = []
    for at in range(1, len(data), size):
        for event in [*wire.receive(data[at : at + size]), *wire.take_late()]:
            if isinstance(event, client.Finished | client.WholeAnswer):
                finished.append(event.stream.id)
            elif isinstance(event, client.Messages):
                assert event.stream.id not in finished
                wire.consumed(event.stream)
        wire.take()
    assert len(finished) == len(set(finished))


class Pair:
    """Two ends. Each method is one thing that one of them may do; `number` chooses how, and with which stream."""

    def __init__(self) -> None:
        self.server = ServerConnection(LIMITS, max_message=LARGEST, joins=True, unpacks=False)
        self.client = ClientConnection(LIMITS)
        self.asked: list[Stream] = []
        self.calls: list[ClientStream] = []
        self.up = self.down = b""
        """On the way."""

    def pass_up(self, number: int) -> None:
        self.up += self.client.take()
        size = 1 + number * 37
        piece, self.up = self.up[:size], self.up[size:]
        events = self.server.receive(memoryview(piece) if number % 2 else piece)
        self.asked += [event.stream for event in events if isinstance(event, Opened)]

    def pass_down(self, number: int) -> None:
        self.down += self.server.take()
        size = 1 + number * 37
        piece, self.down = self.down[:size], self.down[size:]
        self.client.receive(piece)

    def call(self, number: int) -> None:
        if self.client.http2.can_open:
            headers = [*REQUEST, (b"x-%d" % (number % 5), bytes([97 + number % 20]) * number)]
            self.calls.append(self.client.call(headers, framing.frame(b"m" * number * 5), None, limit=LARGEST))
            self.calls[-1].single_response = True

    def open(self, number: int) -> None:
        if self.client.http2.can_open:
            self.calls.append(self.client.open(REQUEST, None, limit=number * 10))

    def send(self, number: int) -> None:
        if self.calls and not (stream := self.calls[number % len(self.calls)]).ended:
            self.client.send_message(stream, framing.frame(b"s" * number * 9))

    def end(self, number: int) -> None:
        if self.calls and not (stream := self.calls[number % len(self.calls)]).ended:
            self.client.end(stream)

    def cancel(self, number: int) -> None:
        if self.calls:
            self.client.cancel(self.calls.pop(number % len(self.calls)))

    def client_reads(self, number: int) -> None:
        if self.calls:
            self.client.consumed(self.calls[number % len(self.calls)])

    def answer(self, number: int) -> None:
        if self.asked and (stream := self.asked[number % len(self.asked)]).id in self.server.streams:
            self.server.answer(stream, b"a" * number * 50)

    def answer_again(self, number: int) -> None:
        """A stream that may have ended, or never been there."""
        self.server.http2.answer(1 + number, b"again", 0)
        assert self.server.http2.queued(1 + number) <= self.server.http2.queued_in_all()

    def write(self, number: int) -> None:
        if self.asked and (stream := self.asked[number % len(self.asked)]).id in self.server.streams:
            message = b"w" * number * 50
            if number % 2:
                assert self.server.send_uncompressed(stream, message) <= self.server.http2.queued_in_all()
            else:
                self.server.send_message(stream, framing.frame(message))
            self.server.http2.share_window(stream.id)

    def finish(self, number: int) -> None:
        if self.asked and (stream := self.asked[number % len(self.asked)]).id in self.server.streams:
            self.server.finish(stream, number % 17, "why " * number, (("x-t", "t" * number),))

    def refuse(self, number: int) -> None:
        if self.asked:
            self.server.refuse(self.asked.pop(number % len(self.asked)))

    def server_reads(self, number: int) -> None:
        if self.asked:
            self.server.consumed(self.asked[number % len(self.asked)])

    def let_go(self, number: int) -> None:
        self.server.let_go(number * 100, "too much", keeps_oldest=bool(number % 2))

    def forget(self, number: int) -> None:
        """Drop the references of the ends to their streams, as where nobody waits for them any more."""
        self.asked = self.asked[number % 3 :]
        self.calls = self.calls[number % 3 :]
        gc.collect(0)

    def control(self, number: int) -> None:
        http2 = (self.server if number % 2 else self.client).http2
        match number // 2 % 8:
            case 0:
                http2.ping(b"pingping")
            case 1:
                http2.go_away(number % 14)
            case 2:
                self.server.http2.shutdown_notice()
            case 3:
                http2.reset(1 + number, number % 14)
            case 4:
                http2.widen(1 + number, self.server.streams)
            case _:
                http2.take()

    def disturb(self, number: int) -> None:
        """Damage a byte on its way."""
        if self.up:
            at = number % len(self.up)
            self.up = self.up[:at] + bytes([self.up[at] ^ number]) + self.up[at + 1 :]


class LinkPair(Pair):
    """The same of two siblings, of which one forwards calls to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.server = self.link_server = LinkServer(LIMITS, max_message=LARGEST)
        self.client = self.link_client = LinkClient(LIMITS)

    def call(self, number: int) -> None:
        common = ((b":path", b"/t.T/M"), (b"x-%d" % (number % 3), b"a" * (number % 5)))
        own = [(b"x-own", b"b" * number)] if number % 2 else []
        stream = self.link_client.forward(
            common,
            list,
            own,
            b"m" * number * 5,
            None,
            deadline_at=number / 2 if number % 3 else None,
            epoch=number,
            is_unsampled=bool(number % 4),
            limit=LARGEST,
        )
        if stream is None:
            super().call(number)
        else:
            self.calls.append(stream)

    def answer(self, number: int) -> None:
        stream = self.asked[number % len(self.asked)] if self.asked else None
        if (
            not isinstance(stream, ForwardedStream)
            or stream.id not in self.server.streams
            or stream.sent_headers
            or not self.link_server.answer_whole(stream, b"a" * number * 50, (("x-t", "t" * (number % 3)),))
        ):
            super().answer(number)


DEEDS: list[Callable[[Pair, int], None]] = [
    *(Pair.pass_up, Pair.pass_down) * 6,
    *(Pair.call, Pair.answer) * 3,
    *(Pair.open, Pair.send, Pair.end, Pair.cancel, Pair.client_reads, Pair.answer_again, Pair.write, Pair.finish),
    *(Pair.refuse, Pair.server_reads, Pair.let_go, Pair.forget, Pair.control, Pair.disturb),
]


def pair(data: bytes) -> None:
    """Do what pairs of bytes say: a deed, and a number."""
    run_deeds(Pair(), data)


def link_pair(data: bytes) -> None:
    """The same over a link."""
    run_deeds(LinkPair(), data)


def run_deeds(ends: Pair, data: bytes) -> None:
    for at in range(0, len(data) - 1, 2):
        with suppress(BadWire):
            getattr(ends, DEEDS[data[at] % len(DEEDS)].__name__)(data[at + 1])
        ends.server.take_late()
        ends.client.take_late()


def link_ends(data: bytes) -> None:
    """Give each end of a link, once they have greeted each other, any frames."""
    ends = LinkPair()
    for _ in range(2):
        ends.pass_up(255)
        ends.pass_down(255)
    for number in range(6):
        ends.call(number)
    ends.pass_up(255)
    size = 1 + (data[0] if data else 0)
    for at in range(1, len(data), size):
        ends.server.receive(data[at : at + size])
        ends.client.receive(data[at : at + size])
        ends.server.take()
        ends.client.take()
    assert len(ends.server.streams) <= LIMITS.max_streams


TARGETS = {"server": server, "client": client_end, "pair": pair, "link": link_pair, "link_ends": link_ends}
