"""Compression of requests: by the channel or by the call, as its frames show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests import frames
from tests.bounds import BOUND_S
from tests.servers import ECHO, stock

LARGE = b"x" * 10_000
GZIP, DEFLATE, NONE = grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression
MAGIC = {GZIP: b"\x1f\x8b", DEFLATE: b"\x78"}
"""With which compressed bytes begin."""


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, "asyncio.Queue[bytes]"]]:
    """A server that never answers: its address, and the DATA frames that it has received."""
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.settings())
        await reader.readexactly(len(frames.PREFACE))
        async for kind, _, _, payload in frames.frames(reader):
            if kind == frames.DATA:
                received.put_nowait(payload)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", received


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
@pytest.mark.parametrize(
    ("of_channel", "of_call", "expected"),
    [(GZIP, None, GZIP), (None, DEFLATE, DEFLATE), (GZIP, DEFLATE, DEFLATE), (GZIP, NONE, NONE), (None, None, NONE)],
)
async def test_a_call_overrules_the_compression_of_its_channel(
    shape: str, of_channel: Any, of_call: Any, expected: grpc.Compression
) -> None:
    async with listening() as (address, received), onelane.dial(address, compression=of_channel) as channel:
        messages = iter([LARGE]) if shape.startswith("stream") else LARGE
        call = getattr(channel, shape)("/t.T/Echo")(messages, compression=of_call)
        data = await asyncio.wait_for(received.get(), BOUND_S)
        call.cancel()
        is_compressed = expected is not NONE
        assert data[0] == is_compressed
        assert data[5:].startswith(MAGIC[expected] if is_compressed else LARGE[:100])


async def test_the_compression_of_a_channel_to_an_app_is_that_of_its_calls() -> None:
    async with listening() as (address, received):
        channel = onelane.connect(address, compression=DEFLATE)
        send: Any = channel.unary_unary("/t.T/Echo")
        call = send(LARGE, wait_for_ready=True)
        data = await asyncio.wait_for(received.get(), BOUND_S)
        while not data.startswith(b"\1"):  # Those before are of the topology's watch.
            data = await asyncio.wait_for(received.get(), BOUND_S)
        call.cancel()
        await channel.close()
        assert data[5:].startswith(MAGIC[DEFLATE])


@pytest.mark.parametrize("compression", [GZIP, DEFLATE])
async def test_a_stock_server_reads_compressed_requests_and_is_read(compression: grpc.Compression) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata(())
        return request

    async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        context.set_compression(compression)
        async for request in requests:
            yield request

    handlers = ECHO | {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    async with stock(**handlers) as (address, _), onelane.dial(address, compression=compression) as channel:
        assert await channel.unary_unary("/t.T/Unary")(LARGE, timeout=BOUND_S) == LARGE
        call = channel.stream_stream("/t.T/Chat")(iter([LARGE, b"", LARGE]), timeout=BOUND_S)
        assert [reply async for reply in call] == [LARGE, b"", LARGE]
