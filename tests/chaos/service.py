"""A number for each key: in memory that moves with its key, or kept on disk."""

from typing import Any

import onelane

from tests.chaos.v1 import ledger_pb2_grpc
from tests.chaos.v1.ledger_pb2 import Change, Value


class Plain(ledger_pb2_grpc.LedgerServicer):
    def __init__(self, shard: onelane.Shard, *, durable: bool = False) -> None:
        self.shard = shard
        self.numbers = shard.keyed("numbers", int, durable=durable)

    def _set(self, key: str, amount: int) -> Value:
        self.numbers[key] = amount
        return Value(amount=amount, shard=self.shard.name)

    async def Add(self, request: Change, context: Any) -> Value:
        return self._set(request.key, self.numbers.get(request.key, 0) + request.amount)

    async def Put(self, request: Change, context: Any) -> Value:
        return self._set(request.key, request.amount)

    async def Read(self, request: Change, context: Any) -> Value:
        return Value(amount=self.numbers.get(request.key, 0), shard=self.shard.name)

    async def AddThrough(self, request: Change, context: Any) -> Value:
        inner = Change(key=request.other, amount=request.amount)
        return await self.shard.call(request.other, ledger_pb2_grpc.LedgerServicer.Add, inner)


class Kept(Plain):
    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard, durable=True)
