"""A machine joins, stays, is cut off, is given up, comes back: on a store and a time of the test's own, and on etcd."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from onelane.cluster.coordination import Condition, CoordinationUnavailable, EntryChanges, Put, Remove, Snapshot, Write
from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore
from onelane.cluster.machines import ClusterKeys, JoinRefused, MachineRecord, record_bytes
from onelane.core.clock import boottime_s
from onelane.core.placement import Member
from onelane.supervisor.machine import Machine

from tests.cluster.coordination.memory import MemoryCoordination
from tests.etcd import etcd, etcd_of_three
from tests.running_app import ROOT
from tests.supervisor.scripted_lives import ScriptedLives, ScriptedTime, rest, until

KEYS = ClusterKeys("arena")
A = MachineRecord(name="a", advertise="10.0.0.11", release="0.1.0", lease_s=5.0, start="a-1", settings={"lobby": "d"})
B = replace(A, name="b", advertise="10.0.0.12", start="b-1")


class Cluster:
    """Machines on one store."""

    def __init__(self) -> None:
        self.store = MemoryCoordination()
        self.time = ScriptedTime(self.store)
        self.lives: dict[str, ScriptedLives] = {}

    @asynccontextmanager
    async def running(self, record: MachineRecord) -> AsyncIterator[Machine]:
        machine = self.machine(record)
        running = asyncio.ensure_future(machine.run())
        await rest()
        try:
            yield machine
        finally:
            running.cancel()
            await asyncio.wait([running])

    def machine(self, record: MachineRecord) -> Machine:
        lives = self.lives[record.start] = ScriptedLives()
        time = self.time
        return Machine(self.store, KEYS, record, lives, now=time.now, sleep_until=time.sleep_until)

    def serving(self, record: MachineRecord) -> list[int]:
        return self.lives[record.start].serving(self.time.now())

    async def names(self) -> list[str]:
        entries = (await self.store.read(KEYS.machines)).entries
        return sorted(key.removeprefix(KEYS.machines) for key in entries)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# Joining


async def test_machines_join_see_each_other_and_the_first_one_coordinates(cluster: Cluster) -> None:
    async with cluster.running(A) as a, cluster.running(B) as b:
        await rest()
        for machine in (a, b):
            assert machine.view
            assert machine.view.machines() == [A, B]
            coordinator = machine.view.coordinator()
            assert coordinator
            assert coordinator.value == b"a"


async def test_a_machine_that_leaves_ends_its_lives_and_is_gone_at_once(cluster: Cluster) -> None:
    async with cluster.running(B) as b:
        async with cluster.running(A):
            assert cluster.serving(A) == [2]
        assert cluster.lives["a-1"].ended == [2]
        await rest()
        assert b.view
        assert b.view.machines() == [B]


@pytest.mark.parametrize("lease_s", [5.0, 1.0, 60.0], ids=["", "it was longer", "it was shorter"])
async def test_a_machine_waits_for_its_own_last_start_whose_lease_has_not_run_out(
    cluster: Cluster, lease_s: float
) -> None:
    """By the last start's own lease: the setting may have changed since."""
    record = replace(A, lease_s=lease_s)
    last = await cluster.store.grant(5.0)
    await cluster.store.commit([], [Put(KEYS.machine("a"), record_bytes(replace(A, start="a-0")), last.lease_id)])
    async with cluster.running(record):
        await cluster.time.advance(4.5)
        assert cluster.serving(record) == []
        await cluster.time.advance(3)
        assert cluster.serving(record) == [2]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (replace(A, start="other"), "a machine 'a' is there already, at 10.0.0.11: set `machine` to another name"),
        (replace(B, trust="sha256:2"), "machine 'a' trusts another authority"),
        (replace(B, settings={"lobby": "e"}), "app 'lobby' is set up otherwise on machine 'a'"),
    ],
)
async def test_a_machine_that_does_not_fit_is_refused_and_disturbs_nobody(
    cluster: Cluster, record: MachineRecord, reason: str
) -> None:
    async with cluster.running(A):
        refused = asyncio.ensure_future(cluster.machine(record).run())
        await rest()
        await cluster.time.advance(12)
        with pytest.raises(JoinRefused, match=reason):
            await refused
        assert cluster.serving(A) == [1]
        assert await cluster.names() == ["a"]


async def test_a_machine_whose_wall_clock_is_another_one_is_refused_and_one_that_is_set_later_is_told(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.store.ahead_s = 1.0
    async with cluster.running(A) as a:
        cluster.store.ahead_s = -3600.0
        refused = asyncio.ensure_future(cluster.machine(B).run())
        await rest()
        expected = "that of 'b' is 3600 s behind etcd's and that of 'a' is 1 s ahead of etcd's: set the wrong one"
        with pytest.raises(JoinRefused, match=expected):
            await refused
        assert await cluster.names() == ["a"]
        await cluster.time.advance(4)
        assert "machine.clock_differs name=a ahead_of_etcd_s=-3600" in caplog.text
        assert a.view
        assert a.view.machines() == [replace(A, ahead_s=-3600.0)]
        assert cluster.serving(A) == [1], "nothing that serves keys goes by it"


async def test_beside_a_record_of_a_newer_release_a_machine_does_not_join(cluster: Cluster) -> None:
    newer = b'{"version": 9, "oldest_reader": 9, "machine": {"release": "7.0"}}'
    await cluster.store.commit([], [Put(KEYS.machine("b"), newer)])
    with pytest.raises(
        JoinRefused, match=r"machine 'b' cannot be understood: it runs onelane 7\.0.*upgrade this machine"
    ):
        await cluster.machine(A).run()
    assert await cluster.names() == ["b"]


class SlowCoordination(MemoryCoordination):
    """Others have their turn before each answer."""

    async def read(self, prefix: str) -> Snapshot:
        await asyncio.sleep(0)
        return await super().read(prefix)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        await asyncio.sleep(0)
        return await super().commit(conditions, writes)


async def test_of_two_that_do_not_fit_and_join_at_once_one_stays(cluster: Cluster) -> None:
    """Their first look shows nobody; the second one, after their records are put, shows both."""
    cluster.store = SlowCoordination()
    cluster.time = ScriptedTime(cluster.store)
    machines = [cluster.machine(A), cluster.machine(replace(B, settings={"lobby": "e"}))]
    joining = [asyncio.ensure_future(machine.run()) for machine in machines]
    await rest()
    refused = [task for task in joining if task.done()]
    assert [type(task.exception()) for task in refused] == [JoinRefused]
    assert len(await cluster.names()) == 1
    for task in joining:
        task.cancel()
    await asyncio.wait(joining)


async def test_a_machine_that_finds_no_store_waits_and_joins_when_it_is_there(cluster: Cluster) -> None:
    cluster.store.is_down = True
    async with cluster.running(A):
        await cluster.time.advance(20)
        cluster.store.is_down = False
        await cluster.time.advance(2)
        assert len(cluster.serving(A)) == 1


# Staying


async def test_a_machine_renews_its_lease_three_times_in_its_time_and_asks_the_store_nothing_else(
    cluster: Cluster,
) -> None:
    async with cluster.running(A) as machine:
        before = cluster.store.requests
        await cluster.time.advance(60)
        assert cluster.serving(A) == [1]
        assert cluster.store.requests - before == pytest.approx(60 / 5 * 3, abs=3)
        assert machine.lease
        assert machine.lease.serve_until - cluster.time.now() > 2.0


async def test_an_outage_of_the_store_that_is_shorter_than_the_fence_is_not_felt(cluster: Cluster) -> None:
    async with cluster.running(A):
        cluster.store.is_down = True
        await cluster.time.advance(2)
        assert cluster.serving(A) == [1]
        cluster.store.is_down = False
        await cluster.time.advance(3)
        assert cluster.serving(A) == [1]


async def test_a_machine_that_is_cut_off_is_fenced_before_it_is_given_up_and_then_joins_with_new_lives(
    cluster: Cluster,
) -> None:
    async with cluster.running(A):
        cluster.store.is_down = True
        while cluster.serving(A):
            await cluster.time.advance(0.25)
        assert 1 in cluster.lives["a-1"].fences, "its memory is kept"
        cluster.store.is_down = False
        assert await cluster.names() == ["a"], "it is not given up yet"
        cluster.store.is_down = True
        await cluster.time.advance(2)
        cluster.store.is_down = False
        assert await cluster.names() == []
        await cluster.time.advance(3)
        assert cluster.lives["a-1"].ended == [1]
        assert cluster.serving(A) == [2]


async def test_a_fenced_machine_that_is_renewed_in_time_goes_on_with_its_lives(cluster: Cluster) -> None:
    async with cluster.running(A):
        cluster.store.is_down = True
        while cluster.serving(A):
            await cluster.time.advance(0.25)
        cluster.store.is_down = False
        await cluster.time.advance(0.5)
        assert cluster.serving(A) == [1]
        assert cluster.lives["a-1"].ended == []


async def test_a_machine_whose_lease_is_revoked_stops_at_once(cluster: Cluster) -> None:
    async with cluster.running(A):
        await cluster.store.revoke(1)
        await rest()
        assert cluster.lives["a-1"].ended == [1]
        assert 1 not in cluster.serving(A)


@pytest.mark.parametrize("names", [["machine"], ["candidate"], ["machine", "candidate"]])
async def test_a_record_that_somebody_has_removed_is_put_again_and_ends_no_life(
    cluster: Cluster, names: list[str]
) -> None:
    entries = {"machine": KEYS.machine("a"), "candidate": KEYS.candidate(1)}
    async with cluster.running(A):
        await cluster.store.commit([], [Remove(entries[name]) for name in names])
        await rest()
        assert {*(await cluster.store.read(KEYS.prefix)).entries} == {*entries.values()}
        assert cluster.serving(A) == [1]
        assert cluster.lives["a-1"].ended == []


LIVES = {"lobby": (Member("lobby-0", "10.0.0.11:50151", "s", 3),)}


async def test_the_lives_that_run_are_in_the_record_at_once_and_under_the_same_lease(cluster: Cluster) -> None:
    async with cluster.running(A) as a, cluster.running(B) as b:
        a.announce(LIVES)
        await rest()
        assert b.view
        assert b.view.machines() == [replace(A, apps=LIVES), B]
        assert (cluster.serving(A), cluster.lives["a-1"].ended) == ([1], [])


MORE_LIVES = {"lobby": (*LIVES["lobby"], Member("lobby-1", "10.0.0.11:50152", "t", 4))}


async def test_a_record_is_written_by_one_request_as_long_as_nobody_else_writes_it(cluster: Cluster) -> None:
    async with cluster.running(A) as a, cluster.running(B) as b:
        for lives in (LIVES, MORE_LIVES, {}, LIVES):
            before = cluster.store.requests
            a.announce(lives)
            await rest()
            assert cluster.store.requests == before + 1
            assert b.view
            assert b.view.machines() == [replace(A, apps=lives), B]


async def test_what_is_announced_soon_after_another_thing_is_written_with_it(cluster: Cluster) -> None:
    async with cluster.running(A) as a, cluster.running(B) as b:
        before = cluster.store.requests
        a.announce(LIVES, within_s=0.25)
        await rest()
        assert b.view
        assert b.view.machines() == [A, B]
        a.announce(MORE_LIVES, within_s=0.25)
        # Others' changes do not have it written earlier.
        await cluster.store.commit([], [Put(KEYS.app("lobby"), b"another entry")])
        await rest()
        assert b.view.machines() == [A, B]
        await cluster.time.advance(0.25)
        assert b.view.machines() == [replace(A, apps=MORE_LIVES), B]
        assert cluster.store.requests == before + 2


async def test_what_is_announced_at_once_is_written_with_what_could_have_waited(cluster: Cluster) -> None:
    async with cluster.running(A) as a, cluster.running(B) as b:
        a.announce(LIVES, within_s=0.25)
        a.announce(MORE_LIVES)
        await rest()
        assert b.view
        assert b.view.machines() == [replace(A, apps=MORE_LIVES), B]


async def test_a_record_that_somebody_else_has_written_is_written_over(cluster: Cluster) -> None:
    async with cluster.running(A) as a:
        await cluster.store.commit([], [Put(KEYS.machine("a"), record_bytes(replace(A, release="0.0.9")), 1)])
        a.announce(LIVES)
        await rest()
        entry = (await cluster.store.read(KEYS.machine("a"))).entries[KEYS.machine("a")]
        assert (entry.value, entry.lease_id) == (record_bytes(replace(A, apps=LIVES)), 1)
        assert cluster.serving(A) == [1]


async def test_records_that_are_written_often_do_not_hold_up_the_renewals(cluster: Cluster) -> None:
    async with cluster.running(A) as a:
        for number in range(40):
            a.announce(LIVES if number % 2 else MORE_LIVES)
            await cluster.time.advance(0.5)
        assert cluster.serving(A) == [1]
        assert cluster.lives["a-1"].ended == []


async def test_lives_that_are_announced_while_the_store_is_down_are_in_the_record_once_it_is_back(
    cluster: Cluster,
) -> None:
    async with cluster.running(A) as a:
        cluster.store.is_down = True
        await cluster.time.advance(1)
        a.announce(LIVES)
        await cluster.time.advance(1)
        cluster.store.is_down = False
        await cluster.time.advance(1)
        entry = (await cluster.store.read(KEYS.machine("a"))).entries[KEYS.machine("a")]
        assert entry.value == record_bytes(replace(A, apps=LIVES))


class HeldCoordination(MemoryCoordination):
    """An answer to a read comes when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def read(self, prefix: str) -> Snapshot:
        snapshot = await super().read(prefix)
        await self.may_answer.wait()
        return snapshot


async def test_an_answer_that_is_older_than_the_view_takes_nothing_from_it(cluster: Cluster) -> None:
    """What the watch has shown meanwhile it shows only once: a change of placement would stand still."""
    store = cluster.store = HeldCoordination()
    cluster.time = ScriptedTime(store)
    async with cluster.running(A) as a:
        store.may_answer.clear()
        a.announce(LIVES)
        # So that the record has to be read before it is written.
        await store.commit([], [Put(KEYS.machine("a"), b"{}", 1)])
        await rest()
        await store.commit([], [Put(KEYS.app("lobby"), b"seen by the watch alone")])
        await rest()
        store.may_answer.set()
        await rest()
        assert a.view
        assert KEYS.app("lobby") in a.view.snapshot.entries
        assert a.view.machines() == [replace(A, apps=LIVES)]


class UnwritableCoordination(MemoryCoordination):
    """It renews leases; from `is_full` on it writes nothing."""

    is_full = False

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        if self.is_full:
            raise CoordinationUnavailable("the disk is full")
        return await super().commit(conditions, writes)


async def test_a_renewal_that_is_answered_counts_also_where_the_record_cannot_be_written(cluster: Cluster) -> None:
    store = cluster.store = UnwritableCoordination()
    cluster.time = ScriptedTime(store)
    async with cluster.running(A) as a:
        store.is_full = True
        a.announce(LIVES)
        await cluster.time.advance(12)
        assert cluster.serving(A) == [1]


async def test_a_record_that_could_not_be_written_is_written_before_the_next_renewal(cluster: Cluster) -> None:
    """The others may wait for what it says."""
    store = cluster.store = UnwritableCoordination()
    cluster.time = ScriptedTime(store)
    async with cluster.running(A) as a:
        store.is_full = True
        a.announce(LIVES)
        await rest()
        store.is_full = False
        await cluster.time.advance(A.lease_s / 3 - 1)
        assert a.view
        assert a.view.machines() == [replace(A, apps=LIVES)]


class RemovingCoordination(MemoryCoordination):
    """Somebody removes the record of a machine as soon as it is written, the first time."""

    has_removed = False

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        revision = await super().commit(conditions, writes)
        if not self.has_removed and any(write.key == KEYS.machine("a") for write in writes):
            self.has_removed = True
            await super().commit([], [Remove(KEYS.machine("a"))])
        return revision


async def test_a_machine_whose_record_is_removed_as_it_joins_starts_no_life_before_it_stands(cluster: Cluster) -> None:
    store = cluster.store = RemovingCoordination()
    cluster.time = ScriptedTime(store)
    async with cluster.running(A):
        assert (store.has_removed, cluster.serving(A)) == (True, [])
        await cluster.time.advance(2)
        assert await cluster.names() == ["a"]
        assert cluster.serving(A) == [2]


class LateReadCoordination(MemoryCoordination):
    """One read is answered only once a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = False
        self.go_on = asyncio.Event()

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[EntryChanges]:
        async for changes in super().watch(prefix, after):
            await asyncio.sleep(0)
            yield changes

    async def read(self, prefix: str) -> Snapshot:
        snapshot = await super().read(prefix)
        if self.is_held:
            self.is_held = False
            await self.go_on.wait()
        return snapshot


async def test_a_view_that_is_read_anew_never_goes_back(cluster: Cluster) -> None:
    """The read was answered before what the machine has seen since by another one."""
    store = cluster.store = LateReadCoordination()
    cluster.time = ScriptedTime(store)
    async with cluster.running(A) as a:
        store.is_down = True
        await cluster.time.advance(1)
        store.is_down = False
        store.is_held = True
        await store.commit([], [Put(KEYS.machine("c"), b"{}")])
        store.compact()
        await rest()
        await store.commit([], [Put(KEYS.machine("d"), b"{}"), Put(KEYS.machine("a"), b"{}", 1)])
        # It finds another record than it knows, and reads.
        a.announce(LIVES)
        await rest()
        seen: list[int] = []
        noting = asyncio.ensure_future(note_revisions(a, seen))
        store.go_on.set()
        await rest()
        noting.cancel()
        assert seen == sorted(seen)


async def note_revisions(machine: Machine, revisions: list[int]) -> None:
    while True:
        changed = machine.changed
        assert machine.view
        revisions.append(machine.view.snapshot.revision)
        await changed.wait()


async def test_a_machine_whose_name_another_one_has_taken_ends_its_lives(cluster: Cluster) -> None:
    async with cluster.running(A):
        other = await cluster.store.grant(600.0)
        taken = Put(KEYS.machine("a"), record_bytes(replace(A, start="other")), other.lease_id)
        await cluster.store.commit([], [taken])
        await rest()
        assert cluster.lives["a-1"].ended == [1]
        assert cluster.serving(A) == []


async def test_a_view_whose_history_was_compacted_is_read_anew(cluster: Cluster) -> None:
    async with cluster.running(A) as a:
        cluster.store.is_down = True
        await cluster.time.advance(1)
        cluster.store.is_down = False
        async with cluster.running(B):
            cluster.store.compact()
            await rest()
            assert a.view
            assert a.view.machines() == [A, B]


# The store is far away


class FarCoordination(MemoryCoordination):
    """Renewals take a while to it, and so do their answers."""

    way_s = 0.0
    time: ScriptedTime

    async def renew(self, lease_id: int) -> float:
        await self.time.sleep_until(self.now + self.way_s)
        ttl_s = await super().renew(lease_id)
        await self.time.sleep_until(self.now + self.way_s)
        return ttl_s


async def test_a_machine_whose_renewals_are_answered_after_four_tenths_of_a_lease_keeps_it(cluster: Cluster) -> None:
    """The next one is sent while one is under way: else twice 0.42 of a lease would be more than the 0.8 of a fence."""
    store = cluster.store = FarCoordination()
    cluster.time = store.time = ScriptedTime(store)
    async with cluster.running(A):
        store.way_s = 0.21 * A.lease_s
        for _ in range(80):
            await cluster.time.advance(0.25, step_s=0.05)
            assert cluster.serving(A) == [1]


class SwallowingCoordination(MemoryCoordination):
    """What is asked of it is never answered, so often."""

    renewals = 0
    commits = 0

    async def renew(self, lease_id: int) -> float:
        if self.renewals:
            self.renewals -= 1
            await asyncio.Event().wait()
        return await super().renew(lease_id)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        if self.commits:
            self.commits -= 1
            await asyncio.Event().wait()
        return await super().commit(conditions, writes)


@pytest.mark.parametrize(("renewals", "commits"), [(1, 0), (3, 0), (0, 1), (2, 1)])
async def test_requests_that_are_never_answered_hold_no_renewal_up(
    cluster: Cluster, renewals: int, commits: int
) -> None:
    store = cluster.store = SwallowingCoordination()
    cluster.time = ScriptedTime(store)
    async with cluster.running(A) as machine:
        store.renewals, store.commits = renewals, commits
        machine.announce(LIVES)
        for _ in range(60):
            await cluster.time.advance(0.25)
            assert cluster.serving(A) == [1]
        assert (store.renewals, store.commits) == (0, 0)


async def test_an_etcd_that_is_too_far_away_is_told_with_the_lease_that_it_needs(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.store.answers_in_s = 0.9
    expected = "etcd answers in 0.9 s; lease_s = 5 needs under 0.62 s: set lease_s to 8 at least, or move the machine"
    async with cluster.running(A):
        assert f"machine.far_from_etcd name=a {expected}" in caplog.text
    cluster.store.is_down = True
    async with cluster.running(A) as machine:
        await rest()
        assert machine.trouble.startswith(f"it is down; {expected}")


async def test_a_machine_keeps_its_connections_to_all_members_of_the_store(cluster: Cluster) -> None:
    async with cluster.running(A):
        before = cluster.store.looks
        await cluster.time.advance(10 * A.lease_s)
        assert before == 1
        assert cluster.store.looks == before + 2


# With etcd


@pytest.mark.slow
async def test_lives_are_fenced_while_etcd_is_down_and_go_on_with_their_memory_when_it_is_back() -> None:
    record, lives = replace(A, lease_s=4.0), ScriptedLives()
    with etcd() as server:
        store = EtcdStore(EtcdAddress((server.url,), timeout_s=0.3))
        machine = Machine(store, KEYS, record, lives)
        running = asyncio.ensure_future(machine.run())
        await until(lambda: lives.serving(boottime_s()))
        (lease_id,) = lives.fences
        server.stop()
        await until(lambda: not lives.serving(boottime_s()))
        assert [*lives.fences] == [lease_id]
        server.start()
        await until(lambda: lives.serving(boottime_s()))
        assert [*lives.fences] == [lease_id]
        running.cancel()
        await asyncio.wait([running])
        await until_empty(store)
        await store.close()


@pytest.mark.slow
async def test_a_machine_keeps_its_lease_and_its_view_when_the_leader_of_etcd_dies() -> None:
    record, lives = replace(A, lease_s=4.0), ScriptedLives()
    with etcd_of_three() as members:
        urls = tuple(member.url for member in members)
        store, other = (EtcdStore(EtcdAddress(urls, timeout_s=0.7)) for _ in range(2))
        machine = Machine(store, KEYS, record, lives)
        running = asyncio.ensure_future(machine.run())
        await until(lambda: lives.serving(boottime_s()))
        (lease_id,) = lives.fences
        statuses = [(member, member.ask("maintenance/status", "{}")) for member in members]
        leader = next(member for member, status in statuses if status["header"]["member_id"] == status["leader"])
        leader.stop()
        died_at = boottime_s()
        # A renewal that was sent after its death.
        await until(lambda: machine.lease and machine.lease.serve_until > died_at + 4.0 * 4 / 5)
        assert [*lives.fences] == [lease_id]
        await until_put(other, Put(KEYS.machine("b"), record_bytes(B)))
        await until(lambda: machine.view and machine.view.machines() == [machine.record, B])
        running.cancel()
        await asyncio.wait([running])
        await store.close()
        await other.close()


async def until_empty(store: EtcdStore) -> None:
    """At once where the lease could be revoked; else when it has run out."""
    while True:
        with suppress(CoordinationUnavailable):
            if not (await store.read(KEYS.prefix)).entries:
                return


async def until_put(store: EtcdStore, put: Put) -> None:
    while True:
        with suppress(CoordinationUnavailable):
            await store.commit([], [put])
            return


STOPPED = """
import asyncio, json, sys
from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore
from onelane.cluster.machines import ClusterKeys, MachineRecord
from onelane.core.clock import boottime_s
from onelane.core.placement import Member
from onelane.supervisor.machine import Machine
from tests.supervisor.scripted_lives import ScriptedLives

lives = ScriptedLives()

async def look():
    before = []
    while True:
        now = boottime_s()
        if before != (before := lives.serving(now)):
            print(json.dumps([now, before]), flush=True)
        await asyncio.sleep(0.005)

async def main():
    record = MachineRecord(name="a", advertise="h", release="0", lease_s=1.0, start="s")
    store = EtcdStore(EtcdAddress((sys.argv[1],), timeout_s=0.3))
    await asyncio.gather(look(), Machine(store, ClusterKeys("arena"), record, lives).run())

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_machine_that_was_stopped_for_longer_than_its_lease_comes_back_with_another_and_serves_nothing_before() -> (
    None
):
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}"}
    with etcd() as server:
        command = [sys.executable, "-c", STOPPED, server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stdout
                looks = map(json.loads, iter(process.stdout.readline, ""))
                _, (lease_id,) = next(looks)
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                while server.ask("kv/range", '{"key": "AA==", "range_end": "AA=="}').get("kvs"):
                    pass
                given_up_at = boottime_s()
                process.send_signal(signal.SIGCONT)
                after = next(serving for at, serving in looks if serving and at > given_up_at)
                assert after != [lease_id]
            finally:
                process.kill()
