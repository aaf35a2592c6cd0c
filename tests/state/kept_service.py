"""A service that counts in a durable dict."""

from typing import Any

import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Kept(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.counts = shard.keyed("counts", int, durable=True)

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        """Adds one."""
        self.counts[request.key] = self.counts.get(request.key, 0) + 1
        return EchoReply(seen=self.counts[request.key], shard=self.shard.name)

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """The count."""
        return EchoReply(seen=self.counts.get(request.key, 0))
