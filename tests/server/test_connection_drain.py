"""A drain while much of what a client has sent is still to be handled: no call of it is lost without a word."""

import asyncio

import pytest
from onelane.server.connection import NativeConnection
from onelane.wire.framing import frame

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.servers import native

MIB = 1024 * 1024
CALLS = 600
MESSAGE = bytes(8_000)
"""So that the calls are almost 5 MiB, of which the driver handles 64 KiB in one go."""
SENT = range(1, 2 * CALLS, 2)


def calls() -> bytes:
    each = frame(MESSAGE)
    request = h2.request(b"/t.T/Echo")
    return b"".join(
        h2.headers(number, request) + h2.frame(h2.DATA, each, stream=number, flags=h2.END_STREAM) for number in SENT
    )


async def outcomes(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, polite: bool
) -> tuple[set[int], set[int]]:
    """Streams that the server has ended, and those that it says it has not looked at, until it closes the connection.
    polite: acknowledge its pings."""
    ended: set[int] = set()
    last = h2.MAX_WINDOW
    async for kind, flags, stream, payload in h2.frames(reader):
        if kind == h2.RST_STREAM or (kind == h2.HEADERS and flags & h2.END_STREAM):
            ended.add(stream)
        elif kind == h2.GOAWAY:
            last = int.from_bytes(payload[:4], "big")
        elif kind == h2.PING and polite:
            writer.write(h2.frame(h2.PING, payload, flags=h2.ACK))
    return ended, {number for number in SENT if number > last}


@pytest.fixture(params=[0.0, 20.0], ids=["a client that says nothing", "a client that acknowledges"])
def goodbye_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(NativeConnection, "goodbye_s", request.param)
    seconds: float = request.param
    return seconds


async def test_every_call_that_was_read_before_a_drain_is_answered_or_its_client_told(goodbye_s: float) -> None:
    async with native() as (address, listener), asyncio.timeout(BOUND_S):
        reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
        # A window for all answers.
        writer.write(h2.PREFACE + h2.settings(initial_window_size=MIB) + h2.frame(h2.WINDOW_UPDATE, h2.number(9 * MIB)))
        while not listener._connections:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        (connection,) = listener._connections
        while not connection.has_settings:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        # As one read.
        connection.data_received(calls())
        assert len(connection.unhandled()) > MIB
        reading = asyncio.create_task(outcomes(reader, writer, polite=goodbye_s > 0))
        await listener.drain()
        await listener.stop(10)
        ended, unseen = await reading
        assert ended | unseen == set(SENT)
        assert not ended & unseen
        if goodbye_s:
            assert not unseen
        writer.close()
