"""A server stream: watchers and quotes of one symbol meet in one lane, so a queue for each watcher is all it takes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import onelane

from services.examples.stream.v1 import stream_pb2, stream_pb2_grpc

BACKLOG = 100
"""Prices that a slow watcher may lag behind; then its stream ends with RESOURCE_EXHAUSTED."""


class Ticker(stream_pb2_grpc.TickerServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.last = shard.keyed("last", stream_pb2.Price)
        self.watchers = shard.keyed("watchers", set[asyncio.Queue[stream_pb2.Price]], moves=False)

    async def Watch(self, request: stream_pb2.WatchRequest, context: Any) -> AsyncIterator[stream_pb2.Price]:
        queue: asyncio.Queue[stream_pb2.Price] = asyncio.Queue(BACKLOG)
        async with self.shard.turn(request.symbol):  # A stream has no turn of its own, for it may last for ever.
            if request.symbol in self.last:
                queue.put_nowait(self.last[request.symbol])
            watchers = self.watchers.setdefault(request.symbol, set())
            watchers.add(queue)
        try:
            await context.send_initial_metadata(())  # Tells the client that it misses no price from now on.
            while queue in watchers or not queue.empty():
                yield await queue.get()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{BACKLOG} prices waited for this client")
        finally:  # Also where the client cancels the stream.
            watchers.discard(queue)

    async def Quote(self, request: stream_pb2.Price, context: Any) -> stream_pb2.QuoteReply:
        self.last[request.symbol] = request
        watchers = self.watchers.get(request.symbol, set())
        for queue in list(watchers):
            if queue.full():
                watchers.discard(queue)
            else:
                queue.put_nowait(request)
        return stream_pb2.QuoteReply(watchers=len(watchers))
