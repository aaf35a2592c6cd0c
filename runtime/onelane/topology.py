"""`onelane.v1.Topology`, on every shard: who serves what, for clients that route and people who look."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from onelane.v1 import control_pb2, topology_pb2, topology_pb2_grpc


class Topology(topology_pb2_grpc.TopologyServicer):
    """Streams the placement that its shard follows, and passes questions about all shards to the supervisor."""

    def __init__(self, placement: control_pb2.ShardPlacement, status: Callable[[], Awaitable[str]]) -> None:
        self._placement = placement.placement
        self._newer = asyncio.Event()
        self._status = status

    def place(self, placement: control_pb2.ShardPlacement) -> None:
        if placement.placement.epoch > self._placement.epoch:
            self._placement = placement.placement
            self._newer.set()
            self._newer = asyncio.Event()

    async def Watch(self, request: topology_pb2.WatchRequest, context: Any) -> AsyncIterator[topology_pb2.Placement]:
        while True:
            newer = self._newer
            yield self._placement
            await newer.wait()

    async def Status(self, request: topology_pb2.StatusRequest, context: Any) -> topology_pb2.StatusReply:
        return topology_pb2.StatusReply(json=await self._status())
