"""Compression of responses and requests, behind each listener, as compression.md and grpcio's own tests describe it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.wire.framing import frame

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.interop.raw import Answer, exchange, request
from tests.running_app import echo as echo_app
from tests.running_app import running
from tests.servers import lane_behind

LISTENERS = pytest.mark.parametrize("listener", ["native", "grpcio"])
ENCODINGS = {"Gzip": b"gzip", "Deflate": b"deflate"}
ALGORITHMS = pytest.mark.parametrize("algorithm", ENCODINGS)
LARGE = b"x" * 10_000
ASK = b"\0\0\0\0\1x"
METHODS = ["Unary", "PlainUnary", "Upload", "PlainUpload", "Download", "PlainDownload", "Writer"]
COMPRESSIBLE = {
    "native": [*METHODS, "WithMetadata", "PlainWithMetadata"],
    # grpc.aio forgets the compression of a unary answer unless initial metadata were sent. It is left so: gRPC's core
    # does not tell what the client accepts, and what is not compressed every client can read.
    "grpcio": ["Download", "PlainDownload", "Writer", "WithMetadata", "PlainWithMetadata"],
}


def compress(context: Any) -> None:
    """Choose the compression that the client's metadata name."""
    name = dict(context.invocation_metadata()).get("x-compression")
    if name is not None:
        context.set_compression(grpc.Compression[name])


async def unary(request: bytes, context: Any) -> bytes:
    compress(context)
    return LARGE


def plain_unary(request: bytes, context: Any) -> bytes:
    compress(context)
    return LARGE


async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
    compress(context)
    return LARGE if [request async for request in requests] else b""


def plain_upload(requests: Iterator[bytes], context: Any) -> bytes:
    compress(context)
    return LARGE if list(requests) else b""


async def download(request: bytes, context: Any) -> AsyncIterator[bytes]:
    compress(context)
    yield LARGE


def plain_download(request: bytes, context: Any) -> Iterator[bytes]:
    compress(context)
    yield LARGE


async def writer(request: bytes, context: Any) -> None:
    compress(context)
    await context.write(LARGE)


async def with_metadata(request: bytes, context: Any) -> bytes:
    compress(context)
    await context.send_initial_metadata((("x-first", "1"),))
    return LARGE


def plain_with_metadata(request: bytes, context: Any) -> bytes:
    compress(context)
    context.send_initial_metadata((("x-first", "1"),))
    return LARGE


async def some(request: bytes, context: Any) -> AsyncIterator[bytes]:
    """Large, large and not compressed, large, small."""
    compress(context)
    yield LARGE
    context.disable_next_message_compression()
    yield LARGE
    yield LARGE
    yield b"x"


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for message in requests:
        yield message


HANDLERS: dict[str, Any] = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "PlainUnary": grpc.unary_unary_rpc_method_handler(plain_unary),
    "Upload": grpc.stream_unary_rpc_method_handler(upload),
    "PlainUpload": grpc.stream_unary_rpc_method_handler(plain_upload),
    "Download": grpc.unary_stream_rpc_method_handler(download),
    "PlainDownload": grpc.unary_stream_rpc_method_handler(plain_download),
    "Writer": grpc.unary_stream_rpc_method_handler(writer),
    "WithMetadata": grpc.unary_unary_rpc_method_handler(with_metadata),
    "PlainWithMetadata": grpc.unary_unary_rpc_method_handler(plain_with_metadata),
    "Some": grpc.unary_stream_rpc_method_handler(some),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
}


async def answer_of(address: str, method: str, algorithm: str = "", *, accepts: bytes = b"gzip,deflate") -> Answer:
    """What comes back for one request, as it came. algorithm: that the handler chooses."""
    more = [(b"grpc-accept-encoding", accepts)] if accepts else []
    if algorithm:
        more.append((b"x-compression", algorithm.encode()))
    return await asyncio.to_thread(exchange, address, request(b"/t.T/" + method.encode(), *more), ASK)


def flags(answer: Answer) -> list[int]:
    """Which messages are compressed."""
    return [flag for flag, _ in answer.messages]


@LISTENERS
@ALGORITHMS
async def test_a_handler_of_any_kind_chooses_the_compression_of_its_responses(listener: str, algorithm: str) -> None:
    async with lane_behind(listener, **HANDLERS) as address:
        for method in COMPRESSIBLE[listener]:
            answer = await answer_of(address, method, algorithm)
            seen = answer.seen, answer.headers.get(b"grpc-encoding"), flags(answer)
            assert seen == ("200/0", ENCODINGS[algorithm], [1]), method
            assert len(answer.body) < len(LARGE) / 10
        assert answer.headers[b"x-first"] == b"1"


@LISTENERS
@pytest.mark.parametrize("algorithm", ["", "NoCompression"])
async def test_responses_are_not_compressed_unless_asked_for(listener: str, algorithm: str) -> None:
    async with lane_behind(listener, **HANDLERS) as address:
        for method in METHODS:
            answer = await answer_of(address, method, algorithm)
            assert (answer.headers.get(b"grpc-encoding"), answer.messages) == (None, [(0, LARGE)]), method


@LISTENERS
@ALGORITHMS
async def test_single_messages_and_small_ones_are_not_compressed(listener: str, algorithm: str) -> None:
    async with lane_behind(listener, **HANDLERS) as address:
        assert flags(await answer_of(address, "Some", algorithm)) == [1, 0, 1, 0]


@pytest.mark.parametrize("accepts", [b"", b"identity", b"identity,x-gzip,br"])
@pytest.mark.parametrize("settings", [{}, {"compression": "gzip"}], ids=["handler", "server"])
async def test_a_client_that_accepts_no_compression_gets_none(accepts: bytes, settings: dict[str, Any]) -> None:
    """On our own wire; gRPC's core compresses all the same, and hides from its servers what a client accepts."""
    async with lane_behind("native", (), settings, **HANDLERS) as address:
        for method in METHODS:
            answer = await answer_of(address, method, "Gzip", accepts=accepts)
            assert (answer.headers.get(b"grpc-encoding"), answer.messages) == (None, [(0, LARGE)]), method


@LISTENERS
@ALGORITHMS
async def test_an_app_has_a_compression_for_all_responses(listener: str, algorithm: str) -> None:
    async with lane_behind(listener, (), {"compression": algorithm.lower()}, **HANDLERS) as address:
        for method in METHODS:
            answer = await answer_of(address, method)
            assert (answer.headers.get(b"grpc-encoding"), flags(answer)) == (ENCODINGS[algorithm], [1]), method
        assert flags(await answer_of(address, "Some")) == [1, 0, 1, 0]


@pytest.mark.slow
def test_the_compression_of_an_app_is_that_of_forwarded_calls_too(tmp_path: Path) -> None:
    with running(tmp_path, echo_app(2, 'compression = "deflate"')) as app:
        for method, shard in itertools.product(["Unary", "Plain", "Download"], app.shards()):
            for key in "abcdef":
                # Of these keys some have their owner in either shard.
                message = frame(EchoRequest(key=key, text="x" * 10_000, times=1).SerializeToString())
                headers = request(f"/echo.v1.Echo/{method}".encode(), (b"grpc-accept-encoding", b"deflate"))
                answer = exchange(shard["address"], headers, message)
                seen = answer.seen, answer.headers.get(b"grpc-encoding"), flags(answer)
                assert seen == ("200/0", b"deflate", [1]), (method, key)


@pytest.mark.parametrize(("chosen", "encoding"), [("NoCompression", None), ("Deflate", b"deflate")])
async def test_a_handler_overrules_the_compression_of_its_app(chosen: str, encoding: bytes | None) -> None:
    async with lane_behind("native", (), {"compression": "gzip"}, **HANDLERS) as address:
        for method in METHODS:
            assert (await answer_of(address, method, chosen)).headers.get(b"grpc-encoding") == encoding, method


@LISTENERS
@ALGORITHMS
@pytest.mark.parametrize("level", ["channel", "call"])
async def test_compressed_requests_of_a_stock_client_are_read_and_its_responses_too(
    listener: str, algorithm: str, level: str
) -> None:
    chosen = grpc.Compression[algorithm]
    of_channel, of_call = (chosen, None) if level == "channel" else (None, chosen)
    async with (
        lane_behind(listener, **HANDLERS) as address,
        grpc.aio.insecure_channel(address, compression=of_channel) as channel,
    ):
        metadata = (("x-compression", algorithm),)
        more: Any = {"compression": of_call, "metadata": metadata, "timeout": 10}
        send: Any = channel.unary_unary("/t.T/Unary")
        assert await send(LARGE, **more) == LARGE
        chat: Any = channel.stream_stream("/t.T/Echo")
        assert [message async for message in chat(iter([LARGE, b"", b"x"]), **more)] == [LARGE, b"", b"x"]
