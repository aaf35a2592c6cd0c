"""Streams of a key, which stay open until their client, or a move of the key, ends them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import onelane

from tests.follow.v1 import follow_pb2_grpc
from tests.follow.v1.follow_pb2 import FollowReply, FollowRequest


class Follow(follow_pb2_grpc.FollowServicer):
    """A text `stubborn` in a request has its handler catch its cancellation, and return."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.said = shard.keyed("said", list[str])
        self.streams: dict[str, list[asyncio.Queue[str]]] = defaultdict(list)
        self.traceparents: list[str] = []

    async def Say(self, request: FollowRequest, context: Any) -> FollowReply:
        self.said.setdefault(request.key, []).append(request.text)
        streams = self.streams[request.key]
        for queue in streams:
            queue.put_nowait(request.text)
        return FollowReply(shard=self.shard.name, streams=len(streams))

    async def Watch(self, request: FollowRequest, context: Any) -> AsyncIterator[FollowReply]:
        async for reply in self._follow(request, context):
            yield reply

    async def Listen(self, request: FollowRequest, context: Any) -> AsyncIterator[FollowReply]:
        async for reply in self._follow(request, context):
            yield reply

    async def Talk(self, request_iterator: AsyncIterator[FollowRequest], context: Any) -> AsyncIterator[FollowReply]:
        async for request in request_iterator:
            yield FollowReply(shard=self.shard.name, text=request.text)

    async def Send(self, request_iterator: AsyncIterator[FollowRequest], context: Any) -> FollowReply:
        streams = 0
        async for request in request_iterator:
            self.streams[request.key].append(asyncio.Queue())
            streams += 1
        return FollowReply(shard=self.shard.name, streams=streams)

    async def _follow(self, request: FollowRequest, context: Any) -> AsyncIterator[FollowReply]:
        """What was said of the key, and then what is said from now on."""
        self.traceparents += [str(item.value) for item in context.invocation_metadata() if item.key == "traceparent"]
        queue: asyncio.Queue[str] = asyncio.Queue()
        self.streams[request.key].append(queue)
        try:
            yield FollowReply(shard=self.shard.name, text=",".join(self.said.get(request.key, [])))
            while True:
                yield FollowReply(shard=self.shard.name, text=await queue.get())
        except asyncio.CancelledError:
            context.set_trailing_metadata((("x-cleaned", "up"),))
            if request.text != "stubborn":
                raise
        finally:
            self.streams[request.key].remove(queue)
