"""What one peer sends is handled in pieces, and every other connection of the loop has its turn in between."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import pytest
from onelane.wire import driver
from onelane.wire.driver import PIECE, TURN_EVENTS, TURN_S, Read, WireProtocol
from onelane.wire.framing import frame
from onelane.wire.http2 import ErrorCode, Limits
from onelane.wire.server import Ended, Messages, Opened, ServerConnection

from tests import frames as h2

LEAST_FRAME = 9
LARGEST_READ = 256_000


class Server(WireProtocol[ServerConnection]):
    """Notes what it gets, and lets more be sent."""

    def __init__(self) -> None:
        limits = Limits(window=h2.MAX_WINDOW, connection_window=h2.MAX_WINDOW)
        super().__init__(ServerConnection(limits, max_message=LARGEST_READ), asyncio.get_running_loop())
        self.messages: list[bytes] = []
        self.calls: list[tuple[str, int]] = []
        """Of each call its beginning, and its end by the client, with the stream."""
        self.pieces: list[int] = []
        """The bytes of each piece that was handled in one go."""

    def data_received(self, data: Read) -> None:
        if len(data) <= self.max_read:
            self.pieces.append(len(data))
        super().data_received(data)

    def handle(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Messages):
                self.messages += event.messages
            elif isinstance(event, Opened | Ended):
                self.calls.append((type(event).__name__, event.stream.id))


class Peer:
    """A server, and the socket of its client."""

    def __init__(self, server: Server, far: socket.socket) -> None:
        self.server = server
        self.far = far


async def connected() -> Peer:
    near, far = socket.socketpair()
    _, server = await asyncio.get_running_loop().create_unix_connection(Server, sock=near)
    server.data_received(h2.HELLO + h2.frame(h2.SETTINGS, flags=h2.ACK) + h2.headers(1, h2.request(b"/t.T/M")))
    return Peer(server, far)


@pytest.fixture
async def peers() -> AsyncIterator[list[Peer]]:
    peers = [await connected() for _ in range(3)]
    yield peers
    for peer in peers:
        peer.server.abort()
        peer.far.close()


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece takes as long as a turn may."""
    clock: Iterator[float] = count(1.0, TURN_S)
    monkeypatch.setattr(driver, "monotonic", lambda: next(clock))


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "monotonic", lambda: 1.0)


def numbered(amount: int, *, padding: int = 0) -> tuple[bytes, list[bytes]]:
    """Frames of one small message each, and these messages."""
    messages = [b"%d" % n + b"." * padding for n in range(amount)]
    return b"".join(h2.frame(h2.DATA, frame(message), stream=1) for message in messages), messages


def calls(amount: int) -> bytes:
    """The beginnings of so many calls, in one piece at most."""
    block = b"\x83\x86\x04\x04/t.T" + h2.field(b":authority", b"h") + h2.field(b"content-type", b"application/grpc")
    data = b"".join(h2.headers(3 + 2 * n, block) for n in range(amount))
    assert len(data) <= PIECE
    return data


async def turn() -> None:
    """Let one turn of the loop pass."""
    await asyncio.sleep(0)


@pytest.mark.usefixtures("slow_clock")
async def test_a_read_of_small_frames_holds_the_loop_for_one_piece_of_it(peers: list[Peer]) -> None:
    server = peers[0].server
    data, messages = numbered(40_000)
    server.data_received(data)
    sizes = [len(server.messages)]
    while len(server.messages) < len(messages):
        await turn()
        sizes.append(len(server.messages))
    per_turn = [after - before for before, after in zip([0, *sizes], sizes, strict=False)]
    assert max(per_turn) <= PIECE // LEAST_FRAME
    assert len(per_turn) >= len(data) / PIECE


@pytest.mark.usefixtures("slow_clock")
async def test_all_that_was_read_arrives_in_order_and_once(peers: list[Peer]) -> None:
    server = peers[0].server
    data, messages = numbered(40_000)
    server.data_received(data)
    assert not server.transport.is_reading()
    while not server.transport.is_reading():
        await turn()
    assert server.messages == messages
    further, _ = numbered(2)
    server.data_received(further)
    assert server.messages == [*messages, b"0", b"1"]


@pytest.mark.usefixtures("slow_clock")
async def test_connections_that_are_behind_take_turns(peers: list[Peer]) -> None:
    data, _ = numbered(40_000)
    for peer in peers:
        peer.server.data_received(data)
    for _ in range(5):
        progress = [len(peer.server.messages) for peer in peers]
        assert max(progress) - min(progress) <= 2 * PIECE // len(h2.frame(h2.DATA, frame(b"1000"), stream=1))
        await turn()
    assert min(len(peer.server.messages) for peer in peers) > 0


@pytest.mark.usefixtures("slow_clock")
async def test_a_connection_without_much_to_say_is_handled_while_another_is_behind(peers: list[Peer]) -> None:
    data, messages = numbered(40_000)
    peers[0].server.data_received(data)
    small, (message,) = numbered(1)
    peers[1].far.send(small)
    while not peers[1].server.messages:
        await turn()
    assert peers[1].server.messages == [message]
    assert len(peers[0].server.messages) < len(messages) / 2


@pytest.mark.usefixtures("still_clock")
async def test_a_read_of_large_frames_is_handled_at_once_and_reading_goes_on(peers: list[Peer]) -> None:
    server = peers[0].server
    data, messages = numbered(15, padding=16_000)
    assert PIECE < len(data) < LARGEST_READ
    server.data_received(data)
    assert server.messages == messages
    assert server.transport.is_reading()


@pytest.mark.usefixtures("slow_clock")
async def test_what_is_read_while_a_connection_is_behind_comes_after_and_stops_the_reading_again(
    peers: list[Peer],
) -> None:
    """TLS may have it in its buffer."""
    server = peers[0].server
    data, messages = numbered(20_000)
    server.data_received(data)
    server.transport.resume_reading()
    server.data_received(numbered(1)[0])
    assert not server.transport.is_reading()
    while not server.transport.is_reading():
        await turn()
    assert server.messages == [*messages, b"0"]


@pytest.mark.usefixtures("slow_clock")
async def test_a_connection_that_is_paused_handles_nothing_until_it_is_resumed(peers: list[Peer]) -> None:
    server = peers[0].server
    data, messages = numbered(20_000)
    server.data_received(data)
    server.pause_reading()
    arrived = len(server.messages)
    for _ in range(20):
        await turn()
    assert len(server.messages) == arrived
    assert not server.transport.is_reading()
    server.resume_reading()
    while not server.transport.is_reading():
        await turn()
    assert server.messages == messages


@pytest.mark.usefixtures("slow_clock")
async def test_a_connection_that_is_closed_drops_what_it_has_not_handled(peers: list[Peer]) -> None:
    server = peers[0].server
    server.data_received(numbered(20_000)[0])
    arrived = len(server.messages)
    server.abort()
    for _ in range(20):
        await turn()
    assert len(server.messages) == arrived
    assert server.unhandled() == b""


@pytest.mark.usefixtures("slow_clock")
@pytest.mark.parametrize(
    "part",
    [
        h2.frame(h2.WINDOW_UPDATE, h2.number(1)),
        h2.frame(h2.DATA, b"\0", stream=1),
        h2.frame(h2.PING, bytes(8)),
        h2.settings(),
        h2.headers(3, h2.request(b"/t.T/M")),
        h2.frame(h2.RST_STREAM, h2.number(h2.CANCEL), stream=1),
        h2.frame(0x50),
    ],
    ids=["window update", "data", "ping", "settings", "headers", "reset", "unknown"],
)
async def test_whatever_the_frames_are_one_piece_is_handled_at_a_time(peers: list[Peer], part: bytes) -> None:
    server = peers[0].server
    pieces = server.pieces
    pieces.clear()
    data = part * (4 * PIECE // len(part))
    server.data_received(data)
    assert pieces == [PIECE]
    while server.unhandled():
        before = len(pieces)
        await turn()
        assert len(pieces) <= before + 1


@pytest.mark.usefixtures("slow_clock")
async def test_a_piece_of_many_calls_begins_few_of_them_in_a_turn(peers: list[Peer]) -> None:
    amount = 12 * TURN_EVENTS
    server = peers[0].server
    server.calls.clear()
    server.data_received(calls(amount))
    begun = [len(server.calls)]
    while begun[-1] < amount:
        await turn()
        begun.append(len(server.calls))
    assert begun == [TURN_EVENTS * n for n in range(1, 13)]
    assert server.calls == [("Opened", 3 + 2 * n) for n in range(amount)]


@pytest.mark.usefixtures("slow_clock")
async def test_as_many_calls_as_a_client_sends_at_once_begin_in_one_turn(peers: list[Peer]) -> None:
    server = peers[0].server
    server.calls.clear()
    server.data_received(calls(TURN_EVENTS))
    assert len(server.calls) == TURN_EVENTS
    assert not server.is_behind
    assert server.transport.is_reading()


@pytest.mark.usefixtures("still_clock")
async def test_events_that_cost_little_are_handled_in_two_turns_however_many_they_are(peers: list[Peer]) -> None:
    server = peers[0].server
    server.calls.clear()
    server.data_received(calls(12 * TURN_EVENTS))
    await turn()
    assert len(server.calls) == 12 * TURN_EVENTS
    further, _ = numbered(2)
    server.data_received(further)
    assert server.messages == [b"0", b"1"]
    assert server.transport.is_reading()


@pytest.mark.usefixtures("slow_clock")
async def test_what_comes_up_while_events_wait_is_handled_after_them(peers: list[Peer]) -> None:
    """Bytes that are read, and the end of a call that comes up while bytes are written."""
    server = peers[0].server
    server.calls.clear()
    server.data_received(calls(2 * TURN_EVENTS))
    last = server.wire.streams[1 + 2 * 2 * TURN_EVENTS]
    server.wire.late.append(Ended(last, ErrorCode.CANCEL))
    server.flush()
    message, _ = numbered(1)
    server.data_received(message)
    assert len(server.calls) == TURN_EVENTS
    assert not server.messages
    while not server.messages:
        await turn()
    assert server.calls[-2:] == [("Opened", last.id), ("Ended", last.id)]


@pytest.mark.usefixtures("slow_clock")
async def test_calls_of_a_paused_connection_begin_once_it_is_resumed(peers: list[Peer]) -> None:
    server = peers[0].server
    server.calls.clear()
    server.data_received(calls(2 * TURN_EVENTS))
    server.pause_reading()
    for _ in range(20):
        await turn()
    assert len(server.calls) == TURN_EVENTS
    server.resume_reading()
    while server.is_behind:
        await turn()
    assert len(server.calls) == 2 * TURN_EVENTS
    assert server.transport.is_reading()
