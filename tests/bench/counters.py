"""One counter for each key, kept in four ways: what state costs that moves, and what state costs that stays."""

from typing import Any

import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

ENTRY = bytes(1024)


class Bare(echo_pb2_grpc.EchoServicer):
    """In a dict of its own, of which onelane knows nothing."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.counts: dict[str, int] = {}

    def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        """Adds one."""
        count = self.counts[request.key] = self.counts.get(request.key, 0) + 1
        return EchoReply(seen=count)


class Moving(Bare):
    """In a dict whose entries follow their keys."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.counts = shard.keyed("counts", int)


class Durable(Bare):
    """In a dict that is on disk before the answer leaves."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.counts = shard.keyed("counts", int, durable=True)


class Filled(Moving):
    """Beside many other entries, which move too."""

    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        self.entries = shard.keyed("entries", bytes)

    def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Adds `times` entries. Of an app with one shard, which owns all keys."""
        self.entries |= {f"entry-{number}": ENTRY for number in range(request.times)}
        return EchoReply(seen=len(self.entries))
