"""grpc.aio's client interceptors stand around the calls of any channel: what is ours beyond grpc.aio.

What is as in grpc.aio: test_intercepted_call_like_grpcio.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests.bounds import BOUND_S
from tests.client.test_channel_like_grpcio import Held
from tests.client.test_intercepted_call_like_grpcio import (
    StreamStream,
    StreamUnary,
    UnaryStream,
    UnaryUnary,
    await_call,
    pass_on,
    refuse_here,
    relay,
    relayed,
)
from tests.servers import stock

CHANNELS: dict[str, Callable[..., Any]] = {"dial": onelane.dial, "connect": onelane.connect}
each_channel = pytest.mark.parametrize("channel", CHANNELS)


class Tagging(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.StreamStreamClientInterceptor):
    """Adds a message of its own to what goes out. grpc.aio would ask it for the first kind alone."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, b"tag:" + request)

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        async def tagged() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                yield b"tag:" + request

        return await continuation(client_call_details, tagged())


class Departure:
    """Handlers that tell when their call has been cancelled."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.is_gone = asyncio.Event()

    async def hold(self, request: Any, context: Any) -> bytes:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.is_gone.set()
        return b""

    async def follow(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        # Around the response, too: a cancellation may arrive before grpc.aio goes on after it.
        try:
            yield b"first"
            await self.hold(request, context)
        finally:
            self.is_gone.set()

    def handlers(self) -> dict[str, Any]:
        return {
            "Hold": grpc.unary_unary_rpc_method_handler(self.hold),
            "Follow": grpc.unary_stream_rpc_method_handler(self.follow),
        }


@each_channel
async def test_an_interceptor_of_several_kinds_stands_before_each(channel: str) -> None:
    async with stock() as (address, _), CHANNELS[channel](address, interceptors=[Tagging()]) as opened:
        call = opened.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        assert await call == b"tag:x"
        assert await call.code() is grpc.StatusCode.OK
        written = opened.stream_stream("/t.T/Chat")(timeout=BOUND_S)
        await written.write(b"1")
        assert await written.read() == b"tag:1"
        await written.done_writing()
        assert await written.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError):
            await opened.unary_unary("/t.T/Nothing")(b"x", timeout=BOUND_S)


@each_channel
def test_an_interceptor_that_is_none_is_refused(channel: str) -> None:
    with pytest.raises(ValueError, match=r"none of grpc\.aio's client interceptors"):
        CHANNELS[channel]("127.0.0.1:1", interceptors=[object()])


@each_channel
async def test_a_writer_whose_call_ends_does_not_hide_its_status(channel: str) -> None:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    async def write_on(call: Any) -> None:
        while True:
            await call.write(b"x")

    handler: Any = grpc.stream_stream_rpc_method_handler(refuse)
    async with stock(Chat=handler) as (address, _), CHANNELS[channel](address, interceptors=[Tagging()]) as opened:
        call = opened.stream_stream("/t.T/Chat")(timeout=BOUND_S)
        with pytest.raises(asyncio.InvalidStateError):
            await write_on(call)
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def ask_for_the_code(continuation: Any, details: Any, request: Any) -> Any:
    """As OpenTelemetry's interceptors do."""
    call = await continuation(details, request)
    await call.code()
    return call


@each_channel
@pytest.mark.parametrize("intercept", [ask_for_the_code, await_call])
async def test_a_call_that_is_cancelled_behind_an_interceptor_ends_at_the_server(channel: str, intercept: Any) -> None:
    departure = Departure()
    interceptors = [UnaryUnary(intercept)]
    async with (
        stock(**departure.handlers()) as (address, _),
        CHANNELS[channel](address, interceptors=interceptors) as opened,
    ):
        call = opened.unary_unary("/t.T/Hold")(b"x", timeout=BOUND_S)
        await departure.has_begun.wait()
        assert call.cancel()
        async with asyncio.timeout(BOUND_S):
            await departure.is_gone.wait()


@each_channel
async def test_an_rpc_ends_with_the_interceptor_that_has_begun_it_and_broken(channel: str) -> None:
    departure = Departure()

    async def begin_and_break(continuation: Any, details: Any, request: Any) -> Any:
        await continuation(details, request)
        await departure.has_begun.wait()
        raise ValueError("broken")

    interceptors = [UnaryUnary(begin_and_break)]
    async with (
        stock(**departure.handlers()) as (address, _),
        CHANNELS[channel](address, interceptors=interceptors) as opened,
    ):
        call = opened.unary_unary("/t.T/Hold")(b"x", timeout=BOUND_S)
        with pytest.raises(ValueError, match="broken"):
            await call
        async with asyncio.timeout(BOUND_S):
            await departure.is_gone.wait()


@each_channel
@pytest.mark.parametrize("intercept", [pass_on, relay])
async def test_a_stream_that_its_caller_drops_is_cancelled(channel: str, intercept: Any) -> None:
    departure = Departure()
    interceptors = [UnaryStream(intercept)]

    async def first_response(stream: Any) -> Any:
        return await anext(aiter(stream(b"x")))

    async with (
        stock(**departure.handlers()) as (address, _),
        CHANNELS[channel](address, interceptors=interceptors) as opened,
    ):
        assert await first_response(opened.unary_stream("/t.T/Follow"))
        async with asyncio.timeout(BOUND_S):
            await departure.is_gone.wait()


@each_channel
@pytest.mark.parametrize("intercept", [pass_on, await_call])
async def test_a_unary_call_that_its_caller_drops_goes_on(channel: str, intercept: Any) -> None:
    has_ended = asyncio.Event()

    async def notify(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0)
        has_ended.set()
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(notify)
    interceptors = [UnaryUnary(intercept)]
    async with stock(Notify=handler) as (address, _), CHANNELS[channel](address, interceptors=interceptors) as opened:
        opened.unary_unary("/t.T/Notify")(b"x")
        async with asyncio.timeout(BOUND_S):
            await has_ended.wait()


@each_channel
async def test_who_asks_for_the_code_and_is_cancelled_cancels_nobody(channel: str) -> None:
    """In grpc.aio the interceptors would be cancelled, and with them the call."""
    held = Held()

    async def wait_first(continuation: Any, details: Any, request: Any) -> Any:
        await held.hold(request, None)
        return await continuation(details, request)

    async with stock() as (address, _), CHANNELS[channel](address, interceptors=[UnaryUnary(wait_first)]) as opened:
        call = opened.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        asked = [call.code(), call.details(), call.initial_metadata(), call.trailing_metadata()]
        tasks = [asyncio.ensure_future(each) for each in asked]
        await held.has_begun.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        held.may_end.set()
        assert await call == b"x"


async def answer_by_itself(continuation: Any, details: Any, request: Any) -> Any:
    return b"mine"


async def answer_each(continuation: Any, details: Any, request: Any) -> Any:
    return relayed([b"my", b"own"])


@each_channel
async def test_an_interceptor_of_a_stream_answers_without_an_rpc(channel: str) -> None:
    """grpc.aio has no call then to ask: AttributeError."""
    interceptors = [StreamUnary(answer_by_itself), UnaryStream(answer_each), StreamStream(answer_each)]
    opened = CHANNELS[channel]("127.0.0.1:1", interceptors=interceptors)
    upload = opened.stream_unary("/t.T/Upload")()
    assert await upload == b"mine"
    for stream in (opened.unary_stream("/t.T/Follow")(b"x"), opened.stream_stream("/t.T/Chat")()):
        assert [response async for response in stream] == [b"my", b"own"]
        assert await stream.code() is grpc.StatusCode.OK
        assert stream.done()
        assert not stream.cancel()
    with pytest.raises(asyncio.InvalidStateError):
        await upload.write(b"late")
    await opened.close()


@each_channel
async def test_an_interceptor_reads_a_written_request_before_it_begins_the_rpc(channel: str) -> None:
    """In grpc.aio it would wait for ever."""

    async def read_first(continuation: Any, details: Any, requests: Any) -> Any:
        first = await anext(aiter(requests))

        async def rest() -> AsyncIterator[bytes]:
            yield b"first:" + first
            async for request in requests:
                yield request

        return await continuation(details, rest())

    async with stock() as (address, _), CHANNELS[channel](address, interceptors=[StreamStream(read_first)]) as opened:
        call = opened.stream_stream("/t.T/Chat")(timeout=BOUND_S)
        for request in (b"a", b"b"):
            await call.write(request)
        await call.done_writing()
        assert [response async for response in call] == [b"first:a", b"b"]


@each_channel
@pytest.mark.parametrize("intercept", [pass_on, answer_by_itself, refuse_here])
async def test_a_done_callback_that_raises_is_logged_and_the_others_run(
    channel: str, intercept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Any] = []

    def fail(_: Any) -> None:
        raise SystemExit("broken")

    async with stock() as (address, _), CHANNELS[channel](address, interceptors=[UnaryUnary(intercept)]) as opened:
        call = opened.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        for callback in (fail, called.append):
            call.add_done_callback(callback)
        await call.code()
        await asyncio.sleep(0)
        assert called == [call]
    assert "client.callback_failed" in caplog.text


@each_channel
async def test_an_error_that_nobody_awaits_is_not_logged(channel: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stock() as (address, _), CHANNELS[channel](address, interceptors=[UnaryUnary(refuse_here)]) as opened:
        call = opened.unary_unary("/t.T/Echo")(b"x")
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        del call
    assert "never retrieved" not in caplog.text


@each_channel
async def test_the_time_that_remains_is_the_rpcs_and_before_it_the_whole_timeout(channel: str) -> None:
    """grpc.aio raises NotImplementedError."""
    held = Held()
    handler: Any = grpc.unary_unary_rpc_method_handler(held.hold)
    async with (
        stock(Hold=handler) as (address, _),
        CHANNELS[channel](address, interceptors=[UnaryUnary(pass_on)]) as opened,
    ):
        call = opened.unary_unary("/t.T/Hold")(b"x", timeout=BOUND_S)
        assert call.time_remaining() == BOUND_S
        await held.has_begun.wait()
        assert 0 < call.time_remaining() < BOUND_S
        held.may_end.set()
        await call
