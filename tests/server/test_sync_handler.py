"""Plain `def` handlers on the lane: what they send, and the context they run in, behind every listener."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.core.context import current_call
from onelane.server.plain_context import call_of

from tests.servers import lane_behind

FIRST = (("x-first", "1"),)
MANY = 64
"""MiB: more than any client lets through that reads one message."""
user = ContextVar("user", default="nobody")
LISTENERS = pytest.mark.parametrize("listener", ["native", "grpcio"])


class Login(grpc.aio.ServerInterceptor):
    """Sets a context variable, as interceptors that authenticate do."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        user.set("ada")
        return await continuation(handler_call_details)


@asynccontextmanager
async def channel_to(
    listener: str, chain: Sequence[grpc.aio.ServerInterceptor] = (), **handlers: Any
) -> AsyncIterator[Any]:
    """A stock channel to a lane with these handlers."""
    async with lane_behind(listener, chain, **handlers) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


def unary(request: bytes, context: Any) -> bytes:
    context.send_initial_metadata(FIRST)
    return request


def aborting(request: bytes, context: Any) -> bytes:
    context.send_initial_metadata(FIRST)
    context.abort(grpc.StatusCode.NOT_FOUND, "not here")
    return b""


def download(request: bytes, context: Any) -> Iterator[bytes]:
    context.send_initial_metadata(FIRST)
    yield request


def upload(requests: Iterator[bytes], context: Any) -> bytes:
    context.send_initial_metadata(FIRST)
    return b"".join(requests)


def silent(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    context.send_initial_metadata(FIRST)
    yield from requests


SENDING: dict[str, Any] = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Abort": grpc.unary_unary_rpc_method_handler(aborting),
    "Download": grpc.unary_stream_rpc_method_handler(download),
    "Upload": grpc.stream_unary_rpc_method_handler(upload),
    "Silent": grpc.stream_stream_rpc_method_handler(silent),
}


@LISTENERS
@pytest.mark.parametrize("chain", [(), (Login(),)], ids=["alone", "behind an interceptor"])
async def test_initial_metadata_of_a_plain_handler_arrive(listener: str, chain: tuple[Any, ...]) -> None:
    async with channel_to(listener, chain, **SENDING) as channel:
        calls = {
            "Unary": channel.unary_unary("/t.T/Unary")(b"x"),
            "Abort": channel.unary_unary("/t.T/Abort")(b"x"),
            "Download": channel.unary_stream("/t.T/Download")(b"x"),
            "Upload": channel.stream_unary("/t.T/Upload")(iter([b"x"])),
        }
        initial = {name: tuple(map(tuple, await call.initial_metadata())) for name, call in calls.items()}
        assert initial == dict.fromkeys(calls, FIRST)
        assert await calls["Abort"].code() is grpc.StatusCode.NOT_FOUND


@LISTENERS
async def test_a_plain_handler_that_waits_for_a_request_has_sent_its_initial_metadata(listener: str) -> None:
    async with channel_to(listener, **SENDING) as channel:
        call = channel.stream_stream("/t.T/Silent")()
        assert tuple(map(tuple, await call.initial_metadata())) == FIRST
        call.cancel()


@LISTENERS
async def test_a_plain_streaming_handler_runs_in_the_context_of_its_call(listener: str) -> None:
    def context_of(context: Any) -> bytes:
        return f"{user.get()} {current_call() is call_of(context)}".encode()

    def download(request: bytes, context: Any) -> Iterator[bytes]:
        yield context_of(context)
        user.set("changed")
        yield context_of(context)

    def upload(requests: Iterator[bytes], context: Any) -> bytes:
        return b",".join([context_of(context) for _ in requests])

    handlers: dict[str, Any] = {
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    async with channel_to(listener, [Login()], **handlers) as channel:
        for _ in range(2):
            call = channel.unary_stream("/t.T/Download")(b"x")
            assert [message async for message in call] == [b"ada True", b"changed True"]
        assert await channel.stream_unary("/t.T/Upload")(iter([b"1", b"2"])) == b"ada True,ada True"


@LISTENERS
async def test_a_plain_handler_of_a_stream_waits_where_its_client_does_not_read(listener: str) -> None:
    """It runs on the lane: without a wait it would send all of them before the first leaves."""
    sent = 0

    def download(request: bytes, context: Any) -> Iterator[bytes]:
        nonlocal sent
        for _ in range(MANY):
            sent += 1
            yield bytes(1024 * 1024)

    async with channel_to(listener, Download=grpc.unary_stream_rpc_method_handler(download)) as channel:
        call = channel.unary_stream("/t.T/Download")(b"x")
        await call.read()
        assert sent < MANY
        call.cancel()
