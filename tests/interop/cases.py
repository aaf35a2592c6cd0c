"""The cases of gRPC's interoperability tests, each a client's procedure over one channel.

The channel is anything with `grpc.aio.Channel`'s manners. The numbers are those of
grpc/doc/interop-test-descriptions.md; the last few are ours, for what it lists as still to do.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.bounds import BOUND_S
from tests.interop.service import INITIAL, RICH, TRAILING
from tests.interop.v1 import messages_pb2 as m
from tests.interop.v1 import test_pb2_grpc
from tests.interop.v1.empty_pb2 import Empty

Case = Callable[[grpc.aio.Channel], Awaitable[None]]

REQUEST, ANSWER = 271_828, 314_159
REQUESTS = (27_182, 8, 1_828, 45_904)
ANSWERS = (31_415, 9, 2_653, 58_979)
METADATA = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
WHITESPACE = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
CALLS_AT_ONCE = 100
HUGE = 1_900_000
"""More than the 1 MiB that a window of ours takes ahead of its reader."""


def test(channel: grpc.aio.Channel) -> "test_pb2_grpc.TestServiceAsyncStub":
    return test_pb2_grpc.TestServiceStub(channel)


def large() -> m.SimpleRequest:
    return m.SimpleRequest(response_size=ANSWER, payload=m.Payload(body=bytes(REQUEST)))


def duplex(answer: int, request: int) -> m.StreamingOutputCallRequest:
    parameters = [m.ResponseParameters(size=answer)]
    return m.StreamingOutputCallRequest(response_parameters=parameters, payload=m.Payload(body=bytes(request)))


def inputs() -> list[m.StreamingInputCallRequest]:
    return [m.StreamingInputCallRequest(payload=m.Payload(body=bytes(size))) for size in REQUESTS]


def status(code: int, message: str) -> m.EchoStatus:
    return m.EchoStatus(code=code, message=message)


async def end(call: Any) -> None:
    """Read a call to its end."""
    if isinstance(call, grpc.aio.UnaryUnaryCall | grpc.aio.StreamUnaryCall):
        await call
    else:
        while await call.read() is not grpc.aio.EOF:
            pass


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await end(call)
    error = caught.value
    assert (error.code(), error.details()) == (await call.code(), await call.details())
    return error.code(), error.details() or ""


# Basic


async def empty_unary(channel: grpc.aio.Channel) -> None:
    assert await test(channel).EmptyCall(Empty()) == Empty()


async def large_unary(channel: grpc.aio.Channel) -> None:
    response = await test(channel).UnaryCall(large())
    assert response.payload.body == bytes(ANSWER)


async def client_streaming(channel: grpc.aio.Channel) -> None:
    response = await test(channel).StreamingInputCall(iter(inputs()))
    assert response.aggregated_payload_size == sum(REQUESTS)


async def client_streaming_by_writes(channel: grpc.aio.Channel) -> None:
    call = test(channel).StreamingInputCall()
    for request in inputs():
        await call.write(request)
    await call.done_writing()
    assert (await call).aggregated_payload_size == sum(REQUESTS)


async def server_streaming(channel: grpc.aio.Channel) -> None:
    request = m.StreamingOutputCallRequest(response_parameters=[m.ResponseParameters(size=size) for size in ANSWERS])
    call = test(channel).StreamingOutputCall(request)
    assert [response.payload.body async for response in call] == [bytes(size) for size in ANSWERS]
    assert await call.code() is grpc.StatusCode.OK


async def ping_pong(channel: grpc.aio.Channel) -> None:
    call = test(channel).FullDuplexCall()
    for answer, request in zip(ANSWERS, REQUESTS, strict=True):
        await call.write(duplex(answer, request))
        response: Any = await call.read()
        assert response.payload.body == bytes(answer)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def ping_pong_by_iterators(channel: grpc.aio.Channel) -> None:
    """The next request only goes out once the answer to the last has come."""
    answered = asyncio.Semaphore(1)

    async def requests() -> AsyncIterator[m.StreamingOutputCallRequest]:
        for answer, request in zip(ANSWERS, REQUESTS, strict=True):
            await answered.acquire()
            yield duplex(answer, request)

    sizes = []
    async for response in test(channel).FullDuplexCall(requests()):
        sizes.append(len(response.payload.body))
        answered.release()
    assert sizes == list(ANSWERS)


async def half_duplex(channel: grpc.aio.Channel) -> None:
    call = test(channel).HalfDuplexCall(iter([duplex(*pair) for pair in zip(ANSWERS, REQUESTS, strict=True)]))
    assert [len(response.payload.body) async for response in call] == list(ANSWERS)


async def empty_stream(channel: grpc.aio.Channel) -> None:
    call = test(channel).FullDuplexCall()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def messages_larger_than_a_window(channel: grpc.aio.Channel) -> None:
    unary = await test(channel).UnaryCall(m.SimpleRequest(response_size=HUGE, payload=m.Payload(body=bytes(HUGE))))
    assert len(unary.payload.body) == HUGE
    uploads = [m.StreamingInputCallRequest(payload=m.Payload(body=bytes(HUGE)))] * 3
    assert (await test(channel).StreamingInputCall(iter(uploads))).aggregated_payload_size == 3 * HUGE
    call = test(channel).FullDuplexCall()
    for _ in range(3):
        await call.write(duplex(HUGE, HUGE))
        response: Any = await call.read()
        assert len(response.payload.body) == HUGE
    call.cancel()


# Compression. Whether a message was compressed is seen on the wire alone: tests/interop/raw.py.


async def client_compressed_unary(channel: grpc.aio.Channel) -> None:
    for compression in (grpc.Compression.Gzip, grpc.Compression.NoCompression):
        response = await test(channel).UnaryCall(large(), compression=compression)
        assert response.payload.body == bytes(ANSWER)


async def client_compressed_streaming(channel: grpc.aio.Channel) -> None:
    response = await test(channel).StreamingInputCall(iter(inputs()), compression=grpc.Compression.Gzip)
    assert response.aggregated_payload_size == sum(REQUESTS)


async def server_compressed_unary(channel: grpc.aio.Channel) -> None:
    for compressed in (True, False):
        request = large()
        request.response_compressed.value = compressed
        assert (await test(channel).UnaryCall(request)).payload.body == bytes(ANSWER)


async def server_compressed_streaming(channel: grpc.aio.Channel) -> None:
    parameters = [
        m.ResponseParameters(size=31_415, compressed=m.BoolValue(value=True)),
        m.ResponseParameters(size=92_653, compressed=m.BoolValue(value=False)),
    ]
    call = test(channel).StreamingOutputCall(m.StreamingOutputCallRequest(response_parameters=parameters))
    assert [response.payload.body async for response in call] == [bytes(31_415), bytes(92_653)]


# Metadata and status


async def custom_metadata_unary(channel: grpc.aio.Channel) -> None:
    call = test(channel).UnaryCall(large(), metadata=METADATA)
    assert (await call).payload.body == bytes(ANSWER)
    await _has_echoed(call)


async def custom_metadata_full_duplex(channel: grpc.aio.Channel) -> None:
    call = test(channel).FullDuplexCall(iter([duplex(ANSWER, REQUEST)]), metadata=METADATA)
    assert [len(response.payload.body) async for response in call] == [ANSWER]
    await _has_echoed(call)


async def _has_echoed(call: Any) -> None:
    initial, trailing = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
    assert (initial[INITIAL], trailing[TRAILING]) == ("test_initial_metadata_value", b"\xab\xab\xab")
    assert INITIAL not in trailing
    assert TRAILING not in initial


async def status_code_and_message_unary(channel: grpc.aio.Channel) -> None:
    call = test(channel).UnaryCall(m.SimpleRequest(response_status=status(2, "test status message")))
    assert await failure(call) == (grpc.StatusCode.UNKNOWN, "test status message")


async def status_code_and_message_full_duplex(channel: grpc.aio.Channel) -> None:
    request = m.StreamingOutputCallRequest(response_status=status(2, "test status message"))
    assert await failure(test(channel).FullDuplexCall(iter([request]))) == (
        grpc.StatusCode.UNKNOWN,
        "test status message",
    )


async def every_status_code(channel: grpc.aio.Channel) -> None:
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        call = test(channel).UnaryCall(m.SimpleRequest(response_status=status(code.value[0], code.name)))
        assert await failure(call) == (code, code.name)


async def special_status_message(channel: grpc.aio.Channel) -> None:
    call = test(channel).UnaryCall(m.SimpleRequest(response_status=status(2, WHITESPACE)))
    assert await failure(call) == (grpc.StatusCode.UNKNOWN, WHITESPACE)


async def rich_status(channel: grpc.aio.Channel) -> None:
    request = m.SimpleRequest(response_status=status(9, "not nöw"))
    call = test(channel).UnaryCall(request, metadata=((RICH, "1"),))
    assert await failure(call) == (grpc.StatusCode.FAILED_PRECONDITION, "not nöw")
    rich = await rpc_status.aio.from_call(call)
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (rich.code, rich.message, info.reason, info.domain) == (9, "not nöw", "BECAUSE", "interop")


async def status_after_answers(channel: grpc.aio.Channel) -> None:
    """What was sent before the status arrives before it."""
    call = test(channel).FullDuplexCall()
    await call.write(duplex(9, 8))
    response: Any = await call.read()
    assert len(response.payload.body) == 9
    await call.write(m.StreamingOutputCallRequest(response_status=status(10, "enough")))
    assert await failure(call) == (grpc.StatusCode.ABORTED, "enough")


async def unimplemented_method(channel: grpc.aio.Channel) -> None:
    """One that the proto has and the servicer does not."""
    code, _ = await failure(test(channel).UnimplementedCall(Empty()))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def unknown_method(channel: grpc.aio.Channel) -> None:
    """One that the proto does not have, called with each shape."""
    path = "/grpc.testing.TestService/NoSuchCall"
    untyped: Any = channel
    calls: list[Any] = [
        untyped.unary_unary(path)(b""),
        untyped.unary_stream(path)(b""),
        # No message: grpc.aio reports one that it could not send any more in place of the status that came.
        untyped.stream_unary(path)(iter([])),
        untyped.stream_stream(path)(iter([])),
    ]
    for call in calls:
        code, _ = await failure(call)
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def unimplemented_service(channel: grpc.aio.Channel) -> None:
    stub = test_pb2_grpc.UnimplementedServiceStub(channel)
    code, _ = await failure(stub.UnimplementedCall(Empty()))
    assert code is grpc.StatusCode.UNIMPLEMENTED


# Ends


async def cancel_after_begin(channel: grpc.aio.Channel) -> None:
    call = test(channel).StreamingInputCall()
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert call.cancelled()


async def cancel_after_first_response(channel: grpc.aio.Channel) -> None:
    call = test(channel).FullDuplexCall()
    await call.write(duplex(31_415, 27_182))
    response: Any = await call.read()
    assert len(response.payload.body) == 31_415
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert call.cancelled()


async def timeout_on_sleeping_server(channel: grpc.aio.Channel) -> None:
    """The stream stays open, and the server waits for more.

    Not the specification's 1 ms: where that passes before its call has left, grpc.aio says INTERNAL, to any server.
    """
    call = test(channel).FullDuplexCall(timeout=0.05)
    try:
        await call.write(m.StreamingOutputCallRequest(payload=m.Payload(body=bytes(27_182))))
        await call.read()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        # Either may find that the call has ended.
        pass
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def timeout_between_answers(channel: grpc.aio.Channel) -> None:
    """The server is busy when the deadline passes; what came before it is whole."""
    parameters = [m.ResponseParameters(size=9), m.ResponseParameters(size=9, interval_us=60_000_000)]
    call = test(channel).StreamingOutputCall(m.StreamingOutputCallRequest(response_parameters=parameters), timeout=0.2)
    response: Any = await call.read()
    assert len(response.payload.body) == 9
    code, _ = await failure(call)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def timeout_that_does_not_pass(channel: grpc.aio.Channel) -> None:
    assert await test(channel).EmptyCall(Empty(), timeout=BOUND_S) == Empty()


# Load


async def concurrent_large_unary(channel: grpc.aio.Channel) -> None:
    await asyncio.gather(*(large_unary(channel) for _ in range(CALLS_AT_ONCE)))


async def concurrent_streams(channel: grpc.aio.Channel) -> None:
    """Streams that wait for each other: none of them ends before all have begun."""
    calls = [test(channel).FullDuplexCall() for _ in range(CALLS_AT_ONCE)]
    for call in calls:
        await call.write(duplex(9, 8))
    for call in calls:
        response: Any = await call.read()
        assert len(response.payload.body) == 9
    for call in calls:
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def a_reader_that_is_late(channel: grpc.aio.Channel) -> None:
    """Far more than any window is under way to a client that reads only after another call has been answered."""
    parameters = [m.ResponseParameters(size=500_000)] * 24
    call = test(channel).StreamingOutputCall(m.StreamingOutputCallRequest(response_parameters=parameters))
    await call.initial_metadata()
    assert await test(channel).EmptyCall(Empty()) == Empty()
    assert [len(response.payload.body) async for response in call] == [500_000] * 24


CASES: tuple[Case, ...] = (
    empty_unary,
    large_unary,
    client_streaming,
    client_streaming_by_writes,
    server_streaming,
    ping_pong,
    ping_pong_by_iterators,
    half_duplex,
    empty_stream,
    messages_larger_than_a_window,
    client_compressed_unary,
    client_compressed_streaming,
    server_compressed_unary,
    server_compressed_streaming,
    custom_metadata_unary,
    custom_metadata_full_duplex,
    status_code_and_message_unary,
    status_code_and_message_full_duplex,
    every_status_code,
    special_status_message,
    rich_status,
    status_after_answers,
    unimplemented_method,
    unknown_method,
    unimplemented_service,
    cancel_after_begin,
    cancel_after_first_response,
    timeout_on_sleeping_server,
    timeout_between_answers,
    timeout_that_does_not_pass,
    concurrent_large_unary,
    concurrent_streams,
    a_reader_that_is_late,
)
