"""This supervisor as a machine of a cluster: numbers of lives, and the key of identities, of all machines."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
import pytest
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys
from onelane.errors import PortTaken
from onelane.supervisor.cluster_member import ClusterMember

from tests.etcd import EtcdServer, etcd
from tests.supervisor.cluster_variables import settings_of
from tests.supervisor.scripted_lives import ScriptedLives
from tests.supervisor.test_xds_server import holds

KEYS = ClusterKeys("arena")


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


@asynccontextmanager
async def joined(server: EtcdServer, machine: str, **settings: Any) -> AsyncIterator[ClusterMember]:
    member = ClusterMember(settings_of(server, machine=machine, lease_s=60, **settings), {}, ScriptedLives())
    running = asyncio.ensure_future(member.run())
    try:
        while member.view is None:
            await member.changed.wait()
        yield member
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_numbers_of_lives_are_unique_over_machines_and_grow(server: EtcdServer) -> None:
    async with asyncio.timeout(60), joined(server, "a") as a, joined(server, "b") as b:
        numbers = [await member.next_life() for member in (a, b, b, a, b)]
        numbers += await asyncio.gather(*(member.next_life() for member in (a, b) * 5))
        assert len({*numbers}) == len(numbers)
        assert numbers[:5] == sorted(numbers[:5])


async def test_a_port_of_xds_that_is_taken_is_told_before_anything_is_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, etcd() as server:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        lives = ScriptedLives()
        with pytest.raises(PortTaken, match=address):
            await ClusterMember(settings_of(server, machine="a", xds=address), {}, lives).run()
        assert lives.fences == {}
        store = EtcdStore(etcd_address(settings_of(server)))
        assert (await store.read("/")).entries == {}
        await store.close()


async def test_a_machine_with_a_port_of_xds_serves_what_the_store_tells(server: EtcdServer) -> None:
    async with asyncio.timeout(60), joined(server, "a", xds="127.0.0.1:0") as a:
        xds = a.xds
        assert xds is not None
        await holds(lambda: xds.resources)
        async with grpc.aio.insecure_channel(xds.address) as channel:
            await channel.channel_ready()


async def test_a_machine_leaves_none_of_its_numbers_behind(server: EtcdServer) -> None:
    async with asyncio.timeout(60), joined(server, "a") as a:
        before = await a.next_life()
    store = EtcdStore(etcd_address(settings_of(server)))
    assert list((await store.read(KEYS.prefix)).entries) in ([], [KEYS.identity])
    await store.close()
    async with asyncio.timeout(60), joined(server, "a") as a:
        assert await a.next_life() > before


async def test_all_machines_have_one_key_of_identities_also_when_all_have_been_away(server: EtcdServer) -> None:
    async with asyncio.timeout(60), joined(server, "a") as a, joined(server, "b") as b:
        keys = await asyncio.gather(*(member.identity_key() for member in (a, b, a, b)))
    async with asyncio.timeout(60), joined(server, "c") as c:
        keys.append(await c.identity_key())
    assert len({*keys}) == 1
    assert len(keys[0]) == 32
