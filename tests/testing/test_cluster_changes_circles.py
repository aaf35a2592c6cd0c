"""What runs in the turn of a key that leaves goes on as ever until it ends: calls in a circle, timers, nested turns."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc.aio
import pytest
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub

KEYS = [f"k{number}" for number in range(100)]


class Moves:
    """A cluster of two shards in which a key moves to a third one while its turn is held."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.homes = {key: cluster.owner_of(key) for key in KEYS}
        self.leave: set[str] = set()
        """Those that a third shard owns."""
        self.leaving = ""

    def staying(self, shard: int) -> str:
        return next(key for key in KEYS if key not in self.leave and self.homes[key] == shard)

    async def order(self, order: str, *, shards: int = 3) -> EchoReply:
        """Carry out an order that waits for `middle` in a turn of the key `leaving`; a change to so many shards begins
        meanwhile."""
        services = [self.cluster.service(Echo, shard=index) for index in range(5 - shards)]
        request = EchoRequest(key=self.leaving, order=order)
        call = asyncio.ensure_future(self.cluster.stub(EchoStub).Misbehave(request, timeout=BOUND_S))
        await until(lambda: any("middle" in service.began for service in services))
        change = asyncio.ensure_future(self.cluster.scale(shards))
        await until(lambda: all(service.shard._lane.router.handoff for service in services))
        for service in services:
            if "middle" in service.held:
                service.held["middle"].set()
        async with asyncio.timeout(BOUND_S):
            reply: EchoReply = await call
            await change
        return reply


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - it is of the same loop
            await asyncio.sleep(0)


@pytest.fixture
def settings() -> dict[str, float]:
    return {}


@pytest.fixture
async def moves(settings: dict[str, float]) -> AsyncIterator[Moves]:
    # All lanes share one loop, on a machine that may be busy: none is late.
    async with Cluster(Echo, shards=2, settings={**settings}) as cluster:
        moves = Moves(cluster)
        await cluster.scale(3)
        moves.leave = {key for key in KEYS if cluster.owner_of(key) == 2}
        moves.leaving = min(key for key in moves.leave if moves.homes[key] == 0)
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
        reply: EchoReply = await moves.cluster.stub(EchoStub).Across(request, timeout=BOUND_S)
        return reply

    waiting = asyncio.ensure_future(wait_too())
    await moves.order("wait middle")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await waiting
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("settings", [{"drain_s": 0.1}])
async def test_a_timer_that_holds_the_turn_for_longer_than_a_drain_is_cancelled(moves: Moves) -> None:
    """Else the supervisor would kill its process in the end, with the state of all other keys."""
    await moves.cluster.stub(EchoStub).Misbehave(EchoRequest(key=moves.leaving, order=f"later {moves.leaving}"))
    service = moves.cluster.service(Echo, shard=0)
    await moves.cluster.advance(0.1)
    await until(lambda: moves.leaving in service.began)
    await asyncio.wait_for(moves.cluster.scale(3), BOUND_S)
    assert moves.cluster.service(Echo, shard=0) is service


async def test_a_circle_by_way_of_the_next_owner_itself_ends_too(moves: Moves) -> None:
    await moves.cluster.scale(3)
    await moves.order(f"sibling {moves.staying(0)} then middle sibling {moves.leaving} identity", shards=2)


@pytest.mark.parametrize("order", ["rich", "metadata"])
async def test_a_call_that_goes_on_twice_has_the_metadata_and_the_status_of_its_owner(moves: Moves, order: str) -> None:
    """From a shard that is not its owner to one that is no longer, and on to the one that is."""

    async def call_too() -> tuple[object, object, object, set[str]]:
        service = moves.cluster.service(Echo, shard=0)
        await until(lambda: "middle" in service.began)
        request, metadata = EchoRequest(key=moves.leaving, order=order), (("x-there", "back"), ("onelane-debug", "1"))
        call = moves.cluster.stub(EchoStub, shard=1).Misbehave(request, metadata=metadata, timeout=BOUND_S)
        code, trailers = await call.code(), dict(await call.trailing_metadata())
        return code, dict(await call.initial_metadata()), trailers["onelane-shard"], set(trailers)

    debug = {"onelane-shard", "onelane-epoch", "onelane-hop"}
    waiting = asyncio.ensure_future(call_too())
    await moves.order("wait middle")
    assert (
        await waiting
        == {
            "rich": (grpc.StatusCode.FAILED_PRECONDITION, {}, "app-2", {"grpc-status-details-bin", *debug}),
            "metadata": (grpc.StatusCode.OK, {"x-initial": "first"}, "app-2", {"x-back", "x-back-bin", *debug}),
        }[order]
    )
