"""A change of placement is counted: keys, their bytes, the calls that are held, and for how long a key stood still."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import onelane
import pytest
from onelane.lane.lane import Lane
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import eventually

KEYS = [f"k{number}" for number in range(40)]


class Remembering(echo_pb2_grpc.EchoServicer):
    lanes: ClassVar[list[Lane]] = []
    """Of all shards of a test: a cluster does not show one that is not in the placement yet."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.lanes.append(shard._lane)
        self.texts = shard.keyed("texts", str)
        self.may_end = asyncio.Event()

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.texts[request.key] = request.text
        if request.order == "wait":
            await self.may_end.wait()
        return EchoReply(text=request.text)


SERVICE: Any = Remembering


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    # All lanes share one loop, on a machine that may be busy: none is late.
    async with Cluster(Remembering, shards=1) as running:
        yield running


async def test_what_moves_and_what_waits_for_it_is_counted(cluster: Cluster) -> None:
    stub = cluster.stub(echo_pb2_grpc.EchoStub)
    for key in KEYS:
        await stub.Unary(EchoRequest(key=key, text="x" * 100))
    assert await cluster.stats("onelane.keyed.entries", {"onelane.dict": "texts"}) == len(KEYS)
    before = cluster.service(SERVICE, shard=0)
    running = [asyncio.ensure_future(stub.Unary(EchoRequest(key=key, order="wait"), timeout=BOUND_S)) for key in KEYS]
    await eventually(lambda: list(before.texts.values()) == [""] * len(KEYS))
    change = asyncio.ensure_future(cluster.scale(2))
    # They wait for the turns of their keys, and go to the new owners before the state does.
    held = [asyncio.ensure_future(stub.Unary(EchoRequest(key=key, text="y"), timeout=BOUND_S)) for key in KEYS]
    await eventually(lambda: any(lane.queue.arrivals.count for lane in Remembering.lanes))
    before.may_end.set()
    await asyncio.wait_for(asyncio.gather(change, *running, *held), BOUND_S)
    moved = len(cluster.service(SERVICE, shard=1).texts)
    assert 0 < moved < len(KEYS)
    assert await cluster.stats("onelane.handoff.keys") == moved
    assert await cluster.stats("onelane.handoff.size") > moved
    assert await cluster.stats("onelane.handoff.held") == 0
    assert cluster._totals.buckets_of("onelane.handoff.pause").count > 0
