"""Durable state in changes of placement: shards come, go, are replaced and die while clients count."""

import asyncio
from collections import Counter as Counts
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc.aio
import pytest
from onelane.state.memory_store import MemoryStore
from onelane.state.sqlite_store import SqliteStore
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.state.kept_service import KeptBeside

KEYS = [f"k{number}" for number in range(40)]
CLIENTS = 6


@pytest.fixture(params=[MemoryStore, SqliteStore])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    # All lanes share one loop, on a machine that may be busy: none is late.
    async with Cluster(KeptBeside, shards=2, store=request.param) as running:
        yield running


class Load:
    """Clients that add one to keys in turn, and remember what they were told."""

    def __init__(self, cluster: Cluster, *, may_fail: bool) -> None:
        self.acknowledged: Counts[str] = Counts()
        self.sent: Counts[str] = Counts()
        self._may_fail = may_fail
        self._stub = cluster.stub(EchoStub)
        self._stop = asyncio.Event()
        self._counted = asyncio.Event()
        self._clients = [asyncio.ensure_future(self._count(KEYS[start::CLIENTS])) for start in range(CLIENTS)]

    async def _count(self, keys: list[str]) -> None:
        while not self._stop.is_set():
            for key in keys:
                self.sent[key] += 1
                try:
                    seen = (await self._stub.Unary(EchoRequest(key=key), timeout=BOUND_S)).seen
                except grpc.aio.AioRpcError as error:
                    if not self._may_fail:
                        raise
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017 - others are faults
                    await asyncio.sleep(0.005)
                else:
                    self.acknowledged[key] += 1
                    self._counted.set()
                    assert self.acknowledged[key] <= seen <= self.sent[key], key

    async def go_on(self, calls: int) -> None:
        goal = self.acknowledged.total() + calls
        async with asyncio.timeout(BOUND_S):
            while self.acknowledged.total() < goal:
                self._counted.clear()
                await self._counted.wait()

    async def end(self) -> None:
        """Every key has what was acknowledged, and nothing that was not sent."""
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._clients), BOUND_S)
        for key in KEYS:
            stored = (await self._stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S, wait_for_ready=True)).seen
            assert self.acknowledged[key] <= stored <= self.sent[key], key


def services(cluster: Cluster, shards: int) -> list[KeptBeside]:
    kind: Any = KeptBeside
    return [cluster.service(kind, shard=index) for index in range(shards)]


async def test_shards_come_and_go_and_are_replaced_under_load_and_no_call_fails(cluster: Cluster) -> None:
    load = Load(cluster, may_fail=False)
    await load.go_on(100)
    for shards in (4, 3, 1, 2):
        await asyncio.wait_for(cluster.scale(shards), BOUND_S)
    for index in range(2):
        await asyncio.wait_for(cluster.restart(index), BOUND_S)
    await load.end()
    running = services(cluster, 2)
    for key in KEYS:
        owner = running[cluster.owner_of(key)]
        assert owner.counts[key] == owner.visits[key] == load.sent[key]
        assert [service for service in running if key in service.counts] == [owner]


async def test_shards_that_die_between_and_in_changes_lose_nothing_that_was_acknowledged(cluster: Cluster) -> None:
    load = Load(cluster, may_fail=True)
    for step, shards in enumerate((4, 3, 2)):
        await load.go_on(100)
        scaling = asyncio.ensure_future(cluster.scale(shards))
        for _ in range(step * 3):
            await asyncio.sleep(0)
        await asyncio.wait_for(cluster.crash(step % 2), BOUND_S)
        await asyncio.wait_for(scaling, BOUND_S)
    await load.go_on(100)
    await load.end()


async def test_a_key_is_whole_as_the_service_hears_that_it_leaves_and_arrives(cluster: Cluster) -> None:
    stub = cluster.stub(EchoStub)
    for key in KEYS:
        await stub.Unary(EchoRequest(key=key))
    before = {key: cluster.owner_of(key) for key in KEYS}
    await cluster.scale(3)
    moved = [key for key in KEYS if cluster.owner_of(key) != before[key]]
    for key in moved:
        assert (await stub.Unary(EchoRequest(key=key))).seen == 2
    *old, new = services(cluster, 3)
    assert sorted(new.told) == sorted(("arrives", key, 1, 1) for key in moved)
    assert sorted(event for service in old for event in service.told if event[0] == "leaves") == sorted(
        ("leaves", key, 1, 1) for key in moved
    )


def set_to_70(counts: dict[Any, int], key: Any) -> None:
    counts[key] = 70


async def test_what_a_service_changes_as_it_hears_that_a_key_leaves_is_kept(cluster: Cluster) -> None:
    stub = cluster.stub(EchoStub)
    for service in services(cluster, 2):
        service.shard.on_leave(partial(set_to_70, service.counts))
    for key in KEYS:
        await stub.Unary(EchoRequest(key=key))
    await cluster.scale(1)
    assert {(await stub.Misbehave(EchoRequest(key=key))).seen for key in KEYS} == {1, 70}
