"""Machines on one etcd: they join, leave, are rolled, are killed; the placement follows, and no key has two owners."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from onelane.cluster.coordination import Condition, CoordinationStore, CoordinationUnavailable, Put, Snapshot, Write
from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore
from onelane.cluster.machines import ClusterView, MachineRecord, record_bytes
from onelane.cluster.placements import entry_of
from onelane.supervisor.coordinator import Coordinator, FirstPlacement

from tests.cluster.coordination.memory import MemoryCoordination
from tests.etcd import EtcdServer, etcd
from tests.supervisor.clustered import APP, KEYS, SERVED, Site, Sites, entry_in, pumping

LEASE_S = 2.0
Store = TypeVar("Store", bound=EtcdStore)


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


@pytest.fixture
async def store(server: EtcdServer) -> AsyncIterator[CoordinationStore]:
    async with opened(server) as store:
        yield store


class CutOffStore(EtcdStore):
    """Once it is cut off, a machine that ends cannot say so."""

    is_cut_off = False

    async def revoke(self, lease_id: int) -> None:
        if self.is_cut_off:
            raise CoordinationUnavailable("cut off")
        await super().revoke(lease_id)


@asynccontextmanager
async def opened(server: EtcdServer) -> AsyncIterator[CutOffStore]:
    async with closing_store(CutOffStore(EtcdAddress((server.url,), timeout_s=20))) as store:
        yield store


@asynccontextmanager
async def closing_store(store: Store) -> AsyncIterator[Store]:
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def sites() -> AsyncIterator[Sites]:
    sites = Sites()
    with pumping(sites):
        yield sites


def fill(sites: Sites) -> None:
    """Give each key state, at its owner."""
    for number, key in enumerate(SERVED):
        owner = sites.owner_of(key)
        assert owner is not None
        owner.state[key] = number


def kept(sites: Sites) -> dict[str, int]:
    """The state of all keys, where their owners are."""
    return {key: owner.state[key] for key in SERVED if (owner := sites.owner_of(key)) and key in owner.state}


ALL = {key: number for number, key in enumerate(SERVED)}


async def settled(store: CoordinationStore) -> int:
    """The epoch, once no change is under way."""
    snapshot = await store.read(KEYS.prefix)
    async with aclosing(store.watch(KEYS.prefix, snapshot.revision)) as news:
        while (entry := await entry_in(store)).following is not None:
            await anext(news)
    return entry.placement.epoch


async def test_machines_join_and_leave_with_their_state_and_each_change_is_an_epoch(
    store: CoordinationStore, sites: Sites
) -> None:
    a, b = (Site(name, store, sites, lease_s=60) for name in "ab")
    async with asyncio.timeout(60), a.running():
        await sites.until_served_by("lobby-a")
        assert await settled(store) == 7
        fill(sites)
        async with b.running():
            await sites.until_served_by("lobby-a", "lobby-b")
            assert kept(sites) == ALL
            assert await settled(store) == 8
            await b.leave()
        await sites.until_served_by("lobby-a")
        assert kept(sites) == ALL
        assert await settled(store) == 9


async def test_a_shard_is_rolled_and_keeps_its_state(store: CoordinationStore, sites: Sites) -> None:
    a, b = (Site(name, store, sites, lease_s=60) for name in "ab")
    async with asyncio.timeout(60), a.running(), b.running():
        await sites.until_served_by("lobby-a", "lobby-b")
        fill(sites)
        (old,) = b.shards
        new = b.launch()
        while old.member.life in sites.shards:
            await sites.changed.wait()
        await sites.until_served_by("lobby-a", "lobby-b")
        assert b.shards == [new]
        assert kept(sites) == ALL


async def test_a_life_that_dies_is_followed_in_its_place_in_the_same_epoch(
    store: CoordinationStore, sites: Sites
) -> None:
    a, b = (Site(name, store, sites, lease_s=60) for name in "ab")
    async with asyncio.timeout(60), a.running(), b.running():
        await sites.until_served_by("lobby-a", "lobby-b")
        epoch = await settled(store)
        (dead,) = b.shards
        dead.end()
        b.launch(follows=True)
        await sites.until_served_by("lobby-a", "lobby-b")
        assert await settled(store) == epoch
        assert await named(store) == {shard.member.life for shard in (*a.shards, *b.shards)}


async def named(store: CoordinationStore) -> set[int]:
    return {member.life for member in (await entry_in(store)).placement.members}


async def test_a_machine_that_is_killed_is_left_out_when_its_lease_ends_and_not_before(
    server: EtcdServer, store: CoordinationStore, sites: Sites
) -> None:
    """The one that is killed coordinates."""
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        killed = await stack.enter_async_context(opened(server))
        first = Site("a", killed, sites, lease_s=LEASE_S)
        running = asyncio.ensure_future(first.run())
        await sites.until_served_by("lobby-a")
        b, c = (Site(name, store, sites, lease_s=60) for name in "bc")
        await stack.enter_async_context(b.running())
        await stack.enter_async_context(c.running())
        await sites.until_served_by("lobby-a", "lobby-b", "lobby-c")
        epoch = await settled(store)
        assert first.machine.lease
        lease_id = first.machine.lease.lease_id
        first.kill()
        # It says nothing to etcd any more, not even that it leaves.
        killed.is_cut_off = True
        running.cancel()
        await asyncio.wait([running])
        await sites.until_served_by("lobby-b", "lobby-c")
        assert await store.remaining(lease_id) == 0
        assert await settled(store) == epoch + 1


async def test_a_pin_is_a_change_and_waits_for_its_shard(store: CoordinationStore, sites: Sites) -> None:
    a, b = (Site(name, store, sites, lease_s=60) for name in "ab")
    async with asyncio.timeout(60), a.running():
        await sites.until_served_by("lobby-a")
        await store.commit([], [Put(KEYS.pins(APP), b'{"k0": "lobby-b", "k1": "lobby-b"}')])
        async with b.running():
            await sites.until_served_by("lobby-a", "lobby-b")
            for key in ("k0", "k1"):
                owner = sites.owner_of(key)
                assert owner
                assert owner.member.name == "lobby-b"
            await b.leave()


class FrozenClock:
    """A coordinator's clock, and its waits."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.looks = 0
        self._looked = asyncio.Event()

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.looks += 1
        self._looked.set()
        self._looked = asyncio.Event()
        await asyncio.sleep(0.001)

    async def looked(self, times: int) -> None:
        """Until the coordinator has looked again so many times."""
        looks = self.looks
        while self.looks < looks + times:
            await self._looked.wait()


async def test_the_lives_of_a_machine_that_an_operator_forgets_count_until_their_fences_have_closed(
    server: EtcdServer, store: CoordinationStore, sites: Sites
) -> None:
    clock = FrozenClock()
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        cut_off = await stack.enter_async_context(opened(server))
        a = Site("a", store, sites, lease_s=60, clock=clock)
        b = Site("b", cut_off, sites, lease_s=60)
        await stack.enter_async_context(a.running())
        running = asyncio.ensure_future(b.run())
        await sites.until_served_by("lobby-a", "lobby-b")
        epoch = await settled(store)
        assert b.machine.lease
        lease_id = b.machine.lease.lease_id
        cut_off.is_cut_off = True
        running.cancel()
        await asyncio.wait([running])
        await store.commit([], [Put(KEYS.forgotten(lease_id), b"60")])
        await store.revoke(lease_id)
        await clock.looked(20)
        assert await settled(store) == epoch
        assert (await store.read(KEYS.forgotten_leases)).entries
        clock.now_s += 59
        await clock.looked(20)
        assert await settled(store) == epoch
        clock.now_s += 2
        await sites.until_served_by("lobby-a")
        assert await settled(store) == epoch + 1
        changed = a.machine.changed
        while (await store.read(KEYS.forgotten_leases)).entries:
            await changed.wait()
            changed = a.machine.changed


async def test_a_mark_is_looked_at_again_until_it_is_removed_also_where_nothing_else_changes() -> None:
    """Of a machine whose lives no entry names: it was forgotten before its lives owned keys."""
    store, clock = MemoryCoordination(), FrozenClock()
    leads, forgotten = (await store.grant(60)).lease_id, (await store.grant(60)).lease_id
    record = MachineRecord(name="a", advertise="127.0.0.1", release="0", lease_s=60, start="a-1")
    await store.commit(
        [], [Put(KEYS.machine("a"), record_bytes(record), leads), Put(KEYS.candidate(leads), b"a", leads)]
    )
    await store.commit([], [Put(KEYS.forgotten(forgotten), b"60")])
    await store.revoke(forgotten)
    view = ClusterView(KEYS, await store.read(KEYS.prefix))
    machine: Any = SimpleNamespace(view=view, lease=SimpleNamespace(is_lost=False, lease_id=leads), name="a")
    coordinator = Coordinator(store, machine, lambda _: FirstPlacement(1), now=clock.now)
    assert not await coordinator._has_ended(forgotten, view)
    assert not await coordinator.look()
    clock.now_s += 61
    assert await coordinator.look()
    assert not (await store.read(KEYS.forgotten_leases)).entries


async def test_the_mark_of_a_forgotten_machine_counts_before_the_watch_has_shown_it() -> None:
    """Else its lives would count as dead while they may still serve."""
    store, clock = MemoryCoordination(), FrozenClock()
    before = ClusterView(KEYS, await store.read(KEYS.prefix))
    lease_id = (await store.grant(60)).lease_id
    await store.commit([], [Put(KEYS.forgotten(lease_id), b"60")])
    await store.revoke(lease_id)
    machine: Any = None
    coordinator = Coordinator(store, machine, lambda _: FirstPlacement(1), now=clock.now)
    ended = []
    for seconds in (0, 59, 2):
        clock.now_s += seconds
        ended.append(await coordinator._has_ended(lease_id, before))
    assert ended == [False, False, True]


async def test_a_standing_cluster_asks_etcd_nothing_but_renewals(server: EtcdServer, sites: Sites) -> None:
    counting = Counting(server)
    async with closing_store(counting) as store:
        a = Site("a", counting, sites, lease_s=60)
        async with asyncio.timeout(60), a.running():
            await sites.until_served_by("lobby-a")
            await settled(store)
            while a.machine.view is None or named_in(a.machine.view) != {1}:
                await a.machine.changed.wait()
            before = list(counting.asked)
            await a.coordinator.look()
            await a.placed.follow(a.machine.view)
            assert counting.asked == before


def named_in(view: ClusterView) -> set[int]:
    stored = view.snapshot.entries.get(KEYS.app(APP))
    return set() if stored is None else {m.life for m in entry_of(stored.value, APP).placement.members}


class Counting(EtcdStore):
    """A store that notes what is asked of it."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__(EtcdAddress((server.url,), timeout_s=20))
        self.asked: list[str] = []

    async def renew(self, lease_id: int) -> float:
        self.asked.append("renew")
        return await super().renew(lease_id)

    async def remaining(self, lease_id: int) -> float:
        self.asked.append("remaining")
        return await super().remaining(lease_id)

    async def read(self, prefix: str) -> Snapshot:
        self.asked.append("read")
        return await super().read(prefix)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        self.asked.append("commit")
        return await super().commit(conditions, writes)
