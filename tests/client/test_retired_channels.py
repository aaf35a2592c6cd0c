"""A channel whose server has left ends with its calls, and dials no more."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
from onelane.client.channel import NativeChannel
from onelane.client.retired_channels import RetiredChannels
from onelane.lane.forwarder import SIBLING_DIALLING

from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.servers import native


async def test_a_call_under_way_ends_as_its_server_ends_it_and_then_the_channel_is_closed() -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def serve(request: bytes, call: object) -> bytes:
        has_begun.set()
        await may_end.wait()
        return b"last"

    async with native(serve) as (address, _):
        channel, retired = NativeChannel(address, SIBLING_DIALLING), RetiredChannels()
        call = asyncio.ensure_future(channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S))
        await asyncio.wait_for(has_begun.wait(), BOUND_S)
        retired.add(channel)
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.UsageError):
            channel.unary_unary("/t.T/Echo")(b"")
        assert len(retired) == 1
        may_end.set()
        assert await call == b"last"
        await eventually(lambda: len(retired) == 0)


async def test_a_channel_that_dials_where_nobody_listens_any_more_stops(tmp_path: Path) -> None:
    channel, retired = NativeChannel(f"unix:{tmp_path}/left", SIBLING_DIALLING), RetiredChannels()
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary("/t.T/Echo")(b"")
    dialling = channel.subchannel._connecting
    assert dialling is not None
    retired.add(channel)
    await asyncio.wait([dialling], timeout=BOUND_S)
    assert dialling.cancelled()
    await eventually(lambda: len(retired) == 0)


async def test_its_calls_end_with_the_shard_that_has_made_them() -> None:
    async with native(lambda request, call: asyncio.Event().wait()) as (address, _):
        channel, retired = NativeChannel(address, SIBLING_DIALLING), RetiredChannels()
        call = channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)
        retired.add(channel)
        await asyncio.sleep(0)
        await retired.aclose()
        assert call.cancelled()
