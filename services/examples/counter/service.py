"""State by key: each counter lives in one lane, so a plain dict holds it without a lock."""

import grpc
import onelane

from services.examples.counter.v1 import counter_pb2, counter_pb2_grpc


class Counter(counter_pb2_grpc.CounterServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.totals = shard.keyed("totals", int)
        self.adds = shard.stats.counter("counter.adds", unit="{add}", description="Calls of Add")

    async def Add(
        self, request: counter_pb2.AddRequest, context: grpc.aio.ServicerContext[counter_pb2.AddRequest, object]
    ) -> counter_pb2.AddReply:
        total = self.totals.get(request.name, 0) + request.amount
        self.totals[request.name] = total
        self.adds.add(1)
        return counter_pb2.AddReply(total=total)
