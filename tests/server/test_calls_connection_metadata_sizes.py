"""Metadata, details and trailers of any size: the call ends with a status that says it, and others see nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client.channel import dial
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.servers import native, stock

SIZES = [20_000, 70_000, 300_000, 3_000_000]
"""Over what a server of ours takes by default, over what ends its connection, and over what libnghttp2 sends."""
Opened = Callable[[str], AbstractAsyncContextManager[Any]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("serve", [native, stock])
@pytest.mark.parametrize("open_channel", [dial, onelane.connect])
async def test_metadata_that_the_server_does_not_take_fails_its_call_alone(
    serve: Any, open_channel: Opened, size: int
) -> None:
    async with serve() as (address, _), open_channel(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        await send(b"", timeout=BOUND_S)
        many = [(f"x-{number}", "") for number in range(size // 40)]
        for metadata in ([("x-large", "y" * size)], many):
            beside = send(b"beside", timeout=BOUND_S)
            with pytest.raises(grpc.aio.AioRpcError, match="metadata") as caught:
                await send(b"", metadata=metadata, timeout=BOUND_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await beside == b"beside"
        assert channel.get_state() is grpc.ChannelConnectivity.READY


@pytest.mark.parametrize("shape", ["unary_stream", "stream_unary", "stream_stream"])
async def test_metadata_of_a_stream_that_the_server_does_not_take_fails_it_and_frees_its_requests(shape: str) -> None:
    async with stock() as (address, _), dial(address) as channel:
        request = b"" if shape.startswith("unary_") else iter([b"1"])
        call = getattr(channel, shape)("/t.T/Chat")(request, metadata=[("x-large", "y" * 70_000)], timeout=BOUND_S)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert channel.subchannel._connections[0].wire.streams == {}


class Large(echo_pb2_grpc.EchoServicer):
    """Sends metadata, details or trailers of as many bytes as asked."""

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        await self._send(request, context)
        return EchoReply(text="answer")

    async def Download(self, request: EchoRequest, context: Any) -> AsyncIterator[EchoReply]:
        yield EchoReply(text="first")
        await self._send(request, context)

    async def _send(self, request: EchoRequest, context: Any) -> None:
        pairs = (("x-large", "y" * request.times), ("x-small", "1"))
        match request.order:
            case "details":
                await context.abort(grpc.StatusCode.NOT_FOUND, "d" * request.times, (("x-small", "1"),))
            case "failing trailers":
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing", pairs)
            case "trailers":
                context.set_trailing_metadata(pairs)
            case "initial":
                await context.send_initial_metadata(pairs)


@pytest.mark.parametrize("size", [20_000, 70_000, 300_000])
@pytest.mark.parametrize("route", ["home", "away"])
@pytest.mark.parametrize("client", ["grpcio", "ours"])
async def test_code_and_text_arrive_however_large_details_and_trailers_are(
    route: str, client: str, size: int, tmp_path: Any
) -> None:
    async with Cluster(Large, shards=2) as cluster:
        key = next(key for key in map(str, range(99)) if cluster.owner_of(key) == 0)
        shard = ("home", "away").index(route)
        address = cluster._dialling.resolver_overrides[cluster._shards(None)[shard].member.address]  # type: ignore[index]
        async with (grpc.aio.insecure_channel if client == "grpcio" else dial)(address) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            takes = 16 * 1024 if client == "grpcio" else 64 * 1024

            def request(order: str) -> EchoRequest:
                return EchoRequest(key=key, order=order, times=size)

            for call in (
                stub.Unary(request("details"), timeout=BOUND_S),
                stub.Download(request("details"), timeout=BOUND_S),
            ):
                with pytest.raises(grpc.aio.AioRpcError):
                    [response async for response in call] if hasattr(call, "__aiter__") else await call
                assert await call.code() is grpc.StatusCode.NOT_FOUND
                details = await call.details()
                if size < takes:
                    assert details == "d" * size
                    continue
                assert details.endswith(f"d [cut from {size} bytes]") or route == "away"
                assert "d [cut from " in details
                assert takes // 4 < len(details) < takes
                assert dict(await call.trailing_metadata()) == {"x-small": "1", "onelane-cut": "details"}

            call = stub.Unary(request("failing trailers"), timeout=BOUND_S)
            assert (await call.code(), await call.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
            call = stub.Unary(request("trailers"), timeout=BOUND_S)
            assert (await call).text == "answer"
            if size >= takes:
                assert dict(await call.trailing_metadata()) == {"x-small": "1", "onelane-cut": "x-large"}
                for reason in ("details", "trailers"):
                    assert await cluster.stats("onelane.truncations", {"onelane.reason": reason}) >= 2

            call = stub.Unary(request("initial"), timeout=BOUND_S)
            expected = grpc.StatusCode.OK if size < takes else grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await call.code() is expected
            assert (await stub.Unary(request(""), timeout=BOUND_S)).text == "answer"
