"""What one peer sends is handled in pieces, and every other connection of the loop has its turn in between."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import pytest
from onelane.wire import driver
from onelane.wire.driver import PIECE, TURN_S, WireProtocol
from onelane.wire.framing import frame
from onelane.wire.http2 import Limits
from onelane.wire.server import Messages, ServerConnection

from tests import frames as h2

LEAST_FRAME = 9
LARGEST_READ = 256_000


class Server(WireProtocol[ServerConnection]):
    """Notes the messages that it gets, and lets them be sent on."""

    def __init__(self) -> None:
        limits = Limits(window=h2.MAX_WINDOW, connection_window=h2.MAX_WINDOW)
        super().__init__(ServerConnection(limits, max_message=LARGEST_READ), asyncio.get_running_loop())
        self.messages: list[bytes] = []

    def handle(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Messages):
                self.messages += event.messages


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
async def test_whatever_the_frames_are_one_piece_is_handled_at_a_time(
    peers: list[Peer], part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = peers[0].server
    pieces: list[int] = []
    receive = server.wire.receive

    def counted(data: bytes) -> list[Any]:
        pieces.append(len(data))
        return receive(data)

    monkeypatch.setattr(server.wire, "receive", counted)
    data = part * (4 * PIECE // len(part))
    server.data_received(data)
    assert pieces == [PIECE]
    while server.unhandled():
        before = len(pieces)
        await turn()
        assert len(pieces) <= before + 1
