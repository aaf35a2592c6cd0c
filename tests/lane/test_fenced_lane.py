"""Past its fence a shard serves no key, keeps its memory, and goes on once its own lease is renewed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from math import inf
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.core.lease import Fence
from onelane.errors import NoLease
from onelane.lane.fenced_lane import FencedLane
from onelane.lane.lane import Lane
from onelane.testing import Cluster
from onelane.v1 import control_pb2

from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.lane.counting import WRITE, Counted, Counting
from tests.shard.reminded import SETTINGS, Reminded, RemindedCluster
from tests.state.held_store import StoreControl

LEASE = 7
OPEN, CLOSED = Fence(LEASE, inf), Fence(LEASE, 0.0)


class FencedCluster(Cluster):
    """All of its lanes have fences, which are open at first."""

    def setup_of(self, app: str) -> control_pb2.Setup:
        setup = super().setup_of(app)
        setup.fence.lease_id, setup.fence.until = LEASE, inf
        return setup

    def lane(self, shard: int = 0) -> FencedLane:
        lane = self._shards(None)[shard].lifecycle.parts.lane
        assert isinstance(lane, FencedLane)
        return lane

    def close_fence(self, shard: int = 0) -> None:
        """As the time of its lease does."""
        self.lane(shard).fence._fence = CLOSED

    def open_fence(self, fence: Fence = OPEN) -> None:
        """As the message of its supervisor does."""
        message = control_pb2.Fence(lease_id=fence.lease_id, until=fence.until)
        self._shards(None)[0].lifecycle._extend(message)


class FencedCounted(Counted):
    """One shard of `Counting`, whose state is durable, behind a fence."""

    cluster: FencedCluster


@pytest.fixture
async def echo() -> AsyncIterator[FencedCluster]:
    cluster = FencedCluster(Echo, shards=2, settings={"turns": {"echo.v1.Echo/Plain": "FREE"}})
    async with cluster:
        yield cluster


@pytest.fixture
async def counted() -> AsyncIterator[FencedCounted]:
    store = StoreControl()
    cluster = FencedCluster(Counting, shards=1, store=store, settings={"turns": {"echo.v1.Echo/*": "KEYED"}})
    async with cluster:
        yield FencedCounted(cluster, store)


def stub_of(cluster: Cluster, shard: int = 0) -> Any:
    return cluster.stub(echo_pb2_grpc.EchoStub, shard=shard)


def key_of(cluster: Cluster, shard: int) -> str:
    return next(key for key in map(str, range(100)) if cluster.owner_of(key) == shard)


async def refused(call: Awaitable[object]) -> str:
    """The details of a call that ends with UNAVAILABLE."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


async def answers_of(stream: Any) -> list[Any]:
    return [reply async for reply in stream]


@pytest.mark.parametrize("method", ["Unary", "Plain", "Download", "Upload"])
async def test_a_call_to_a_key_is_refused_past_the_fence_and_the_memory_is_kept(
    echo: FencedCluster, method: str
) -> None:
    key = key_of(echo, 0)
    stub = stub_of(echo)
    assert (await stub.Unary(EchoRequest(key=key))).seen == 1
    echo.close_fence()
    asked = EchoRequest(key=key, times=1)
    call = getattr(stub, method)(iter([asked]) if method == "Upload" else asked)
    ended = answers_of(call) if method == "Download" else call
    assert "its machine's lease was not renewed in time" in await refused(ended)
    echo.open_fence()
    assert (await stub.Unary(EchoRequest(key=key))).seen == 2


async def test_a_call_that_is_refused_is_counted_by_its_reason(echo: FencedCluster) -> None:
    echo.close_fence()
    await refused(stub_of(echo).Unary(EchoRequest(key=key_of(echo, 0))))
    assert await echo.stats("onelane.refusals", {"onelane.reason": "no_lease"}) == 1


async def test_calls_to_the_keys_of_others_are_sent_on_and_calls_without_a_key_are_served(echo: FencedCluster) -> None:
    echo.close_fence()
    assert (await stub_of(echo).Unary(EchoRequest(key=key_of(echo, 1)))).shard == "app-1"
    assert (await stub_of(echo).Who(EchoRequest())).shard == "app-0"


async def test_a_call_that_a_sibling_sends_on_is_refused_by_the_fence_of_its_owner(echo: FencedCluster) -> None:
    echo.close_fence()
    assert "shard app-0 serves no key" in await refused(stub_of(echo, 1).Unary(EchoRequest(key=key_of(echo, 0))))


async def test_the_fence_is_not_opened_by_the_next_lease_of_the_machine(echo: FencedCluster) -> None:
    echo.close_fence()
    echo.open_fence(Fence(LEASE + 1, inf))
    await refused(stub_of(echo).Unary(EchoRequest(key=key_of(echo, 0))))


async def test_the_answer_of_a_call_that_runs_does_not_leave_past_the_fence(counted: FencedCounted) -> None:
    call = counted.call(WRITE, "k", "wait", text="runs")
    await counted.began("runs")
    counted.cluster.close_fence()
    counted.service.may_go["k"].set()
    await refused(call)
    counted.cluster.open_fence()
    assert await counted.write("k") == 2


async def test_an_answer_that_waits_for_the_disk_does_not_leave_past_the_fence(counted: FencedCounted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k")
        await counted.committing()
        counted.cluster.close_fence()
    assert "lease" in await refused(call)


async def test_a_call_whose_turn_comes_past_the_fence_does_not_run(counted: FencedCounted) -> None:
    first = counted.call(WRITE, "k", "wait", text="first")
    await counted.began("first")
    second = counted.call(WRITE, "k", text="second")
    async with asyncio.timeout(BOUND_S):
        while not counted.lane.queue.turns.waiting:  # noqa: ASYNC110 - the calls are in this loop
            await asyncio.sleep(0)
    counted.cluster.close_fence()
    counted.service.may_go["k"].set()
    await asyncio.gather(refused(first), refused(second))
    assert counted.service.began == []
    counted.cluster.open_fence()
    assert await counted.write("k") == 2


async def test_a_turn_that_is_taken_by_hand_does_not_begin_past_the_fence(counted: FencedCounted) -> None:
    await counted.fresh("k")
    counted.cluster.close_fence()
    with pytest.raises(NoLease):
        await counted.service.shard.turn("k").__aenter__()
    assert counted.lane.queue.turns.held == {}


async def test_a_timer_that_is_due_past_the_fence_runs_once_that_is_open(counted: FencedCounted) -> None:
    await counted.write("k", "later")
    counted.cluster.close_fence()
    await counted.cluster.advance(5)
    assert counted.service.counts["k"] == 1
    counted.cluster.open_fence()
    await counted.cluster.advance(2)
    assert await counted.write("k") == 3


async def test_a_reminder_that_is_due_past_the_fence_is_tried_each_second_and_runs_once_that_is_open() -> None:
    store = StoreControl()
    cluster = FencedCluster(Reminded, shards=1, store=store, settings=SETTINGS)
    async with cluster:
        reminded = RemindedCluster(cluster, store)
        await reminded.do("k", "set k 5 - a")
        cluster.close_fence()
        for tries, seconds in enumerate((4.9, 0.2, 1, 1)):
            await cluster.advance(seconds)
            await reminded.settle()
            assert await cluster.stats("onelane.reminder.failures", {"onelane.reason": "not_kept"}) == tries
        assert reminded.began == []
        cluster.open_fence()
        await cluster.advance(1)
        assert await reminded.ran(1) == ["ka"]
        await cluster.advance(5)
        await reminded.settle()
        assert await reminded.count_of("k") == 1


async def test_a_shard_without_a_lease_has_a_plain_lane(counted: FencedCounted) -> None:
    async with Cluster(Echo, shards=1) as cluster:
        lane = cluster._shards(None)[0].lifecycle.parts.lane
        assert (type(lane), type(lane.router.homes), lane.queue.keeper) == (Lane, dict, None)
