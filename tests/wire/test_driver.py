"""The asyncio side of the wire, with both of its ends over a real socket pair."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from onelane.wire.client import ClientConnection, ClientStream, Finished, Ready
from onelane.wire.driver import MAX_QUEUED, Read, WireProtocol
from onelane.wire.framing import frame
from onelane.wire.http2 import Limits
from onelane.wire.server import Messages, Opened, ServerConnection

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/t.T/M"),
    (b":authority", b"a"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
LARGE = frame(b"x" * 4 * 1024 * 1024)


class Server(WireProtocol[ServerConnection]):
    """Takes a call and consumes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__(ServerConnection(Limits(), max_message=2**31 - 1), asyncio.get_running_loop())
        self.opened: asyncio.Future[Any] = self._loop.create_future()
        self.bytes_received = 0
        self.reads = 0
        """Pieces in which the client's bytes came."""
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def data_received(self, data: Read) -> None:
        self.reads += 1
        super().data_received(data)

    def handle(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Opened):
                self.opened.set_result(event.stream)
            elif isinstance(event, Messages):
                self.bytes_received += sum(map(len, event.messages))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(None)


class Client(WireProtocol[ClientConnection]):
    """Keeps what comes."""

    def __init__(self) -> None:
        super().__init__(ClientConnection(Limits()), asyncio.get_running_loop())
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.status: asyncio.Future[int] = self._loop.create_future()

    def handle(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Ready):
                self.ready.set_result(None)
            elif isinstance(event, Finished):
                self.status.set_result(event.code)

    def connection_lost(self, error: Exception | None) -> None:
        self.wake()


class Pair:
    """Both ends, and a call that has been opened."""

    def __init__(self, client: Client, server: Server) -> None:
        self.client = client
        self.server = server

    async def open(self) -> tuple[ClientStream, Any]:
        await self.client.ready
        stream = self.client.wire.open(REQUEST, None, limit=2**31 - 1)
        self.client.flush_soon()
        return stream, await self.server.opened


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    _, server = await loop.create_unix_connection(Server, sock=far)
    _, client = await loop.create_unix_connection(Client, sock=near)
    yield Pair(client, server)
    client.abort()
    server.abort()


async def test_what_is_written_in_one_turn_leaves_in_one_piece(pair: Pair) -> None:
    stream, _ = await pair.open()
    before = pair.server.reads
    for _ in range(50):
        pair.client.wire.send_message(stream, frame(b"hi"))
        pair.client.flush_soon()
    while pair.server.bytes_received < 100:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)
    assert pair.server.reads == before + 1


async def test_a_writer_waits_while_the_peer_does_not_read_and_goes_on_when_it_does(pair: Pair) -> None:
    stream, asked = await pair.open()
    pair.client.wire.send_message(stream, LARGE)
    pair.client.flush_soon()
    writing = asyncio.ensure_future(pair.client.wait_room(stream.id))
    # The peer has all that its window takes, and no more comes.
    while pair.client.wire.http2.queued(stream.id) > len(LARGE) - Limits().wide_window:  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0)
    assert not writing.done()
    while not writing.done():
        pair.server.wire.consumed(asked)
        pair.server.flush()
        await asyncio.sleep(0)
    assert pair.client.wire.http2.queued(stream.id) <= MAX_QUEUED


async def test_a_writer_goes_on_when_its_stream_ends(pair: Pair) -> None:
    stream, asked = await pair.open()
    pair.client.wire.send_message(stream, LARGE)
    pair.client.flush()
    writing = asyncio.ensure_future(pair.client.wait_room(stream.id))
    pair.server.wire.finish(asked, 5)
    pair.server.flush_soon()
    assert await pair.client.status == 5
    await writing


async def test_a_writer_goes_on_when_the_connection_is_lost(pair: Pair) -> None:
    stream, _ = await pair.open()
    pair.client.wire.send_message(stream, LARGE)
    pair.client.flush()
    writing = asyncio.ensure_future(pair.client.wait_room(stream.id))
    await asyncio.sleep(0)
    assert not writing.done()
    pair.server.abort()
    await writing


async def test_a_full_transport_holds_a_writer_back_whatever_the_window_says(pair: Pair) -> None:
    stream, _ = await pair.open()
    pair.client.pause_writing()
    writing = asyncio.ensure_future(pair.client.wait_room(stream.id))
    await asyncio.sleep(0)
    assert not writing.done()
    pair.client.resume_writing()
    await writing


async def test_a_connection_that_is_closing_closes_once_the_last_bytes_have_left(pair: Pair) -> None:
    _, asked = await pair.open()
    pair.server.is_closing = True
    pair.server.wire.finish(asked, 0)
    pair.server.flush_soon()
    assert await pair.client.status == 0
    await pair.server.lost


async def test_a_peer_that_breaks_http2_is_told_and_the_connection_closed(pair: Pair) -> None:
    await pair.client.ready
    pair.client.transport.write(b"no HTTP/2 frame at all, and long enough to be taken for one")
    await pair.server.lost
    assert pair.server.is_over
