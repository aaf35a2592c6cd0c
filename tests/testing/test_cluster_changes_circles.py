"""What runs in the turn of a key that leaves goes on as ever until it ends: calls in a circle, timers, nested turns."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc.aio
import pytest
from onelane.testing import Cluster

from tests.echo.service import Echo
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub

KEYS = [f"k{number}" for number in range(100)]


class Moves:
    """A cluster of two shards in which a key moves to a third one while its turn is held."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.homes = {key: cluster.owner_of(key) for key in KEYS}
        self.leaving = ""

    def staying(self, shard: int) -> str:
        return next(key for key in KEYS if self.homes[key] == self.cluster.owner_of(key) == shard)

    async def order(self, order: str) -> EchoReply:
        """Carry out an order that waits for `middle` in a turn of the key `leaving`; a change begins meanwhile."""
        services = [self.cluster.service(Echo, shard=index) for index in range(2)]
        request = EchoRequest(key=self.leaving, order=order)
        call = asyncio.ensure_future(self.cluster.stub(EchoStub).Misbehave(request, timeout=30))
        await until(lambda: any("middle" in service.began for service in services))
        change = asyncio.ensure_future(self.cluster.scale(3))
        await until(lambda: all(service.shard._lane.router.handoff for service in services))
        for service in services:
            if "middle" in service.held:
                service.held["middle"].set()
        async with asyncio.timeout(10):
            reply: EchoReply = await call
            await change
        return reply


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is of the same loop
            await asyncio.sleep(0)


@pytest.fixture
async def moves() -> AsyncIterator[Moves]:
    # All lanes share one loop, on a machine that may be busy: none is late.
    async with Cluster(Echo, shards=2, settings={"max_late_s": 60}) as cluster:
        moves = Moves(cluster)
        await cluster.scale(3)
        moves.leaving = next(key for key in KEYS if moves.homes[key] == 0 and cluster.owner_of(key) == 2)
        await cluster.scale(2)
        yield moves


@pytest.mark.parametrize("shard", [0, 1])
async def test_a_circle_by_way_of_a_key_that_stays_ends_before_its_own_key_leaves(moves: Moves, shard: int) -> None:
    await moves.order(f"sibling {moves.staying(shard)} then middle sibling {moves.leaving} identity")


async def test_the_turn_is_entered_again_and_a_timer_is_set_as_before(moves: Moves) -> None:
    await moves.order(f"then middle nest {moves.leaving}")
    timers = [moves.cluster.service(Echo, shard=index).shard.timers(moves.leaving) for index in range(3)]
    assert timers == [(), (), ()]


async def test_code_that_waits_for_a_turn_of_a_key_that_leaves_has_a_call_that_may_be_tried_again(moves: Moves) -> None:
    async def wait_too() -> EchoReply:
        service = moves.cluster.service(Echo, shard=0)
        await until(lambda: "middle" in service.began)
        request = EchoRequest(key=moves.staying(0), order=f"turn {moves.leaving}")
        reply: EchoReply = await moves.cluster.stub(EchoStub).Across(request, timeout=30)
        return reply

    waiting = asyncio.ensure_future(wait_too())
    await moves.order("wait middle")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await waiting
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
