"""What a call ends with does not depend on where the frames of its response are cut. See tests/reframing.py."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onelane.wire.http2 import DataReceived, Http2, Limits, RequestReceived

from tests.bounds import BOUND_S
from tests.frames import number
from tests.reframing import Piece, pieces

# A failure is printed as it was first seen: shrinking one takes minutes.
ROUNDS = settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@dataclass(frozen=True)
class Response:
    """What the server sends for one call. status: of the trailers; None for none, and an end without them."""

    body: bytes = b""
    status: bytes | None = b"0"
    has_headers: bool = True
    encoding: bytes = b"identity"


def message(text: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + number(len(text)) + text


RESPONSES = (
    Response(message(b"hi")),
    Response(message(b"large" * 2000)),
    Response(message(b"")),
    Response(message(b"a") + message(b"b" * 400) + message(b"c")),
    Response(),
    Response(has_headers=False),
    Response(status=b"5", has_headers=False),
    Response(status=b"5"),
    Response(message(b"hi"), status=b"5"),
    Response(message(b"hi"), status=None),
    Response(message(b"hi")[:-1]),
    Response(message(b"hi") + b"\0\0"),
    Response(message(b"hi", flag=1)),
    Response(message(b"hi"), encoding=b"br"),
    Response(message(b"hi", flag=1), encoding=b"br"),
)


class Server:
    """Answers once every call of a connection has been sent: with responses in the order of the calls."""

    def __init__(self) -> None:
        self.responses: Sequence[Response] = ()
        self.cut: Callable[[bytes], list[Piece]] = lambda data: [Piece(data, 0)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client closes once it has seen enough.
        with suppress(ConnectionError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http2 = Http2(server=True, limits=Limits())
        streams: list[int] = []
        ended = 0
        while data := await reader.read(65_536):
            for event in http2.receive(data):
                if isinstance(event, RequestReceived):
                    streams.append(event.stream_id)
                ended += isinstance(event, RequestReceived | DataReceived) and event.end_stream
            writer.write(http2.take())
            if ended == len(self.responses) > 0:
                await self._answer(http2, streams, writer)
                ended = 0

    async def _answer(self, http2: Http2, streams: list[int], writer: asyncio.StreamWriter) -> None:
        for stream, response in zip(streams, self.responses, strict=True):
            respond(http2, stream, response)
        for piece in self.cut(http2.take()):
            writer.write(piece.data)
            for _ in range(piece.turns):
                await asyncio.sleep(0)


def respond(http2: Http2, stream: int, response: Response) -> None:
    first = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"x-first", b"1")]
    last = [(b"grpc-status", response.status or b""), (b"grpc-message", b"as%20scripted"), (b"x-last", b"2")]
    if not response.has_headers:
        http2.send_response(stream, first + last, end_stream=True)
        return
    http2.send_response(stream, [*first, (b"grpc-encoding", response.encoding)])
    if response.body or response.status is None:
        http2.send_data(stream, response.body, end_stream=response.status is None)
    if response.status is not None:
        http2.send_trailers(stream, last)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    server = Server()
    path = folder / "socket"
    async with await asyncio.start_unix_server(server.serve, path), onelane.dial(f"unix:{path}") as channel:
        await channel.channel_ready()
        yield server, channel


async def outcome(call: Any) -> Any:
    """What the caller sees: the status, metadata and messages of a call."""
    replies: Any = []
    try:
        if hasattr(call, "__aiter__"):
            async for reply in call:
                replies.append(reply)
        else:
            replies.append(await call)
    except grpc.aio.AioRpcError as error:
        replies.append(error.code())
    metadata = tuple(await call.initial_metadata()), tuple(await call.trailing_metadata())
    return await call.code(), await call.details(), metadata, replies


async def outcomes(channel: Any, shapes: Sequence[str]) -> list[Any]:
    calls = []
    for shape in shapes:
        send = getattr(channel, shape)("/t.T/Any")
        calls.append(send(iter([b"one", b"two"]) if shape.startswith("stream") else b"one", timeout=BOUND_S))
    return await asyncio.gather(*map(outcome, calls))


CALL = st.tuples(st.sampled_from(SHAPES), st.sampled_from(RESPONSES))


@ROUNDS
@given(calls=st.lists(CALL, min_size=1, max_size=3), seed=st.integers(0, 2**32))
async def test_a_call_ends_alike_however_its_response_is_cut(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[str, Response]], seed: int
) -> None:
    shapes, responses = zip(*calls, strict=True)
    results = []
    for cut in (lambda data: [Piece(data, 0)], lambda data: pieces(Random(seed), data)):
        async with serving(tmp_path_factory.mktemp("s")) as (server, channel):
            server.responses, server.cut = responses, cut
            results.append(await outcomes(channel, shapes))
    assert results[1] == results[0]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_ends_alike_when_every_byte_of_its_response_comes_alone(tmp_path: Path, shape: str) -> None:
    for response in (*RESPONSES[:1], *RESPONSES[2:]):
        results = []
        for cut in (lambda data: [Piece(data, 0)], lambda data: [Piece(data[n : n + 1], 3) for n in range(len(data))]):
            async with serving(tmp_path) as (server, channel):
                server.responses, server.cut = [response], cut
                results.append(await outcomes(channel, [shape]))
        assert results[1] == results[0], response
