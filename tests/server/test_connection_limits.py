"""Connections that are idle, old, silent or too many are closed, and no call is lost by it."""

import asyncio

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial
from onelane.server import connection, native_listener
from onelane.testing.clock import ManualClock

from tests.bounds import BOUND_S
from tests.frames import HELLO, PING, frames
from tests.servers import IDLE, READY, SOON, native

SETTINGS = 4


async def test_an_idle_client_is_sent_away_and_comes_back() -> None:
    async with native(max_idle_s=0.2) as (address, _), dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        for _ in range(3):
            assert await send(b"x", timeout=BOUND_S) == b"x"
            while channel.get_state() is not IDLE:
                await channel.wait_for_state_change(channel.get_state())


async def test_an_old_connection_is_replaced_without_losing_a_call() -> None:
    async with native(max_age_s=0.1) as (address, _), dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        replaced = 0
        while replaced < 3:
            assert await send(b"x", timeout=BOUND_S) == b"x"
            replaced += channel.get_state() is IDLE


async def test_a_client_that_does_not_answer_a_ping_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(now=1000.0)
    for module in (connection, native_listener):
        monkeypatch.setattr(module, "monotonic", clock.now)
    async with native(keepalive_s=0.1, ping_timeout_s=0.1) as (address, listener), dial(address) as channel:
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        (answering,) = listener._connections
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(HELLO)
        received = frames(reader)
        assert (await anext(received))[0] == SETTINGS
        clock.advance(0.2)
        async for kind, *_ in received:
            if kind == PING:
                break
        while answering.heard_at < clock.now():  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        clock.advance(0.2)
        await reader.read()
        writer.close()
        assert channel.get_state() is READY


async def test_one_connection_too_many_is_closed_and_the_others_live() -> None:
    async with native(max_connections=2) as (address, _):
        channels = [dial(address), dial(address)]
        for channel in channels:
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        async with dial(address, dialling=SOON) as third:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await third.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for channel in channels:
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
            await channel.close()
