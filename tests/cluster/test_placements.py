"""The entry of an app in the store: who writes it, and in which order; on a store of the test's own and on etcd."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from onelane.cluster.coordination import ConditionFailed, CoordinationStore, Put, Snapshot, StoredEntry
from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore
from onelane.cluster.machines import ClusterKeys, ClusterView
from onelane.cluster.placements import (
    AppEntry,
    CoordinatorTerm,
    Death,
    PlacementRefused,
    check_order,
    entry_bytes,
    entry_of,
    pins_of,
)
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Prepare, Reborn

from tests.cluster.coordination.memory import MemoryCoordination
from tests.etcd import etcd

KEYS = ClusterKeys("arena")
A0, A1, B0 = (Member(f"lobby-{n}", f"10.0.0.{n}:1", f"s{n}", life) for n, life in ((0, 1), (1, 2), (2, 3)))
FIRST = AppEntry(Placement(7, (A0, A1), pins={"k": "lobby-0"}))
SECOND = Placement(8, (A0, A1, B0), pins={"k": "lobby-0"})


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[CoordinationStore]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryCoordination()
            return
        server = stack.enter_context(etcd())
        real = EtcdStore(EtcdAddress((server.url,), timeout_s=20))
        stack.push_async_callback(real.close)
        yield real


async def candidate(store: CoordinationStore) -> int:
    """The lease of a further machine."""
    lease_id = (await store.grant(600)).lease_id
    await store.commit([], [Put(KEYS.candidate(lease_id), b"", lease_id)])
    return lease_id


async def term(store: CoordinationStore, lease_id: int) -> CoordinatorTerm:
    view = ClusterView(KEYS, await store.read(KEYS.prefix))
    current = CoordinatorTerm.of(view, lease_id)
    assert current
    return current


async def stored(store: CoordinationStore) -> AppEntry:
    return entry_of((await store.read(KEYS.app("lobby"))).entries[KEYS.app("lobby")].value, "lobby")


async def test_the_coordinator_begins_and_ends_changes_one_epoch_after_the_other(store: CoordinationStore) -> None:
    lease_id = await candidate(store)
    for entry in (FIRST, FIRST.begun(SECOND), AppEntry(SECOND)):
        await store.commit(*(await term(store, lease_id)).put("lobby", entry))
        assert await stored(store) == entry


async def test_a_machine_that_is_not_the_oldest_candidate_writes_nothing(store: CoordinationStore) -> None:
    await candidate(store)
    view_of_later = ClusterView(KEYS, await store.read(KEYS.prefix))
    assert CoordinatorTerm.of(view_of_later, await candidate(store)) is None
    assert CoordinatorTerm.of(ClusterView(KEYS, await MemoryCoordination().read(KEYS.prefix)), 1) is None


async def test_a_coordinator_that_wakes_up_beside_the_next_one_changes_nothing(store: CoordinationStore) -> None:
    paused, following = [await candidate(store) for _ in range(2)]
    await store.commit(*(await term(store, paused)).put("lobby", FIRST))
    late = await term(store, paused)
    await store.revoke(paused)
    with pytest.raises(ConditionFailed):
        await store.commit(*late.put("lobby", FIRST.begun(replace(SECOND, points=1))))
    await store.commit(*(await term(store, following)).put("lobby", FIRST.begun(SECOND)))
    assert await stored(store) == FIRST.begun(SECOND)


async def test_of_two_writes_that_were_decided_on_one_view_the_first_counts(store: CoordinationStore) -> None:
    lease_id = await candidate(store)
    same_view = await term(store, lease_id)
    await store.commit(*same_view.put("lobby", FIRST))
    with pytest.raises(ConditionFailed):
        await store.commit(*same_view.put("lobby", replace(FIRST, placement=SECOND)))
    assert await stored(store) == FIRST


BETWEEN, UNDER_WAY = FIRST, FIRST.begun(SECOND)


@pytest.mark.parametrize(
    ("last", "entry", "reason"),
    [
        (BETWEEN, AppEntry(SECOND), "no change to this placement of epoch 8 is under way"),
        (BETWEEN, BETWEEN, "no change to this placement of epoch 7"),
        (BETWEEN, AppEntry(FIRST.placement, replace(SECOND, epoch=9)), "epoch 9 does not follow 7"),
        (BETWEEN, AppEntry(replace(FIRST.placement, members=(A0,)), SECOND), "epoch 7 has other shards by the store"),
        (UNDER_WAY, AppEntry(FIRST.placement, SECOND), "the change to epoch 8 is under way"),
        (UNDER_WAY, BETWEEN, "no change to this placement of epoch 7"),
        (UNDER_WAY, AppEntry(replace(SECOND, members=(A0, B0))), "no change to this placement of epoch 8"),
    ],
)
async def test_what_breaks_the_order_of_epochs_is_refused(last: AppEntry, entry: AppEntry, reason: str) -> None:
    memory = MemoryCoordination()
    lease_id = await candidate(memory)
    await memory.commit([], [Put(KEYS.app("lobby"), entry_bytes(last))])
    with pytest.raises(PlacementRefused, match=reason):
        (await term(memory, lease_id)).put("lobby", entry)


def test_a_shard_whose_life_is_another_one_at_the_end_of_a_change_has_its_place() -> None:
    with_next_life = replace(SECOND, members=(A0, replace(A1, life=9), B0))
    assert UNDER_WAY.ended(with_next_life) == AppEntry(with_next_life)


def test_between_changes_the_next_life_of_a_shard_is_named_in_the_same_epoch() -> None:
    with_next_life = AppEntry(replace(FIRST.placement, members=(A0, replace(A1, life=9))))
    check_order(BETWEEN, with_next_life)
    with pytest.raises(PlacementRefused, match="epoch 7 has other shards by the store"):
        check_order(BETWEEN, AppEntry(replace(FIRST.placement, members=(A0, B0))))


def test_in_a_change_deaths_are_added_and_none_is_taken_back() -> None:
    later = replace(UNDER_WAY, deaths=(Death(A1.life), Death(A1.life, replace(A1, life=9))))
    check_order(UNDER_WAY, later)
    for earlier in (UNDER_WAY, replace(later, deaths=later.deaths[1:]), replace(later, placement=SECOND)):
        with pytest.raises(PlacementRefused, match="the change to epoch 8 is under way"):
            check_order(later, earlier)


def test_a_life_is_told_the_orders_of_the_change_and_those_of_a_later_entry_begin_with_them() -> None:
    assert BETWEEN.orders_for(A0.life) == []
    first = UNDER_WAY.orders_for(A0.life)
    assert first == [Prepare(FIRST.placement, SECOND, frozenset())]
    next_life = replace(A1, life=9)
    later = replace(UNDER_WAY, deaths=(Death(A1.life), Death(A1.life, next_life)))
    assert later.orders_for(A0.life) == [*first, Gone(A1.life), Reborn(next_life)]
    assert [type(order) for order in later.orders_for(9)] == [Prepare]


def test_pins_that_cannot_be_read_are_refused_with_the_name_of_the_app() -> None:
    def view(*values: bytes) -> ClusterView:
        entries = [StoredEntry(KEYS.pins("lobby"), value, 1, 1) for value in values]
        return ClusterView(KEYS, Snapshot(1, {entry.key: entry for entry in entries}))

    assert pins_of(view(), "lobby") == {}
    assert pins_of(view(b'{"k": "lobby-0"}'), "lobby") == {"k": "lobby-0"}
    with pytest.raises(PlacementRefused, match="the pins of app 'lobby' cannot be read"):
        pins_of(view(b'["k"]'), "lobby")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"version": 2, "app": {}}', "'lobby' was written by a newer release: upgrade this machine"),
        (b"[]", "'lobby' is no placement"),
        (b"{", "'lobby' is no placement"),
        (b'{"version": 1, "app": {"placement": 3}}', "'lobby' is no placement"),
    ],
)
def test_an_entry_that_cannot_be_understood_is_told_by_its_app(value: bytes, reason: str) -> None:
    with pytest.raises(PlacementRefused, match=reason):
        entry_of(value, "lobby")
