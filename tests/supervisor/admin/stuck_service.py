"""A service whose turns do not end by themselves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Stuck(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        """Waits for ever, if it is to; also once it is cancelled."""
        if request.order == "stay":
            await self._wait()
        if request.order == "stay whatever comes":
            for _ in range(2):
                try:
                    await self._wait()
                except asyncio.CancelledError:
                    continue
        return EchoReply(text=request.text, shard=self.shard.name)

    async def Chat(self, request_iterator: AsyncIterator[EchoRequest], context: Any) -> AsyncIterator[EchoReply]:
        """Takes the turn of each key by hand."""
        async for request in request_iterator:
            async with self.shard.turn(request.key):
                yield EchoReply(text="taken")
                await self._wait()

    async def _wait(self) -> None:
        await asyncio.Event().wait()  # this line is shown
