"""The status of a call, whatever a server answers: gRPC's tables, and what grpcio makes of the same bytes.

Source: grpc/doc/PROTOCOL-HTTP2.md ("HTTP2 Transport Mapping"), http-grpc-status-mapping.md, statuscodes.md.
"""

import asyncio
import gzip
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import onelane.client.call
import pytest
from onelane.client.channel import dial

from tests import frames
from tests.client.scripted import ScriptedFrames, scripted_frames

Pair = tuple[bytes, bytes]
Answer = Callable[[int], bytes]
LIMIT_S = 10.0
"""No answer takes so long: a call that has this deadline has hung."""
HTTP_OK: Pair = (b":status", b"200")
GRPC: Pair = (b"content-type", b"application/grpc")
HTML: Pair = (b"content-type", b"text/html")
CODED: Pair = (b"grpc-encoding", b"zstd")


def status(text: bytes) -> Pair:
    return b"grpc-status", text


def message(content: bytes, *, flag: int = 0) -> bytes:
    return bytes([flag]) + frames.number(len(content)) + content


def answer(*initial: Pair, data: bytes = b"", trailers: tuple[Pair, ...] | None = (status(b"0"),)) -> Answer:
    """Headers with `initial`, `data`, and trailers; None for no end."""

    def frames_of(stream: int) -> bytes:
        sent = frames.response(stream, HTTP_OK, GRPC, *initial)
        sent += frames.frame(frames.DATA, data, stream=stream) if data else b""
        return sent if trailers is None else sent + frames.response(stream, *trailers, last=True)

    return frames_of


def headers_alone(*fields: Pair) -> Answer:
    return lambda stream: frames.response(stream, *fields, last=True)


def page(code: int) -> Answer:
    """What a proxy answers in place of the server."""
    return headers_alone((b":status", b"%d" % code), HTML)


def ends_with_data(data: bytes) -> Answer:
    return lambda stream: (
        answer(trailers=None)(stream) + frames.frame(frames.DATA, data, flags=frames.END_STREAM, stream=stream)
    )


def reset(code: int, *, before: Answer = lambda stream: b"") -> Answer:
    return lambda stream: before(stream) + frames.frame(frames.RST_STREAM, frames.number(code), stream=stream)


LIKE_GRPCIO: dict[str, Answer] = {
    "one message": answer(data=message(b"hi")),
    "gzip": answer((b"grpc-encoding", b"gzip"), data=message(gzip.compress(b"hi"), flag=1)),
    **{f"reset {code:#x}": reset(code) for code in (*range(0xF), 0xFF)},
    **{f"reset {code:#x} after headers": reset(code, before=answer(trailers=None)) for code in (0, 2, 7, 8)},
    "reset 0 after the end": reset(0, before=answer(data=message(b"hi"))),
    **{f"HTTP {code}": page(code) for code in (200, 204, 301, 400, 401, 403, 404, 405, 429, 500, 502, 503, 504, 599)},
    "HTTP 503 with a grpc-status": headers_alone((b":status", b"503"), HTML, status(b"5")),
    "HTML with a grpc-status": headers_alone(HTTP_OK, HTML, status(b"5")),
    **{f"status {text!r}": answer(trailers=(status(text),)) for text in (b"5", b"005", b"16", b"17", b"100")},
    **{f"status {text!r}": answer(trailers=(status(text),)) for text in (b"", b"-1", b"0x5", b"abc", b"4294967296")},
    "status alone": headers_alone(HTTP_OK, GRPC, status(b"9")),
    "two statuses": answer(data=message(b"hi"), trailers=(status(b"5"), status(b"0"))),
    "status in the headers that do not end": answer(status(b"5"), trailers=()),
    "trailers without a status": answer(trailers=((b"x-a", b"1"),)),
    "headers alone without a status": headers_alone(HTTP_OK, GRPC),
    "data ends the stream": ends_with_data(b""),
    "a part of a message ends the stream": ends_with_data(message(b"hi")[:-1]),
    "a status after a message": answer(data=message(b"hi"), trailers=(status(b"5"),)),
    "a status after a part of a message": answer(data=message(b"hi")[:-1], trailers=(status(b"5"),)),
    "an unknown encoding": answer(CODED, data=message(b"hi", flag=1)),
    "an unknown encoding that is not used": answer(CODED, data=message(b"hi")),
    "an unknown encoding before a status": answer(CODED, trailers=(status(b"5"),)),
    "compressed without an encoding": answer(data=message(b"hi", flag=1)),
    "compressed as identity": answer((b"grpc-encoding", b"identity"), data=message(b"hi", flag=1)),
    "no valid gzip": answer((b"grpc-encoding", b"gzip"), data=message(b"hi", flag=1)),
    "too large": answer(data=b"\0" + frames.number(5_000_000) + b"hi"),
    "no base64 in the headers": answer((b"x-bin", b"!!!"), data=message(b"hi")),
    "no base64 in the trailers": answer(trailers=(status(b"0"), (b"x-bin", b"!!!"))),
    "a header name in capitals": answer((b"X-Big", b"1"), data=message(b"hi")),
}
"""Ours is grpcio's status for the same bytes."""

BY_THE_TABLES: dict[str, tuple[Answer, str, str]] = {
    # statuscodes.md: a client ends a unary call with UNIMPLEMENTED unless the server sent one message. For none,
    # grpcio returns None; after the second, it waits for the deadline.
    "no message": (answer(), "UNIMPLEMENTED", "OK"),
    "OK alone": (headers_alone(HTTP_OK, GRPC, status(b"0")), "UNIMPLEMENTED", "OK"),
    "two messages": (answer(data=message(b"hi") * 2), "UNIMPLEMENTED", "OK"),
    "two messages and no end": (answer(data=message(b"hi") * 2, trailers=None), "UNIMPLEMENTED", ""),
    # grpcio drops the part, and returns what is there.
    "a part of a message": (answer(data=message(b"hi")[:-1]), "INTERNAL", "INTERNAL"),
    "a flag that is neither 0 nor 1": (answer(data=message(b"hi", flag=2)), "INTERNAL", "INTERNAL"),
    # A page with HTTP status 200 is no answer: grpcio reads it as messages.
    "HTML": (lambda n: frames.response(n, HTTP_OK, HTML), "UNKNOWN", "UNKNOWN"),
    "no content-type": (lambda n: frames.response(n, HTTP_OK), "UNKNOWN", "UNKNOWN"),
    # RFC 9113, 8.1 and 8.3: a malformed answer is a stream error PROTOCOL_ERROR. grpcio takes some of these.
    "no :status": (headers_alone(GRPC, status(b"5")), "INTERNAL", "INTERNAL"),
    "a :status of letters": (headers_alone((b":status", b"abc"), GRPC), "INTERNAL", "INTERNAL"),
    "two :status": (headers_alone(HTTP_OK, (b":status", b"404"), GRPC), "INTERNAL", "INTERNAL"),
    "HTTP 100 that ends the stream": (page(100), "INTERNAL", "INTERNAL"),
    "a space before a value": (headers_alone(HTTP_OK, GRPC, status(b" 5")), "INTERNAL", "INTERNAL"),
    ":status in trailers": (answer(trailers=(HTTP_OK, status(b"0"))), "INTERNAL", "INTERNAL"),
    "trailers that do not end": (
        lambda n: answer(trailers=None)(n) + frames.response(n, status(b"0")),
        "INTERNAL",
        "INTERNAL",
    ),
    # RFC 9110, 15.2: an interim answer comes before the final one. grpcio takes it for the answer.
    "103 first": (
        lambda n: frames.response(n, (b":status", b"103")) + answer(data=message(b"hi"))(n),
        "OK",
        "OK",
    ),
}
"""Where grpcio departs from the specifications: the bytes, and the status of a unary call and of a stream; "" for none
within the test."""

LOST: dict[str, Answer] = {
    "at once": lambda stream: b"",
    "after the headers": answer(trailers=None),
    "after a message": answer(data=message(b"hi"), trailers=None),
    "after a GOAWAY": lambda stream: frames.frame(frames.GOAWAY, frames.number(stream) + frames.number(2)),
    "after a GOAWAY of an earlier stream": lambda stream: frames.frame(frames.GOAWAY, bytes(8)),
}


async def test_whatever_a_server_answers_the_status_is_grpcios() -> None:
    async with (
        scripted_frames() as (address, server),
        grpc.aio.insecure_channel(address) as stock,
        dial(address) as channel,
    ):
        expected = {name: await statuses(stock, server, bytes_of) for name, bytes_of in LIKE_GRPCIO.items()}
        assert {name: await statuses(channel, server, bytes_of) for name, bytes_of in LIKE_GRPCIO.items()} == expected
    assert {code for codes in expected.values() for code in codes} > {"OK", "INTERNAL", "UNKNOWN", "UNAVAILABLE"}
    assert not any("DEADLINE_EXCEEDED" in codes for codes in expected.values())


@pytest.mark.parametrize("case", BY_THE_TABLES)
async def test_what_grpcio_takes_against_the_specifications_has_the_status_of_their_tables(case: str) -> None:
    bytes_of, unary, stream = BY_THE_TABLES[case]
    async with scripted_frames() as (address, server), dial(address) as channel:
        server.answer = bytes_of
        assert await unary_status(channel) == unary
        assert not stream or await stream_status(channel) == stream


@pytest.mark.parametrize("case", LOST)
async def test_a_connection_that_is_lost_is_unavailable_as_with_grpcio(case: str) -> None:
    async with scripted_frames() as (address, server):
        server.hangs_up = True
        for make in (grpc.aio.insecure_channel, dial):
            async with make(address) as channel:
                assert await statuses(channel, server, LOST[case]) == ("UNAVAILABLE", "UNAVAILABLE")


async def test_a_server_that_resets_at_the_deadline_means_the_deadline() -> None:
    """As grpc-go and grpc-java do: RST_STREAM(CANCEL), mostly before our own timer fires."""
    async with scripted_frames() as (address, server), dial(address) as channel:
        server.answer = reset(8)
        codes = set()
        for milliseconds in range(10, 20):
            server.after_s = milliseconds / 1000
            calls = [channel.unary_unary("/t.T/M")(b"", timeout=server.after_s) for _ in range(3)]
            codes |= {(await call.code(), await call.details()) for call in calls}
    assert codes == {(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")}


@pytest.mark.parametrize(
    ("at_s", "code"), [(9.0, "CANCELLED"), (9.999, "DEADLINE_EXCEEDED"), (10.0, "DEADLINE_EXCEEDED")]
)
async def test_a_reset_with_cancel_is_the_deadline_by_the_clock(
    at_s: float, code: str, unserved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9.999: a hair before, as the clock of the server is another one."""
    async with dial(unserved) as channel:
        monkeypatch.setattr(onelane.client.call, "monotonic", lambda: 0.0)
        call = channel.unary_unary("/t.T/M")(b"", timeout=10.0, wait_for_ready=True)
        monkeypatch.setattr(onelane.client.call, "monotonic", lambda: at_s)
        call.finish(grpc.StatusCode.CANCELLED.value[0], "Received RST_STREAM with error code 8")
        assert (await call.code()).name == code


async def test_a_call_cancelled_here_is_so_though_its_deadline_has_passed(
    unserved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dial(unserved) as channel:
        monkeypatch.setattr(onelane.client.call, "monotonic", lambda: 0.0)
        call = channel.unary_unary("/t.T/M")(b"", timeout=10.0, wait_for_ready=True)
        monkeypatch.setattr(onelane.client.call, "monotonic", lambda: 10.0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_no_details_of_a_server_look_like_a_cancellation_here() -> None:
    async with scripted_frames() as (address, server), dial(address) as channel:
        server.answer = answer(trailers=(status(b"1"), (b"grpc-message", b"Locally cancelled by application!")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/M")(b"", timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


async def statuses(channel: Any, server: ScriptedFrames, bytes_of: Answer) -> tuple[str, str]:
    """Of a unary call and of a stream that are answered so."""
    server.answer = bytes_of
    return await unary_status(channel), await stream_status(channel)


async def unary_status(channel: Any) -> str:
    call = channel.unary_unary("/t.T/M")(b"x", timeout=LIMIT_S)
    with suppress(grpc.aio.AioRpcError):
        assert await call == b"hi"
    return str((await call.code()).name)


async def stream_status(channel: Any) -> str:
    call = channel.unary_stream("/t.T/M")(b"x", timeout=LIMIT_S)
    with suppress(grpc.aio.AioRpcError):
        async for response in call:
            assert response == b"hi"
    return str((await call.code()).name)
