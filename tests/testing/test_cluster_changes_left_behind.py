"""What a key takes along, whatever its size, and what stays behind and does not come back with it."""

import asyncio
from typing import Any

import grpc
import onelane
from onelane.testing import Cluster

from services.examples.counter.service import Counter
from services.examples.counter.v1.counter_pb2 import AddReply, AddRequest
from services.examples.counter.v1.counter_pb2_grpc import CounterStub
from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import eventually

KEYS = [f"k{number}" for number in range(20)]


class Remembering(Counter):
    """Sets a timer with each call."""

    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        self.shard = shard
        self.reminded: list[str] = []
        self.texts = shard.keyed("texts", str)

    async def Add(self, request: AddRequest, context: grpc.aio.ServicerContext[AddRequest, object]) -> AddReply:
        self.shard.later(request.name, 30, lambda: self.reminded.append(request.name))
        return await super().Add(request, context)


async def test_a_timer_of_a_key_that_has_left_does_not_run_when_the_key_is_back() -> None:
    async with Cluster(Remembering, shards=1) as cluster:
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


async def test_a_key_with_more_state_than_a_client_may_send_in_a_message_moves_as_any_other() -> None:
    async with Cluster(Remembering, shards=1, settings={"max_message_bytes": 65536}) as cluster:
        stub = cluster.stub(CounterStub)
        for key in KEYS:
            await stub.Add(AddRequest(name=key, amount=1))
        texts = cluster.service(Remembering, shard=0).texts
        texts.update(dict.fromkeys(KEYS, "x" * 70_000))
        await asyncio.wait_for(cluster.scale(2), BOUND_S)
        moved = cluster.service(Remembering, shard=1).texts
        assert (len(moved) + len(texts), set(moved.values())) == (len(KEYS), {"x" * 70_000})


async def test_a_life_that_was_replaced_hears_what_is_published_until_its_calls_have_ended() -> None:
    """Of streams without a key, which end with it and not before."""
    async with Cluster(Echo, shards=2) as cluster:
        stub = cluster.stub(EchoStub)
        key_of = {cluster.owner_of(key): key for key in KEYS}
        await stub.Across(EchoRequest(key=key_of[0], order="subscribe news"))
        await stub.Across(EchoRequest(key=key_of[1], order="publish news 1 at_once"))
        replaced = cluster.service(Echo, shard=0)
        call = asyncio.ensure_future(cluster.stub(EchoStub, shard=0).Who(EchoRequest(order="sleep 0")))
        async with asyncio.timeout(BOUND_S):
            while not replaced.shard._lane.own_in_flight:  # noqa: ASYNC110 - it is of the same loop
                await asyncio.sleep(0)
            restarting = asyncio.ensure_future(cluster.restart(0))
            while cluster.service(Echo, shard=0) is replaced:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            for number in (2, 3):
                await stub.Across(EchoRequest(key=key_of[1], order="publish news 1 at_once"))
                while len(replaced.heard["news"]) < number:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0)
            call.cancel()
            await restarting
        for _ in range(2):
            await stub.Across(EchoRequest(key=key_of[1], order="publish news 1 at_once"))
            await asyncio.sleep(0)
        assert await cluster.stats("onelane.messages.lost") == 0


async def test_no_connection_to_a_life_that_has_ended_stays_behind() -> None:
    """Nor one that dials its socket for ever."""
    async with Cluster(Echo, shards=2) as cluster:
        for _ in range(2):
            await cluster.scale(3)
            for index in range(3):
                # Each forwards, and calls the others.
                stub = cluster.stub(EchoStub, shard=index)
                for key in KEYS:
                    await stub.Unary(EchoRequest(key=key), timeout=BOUND_S)
                    await stub.Across(EchoRequest(key=KEYS[0], order=f"by_name {key}"), timeout=BOUND_S)
            await cluster.scale(2)
        shards = cluster._shards(None)
        sockets = {shard.member.socket for shard in shards}
        for shard in shards:
            parts: Any = shard.lifecycle.parts
            assert parts.forwarder._siblings.keys() | parts.sibling_channels._channels.keys() <= sockets
            for retired in (parts.forwarder._retired, parts.sibling_channels._retired):
                await eventually(lambda: not len(retired))  # noqa: B023
