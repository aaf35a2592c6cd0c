"""The four types of calls behave as grpc.aio's do."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from onelane.client.channel import dial

from tests.servers import stock


async def test_a_reader_that_does_not_read_holds_the_server_back() -> None:
    """1 KiB messages for ever: no more than the windows come until somebody reads."""
    sent = 0

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1024

    async with stock(Flood=grpc.unary_stream_rpc_method_handler(flood)) as (address, _), dial(address) as channel:
        call = channel.unary_stream("/t.T/Flood")(b"", timeout=30)
        await call.read()
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        held = sum(map(len, call.messages))
        assert held <= 1024 * 1024
        for _ in range(3000):
            assert len(await call.read()) == 1024
        assert sent > before
        assert call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
