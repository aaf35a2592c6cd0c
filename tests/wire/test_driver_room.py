"""Writers that wait for room on one connection: only those that can go on are woken, and each has its turn."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from onelane.wire.driver import MAX_QUEUED, WireProtocol
from onelane.wire.framing import frame
from onelane.wire.http2 import Http2, Limits
from onelane.wire.server import Opened, ServerConnection, Stream

from tests import frames as h2

STREAMS = 100
MESSAGE = frame(b"x" * 100_000)
PING = h2.frame(h2.PING, b"handled?")


class CountedFuture(asyncio.Future[None]):
    """The future of a writer that waits. Counts how many there were, and how often they were looked at."""

    waits = looks = 0

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        CountedFuture.waits += 1
        super().__init__(loop=loop)

    def done(self) -> bool:
        CountedFuture.looks += 1
        return super().done()


class CountedLoop:
    """The loop of a connection whose writers are counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.call_soon = loop.call_soon

    def create_future(self) -> CountedFuture:
        return CountedFuture(loop=self._loop)


class CountedHttp2:
    """HTTP/2 that counts how often it is asked for what waits."""

    def __init__(self, http2: Http2) -> None:
        self._http2 = http2
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._http2, name)

    def queued(self, stream: int) -> int:
        self.passes += 1
        return self._http2.queued(stream)


class Server(WireProtocol[ServerConnection]):
    """Writes one message on each of its streams, and notes which writers have gone on."""

    def __init__(self) -> None:
        super().__init__(ServerConnection(Limits(), max_message=1024), CountedLoop(asyncio.get_running_loop()))  # type: ignore[arg-type]
        self.streams: list[Stream] = []
        self.writers: set[asyncio.Task[None]] = set()
        self.written_by: list[int] = []
        """The streams whose writers have gone on."""

    def handle(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Opened):
                self.streams.append(event.stream)

    def write_always(self) -> None:
        for stream in self.streams:
            self.writers.add(asyncio.ensure_future(self._write(stream)))

    async def _write(self, stream: Stream) -> None:
        while stream.id in self.wire.streams and not self.transport.is_closing():
            self.wire.send_message(stream, MESSAGE)
            self.flush_soon()
            await self.wait_room(stream.id)
            self.written_by.append(stream.id)

    def connection_lost(self, error: Exception | None) -> None:
        for writer in self.writers:
            writer.cancel()


class Client:
    """Opens `STREAMS` streams, and reads no message."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.frames = h2.frames(reader)
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send, and wait until the server has handled it."""
        self.writer.write(data + PING)
        async for kind, flags, _, payload in self.frames:
            if (kind, flags, payload) == (h2.PING, h2.ACK, b"handled?"):
                return


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """The streams' windows have room without end, and the connection's window has none."""
    near, far = socket.socketpair()
    _, server = await asyncio.get_running_loop().create_unix_connection(Server, sock=far)
    client = Client(server, *await asyncio.open_unix_connection(sock=near))
    opened = b"".join(h2.headers(2 * n + 1, h2.request(b"/t.T/M")) for n in range(STREAMS))
    await client.send(h2.PREFACE + h2.settings(initial_window_size=h2.MAX_WINDOW // 2) + opened)
    server.write_always()
    await client.send(b"")
    yield client
    client.writer.close()
    server.abort()


async def test_window_updates_that_make_no_room_cost_one_pass_however_many_they_are(
    client: Client,
) -> None:
    wire = client.server.wire
    counted: Any = CountedHttp2(wire.http2)
    wire.http2 = counted
    CountedFuture.looks = 0
    updates = 500
    await client.send(h2.frame(h2.WINDOW_UPDATE, h2.number(1)) * updates)
    await client.send(b"".join(h2.frame(h2.WINDOW_UPDATE, h2.number(1), stream=3) for _ in range(updates)))
    assert client.server.written_by == []
    flushes = 8
    assert counted.passes <= flushes * STREAMS
    assert CountedFuture.looks <= flushes * STREAMS


async def test_only_writers_that_have_room_are_woken(client: Client) -> None:
    """A writer that is woken for nothing waits again, and writes nothing."""
    CountedFuture.waits = 0
    for _ in range(STREAMS):
        await client.send(h2.frame(h2.WINDOW_UPDATE, h2.number(len(MESSAGE))))
    await client.send(b"")
    assert len(client.server.written_by) >= STREAMS
    assert CountedFuture.waits <= len(client.server.written_by)


async def test_the_writers_of_one_connection_take_turns_in_what_its_window_lets_through(client: Client) -> None:
    """An endless stream does not starve those that were opened later."""
    rounds = 4
    for _ in range(rounds * STREAMS):
        await client.send(h2.frame(h2.WINDOW_UPDATE, h2.number(len(MESSAGE))))
    numbers = [client.server.written_by.count(stream.id) for stream in client.server.streams]
    assert min(numbers) >= 1
    assert max(numbers) <= rounds + 2


async def test_a_writer_whose_stream_is_reset_goes_on_though_nothing_else_is_sent(client: Client) -> None:
    await client.send(h2.frame(h2.RST_STREAM, h2.number(h2.CANCEL), stream=5))
    await client.send(b"")
    assert 5 in client.server.written_by


async def test_no_more_than_max_queued_and_one_message_waits_on_each_stream(client: Client) -> None:
    for _ in range(STREAMS):
        await client.send(h2.frame(h2.WINDOW_UPDATE, h2.number(len(MESSAGE))))
    queued = [client.server.wire.http2.queued(stream.id) for stream in client.server.streams]
    assert max(queued) <= MAX_QUEUED + len(MESSAGE)


async def test_a_writer_waits_while_its_transport_is_closing_and_goes_on_when_it_is_lost(client: Client) -> None:
    """Else it would write on and on in one turn of the loop, which never came to `connection_lost`."""
    server = client.server
    for writer in server.writers:
        writer.cancel()
    server.transport.abort()
    stream = server.streams[0].id
    waiting = server.wait_room(stream)
    assert waiting.send(None) is not None
    waiting.close()
    server.wake()
    await server.wait_room(stream)
    lost = server.wait_room(stream)
    lost.send(None)
    lost.close()
