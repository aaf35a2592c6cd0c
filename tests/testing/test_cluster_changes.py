"""Shards come, go and are replaced while clients call: no call fails, and no change of state is lost or made twice."""

import asyncio
from collections import Counter as Counts
from collections.abc import AsyncIterator

import pytest
from onelane.testing import Cluster

from services.examples.counter.service import Counter
from services.examples.counter.v1.counter_pb2 import AddRequest
from services.examples.counter.v1.counter_pb2_grpc import CounterStub
from tests.bounds import BOUND_S

KEYS = [f"k{number}" for number in range(60)]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    # All lanes share one loop, on a machine that may be busy: none is late.
    async with Cluster(Counter, shards=2) as running:
        yield running


class Load:
    """Clients that add one to keys in turn, and remember what they were told."""

    def __init__(self, cluster: Cluster, *, shard: int | None = None) -> None:
        self.told: Counts[str] = Counts()
        """Key → the largest total that was answered."""
        self.added: Counts[str] = Counts()
        self._stub = cluster.stub(CounterStub, shard=shard)
        self._stop = asyncio.Event()
        self._clients = [asyncio.ensure_future(self._add(KEYS[start::6])) for start in range(6)]

    async def _add(self, keys: list[str]) -> None:
        while not self._stop.is_set():
            for key in keys:
                total = (await self._stub.Add(AddRequest(name=key, amount=1), timeout=BOUND_S)).total
                assert total == self.told[key] + 1, key
                self.told[key] = total
                self.added[key] += 1

    async def end(self) -> None:
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._clients), BOUND_S)
        assert self.added == self.told
        assert min(self.added.values()) > 0


async def test_shards_come_and_go_under_load_and_no_call_fails_and_no_sum_is_wrong(cluster: Cluster) -> None:
    load = Load(cluster)
    for shards in (4, 3, 1, 2):
        await asyncio.wait_for(cluster.scale(shards), BOUND_S)
    await load.end()


async def test_a_rolling_restart_under_load_keeps_the_memory(cluster: Cluster) -> None:
    load = Load(cluster)
    services = [cluster.service(Counter, shard=index) for index in range(2)]
    for index in range(2):
        await asyncio.wait_for(cluster.restart(index), BOUND_S)
        assert cluster.service(Counter, shard=index) is not services[index]
        assert services[index].totals == {}
    await load.end()
    totals = [cluster.service(Counter, shard=index).totals for index in range(2)]
    assert sum(map(len, totals)) == len(KEYS)


async def test_a_call_by_way_of_a_shard_that_is_not_the_owner_goes_on_too(cluster: Cluster) -> None:
    """As of a stock client that knows nothing of placements."""
    load = Load(cluster, shard=1)
    for shards in (3, 2):
        await asyncio.wait_for(cluster.scale(shards), BOUND_S)
    await load.end()


async def test_a_shard_that_dies_takes_its_own_keys_along_and_no_other(cluster: Cluster) -> None:
    stub = cluster.stub(CounterStub)
    for key in KEYS:
        await stub.Add(AddRequest(name=key, amount=1))
    owners = {key: cluster.owner_of(key) for key in KEYS}
    await cluster.crash(1)
    await cluster.scale(3)
    totals = {key: (await stub.Add(AddRequest(name=key, amount=1), wait_for_ready=True)).total for key in KEYS}
    assert totals == {key: 2 - owners[key] for key in KEYS}


async def test_scaling_to_no_shard_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="expected at least one shard, got 0"):
        await cluster.scale(0)
