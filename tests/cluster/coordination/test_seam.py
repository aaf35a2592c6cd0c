"""Every store of coordination keeps the same contract: etcd's, and the fake of our own tests."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress

import pytest
from onelane.cluster.coordination import (
    ConditionFailed,
    CoordinationStore,
    Created,
    EntryChanges,
    HistoryLost,
    LeaseEnded,
    Put,
    Remove,
    Unchanged,
)
from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore

from tests.cluster.coordination.memory import MemoryCoordination
from tests.etcd import BOUND_S, EtcdServer, etcd

FOLDERS = (f"/test-{number}/" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[CoordinationStore]:
    if request.param == "memory":
        yield MemoryCoordination()
        return
    store = EtcdStore(EtcdAddress((request.getfixturevalue("server").url,), timeout_s=BOUND_S))
    yield store
    await store.close()


@pytest.fixture
def folder() -> str:
    """A prefix that no other test uses: they share the server."""
    return next(FOLDERS)


async def following(store: CoordinationStore, prefix: str, after: int, count: int) -> list[tuple[str, bytes | None]]:
    """The next `count` changes, however they are grouped."""
    seen: list[tuple[str, bytes | None]] = []
    async with aclosing(store.watch(prefix, after)) as news:
        while len(seen) < count:
            changes = await anext(news)
            seen += [(key.removeprefix(prefix), entry.value if entry else None) for key, entry in changes.entries]
    return seen


async def test_what_was_put_is_read_with_its_revisions(store: CoordinationStore, folder: str) -> None:
    first = await store.commit([], [Put(f"{folder}a", b"\0\xff"), Put(f"{folder}b", b"")])
    second = await store.commit([], [Put(f"{folder}a", b"2")])
    snapshot = await store.read(folder)
    assert second > first
    assert snapshot.revision >= second
    rows = {entry.key: (entry.value, entry.created, entry.changed) for entry in snapshot.entries.values()}
    assert rows == {f"{folder}a": (b"2", first, second), f"{folder}b": (b"", first, first)}


async def test_a_prefix_ends_where_it_ends(store: CoordinationStore, folder: str) -> None:
    await store.commit(
        [], [Put(f"{folder}a", b"1"), Put(f"{folder[:-1]}0", b"beside"), Put(f"{folder}\U0001f600", b"2")]
    )
    assert [key.removeprefix(folder) for key in (await store.read(folder)).entries] == ["a", "\U0001f600"]


async def test_a_transaction_whose_condition_fails_changes_nothing(store: CoordinationStore, folder: str) -> None:
    key = f"{folder}a"
    first = await store.commit([Created(key, 0)], [Put(key, b"1")])
    writes = [Put(key, b"2"), Put(f"{folder}b", b"2")]
    for condition in (
        Created(key, 0),
        Created(key, first + 1),
        Unchanged(key, first - 1),
        Unchanged(f"{folder}b", first),
    ):
        with pytest.raises(ConditionFailed):
            await store.commit([Unchanged(key, first), condition], writes)
    assert [entry.value for entry in (await store.read(folder)).entries.values()] == [b"1"]
    second = await store.commit([Unchanged(key, first), Created(key, first)], writes)
    with pytest.raises(ConditionFailed):
        await store.commit([Unchanged(key, first)], writes)
    assert (await store.read(folder)).entries[key].changed == second


async def test_of_many_that_create_an_entry_at_once_one_has_created_it(store: CoordinationStore, folder: str) -> None:
    key = f"{folder}leader"
    attempts = [store.commit([Created(key, 0)], [Put(key, str(n).encode())]) for n in range(8)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    winners = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert [str(n).encode() for n in winners] == [(await store.read(folder)).entries[key].value]


async def test_a_watch_has_each_change_once_and_in_order(store: CoordinationStore, folder: str) -> None:
    start = (await store.read(folder)).revision
    await store.commit([], [Put(f"{folder}a", b"1")])
    watching = asyncio.ensure_future(following(store, folder, start, 4))
    await store.commit([], [Put(f"{folder}a", b"2"), Put(f"{folder}b", b"3")])
    await store.commit([], [Put("/aside", b"")])
    await store.commit([], [Remove(f"{folder}a")])
    assert await watching == [("a", b"1"), ("a", b"2"), ("b", b"3"), ("a", None)]


async def test_a_watch_goes_on_from_the_revision_of_what_it_has_shown(store: CoordinationStore, folder: str) -> None:
    start = (await store.read(folder)).revision
    for value in (b"1", b"2", b"3"):
        await store.commit([], [Put(f"{folder}a", value)])
    async with aclosing(store.watch(folder, start)) as news:
        first: EntryChanges = await anext(news)
    shown = [entry.value for _, entry in first.entries if entry]
    rest = await following(store, folder, first.revision, 3 - len(shown))
    assert shown + [value for _, value in rest] == [b"1", b"2", b"3"]


async def test_a_watch_from_a_compacted_revision_says_so(
    store: CoordinationStore, folder: str, request: pytest.FixtureRequest
) -> None:
    start = (await store.read(folder)).revision
    for value in (b"1", b"2"):
        await store.commit([], [Put(f"{folder}a", value)])
    if isinstance(store, MemoryCoordination):
        store.compact()
    else:
        revision = (await store.read(folder)).revision
        request.getfixturevalue("server").ask("kv/compaction", f'{{"revision": "{revision}", "physical": true}}')
    with pytest.raises(HistoryLost):
        await following(store, folder, start, 1)


async def test_an_entry_goes_with_its_lease_and_all_of_a_lease_at_once(store: CoordinationStore, folder: str) -> None:
    lease, other = (await store.grant(30)).lease_id, (await store.grant(30)).lease_id
    await store.commit([], [Put(f"{folder}{name}", b"", lease) for name in "ab"] + [Put(f"{folder}c", b"", other)])
    snapshot = await store.read(folder)
    assert [entry.lease_id for entry in snapshot.entries.values()] == [lease, lease, other]
    await store.revoke(lease)
    await store.revoke(lease)
    assert sorted(await following(store, folder, snapshot.revision, 2)) == [("a", None), ("b", None)]
    assert [*(await store.read(folder)).entries] == [f"{folder}c"]


async def test_a_lease_that_has_ended_is_not_renewed_and_holds_nothing(store: CoordinationStore, folder: str) -> None:
    granted = await store.grant(30)
    assert granted.ttl_s >= 30
    assert await store.renew(granted.lease_id) >= 30
    await store.revoke(granted.lease_id)
    assert await store.renew(granted.lease_id) == 0
    with pytest.raises(LeaseEnded):
        await store.commit([], [Put(f"{folder}a", b"", granted.lease_id)])
    assert (await store.read(folder)).entries == {}


async def test_what_a_lease_has_left_is_told_to_anybody_and_renews_nothing(store: CoordinationStore) -> None:
    lease = (await store.grant(60)).lease_id
    assert 0 < await store.remaining(lease) <= 60
    await store.revoke(lease)
    assert await store.remaining(lease) == 0
    assert await store.remaining(4711) == 0


async def test_an_entry_that_is_written_again_without_its_lease_stays(store: CoordinationStore, folder: str) -> None:
    lease = (await store.grant(30)).lease_id
    await store.commit([], [Put(f"{folder}a", b"1", lease)])
    await store.commit([], [Put(f"{folder}a", b"2")])
    await store.revoke(lease)
    assert (await store.read(folder)).entries[f"{folder}a"].value == b"2"


@pytest.mark.slow
async def test_a_lease_runs_out_if_it_is_not_renewed_and_not_before(store: CoordinationStore, folder: str) -> None:
    renewed = await store.grant(60)
    while True:
        lease = await store.grant(1)
        writes = [Put(f"{folder}a", b"", lease.lease_id), Put(f"{folder}b", b"", renewed.lease_id)]
        # On a busy machine a second may pass here.
        with suppress(LeaseEnded):
            start = await store.commit([], writes)
            break
    ended = asyncio.ensure_future(following(store, folder, start, 1))
    if isinstance(store, MemoryCoordination):
        store.advance(0.9)
        assert await store.renew(lease.lease_id) == 1
        store.advance(1)
    assert await ended == [("a", None)]
    assert await store.renew(lease.lease_id) == 0
