"""One connection of a channel: it is given up where the server does not answer."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.channel import NativeChannel, dial
from onelane.client.connection import Connection
from onelane.client.options import Dialling
from onelane.wire import driver
from onelane.wire.framing import frame

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.servers import ECHO, stock


async def test_keepalive_ends_a_connection_that_says_nothing() -> None:
    """A server that says hello and then nothing: after the ping's time the call fails, not at its deadline."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    dialling = Dialling(keepalive_s=0.05, ping_timeout_s=0.1)
    async with server, dial(address, dialling=dialling) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="ping timeout") as caught:
            await channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_breaks_http2_ends_a_call_whose_requests_never_pause() -> None:
    """A PING of 5 bytes ends the connection; the iterator of requests must not be read on into nothing."""
    requests_taken = 0

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0")
        await reader.readexactly(60_000)
        writer.write(b"\0\0\5\6\0\0\0\0\0hello")
        await reader.read()
        writer.close()

    def requests() -> Iterator[bytes]:
        nonlocal requests_taken
        while requests_taken < 100_000:
            requests_taken += 1
            yield b"x" * 1000

    server = await asyncio.start_server(broken, "127.0.0.1", 0)
    async with server, dial("{}:{}".format(*server.sockets[0].getsockname())) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary("/t.T/Upload")(requests())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert requests_taken < 10_000


@pytest.mark.parametrize(
    ("limit", "breaks"),
    [(("max_piece", 1024), b""), (("max_events", 8), b""), (("max_events", 8), h2.frame(h2.DATA, b"of no stream"))],
    ids=["bytes wait", "events wait", "events wait, and HTTP/2 is broken"],
)
async def test_calls_that_were_answered_before_their_connection_was_lost_have_their_answers(
    limit: tuple[str, int], breaks: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers came in one read, of which one piece, or some events, are handled in a turn; then a write meets a
    closed socket, or HTTP/2 has ended."""
    calls = 100
    channels: list[NativeChannel] = []
    clock: Iterator[float] = count(1.0, driver.TURN_S)
    """Seconds at which the turn of a connection begins, or is looked at: each look is late."""

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(h2.settings())
        await reader.readexactly(len(h2.PREFACE))
        requests = [stream async for kind, _, stream, _ in _until_whole(reader, calls) if kind == h2.HEADERS]
        head = [(b":status", b"200"), (b"content-type", b"application/grpc")]
        writer.write(
            b"".join(
                h2.response(n, *head)
                + h2.frame(h2.DATA, frame(b"%d" % n), stream=n)
                + h2.response(n, (b"grpc-status", b"0"), last=True)
                for n in requests
            )
            + breaks
        )
        await reader.read()
        writer.close()

    def lose_once_the_first_are_handled() -> float:
        now = next(clock)
        if now == 1.0 + driver.TURN_S:
            (connection,) = channels[0].subchannel._connections
            assert connection.is_behind
            if breaks:
                connection.flush()
                assert connection.is_over
            connection.transport.abort()
        return now

    monkeypatch.setattr(driver, "monotonic", lose_once_the_first_are_handled)
    monkeypatch.setattr(Connection, *limit)
    server = await asyncio.start_server(answer_all, "127.0.0.1", 0)
    async with server, dial("{}:{}".format(*server.sockets[0].getsockname())) as channel:
        channels.append(channel)
        send = channel.unary_unary("/t.T/Echo")
        answers = await asyncio.gather(*(send(b"x", timeout=BOUND_S) for _ in range(calls)), return_exceptions=True)
    assert next(clock) > 1.0 + driver.TURN_S, "nothing was lost"
    assert answers == [b"%d" % n for n in range(1, 2 * calls, 2)]


async def _until_whole(reader: asyncio.StreamReader, calls: int) -> AsyncIterator[tuple[int, int, int, bytes]]:
    """The frames of so many unary calls."""
    async for kind, flags, stream, payload in h2.frames(reader):
        yield kind, flags, stream, payload
        calls -= kind == h2.DATA
        if not calls:
            return


async def test_streams_that_the_program_does_not_read_stop_no_other_call_of_their_channel() -> None:
    async def download(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(60_000)

    methods = {"Down": grpc.unary_stream_rpc_method_handler(download), **ECHO}
    async with stock(**methods) as (address, _), dial(address) as channel:
        unread = [channel.unary_stream("/t.T/Down")(b"") for _ in range(8)]
        for call in unread:
            await call.read()
        assert await channel.unary_unary("/t.T/Echo")(b"x" * 100_000, timeout=BOUND_S) == b"x" * 100_000
        for call in unread:
            call.cancel()


async def test_a_defect_at_the_end_of_one_call_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever of ours watches a call may be wrong; its connection serves others."""
    going = asyncio.Event()

    async def echo(request: bytes, context: Any) -> bytes:
        await going.wait()
        return request

    def fail(_: Any) -> None:
        raise ValueError("a defect")

    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    async with stock(Echo=handler) as (address, _), dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        calls = [send(b"x", timeout=BOUND_S) for _ in range(4)]
        for call in calls[:2]:
            call.when_ended(fail)
        going.set()
        assert await asyncio.gather(*calls) == [b"x"] * 4
    assert caplog.text.count("client.event_failed") == 2
