"""A service that is easy to test: its random numbers are handed in, its timers are the shard's. See test_service.py."""

from random import Random
from typing import Any

import onelane

from services.examples.testing.v1 import testing_pb2, testing_pb2_grpc

FORGET_S = 60.0
"""How long a roll counts."""


class Dice(testing_pb2_grpc.DiceServicer):
    def __init__(self, shard: onelane.Shard, random: Random | None = None) -> None:
        self.shard = shard
        self.random = random or Random()
        self.rolls: dict[str, int] = shard.keyed("rolls", int)

    async def Roll(self, request: testing_pb2.RollRequest, context: Any) -> testing_pb2.RollReply:
        self.rolls[request.table] = self.rolls.get(request.table, 0) + 1
        self.shard.later(request.table, FORGET_S, lambda: self.forget(request.table))
        return testing_pb2.RollReply(points=self.random.randint(1, 6), rolls=self.rolls[request.table])

    def forget(self, table: str) -> None:
        self.rolls[table] -= 1
        if not self.rolls[table]:
            del self.rolls[table]
