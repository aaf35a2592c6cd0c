"""One connection of a channel: it is given up where the server does not answer."""

import asyncio

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial
from onelane.client.options import Dialling


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
