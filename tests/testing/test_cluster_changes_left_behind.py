"""What a key leaves behind in a shard does not come back with it."""

import grpc
import onelane
from onelane.testing import Cluster

from services.examples.counter.service import Counter
from services.examples.counter.v1.counter_pb2 import AddReply, AddRequest
from services.examples.counter.v1.counter_pb2_grpc import CounterStub

KEYS = [f"k{number}" for number in range(20)]


class Remembering(Counter):
    """Sets a timer with each call."""

    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        self.shard = shard
        self.reminded: list[str] = []

    async def Add(self, request: AddRequest, context: grpc.aio.ServicerContext[AddRequest, object]) -> AddReply:
        self.shard.later(request.name, 30, lambda: self.reminded.append(request.name))
        return await super().Add(request, context)


async def test_a_timer_of_a_key_that_has_left_does_not_run_when_the_key_is_back() -> None:
    async with Cluster(Remembering, shards=1, settings={"max_late_s": 60}) as cluster:
        stub = cluster.stub(CounterStub)
        for key in KEYS:
            await stub.Add(AddRequest(name=key, amount=1))
        service = cluster.service(Remembering, shard=0)
        await cluster.scale(2)
        moved = {key for key in KEYS if cluster.owner_of(key) == 1}
        assert [key for key in KEYS if service.shard.timers(key)] == [key for key in KEYS if key not in moved]
        await cluster.scale(1)
        await cluster.advance(31)
        assert set(service.reminded) == set(KEYS) - moved != set()
