"""A call is in flight until its client has taken the answer: it counts against `max_in_flight`, and a drain waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from onelane.core.keys import ANY
from onelane.lane.lane import Lane
from onelane.server.connection import NativeConnection
from onelane.server.listener import Bind
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener

from tests import frames as h2
from tests.ports import reserved
from tests.servers import echo
from tests.shard.parts import setup, wired

MESSAGE = b"x" * 100
GRANT = h2.frame(h2.WINDOW_UPDATE, h2.number(1000), stream=1)


class Unreading:
    """A client that has made one call, and takes nothing of its answer but the headers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._frames = h2.frames(reader)
        writer.write(h2.PREFACE + h2.settings(initial_window_size=0))
        writer.write(h2.headers(1, h2.request(b"/t.T/Echo")))
        (message,) = h2.pieces(MESSAGE, stream=1)
        # END_STREAM
        writer.write(message[:4] + b"\1" + message[5:])

    async def read_until(self, wanted: int, *, of: int = 1) -> bytes:
        """The payload of the next frame of this kind, on the stream of the call."""
        async for kind, _, stream, payload in self._frames:
            if (kind, stream) == (wanted, of):
                return payload
        raise AssertionError("the connection has closed")


@pytest.fixture
async def parts() -> AsyncIterator[tuple[Lane, NativeListener, Unreading]]:
    shard, _ = wired(setup())
    shard.lane.add(Method("/t.T/Echo", echo, True, False, False, None, None, ANY))
    listener = NativeListener()
    async with _listening(shard, listener) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        client = Unreading(reader, writer)
        await client.read_until(h2.HEADERS)
        yield shard.lane, listener, client
        writer.close()


@asynccontextmanager
async def _listening(shard: Any, listener: NativeListener) -> AsyncIterator[str]:
    with reserved() as port:
        await listener.start([Bind(f"127.0.0.1:{port}")], shard.serving, shard.settings)
        yield f"127.0.0.1:{port}"
        await listener.stop(0.1)


async def turns() -> None:
    """Let what could go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_call_is_in_flight_until_its_answer_is_taken(parts: tuple[Lane, NativeListener, Unreading]) -> None:
    lane, _, client = parts
    assert lane.in_flight == lane.own_in_flight == 1
    drain = asyncio.ensure_future(lane.drain())
    await turns()
    assert not drain.done()
    client.writer.write(GRANT)
    assert (await client.read_until(h2.DATA))[5:] == MESSAGE
    await drain
    assert lane.in_flight == lane.own_in_flight == 0


async def test_an_answer_is_in_flight_no_longer_than_its_connection(
    parts: tuple[Lane, NativeListener, Unreading],
) -> None:
    lane, _, client = parts
    client.writer.close()
    await lane.drain()
    assert lane.in_flight == lane.own_in_flight == 0


async def test_a_listener_that_stops_lets_an_answer_be_taken(
    parts: tuple[Lane, NativeListener, Unreading], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, listener, client = parts
    monkeypatch.setattr(NativeConnection, "goodbye_s", 0.01)
    stopping = asyncio.ensure_future(listener.stop(5))
    for _ in range(2):
        # That it will come, and that it has.
        await client.read_until(h2.GOAWAY, of=0)
    await turns()
    client.writer.write(GRANT)
    assert (await client.read_until(h2.DATA))[5:] == MESSAGE
    client.writer.close()
    await stopping
