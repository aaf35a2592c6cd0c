"""An operator has a machine forgotten, at a real etcd: marked first, then its lease is revoked."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from onelane.cluster.coordination import CoordinationUnavailable, Put, Remove
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.forgetting import JoinedAnew, StillAlive, forget
from onelane.cluster.machines import ClusterKeys, ClusterView, MachineRecord, record_bytes
from onelane.cluster.placements import AppEntry, entry_bytes
from onelane.core.placement import Member, Placement
from onelane.errors import NotThere

from tests.etcd import EtcdServer, etcd
from tests.supervisor.cluster_variables import settings_of

RECORD = MachineRecord(name="b", advertise="10.0.0.12", release="0.1.0", lease_s=60.0, start="s")
names = iter(f"arena-{number}" for number in range(100))


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


@pytest.fixture
async def store(server: EtcdServer) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(etcd_address(settings_of(server, lease_s=60)))
    yield store
    await store.close()


@pytest.fixture
def keys() -> ClusterKeys:
    return ClusterKeys(next(names))


async def joined(store: EtcdStore, keys: ClusterKeys, *, left_s: float = 60, value: bytes = b"") -> int:
    """Machine b, which has this much left of its lease of a minute; the number of that lease."""
    lease = (await store.grant(left_s)).lease_id
    await store.commit([], [Put(keys.machine("b"), value or record_bytes(RECORD), lease)])
    return lease


async def view_of(store: EtcdStore, keys: ClusterKeys) -> ClusterView:
    return ClusterView(keys, await store.read(keys.prefix))


async def test_a_machine_that_renews_its_lease_is_not_forgotten_unless_forced(
    store: EtcdStore, keys: ClusterKeys
) -> None:
    lease = await joined(store, keys)
    with pytest.raises(StillAlive, match=r"machine 'b' is alive, it has renewed its lease \d s ago: stop `onelane up`"):
        await forget(store, keys, "b", is_forced=False)
    assert list((await view_of(store, keys)).snapshot.entries) == [keys.machine("b")]
    forgotten = await forget(store, keys, "b", is_forced=True)
    assert (forgotten.name, forgotten.lease_id, forgotten.waits_s, forgotten.was_alive) == ("b", lease, 60, True)
    view = await view_of(store, keys)
    assert view.entry("b") is None
    assert view.forgotten_lease_s(lease) == 60
    assert await store.remaining(lease) == 0


async def test_one_whose_renewal_is_overdue_is_forgotten_at_once(store: EtcdStore, keys: ClusterKeys) -> None:
    lease = await joined(store, keys, left_s=20)
    assert (await forget(store, keys, "b", is_forced=False)).was_alive is False
    assert await store.remaining(lease) == 0


async def test_the_mark_stands_before_the_lease_is_revoked(store: EtcdStore, keys: ClusterKeys) -> None:
    lease = await joined(store, keys)

    class Interrupted(EtcdStore):
        async def revoke(self, lease_id: int) -> None:
            raise CoordinationUnavailable("etcd is gone")

    interrupted = Interrupted(store._address)
    with pytest.raises(CoordinationUnavailable):
        await forget(interrupted, keys, "b", is_forced=True)
    await interrupted.close()
    assert (await view_of(store, keys)).forgotten_lease_s(lease) == 60
    assert await store.remaining(lease) > 0
    # Once more, and it is done.
    await forget(store, keys, "b", is_forced=True)
    assert await store.remaining(lease) == 0


async def test_a_machine_that_joins_anew_meanwhile_is_left_alone(store: EtcdStore, keys: ClusterKeys) -> None:
    await joined(store, keys)
    leases = []

    class Overtaken(EtcdStore):
        async def commit(self, *transaction: Any) -> int:
            await store.commit([], [Remove(keys.machine("b"))])
            leases.append(await joined(store, keys))
            return await super().commit(*transaction)

    overtaken = Overtaken(store._address)
    with pytest.raises(JoinedAnew, match="nothing was changed"):
        await forget(overtaken, keys, "b", is_forced=True)
    await overtaken.close()
    view = await view_of(store, keys)
    assert list(view.snapshot.entries) == [keys.machine("b")]
    assert await store.remaining(leases[0]) > 0


async def test_a_name_that_no_machine_has_is_told_with_those_that_are_there(
    store: EtcdStore, keys: ClusterKeys
) -> None:
    with pytest.raises(NotThere, match=f"no machine 'b' in cluster '{keys.cluster}'; expected one of: none"):
        await forget(store, keys, "b", is_forced=True)
    await joined(store, keys)
    with pytest.raises(NotThere, match=r"no machine 'a' .*; expected one of: b"):
        await forget(store, keys, "a", is_forced=True)


async def test_a_machine_whose_lease_has_ended_needs_no_forgetting(store: EtcdStore, keys: ClusterKeys) -> None:
    lease = await joined(store, keys)
    member = Member("b/lobby-0", "10.0.0.12:50151", "b@10.0.0.12:41000", 7)
    entry = AppEntry(Placement(3, (member,)), leases=((7, lease),))
    await store.commit([], [Put(keys.app("lobby"), entry_bytes(entry))])
    await store.revoke(lease)
    with pytest.raises(NotThere, match="the lease of machine 'b' has ended already"):
        await forget(store, keys, "b", is_forced=True)


async def test_one_whose_record_somebody_has_removed_is_forgotten_by_its_lease(
    store: EtcdStore, keys: ClusterKeys
) -> None:
    lease = await joined(store, keys)
    member = Member("b/lobby-0", "10.0.0.12:50151", "b@10.0.0.12:41000", 7)
    entry = AppEntry(Placement(3, (member,)), leases=((7, lease),))
    await store.commit([], [Put(keys.app("lobby"), entry_bytes(entry)), Remove(keys.machine("b"))])
    await forget(store, keys, "b", is_forced=True)
    assert await store.remaining(lease) == 0


async def test_one_of_a_newer_release_is_waited_for_as_long_as_a_lease_can_be(
    store: EtcdStore, keys: ClusterKeys
) -> None:
    newer = b'{"version": 9, "oldest_reader": 9, "machine": {"name": "b", "release": "9.0.0"}}'
    lease = await joined(store, keys, value=newer)
    with pytest.raises(StillAlive, match="machine 'b' is alive, it has renewed its lease: stop"):
        await forget(store, keys, "b", is_forced=False)
    assert (await forget(store, keys, "b", is_forced=True)).waits_s == 60
    assert (await view_of(store, keys)).forgotten_lease_s(lease) == 60


async def test_a_record_under_no_lease_is_no_machines(store: EtcdStore, keys: ClusterKeys) -> None:
    await store.commit([], [Put(keys.machine("b"), record_bytes(replace(RECORD)))])
    with pytest.raises(NotThere, match=f"under no lease, so no machine's: remove {keys.machine('b')} in etcd"):
        await forget(store, keys, "b", is_forced=True)
