"""Publish and subscribe: what one shard publishes reaches the subscribers in every shard of the app."""

from collections.abc import AsyncIterator
from typing import Any

import onelane

from services.examples.pubsub.v1 import pubsub_pb2, pubsub_pb2_grpc


class Chat(pubsub_pb2_grpc.ChatServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard

    async def Say(self, request: pubsub_pb2.Line, context: Any) -> pubsub_pb2.SayReply:
        self.shard.publish("lines", request, at_once=True)
        return pubsub_pb2.SayReply()

    async def Listen(self, request: pubsub_pb2.ListenRequest, context: Any) -> AsyncIterator[pubsub_pb2.Line]:
        with self.shard.subscribe("lines", pubsub_pb2.Line) as lines:
            await context.send_initial_metadata(())  # Tells the client that it is subscribed.
            async for line in lines:
                if isinstance(line, onelane.Lost):
                    line = pubsub_pb2.Line(author="chat", text=f"{line.count} lines were lost")
                yield line
