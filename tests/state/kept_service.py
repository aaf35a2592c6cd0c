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


class KeptBeside(Kept):
    """Counts in a dict that moves as well, and is told of keys that come and go."""

    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        self.visits = shard.keyed("visits", int)
        self.told: list[tuple[str, object, int | None, int | None]] = []
        """What happened to a key, with its count and its visits at that time."""
        shard.on_arrive(lambda key: self._hear("arrives", key))
        shard.on_leave(lambda key: self._hear("leaves", key))

    def _hear(self, event: str, key: Any) -> None:
        self.told.append((event, key, self.counts.get(key), self.visits.get(key)))

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.visits[request.key] = self.visits.get(request.key, 0) + 1
        return await super().Unary(request, context)
