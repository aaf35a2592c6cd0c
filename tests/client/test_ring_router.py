"""A call goes to the owner of its key while that can be reached, and to the shared address else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.options import APP_DIALLING
from onelane.client.outlier import CONSECUTIVE_FAILURES, MAX_EJECTION_S
from onelane.client.ring_router import RingRouter
from onelane.core.placement import Member, Placement
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.bounds import BOUND_S
from tests.servers import native, stock


@pytest.fixture
async def router(unserved: str) -> AsyncIterator[RingRouter]:
    """Its shared address does not answer, so it is placed by the test alone."""
    ring_router = RingRouter(unserved, APP_DIALLING)
    yield ring_router
    await ring_router.close(None)


def topology(*addresses: str, epoch: int = 1, **keys: str) -> topology_pb2.Placement:
    members = [topology_pb2.Member(name=f"app-{index}", address=address) for index, address in enumerate(addresses)]
    return topology_pb2.Placement(epoch=epoch, members=members, points=8, keys=keys)


async def test_until_the_topology_is_known_every_call_goes_to_the_shared_address(router: RingRouter) -> None:
    assert [router.pick(key) for key in ("k", None)] == [(router.shared, None)] * 2


async def test_a_call_with_a_key_goes_to_its_owner_and_one_without_to_the_shared_address(
    router: RingRouter, unserved: str
) -> None:
    async with stock() as (first, _), stock() as (second, _), stock(unserved):
        await router.shared.channel_ready()
        await router._place(topology(first, second))
        for endpoint in router.endpoints.values():
            await endpoint.channel.channel_ready()
        placement = Placement(1, (Member("app-0", first, ""), Member("app-1", second, "")), 8)
        for key in map(str, range(20)):
            owner = router.endpoints[placement.owner_of(key).address]
            assert router.pick(key) == (owner.channel, owner.health)
        assert router.pick(None) == (router.shared, None)
        repeated = {router.pick(None, attempt)[0] for attempt in (1, 2)}
        assert repeated == {endpoint.channel for endpoint in router.endpoints.values()}


async def test_an_owner_that_is_not_connected_or_ejected_is_left_to_the_server(
    router: RingRouter, unserved: str
) -> None:
    await router._place(topology(unserved))
    assert router.pick("k") == (router.shared, None)
    async with stock() as (address, _):
        await router._place(topology(address, epoch=2))
        (endpoint,) = router.endpoints.values()
        await endpoint.channel.channel_ready()
        assert router.pick("k") == (endpoint.channel, endpoint.health)
        for _ in range(CONSECUTIVE_FAILURES):
            endpoint.health.ended("UNAVAILABLE", MAX_EJECTION_S * 1e9)
        assert router.pick("k") == (router.shared, None)


async def test_while_the_target_cannot_be_reached_a_shard_that_can_stands_in_for_it(
    router: RingRouter, unserved: str
) -> None:
    async with stock() as (address, _):
        await router._place(topology(address, unserved))
        channel, health = await _ready(router, address)
        await _failing(router)
        assert {router.pick(key) for key in (None, *map(str, range(20)))} == {(channel, health)}
        for _ in range(CONSECUTIVE_FAILURES):
            health.ended("UNAVAILABLE", MAX_EJECTION_S * 1e9)
        assert router.pick(None) == (router.shared, None)


class TopologyOf(topology_pb2_grpc.TopologyServicer):
    """Tells each placement that is put, to one client after the other."""

    def __init__(self) -> None:
        self.placements: asyncio.Queue[topology_pb2.Placement] = asyncio.Queue()

    async def Status(self, request: Any, context: Any) -> Any:
        """Nobody asks for it here."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[topology_pb2.Placement]:
        while True:
            yield await self.placements.get()


async def test_the_topology_is_asked_of_another_shard_once_the_target_is_gone() -> None:
    """As where it was the address of one machine, which has died."""
    async with stock() as (target, target_server), stock() as (other, other_server):
        at_target, at_other = TopologyOf(), TopologyOf()
        for topology_of, server in ((at_target, target_server), (at_other, other_server)):
            topology_pb2_grpc.add_TopologyServicer_to_server(topology_of, server)
        router = RingRouter(target, APP_DIALLING)
        await at_target.placements.put(topology(target, other))
        await router.wait_ready()
        await target_server.stop(None)
        await at_other.placements.put(topology(other, epoch=2))
        is_told = asyncio.Event()
        router.when_placed(2, is_told.set, within_s=BOUND_S)
        await is_told.wait()
        assert set(router.endpoints) == {other}
        await router.close(None)


async def _failing(router: RingRouter) -> None:
    while (state := router.shared.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
        await router.shared.wait_for_state_change(state)


async def test_a_newer_topology_connects_to_new_shards_keeps_the_others_and_closes_the_rest(
    router: RingRouter,
) -> None:
    async with stock() as (first, _), stock() as (second, _), stock() as (third, _):
        await router._place(topology(first, second))
        kept_channel, left_channel = (router.endpoints[address].channel for address in (second, first))
        await router._place(topology(second, third, epoch=2, **{"shop.v1.Shop/*": "name"}))
        assert set(router.endpoints) == {second, third}
        assert router.endpoints[second].channel is kept_channel
        await asyncio.wait(router._leaving)
        assert left_channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        assert router.configured_keys == {"shop.v1.Shop/*": "name"}


async def test_a_call_that_no_server_has_looked_at_as_its_shard_left_goes_to_the_shared_address() -> None:
    """Its owner's connection stood as it was picked; a new one to a shard that ends is refused, or reset."""
    async with stock() as (shared, _):
        router = RingRouter(shared, APP_DIALLING)
        async with stock() as (leaving, _):
            await router._place(topology(leaving))
            channel, _ = await _ready(router, leaving)
        while channel.get_state() is grpc.ChannelConnectivity.READY:
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        await router.close(None)


async def _ready(router: RingRouter, address: str) -> tuple[Any, Any]:
    endpoint = router.endpoints[address]
    await endpoint.channel.channel_ready()
    return endpoint.channel, endpoint.health


@pytest.mark.parametrize("ends", ["by itself", "with its channel"])
async def test_a_call_on_a_shard_that_leaves_the_app_goes_on(router: RingRouter, ends: str) -> None:
    has_begun, hold = asyncio.Event(), asyncio.Event()

    async def serve(request: bytes, call: Any) -> bytes:
        has_begun.set()
        await hold.wait()
        return request

    async with native(serve) as (leaving, _), stock() as (staying, _):
        await router._place(topology(leaving))
        channel = router.endpoints[leaving].channel
        await channel.channel_ready()
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        await has_begun.wait()
        await router._place(topology(staying, epoch=2))
        with pytest.raises(grpc.aio.UsageError):
            channel.unary_unary("/t.T/Echo")(b"another")
        if ends == "by itself":
            hold.set()
            assert await call == b"x"
        else:
            await router.close(None)
            assert await call.code() is grpc.StatusCode.CANCELLED
        while router._leaving:
            await asyncio.wait(router._leaving)
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_target_without_topology_is_ready_once_it_is_connected() -> None:
    async with stock() as (address, _):
        router = RingRouter(address, APP_DIALLING)
        await router.wait_ready()
        assert router.placement is None
        await router.close(None)
