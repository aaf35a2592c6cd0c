"""What the client sees of `context.abort`, and when."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.servers import lane_behind


@pytest.mark.parametrize("listener", ["native", "grpcio"])
async def test_an_abort_is_sent_once_its_handler_has_cleaned_up(listener: str) -> None:
    """Not at once, as on grpc.aio: until its handler has ended, the call holds the turn of its key."""
    has_aborted, may_end = asyncio.Event(), asyncio.Event()

    async def abort(request: bytes, context: Any) -> bytes:
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "first")
        finally:
            has_aborted.set()
            await may_end.wait()
        return request

    async with (
        lane_behind(listener, Abort=grpc.unary_unary_rpc_method_handler(abort)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        send: Any = channel.unary_unary("/t.T/Abort")
        call = send(b"x", timeout=BOUND_S)
        await has_aborted.wait()
        other = send(b"x", timeout=0.1)
        assert await other.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not call.done()
        may_end.set()
        assert (await call.code(), await call.details()) == (grpc.StatusCode.NOT_FOUND, "first")
