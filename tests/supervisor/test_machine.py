"""A machine stays, leaves, is cut off, is given up, comes back: on a store and a time of its own, and on etcd."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from onelane.cluster.coordination import Condition, CoordinationUnavailable, EntryChanges, Put, Remove, Snapshot, Write
from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore
from onelane.cluster.machines import record_bytes
from onelane.core.clock import boottime_s
from onelane.core.placement import Member
from onelane.supervisor.machine import Machine

from tests.cluster.coordination.memory import MemoryCoordination
from tests.etcd import etcd, etcd_of_three
from tests.running_app import ROOT
from tests.supervisor.scripted_lives import ScriptedLives, ScriptedTime, rest, until
from tests.supervisor.scripted_machines import KEYS, A, B, Cluster


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def test_a_machine_that_leaves_ends_its_lives_and_is_gone_at_once(cluster: Cluster) -> None:
    async with cluster.running(B) as b:
        async with cluster.running(A):
            assert cluster.serving(A) == [2]
        assert cluster.lives["a-1"].ended == [2]
        await rest()
        assert b.view
        assert b.view.machines() == [B]


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
