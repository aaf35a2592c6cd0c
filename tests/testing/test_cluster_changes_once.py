"""Calls with an id, and keys that are not in memory or were not used for long, while their keys move."""

import asyncio
from typing import Any

import onelane
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.lane.counting import Counting
from tests.state.held_store import StoreControl

KEYS = [f"k{number}" for number in range(24)]
KEYED = {"turns": {"echo.v1.Echo/*": "KEYED"}}


async def test_calls_that_are_repeated_by_their_id_while_their_keys_move_happen_once() -> None:
    """Each at once by way of two shards, before, in and after a change, and the answer is that of the first."""
    store = StoreControl()
    async with Cluster(Counting, shards=2, store=store, settings=KEYED) as cluster:
        stubs: list[Any] = [cluster.stub(EchoStub, shard=shard) for shard in range(2)]
        for key in KEYS:
            await stubs[0].Unary(EchoRequest(key=key))

        def send() -> list[Any]:
            return [
                stub.Unary(EchoRequest(key=key), metadata=(("idempotency-key", f"of {key}"),), timeout=BOUND_S)
                for key in KEYS
                for stub in stubs
            ]

        owners = {key: cluster.owner_of(key) for key in KEYS}
        with store.held():
            # These wait for their commits, and their keys for them.
            calls = send()
            async with asyncio.timeout(BOUND_S):
                while len(store.commits) < 2:  # noqa: ASYNC110 - they begin on threads
                    await asyncio.sleep(0.001)
            scaling = asyncio.ensure_future(cluster.scale(3))
            while not scaling.done() and not cluster._shards(None)[-1].is_up:  # noqa: ASYNC110 - of another task
                await asyncio.sleep(0)
            calls += send()
        calls += send()
        await asyncio.wait_for(scaling, BOUND_S)
        calls += send()
        assert owners != {key: cluster.owner_of(key) for key in KEYS}
        assert {(await call).seen for call in calls} == {2}
        for key in KEYS:
            assert (await stubs[1].Unary(EchoRequest(key=key))).seen == 3


class Forgetful(echo_pb2_grpc.EchoServicer):
    """Counts in a dict of which next to nothing stays in memory, and in one that is soon forgotten."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.counts = shard.keyed("counts", int, durable=True, max_resident=2)
        self.idle = shard.keyed("idle", int, durable=True, idle_s=1e-6)

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        for counts in (self.counts, self.idle):
            counts[request.key] = counts.get(request.key, 0) + 1
        return EchoReply(seen=self.counts[request.key], text=str(self.idle[request.key]))

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        return EchoReply(seen=self.counts.get(request.key, 0), text=str(self.idle.get(request.key, 0)))


async def forget_idle(cluster: Cluster) -> None:
    """All shards check at once, while keys may be leaving."""
    states = [shard.lifecycle.parts.shard.durable_state for shard in cluster._shards(None) if shard.is_up]
    await asyncio.gather(*(state.idle_keys.check() for state in states if state is not None))


async def test_keys_that_are_evicted_or_forgotten_while_they_leave_keep_what_was_used_and_lose_what_was_idle() -> None:
    async with Cluster(Forgetful, shards=2, settings=KEYED) as cluster:
        stub: Any = cluster.stub(EchoStub)
        for expected, shards in enumerate((3, 1, 4, 2), 1):
            await asyncio.gather(*(stub.Unary(EchoRequest(key=key), timeout=BOUND_S) for key in KEYS))
            scaling = asyncio.ensure_future(cluster.scale(shards))
            await asyncio.gather(*(forget_idle(cluster) for _ in range(3)))
            await asyncio.wait_for(scaling, BOUND_S)
            await forget_idle(cluster)
            replies = await asyncio.gather(*(stub.Plain(EchoRequest(key=key), timeout=BOUND_S) for key in KEYS))
            assert [(reply.seen, reply.text) for reply in replies] == [(expected, "0")] * len(KEYS)
