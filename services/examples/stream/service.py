"""A server stream: watchers and quotes of one symbol meet in one lane, so a queue for each watcher is all it takes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import onelane

from services.examples.stream.v1 import stream_pb2, stream_pb2_grpc

BACKLOG = 100
"""Prices that a slow watcher may lag behind; then its stream ends."""


class Ticker(stream_pb2_grpc.TickerServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.last = shard.keyed("last", stream_pb2.Price)
        self.watchers: dict[str, set[asyncio.Queue[stream_pb2.Price]]] = {}

    async def Watch(self, request: stream_pb2.WatchRequest, context: Any) -> AsyncIterator[stream_pb2.Price]:
        queue: asyncio.Queue[stream_pb2.Price] = asyncio.Queue(BACKLOG)
        watchers = self.watchers.setdefault(request.symbol, set())
        watchers.add(queue)
        try:
            if request.symbol in self.last:
                yield self.last[request.symbol]
            while not queue.full():
                yield await queue.get()
        finally:  # The client has cancelled the stream, or was too slow.
            watchers.discard(queue)

    async def Quote(self, request: stream_pb2.Price, context: Any) -> stream_pb2.QuoteReply:
        self.last[request.symbol] = request
        watchers = self.watchers.get(request.symbol, set())
        for queue in watchers:
            if not queue.full():
                queue.put_nowait(request)
        return stream_pb2.QuoteReply(watchers=len(watchers))
