"""A channel to one server over our own wire: what grpc.aio's channel does, it does."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client.channel import NativeChannel, dial
from onelane.client.options import Dialling
from onelane.client.ring_channel import Channel
from onelane.core.clock import SystemClock
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.tracer import Tracer

from tests.bounds import BOUND_S
from tests.servers import native, stock


def test_a_channel_is_one_of_grpc_aios() -> None:
    assert issubclass(NativeChannel, grpc.aio.Channel)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix"])
async def test_it_dials_every_kind_of_target(address: str, tmp_path: Path) -> None:
    async with stock(f"unix:{tmp_path}/s" if address == "unix" else address) as (target, _):
        scheme = {"127": "ipv4:", "[::": "dns:///"}.get(target[:3], "")
        for name in (target, scheme + target):
            async with dial(name) as channel:
                assert await channel.unary_unary("/t.T/Echo")(b"hello", timeout=BOUND_S) == b"hello"


@pytest.mark.parametrize("target", ["xds:///a", "nonsense", "host:", "host:99999", "a/b:80", ""])
async def test_a_target_that_is_none_is_told_at_once(target: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        dial(target)


async def test_a_compression_that_is_none_of_grpcs_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="7"):
        dial("127.0.0.1:1", compression=7)  # type: ignore[arg-type]
    async with dial("127.0.0.1:1") as channel:
        with pytest.raises(ValueError, match="7"):
            channel.unary_unary("/t.T/Echo")(b"", compression=7)


async def test_large_messages_pass_the_windows() -> None:
    big = b"x" * 3_900_000
    async with stock() as (address, _), dial(address) as channel:
        assert await channel.unary_unary("/t.T/Echo")(big, timeout=BOUND_S) == big
        both = channel.stream_stream("/t.T/Chat")(iter([big, big]), timeout=BOUND_S)
        assert [answer async for answer in both] == [big, big]


async def test_a_message_over_the_limit_is_resource_exhausted() -> None:
    async with stock() as (address, _), dial(address, dialling=Dialling(max_message_bytes=1000)) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"larger than max \(1001 vs. 1000\)") as caught:
            await channel.unary_unary("/t.T/Echo")(b"x" * 1001, timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_that_cannot_be_serialized_leaves_no_deadline_and_no_open_span() -> None:
    def fail(request: object) -> bytes:
        raise ValueError("cannot be serialized")

    tracer = Tracer(shard="a", sampler=Sampler(parent_based=True, ratio=1.0), clock=SystemClock(), rng=Random(1))
    traced = Channel("127.0.0.1:1", deadline_s=None, name="echo", tracer=tracer)
    async with dial("127.0.0.1:1") as channel:
        for each in (channel, traced):
            with pytest.raises(ValueError, match="cannot be serialized"):
                each.unary_unary("/t.T/Echo", fail)(None, timeout=60)
        assert not any(channel.subchannel.deadlines._due.values())
        assert not any(traced.router.shared.subchannel.deadlines._due.values())
    await traced.close()
    assert [span.error for span in tracer.take()] == ["ValueError"]


async def test_closing_with_grace_lets_calls_finish_and_without_ends_them() -> None:
    going = asyncio.Event()

    async def slow(request: bytes, call: Any) -> bytes:
        await going.wait()
        return request

    async with native(slow) as (address, _):
        patient, hasty = dial(address), dial(address)
        calls = [channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) for channel in (patient, hasty)]
        for call in calls:
            await call.wait_for_connection()
        await hasty.close()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        closing = asyncio.create_task(patient.close(grace=10))
        going.set()
        assert await calls[0] == b"x"
        await closing
        with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
            await patient.unary_unary("/t.T/Echo")(b"")


@pytest.mark.parametrize("timeout_s", [0, 0.0, -1, -0.001, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("open_channel", [dial, onelane.connect])
async def test_a_timeout_that_has_passed_already_or_is_no_time_ends_the_call_before_it_is_sent(
    open_channel: Any, timeout_s: float
) -> None:
    """As with grpc.aio, which takes an infinite one so, too."""
    begun: list[str] = []

    async def unary(request: Any, context: Any) -> bytes:
        begun.append("unary")
        return b""

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        begun.append("stream")
        yield b""

    handlers: dict[str, Any] = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(unary),
        "unary_stream": grpc.unary_stream_rpc_method_handler(stream),
        "stream_unary": grpc.stream_unary_rpc_method_handler(unary),
        "stream_stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    async with stock(**handlers) as (address, _), open_channel(address) as channel:
        for shape in handlers:
            request = b"" if shape.startswith("unary_") else iter([b""])
            call = getattr(channel, shape)(f"/t.T/{shape}")(request, timeout=timeout_s)
            assert (call.done(), call.time_remaining()) == (True, 0)
            with pytest.raises(grpc.aio.AioRpcError, match="Deadline Exceeded") as caught:
                await (call if shape.endswith("_unary") else call.read())
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await channel.unary_unary("/t.T/unary_unary")(b"", timeout=BOUND_S)
    assert begun == ["unary"]
