"""What a machine tells people of its cluster, of itself, and of what it has seen; and what it counts of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from onelane.cli import cluster_text
from onelane.cluster.coordination import Put
from onelane.cluster.machines import AppPart, ClusterKeys, ClusterView, MachineRecord, record_bytes
from onelane.cluster.overview import ClusterOverview, overview_of
from onelane.cluster.placements import AppEntry, entry_bytes
from onelane.core.placement import Member, Placement
from onelane.supervisor import cluster_watch
from onelane.supervisor.cluster_watch import GONE_LISTED_S, ClusterWatch
from onelane.supervisor.machine import Machine
from onelane.telemetry.collector.totals import Totals

from tests.cluster.coordination.memory import MemoryCoordination
from tests.supervisor.scripted_lives import ScriptedLives, ScriptedTime, rest

KEYS = ClusterKeys("arena")
A = MachineRecord(name="a", advertise="10.0.0.11", release="0.9.0", lease_s=5.0, start="a-1")
A0, B0, C0 = (
    Member(f"lobby-{name}0", f"10.0.0.{n}:1", f"{name}@10.0.0.{n}:7", n)
    for name, n in zip("abc", (11, 12, 13), strict=True)
)
B = replace(A, name="b", advertise="10.0.0.12", start="b-1", apps={"lobby": (B0,)})


class Watched:
    """A machine, its watch, and what its supervisor has added up."""

    def __init__(self) -> None:
        self.store = MemoryCoordination()
        self.time = ScriptedTime(self.store)
        self.lives = ScriptedLives()
        self.machine = Machine(self.store, KEYS, A, self.lives, now=self.time.now, sleep_until=self.time.sleep_until)
        self.requests: dict[str, int] = {}
        self.refusals: dict[str, str] = {}
        self.watch = ClusterWatch(
            self.machine, refusals=lambda: self.refusals, requests=lambda: self.requests, now=self.time.now
        )
        self.totals = Totals()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(work) for work in (self.machine.run(), self.watch.run())]
        await rest()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def advance(self, seconds: float) -> None:
        """With a look of the supervisor each second."""
        for _ in range(round(seconds)):
            await self.time.advance(1)
            self.look()

    def look(self) -> None:
        self.totals.add(self.watch.take())

    def row(self, name: str) -> Any:
        (row,) = [row for row in self.watch.status()["machines"] if row["name"] == name]
        return row

    def value(self, name: str, **attributes: str) -> float | None:
        wanted = tuple((f"onelane.{key}", value) for key, value in attributes.items())
        return self.totals.value_of(name, wanted)

    async def joins(self, record: MachineRecord) -> int:
        """Another machine; its lease, which nobody renews."""
        granted = await self.store.grant(record.lease_s)
        await self.store.commit([], [Put(KEYS.machine(record.name), record_bytes(record), granted.lease_id)])
        await rest()
        return granted.lease_id

    async def place(self, entry: AppEntry) -> None:
        await self.store.commit([], [Put(KEYS.app("lobby"), entry_bytes(entry))])
        await rest()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def placed(*members: Member, epoch: int = 7, leases: Mapping[Member, int]) -> AppEntry:
    return AppEntry(Placement(epoch, members), leases=tuple((member.life, lease) for member, lease in leases.items()))


async def test_what_lives_report_is_looked_at_where_people_ask_and_not_before(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each change each machine writes a report, which all machines are told."""
    looks: list[ClusterView] = []

    def counted(view: ClusterView) -> ClusterOverview:
        looks.append(view)
        return overview_of(view)

    monkeypatch.setattr(cluster_watch, "overview_of", counted)
    async with watched.running():
        looks.clear()
        for epoch in range(8, 18):
            watched.machine.announce({}, {"lobby": AppPart(epoch=epoch)})
            await rest()
        assert watched.machine.view is not None
        (record,) = watched.machine.view.machines()
        assert isinstance(record, MachineRecord)
        assert record.parts["lobby"].epoch == 17
        assert looks == []
        assert watched.watch.status()["revision"] == watched.machine.view.snapshot.revision
        assert len(looks) == 1


# Itself


async def test_a_machine_tells_what_its_own_lease_has_left(watched: Watched) -> None:
    async with watched.running():
        await watched.time.advance(1)
        status = watched.watch.status()
        assert (status["name"], status["machine"], status["coordinator"]) == ("arena", "a", "a")
        # A fifth of the five seconds is the margin.
        assert status["lease"] == {"left_s": 3.0, "renewed_s_ago": 1.0, "fault": ""}
        row = watched.row("a")
        assert (row["state"], row["coordinates"], row["lease_left_s"]) == ("joined", True, 3.0)
        assert json.loads(json.dumps(status)) == status


async def test_a_machine_that_is_cut_off_says_so_and_why_and_for_how_long(watched: Watched) -> None:
    async with watched.running():
        watched.store.is_down = True
        await watched.advance(3)
        assert watched.row("a")["state"] == "joined"
        assert "down" in watched.watch.status()["lease"]["fault"]
        await watched.advance(1)
        row = watched.row("a")
        assert (row["state"], row["lease_left_s"], row["fault"]) == (
            "cut off",
            0.0,
            watched.watch.status()["lease"]["fault"],
        )
        watched.store.is_down = False
        await watched.advance(1)
        assert watched.row("a")["state"] == "joined"
        assert watched.watch.status()["lease"]["fault"] == ""


async def test_a_machine_that_cannot_join_says_so_before_it_has_seen_anything(watched: Watched) -> None:
    watched.store.is_down = True
    async with watched.running():
        await watched.advance(2)
        status = watched.watch.status()
        assert (status["revision"], status["coordinator"], status["apps"]) == (0, None, {})
        assert status["lease"]["left_s"] == 0.0
        assert status["lease"]["renewed_s_ago"] is None
        row = watched.row("a")
        assert (row["state"], row["advertise"], row["release"]) == ("joining", "10.0.0.11", "0.9.0")
        assert "down" in row["fault"]


async def test_a_machine_that_was_given_up_joins_again_and_is_told_once(watched: Watched) -> None:
    async with watched.running():
        (lease,) = [watched.machine.lease.lease_id] if watched.machine.lease else [0]
        await watched.place(placed(A0, leases={A0: lease}))
        watched.store.is_down = True
        await watched.advance(7)
        assert watched.row("a")["state"] == "cut off"
        watched.store.is_down = False
        await watched.advance(4)
        states = {row["state"] for row in watched.watch.status()["machines"] if row["name"] == "a"}
        assert states == {"joined", "missing"}


async def test_a_machine_that_was_given_up_has_no_lease_while_its_lives_end(watched: Watched) -> None:
    async with watched.running():
        assert watched.machine.lease is not None
        lease_id = watched.machine.lease.lease_id
        watched.lives.may_end.clear()
        watched.store.is_down = True
        await watched.advance(7)
        watched.store.is_down = False
        await watched.advance(1)
        assert watched.machine.lease.is_lost
        status = watched.watch.status()
        row = watched.row("a")
        assert (row["state"], row["lease"], row["lease_left_s"]) == ("joining", f"{lease_id:x}", 0.0)
        assert (status["lease"]["left_s"], status["lease"]["renewed_s_ago"]) == (0.0, None)
        (warning,) = cluster_text.warnings(status)
        assert warning.startswith("a has no lease: ")
        watched.lives.may_end.set()
        await watched.advance(2)
        assert list(cluster_text.warnings(watched.watch.status())) == []


# Others


async def test_a_machine_that_goes_with_keys_is_missing_then_gone_until_it_is_back(watched: Watched) -> None:
    async with watched.running():
        lease = await watched.joins(B)
        await watched.place(placed(A0, B0, leases={A0: 1, B0: lease}))
        await watched.advance(2)
        assert (watched.row("b")["state"], watched.row("b")["since_s"]) == ("joined", 2.0)
        await watched.advance(3)
        assert watched.row("b")["state"] == "missing"
        assert watched.watch.status()["apps"]["lobby"]["unserved"][-1] == {"name": "lobby-b0", "machine": "b"}
        await watched.place(placed(A0, epoch=8, leases={A0: 1}))
        await watched.advance(3)
        row = watched.row("b")
        assert (row["state"], row["since_s"], row["advertise"]) == ("gone", 3.0, "10.0.0.12")
        await watched.joins(B)
        assert watched.row("b")["state"] == "joined"


async def test_a_machine_that_leaves_without_keys_is_not_listed(watched: Watched) -> None:
    async with watched.running():
        lease = await watched.joins(B)
        await watched.place(placed(A0, B0, leases={A0: 1, B0: lease}))
        await watched.place(placed(A0, epoch=8, leases={A0: 1}))
        await watched.store.revoke(lease)
        await rest()
        assert [row["name"] for row in watched.watch.status()["machines"]] == ["a"]


async def test_gone_machines_are_listed_for_an_hour_and_no_more_than_so_many(watched: Watched) -> None:
    async with watched.running():
        for number in range(40):
            member = replace(B0, name=f"lobby-m{number}", socket=f"m{number}@h:1", life=100 + number)
            record = replace(B, name=f"m{number}", apps={"lobby": (member,)})
            lease = await watched.joins(record)
            await watched.place(placed(A0, member, leases={A0: 1, member: lease}))
            await watched.store.revoke(lease)
            await watched.place(placed(A0, epoch=8, leases={A0: 1}))
        rows = [row["name"] for row in watched.watch.status()["machines"] if row["state"] == "gone"]
        assert len(rows) == 32
        assert "m39" in rows
        watched.store.advance(GONE_LISTED_S)
        assert not [row for row in watched.watch.status()["machines"] if row["state"] == "gone"]


# The coordinator


async def test_a_change_is_told_with_the_time_since_its_begin_was_seen(watched: Watched) -> None:
    async with watched.running():
        entry = placed(A0, leases={A0: 1, C0: 3})
        await watched.place(replace(entry, following=Placement(8, (A0, C0))))
        await watched.advance(1)
        await watched.joins(B)
        await watched.advance(1)
        change = watched.watch.status()["apps"]["lobby"]["change"]
        assert (change["what"], change["since_s"]) == ("lobby-c0 joins", 2.0)


async def test_what_the_coordinator_refuses_is_told_by_the_machine_that_coordinates(watched: Watched) -> None:
    async with watched.running():
        await watched.place(placed(A0, leases={A0: 1}))
        watched.refusals["lobby"] = "app 'lobby': two lives are called lobby-0"
        assert watched.watch.status()["apps"]["lobby"]["fault"] == "app 'lobby': two lives are called lobby-0"


# Metrics


async def test_lease_fence_and_failures_are_counted(watched: Watched) -> None:
    async with watched.running():
        await watched.advance(1)
        assert watched.value("onelane.machine.lease.left") == 3.0
        assert watched.value("onelane.machine.coordinates") == 1
        assert watched.totals.sum_of("onelane.machine.renewals.failed") == 0
        assert watched.totals.sum_of("onelane.machine.fenced") == 0
        watched.store.is_down = True
        await watched.advance(6)
        assert watched.value("onelane.machine.lease.left") == 0
        assert watched.totals.sum_of("onelane.machine.renewals.failed") == watched.machine.renewals_failed > 5
        assert watched.totals.sum_of("onelane.machine.fenced") == 3.0


async def test_a_fence_that_closes_and_opens_again_between_two_looks_is_counted(watched: Watched) -> None:
    """The page's alert is gone by then: the count alone tells of it."""
    async with watched.running():
        watched.look()
        watched.store.is_down = True
        await watched.time.advance(4.25)
        assert watched.row("a")["state"] == "cut off"
        watched.store.is_down = False
        await watched.time.advance(1.75)
        assert watched.row("a")["state"] == "joined"
        watched.look()
        assert 0.25 <= watched.totals.sum_of("onelane.machine.fenced") <= 0.75


async def test_machines_are_counted_by_their_state_and_a_state_that_nobody_is_in_is_0(watched: Watched) -> None:
    async with watched.running():
        lease = await watched.joins(B)
        await watched.place(placed(A0, B0, leases={A0: 1, B0: lease}))
        watched.look()
        assert watched.value("onelane.cluster.machines", state="joined") == 2
        assert watched.value("onelane.cluster.machines", state="missing") == 0
        await watched.store.revoke(lease)
        await rest()
        watched.look()
        assert watched.value("onelane.cluster.machines", state="joined") == 1
        assert watched.value("onelane.cluster.machines", state="missing") == 1
        assert watched.value("onelane.cluster.unserved", app="lobby") == 2


@pytest.mark.parametrize("coordinates", [True, False])
async def test_a_change_is_measured_by_the_machine_that_coordinates_at_its_end(
    watched: Watched, coordinates: bool
) -> None:
    if not coordinates:
        await watched.store.commit([], [Put(KEYS.candidate(99), b"z")])
    async with watched.running():
        await watched.place(replace(placed(A0, leases={A0: 1}), following=Placement(8, (A0, C0))))
        await watched.advance(2)
        assert watched.value("onelane.cluster.change.age", app="lobby") == 2.0
        assert watched.value("onelane.machine.coordinates") == coordinates
        await watched.place(placed(A0, C0, epoch=8, leases={A0: 1}))
        watched.look()
        assert watched.value("onelane.cluster.change.age", app="lobby") == 0
        assert watched.value("onelane.cluster.epoch", app="lobby") == 8
        durations = watched.totals.buckets_of("onelane.cluster.change.duration", (("onelane.app", "lobby"),))
        assert (durations.count, durations.sum) == ((1, 2.0) if coordinates else (0, 0.0))


async def test_requests_to_the_store_are_counted_by_their_kind(watched: Watched) -> None:
    async with watched.running():
        watched.requests = {"kv/txn": 2}
        watched.look()
        watched.requests = {"kv/txn": 5, "watch": 1}
        watched.look()
        counts = watched.totals.counts_by("onelane.cluster.requests", "onelane.operation")
        assert counts == {"kv/txn": 5, "watch": 1}
