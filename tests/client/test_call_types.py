"""The four types of calls behave as grpc.aio's do."""

import asyncio
import inspect
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client.channel import dial
from onelane.wire import framing

from tests import frames
from tests.bounds import BOUND_S
from tests.client.scripted import scripted_frames
from tests.servers import stock


async def messages_of(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def test_a_reader_that_does_not_read_holds_the_server_back() -> None:
    """1 KiB messages for ever: no more than the windows come until somebody reads."""
    sent = 0

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1024

    async with stock(Flood=grpc.unary_stream_rpc_method_handler(flood)) as (address, _), dial(address) as channel:
        call = channel.unary_stream("/t.T/Flood")(b"", timeout=BOUND_S)
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


@pytest.mark.parametrize("make", [dial, grpc.aio.insecure_channel, onelane.connect])
@pytest.mark.parametrize("cut", [[], [6], [7], [12], [15]])
async def test_responses_before_one_that_is_too_large_are_read_first(make: Any, cut: list[int]) -> None:
    """However the frames are cut, and also by grpc.aio's own channel."""
    body = framing.frame(b"1") + framing.frame(b"2") + framing.frame(b"x" * (4 * 1024 * 1024 + 1))[:1000]
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *cut, len(body)])]

    def answer(stream: int) -> bytes:
        headers = frames.response(stream, (b":status", b"200"), (b"content-type", b"application/grpc"))
        return headers + b"".join(frames.frame(frames.DATA, piece, stream=stream) for piece in pieces)

    async with scripted_frames() as (address, server):
        server.answer = answer
        channel: Any = make(address)
        call = channel.unary_stream("/t.T/Echo")(b"x", timeout=BOUND_S)
        responses = [await call.read(), await call.read()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        await channel.close()
        assert (responses, caught.value.code()) == ([b"1", b"2"], grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_a_stream_of_requests_is_written_or_iterated_over_but_not_both() -> None:
    async with stock() as (address, _), dial(address) as channel:
        chat = channel.stream_stream("/t.T/Chat")
        written = chat(timeout=BOUND_S)
        await written.write(b"1")
        assert await written.read() == b"1"
        await written.done_writing()
        await written.done_writing()
        assert await written.read() is grpc.aio.EOF
        with pytest.raises(asyncio.InvalidStateError, match="RPC already finished"):
            await written.write(b"2")
        for requests in (iter([b"1", b"2"]), messages_of(b"1", b"2")):
            iterated = chat(requests, timeout=BOUND_S)
            with pytest.raises(grpc.aio.UsageError, match="may not be mixed"):
                await iterated.write(b"3")
            with pytest.raises(grpc.aio.UsageError, match="may not be mixed"):
                await iterated.done_writing()
            assert [response async for response in iterated] == [b"1", b"2"]


async def test_a_half_closed_call_takes_no_further_request() -> None:
    async with stock() as (address, _), dial(address) as channel:
        call = channel.stream_stream("/t.T/Chat")(timeout=BOUND_S)
        await call.done_writing()
        with pytest.raises(asyncio.InvalidStateError, match="RPC"):
            await call.write(b"late")
        assert await call.read() is grpc.aio.EOF


FAILURES: dict[str, Callable[[], BaseException]] = {
    "its own": lambda: ValueError("no more"),
    "another call": lambda: grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata()),
    "another state": lambda: asyncio.InvalidStateError("of something else"),
    "a stray cancellation": asyncio.CancelledError,
    "an exit": SystemExit,
    "an interrupt": KeyboardInterrupt,
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_request_iterator_that_raises_cancels_its_call_alone(
    failure: str, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    error = FAILURES[failure]()

    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        raise error

    def plainly_broken() -> Iterator[bytes]:
        yield b"1"
        raise error

    async with stock() as (address, _), dial(address) as channel, asyncio.timeout(BOUND_S):
        other = channel.stream_stream("/t.T/Chat")()
        call = channel.stream_stream("/t.T/Chat")(broken() if is_async else plainly_broken())
        with pytest.raises(asyncio.CancelledError):
            [response async for response in call]
        assert await call.code() is grpc.StatusCode.CANCELLED
        await other.write(b"2")
        assert await other.read() == b"2"
        await other.done_writing()
        assert await other.code() is grpc.StatusCode.OK
    (record,) = [record for record in caplog.records if record.message.startswith("client.requests_failed")]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_unary_response_is_one_message_and_not_two_or_none() -> None:
    async def respond(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    handler: Any = grpc.stream_stream_rpc_method_handler(respond)
    async with stock(Sum=handler) as (address, _), dial(address) as channel:
        send = channel.stream_unary("/t.T/Sum")
        assert await send(iter([b"1"]), timeout=BOUND_S) == b"1"
        for requests, count in (([], "none"), ([b"1", b"2"], "more")):
            with pytest.raises(grpc.aio.AioRpcError, match=f"the server sent {count}") as caught:
                await send(iter(requests), timeout=BOUND_S)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_response_can_be_awaited_again() -> None:
    async with stock() as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo", None, bytearray)(b"x", timeout=BOUND_S)
        first = await call
        assert await call is first


RUNTIME = str(Path(onelane.__file__).parent)


@contextmanager
def coroutines_of_the_client() -> Iterator[Counter[str]]:
    """Steps of interpreted coroutines of the client's, by name."""
    steps: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_COROUTINE and code.co_filename.startswith(RUNTIME):
            steps[code.co_name] += 1

    sys.setprofile(count)
    try:
        yield steps
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("way", ["written", "iterated"])
async def test_a_message_makes_no_coroutine_inside_where_the_server_reads(way: str) -> None:
    """A write is one coroutine, its caller's; what an iterator gives is sent by that of its feeder alone."""
    messages = [b"%d" % number for number in range(100)]
    async with stock() as (address, _), dial(address) as channel, asyncio.timeout(BOUND_S):
        await channel.channel_ready()
        chat = channel.stream_stream("/t.T/Chat")
        if way == "written":
            call = chat()
            with coroutines_of_the_client() as steps:
                for message in messages:
                    await call.write(message)
            await call.done_writing()
        else:
            with coroutines_of_the_client() as steps:
                call = chat(iter(messages))
                await asyncio.sleep(0)
        assert steps == ({"write": 100} if way == "written" else {"_feed": 1})
        assert [response async for response in call] == messages
