"""One connection of a channel: it is given up where the server does not answer."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial
from onelane.client.options import Dialling

from tests.servers import stock


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
            await channel.unary_unary("/t.T/Echo")(b"", timeout=30)
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
        calls = [send(b"x", timeout=10) for _ in range(4)]
        for call in calls[:2]:
            call.when_ended(fail)
        going.set()
        assert await asyncio.gather(*calls) == [b"x"] * 4
    assert caplog.text.count("client.event_failed") == 2
