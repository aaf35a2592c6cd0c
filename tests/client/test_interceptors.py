"""grpc.aio's client interceptors stand around the calls of any channel."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial

from tests.servers import stock


class Tagging(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.StreamStreamClientInterceptor):
    """Adds a message of its own to what goes out."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, b"tag:" + request)

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        async def tagged() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                yield b"tag:" + request

        return await continuation(client_call_details, tagged())


async def test_client_interceptors_stand_between(tmp_path: Path) -> None:
    async with stock() as (address, _), dial(address, interceptors=[Tagging()]) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
        assert await call == b"tag:x"
        assert await call.code() is grpc.StatusCode.OK
        written = channel.stream_stream("/t.T/Chat")(timeout=5)
        await written.write(b"1")
        assert await written.read() == b"tag:1"
        await written.done_writing()
        assert await written.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/t.T/Nothing")(b"x", timeout=5)
    with pytest.raises(ValueError, match=r"none of grpc\.aio's client interceptors"):
        dial(address, interceptors=[object()])  # type: ignore[list-item]
    with pytest.raises(NotImplementedError, match="Deflate"):
        dial(address, compression=grpc.Compression.Deflate)


async def test_a_write_behind_an_interceptor_ends_with_its_call_though_nobody_reads() -> None:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    async def write_on(call: Any) -> None:
        while True:
            await call.write(b"x")

    handler: Any = grpc.stream_stream_rpc_method_handler(refuse)
    async with stock(Chat=handler) as (address, _), dial(address, interceptors=[Tagging()]) as channel:
        call = channel.stream_stream("/t.T/Chat")(timeout=20)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await write_on(call)
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
