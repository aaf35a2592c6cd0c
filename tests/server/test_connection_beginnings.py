"""Clients that begin slowly, or many of one address: each is cut off or refused, counted, and no neighbour is."""

import asyncio
from collections.abc import Callable

import pytest
from onelane.client.channel import dial
from onelane.server.connection import NativeConnection
from onelane.server.connection_counts import ConnectionCounts
from onelane.telemetry.stats import Stats

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.servers import native

HALF_HEADERS = h2.HELLO + h2.headers(1, h2.request(b"/t.T/Echo")[:20], flags=0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, float]]:
    """The refusals and GOAWAYs of the listeners of a test, by reason."""
    stats, totals = Stats(), dict[str, float]()
    monkeypatch.setattr("tests.servers.Answering.connection_counts", lambda _: ConnectionCounts(stats))

    def take() -> dict[str, float]:
        for point in stats.take():
            if isinstance(point.value, float | int) and point.attributes:
                reason = str(dict(point.attributes)["onelane.reason"])
                totals[reason] = totals.get(reason, 0) + point.value
        return totals

    return take


async def connect(address: str, begins_with: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(begins_with)
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(BOUND_S):
        try:
            await reader.read()
        except ConnectionError:
            return


@pytest.mark.parametrize(
    ("begins_with", "reason"),
    [
        (b"", "preface"),
        (h2.PREFACE[:7], "preface"),
        (h2.PREFACE + h2.settings()[:5], "preface"),
        (HALF_HEADERS, "headers"),
        (h2.HELLO + h2.headers(1, h2.request(b"/t.T/Echo"))[:30], "headers"),
        (h2.HELLO, "first_request"),
    ],
)
async def test_a_client_that_does_not_go_on_is_cut_off_and_its_neighbour_served(
    counted: Callable[[], dict[str, float]], monkeypatch: pytest.MonkeyPatch, begins_with: bytes, reason: str
) -> None:
    monkeypatch.setattr(NativeConnection, "goodbye_s", 0.1)
    limits = {name: 0.2 if name == f"{reason}_s" else 30.0 for name in ("preface_s", "headers_s", "first_request_s")}
    async with native(**limits) as (address, listener), dial(address) as neighbour:
        send = neighbour.unary_unary("/t.T/Echo")
        assert await send(b"x", timeout=BOUND_S) == b"x"
        reader, writer = await connect(address, begins_with)
        await closed(reader)
        writer.close()
        assert counted() == {reason: 1}
        assert await send(b"x", timeout=BOUND_S) == b"x"
        assert len(listener._connections) == 1


async def test_a_header_block_that_comes_byte_by_byte_behind_other_calls_is_cut_off(
    counted: Callable[[], dict[str, float]],
) -> None:
    async with native(headers_s=0.2) as (address, _):
        whole = h2.headers(1, h2.request(b"/t.T/Echo")) + b"".join(h2.pieces(b"hi", stream=1))
        reader, writer = await connect(address, h2.HELLO + whole + h2.headers(3, b"", flags=0))
        ended = asyncio.ensure_future(closed(reader))
        for byte in h2.frame(h2.CONTINUATION, bytes(1000), stream=3):
            writer.write(bytes([byte]))
            await asyncio.wait([ended], timeout=0.02)
            if ended.done():
                break
        await ended
        writer.close()
        assert counted() == {"headers": 1}


async def test_one_address_has_its_bound_and_others_have_theirs(counted: Callable[[], dict[str, float]]) -> None:
    async with native(max_connections_per_peer=2) as (address, listener):
        writers = [(await connect(address, h2.HELLO))[1] for _ in range(2)]
        reader, refused = await connect(address, h2.HELLO)
        await closed(reader)
        host, port = address.split(":")
        other, writer = await asyncio.open_connection(host, int(port), local_addr=("127.0.0.2", 0))
        writer.write(h2.HELLO)
        async with asyncio.timeout(BOUND_S):
            assert await other.readexactly(9)
        assert counted() == {"peer": 1}
        for left in (*writers, writer, refused):
            left.close()
        await eventually(lambda: not listener._connections)
        reader, writer = await connect(address, h2.HELLO)
        async with asyncio.timeout(BOUND_S):
            assert await reader.readexactly(9)
        writer.close()


async def test_a_client_that_breaks_http2_is_counted_and_one_that_says_goodbye_is_not(
    counted: Callable[[], dict[str, float]],
) -> None:
    async with native() as (address, _):
        reader, writer = await connect(address, h2.HELLO + h2.frame(h2.GOAWAY, bytes(8)))
        await closed(reader)
        writer.close()
        assert counted() == {}
        reader, writer = await connect(address, h2.HELLO + h2.frame(h2.DATA, b"x", stream=0))
        assert h2.GOAWAY in {kind async for kind, *_ in h2.frames(reader)}
        writer.close()
        assert counted() == {"protocol": 1}
