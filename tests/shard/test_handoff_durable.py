"""Durable keys that leave while their store hangs or fails, and while their old owner dies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.state.held_store import StoreControl
from tests.state.kept_service import Kept

KEYS = [f"k{number}" for number in range(20)]
SETTINGS = {"state": {"patience_s": 0.1}}


class Bench:
    """Two shards, whose store the test holds up, and a key of the second one."""

    def __init__(self, cluster: Cluster, control: StoreControl) -> None:
        self.cluster = cluster
        self.control = control
        self.key = next(key for key in KEYS if cluster.owner_of(key) == 1)
        # Of a plain channel, which repeats no call.
        self._stub = cluster.stub(EchoStub, shard=0)

    async def count(self) -> int:
        return (await self._stub.Unary(EchoRequest(key=self.key), timeout=BOUND_S, wait_for_ready=True)).seen

    async def look(self) -> int:
        return (await self._stub.Misbehave(EchoRequest(key=self.key), timeout=BOUND_S, wait_for_ready=True)).seen

    def service(self, shard: int) -> Kept:
        kind: Any = Kept
        service: Kept = self.cluster.service(kind, shard=shard)
        return service

    @asynccontextmanager
    async def commit_held(self) -> AsyncIterator[Awaitable[int]]:
        """A call whose commit does not end before the block does."""
        before = len(self.control.commits)
        with self.control.held():
            counting = asyncio.ensure_future(self.count())
            await self.control.committing(before + 1)
            yield counting


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    control = StoreControl()
    async with Cluster(Kept, shards=2, settings=SETTINGS, store=control) as cluster:
        yield Bench(cluster, control)


async def test_a_key_leaves_once_its_last_commit_has_ended_and_its_answer_with_it(bench: Bench) -> None:
    async with bench.commit_held() as counting:
        scaling = asyncio.ensure_future(bench.cluster.scale(1))
        looking = asyncio.ensure_future(bench.look())
        for _ in range(200):
            await asyncio.sleep(0)
        assert not scaling.done()
        assert not looking.done()
        assert bench.service(0).counts == {}
    assert list(await asyncio.wait_for(asyncio.gather(counting, looking), BOUND_S)) == [1, 1]
    await asyncio.wait_for(scaling, BOUND_S)
    assert await bench.count() == 2


async def test_a_turn_that_ends_during_the_change_does_not_shut_out_the_next_owner(bench: Bench) -> None:
    """Whose life has a lower number."""
    owner = bench.service(1)
    async with owner.shard.turn(bench.key):
        scaling = asyncio.ensure_future(bench.cluster.scale(1))
        await asyncio.sleep(0)
        owner.counts[bench.key] = 70
    await asyncio.wait_for(scaling, BOUND_S)
    assert await bench.count() == 71


async def test_a_key_that_was_deleted_last_leaves_once_that_is_on_disk(bench: Bench) -> None:
    """It has no entry any more, so the scan of the dicts does not see it."""
    assert await bench.count() == 1
    owner, before = bench.service(1), len(bench.control.commits)

    async def delete() -> None:
        async with owner.shard.turn(bench.key):
            del owner.counts[bench.key]

    with bench.control.held():
        deleting = asyncio.ensure_future(delete())
        await bench.control.committing(before + 1)
        scaling = asyncio.ensure_future(bench.cluster.scale(1))
        looking = asyncio.ensure_future(bench.look())
        for _ in range(200):
            await asyncio.sleep(0)
        assert not scaling.done()
    assert await asyncio.wait_for(looking, BOUND_S) == 0
    await asyncio.wait_for(asyncio.gather(deleting, scaling), BOUND_S)


async def test_a_key_whose_last_commit_fails_leaves_as_it_is_on_disk(bench: Bench) -> None:
    """The disk is full, or another program has locked the file."""
    assert await bench.count() == 1
    with bench.control.fails("commit"):
        async with bench.commit_held() as counting:
            scaling = asyncio.ensure_future(bench.cluster.scale(1))
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await counting
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(scaling, BOUND_S)
        assert await bench.look() == 1
    assert await bench.count() == 2


async def test_a_store_that_cannot_be_read_refuses_calls_of_a_moved_key_and_holds_up_no_change(bench: Bench) -> None:
    assert await bench.count() == 1
    with bench.control.fails("load", "commit"):
        await asyncio.wait_for(bench.cluster.scale(1), BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await bench.count()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await bench.count() == 2


async def test_what_a_dead_owner_still_writes_is_refused_once_the_next_one_has_loaded_the_key(bench: Bench) -> None:
    """Its process is killed with a commit under way, which its thread goes on with here."""
    assert await bench.count() == 1
    async with bench.commit_held() as counting:
        scaling = asyncio.ensure_future(bench.cluster.scale(1))
        await asyncio.sleep(0)
        await bench.cluster.kill(1)
        await asyncio.wait_for(scaling, BOUND_S)
        assert await bench.look() == 1
    with pytest.raises(grpc.aio.AioRpcError):
        await counting
    assert await bench.count() == 2
    assert await bench.look() == 2


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 8, 12, 16])
async def test_the_old_owner_may_die_at_any_step_of_handing_over(bench: Bench, steps: int) -> None:
    assert await bench.count() == 1
    counting = asyncio.ensure_future(bench.count())
    scaling = asyncio.ensure_future(bench.cluster.scale(1))
    for _ in range(steps):
        await asyncio.sleep(0)
    await bench.cluster.kill(1)
    await asyncio.wait_for(scaling, BOUND_S)
    (outcome,) = await asyncio.gather(counting, return_exceptions=True)
    stored = await bench.look()
    assert stored == 2 if outcome == 2 else stored in (1, 2)
    assert await bench.count() == stored + 1
