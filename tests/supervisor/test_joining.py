"""A machine joins, waits, or is refused: on a store and a time of the test's own, and on etcd."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from onelane.cluster.coordination import Condition, CoordinationRefused, Put, Remove, Snapshot, Write
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, JoinRefused, MachineRecord, record_bytes
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.validation import Secret
from onelane.supervisor.cluster_member import ClusterMember
from onelane.supervisor.machine_record import record_of

from tests.cluster.coordination.memory import MemoryCoordination
from tests.etcd import EtcdServer, etcd
from tests.supervisor.cluster_variables import app_of, settings_of
from tests.supervisor.scripted_lives import ScriptedLives, ScriptedTime, rest
from tests.supervisor.scripted_machines import KEYS, A, B, Cluster


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def test_machines_join_see_each_other_and_the_first_one_coordinates(cluster: Cluster) -> None:
    async with cluster.running(A) as a, cluster.running(B) as b:
        await rest()
        for machine in (a, b):
            assert machine.view
            assert machine.view.machines() == [A, B]
            coordinator = machine.view.coordinator()
            assert coordinator
            assert coordinator.value == b"a"


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

    async def revoke(self, lease_id: int) -> None:
        await asyncio.sleep(0)
        await super().revoke(lease_id)


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


async def test_a_machine_that_had_joined_waits_where_it_is_refused_as_it_joins_again(cluster: Cluster) -> None:
    async with cluster.running(A) as a:
        await cluster.store.commit([], [Put(KEYS.machine("b"), record_bytes(replace(B, settings={"lobby": "e"})))])
        await cluster.store.revoke(1)
        await cluster.time.advance(5)
        assert cluster.serving(A) == []
        assert a.trouble.startswith("cannot join the cluster 'arena': app 'lobby' is set up otherwise on machine 'b'")
        await cluster.store.commit([], [Remove(KEYS.machine("b"))])
        await cluster.time.advance(2)
        assert cluster.serving(A) == [2]
        assert a.trouble == ""


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


# With etcd


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


async def refusal_of(settings: ClusterSettings, **app_settings: Any) -> str:
    """Why a machine of these settings cannot join; it has no lives then."""
    lives = ScriptedLives()
    with pytest.raises((JoinRefused, CoordinationRefused)) as caught:
        await ClusterMember(settings, {"echo": app_of(**app_settings)}, lives).run()
    assert lives.fences == {}
    return str(caught.value)


async def put_record(settings: ClusterSettings, record: MachineRecord, value: bytes = b"") -> None:
    """As another machine that has joined before."""
    store = EtcdStore(etcd_address(settings))
    await store.commit([], [Put(ClusterKeys(settings.name).machine(record.name), value or record_bytes(record))])
    await store.close()


async def test_a_machine_whose_app_has_other_settings_is_refused_by_the_names_of_both(server: EtcdServer) -> None:
    settings = replace(settings_of(server, machine="b"), name="settings")
    await put_record(settings, replace(record_of(settings, {"echo": app_of()}), name="a"))
    reason = await refusal_of(settings, points=64)
    assert reason == (
        "cannot join the cluster 'settings': app 'echo' is set up otherwise on machine 'a' (its services, keys, turns, "
        "points, max_key_bytes or the kind of its store): use the same file on both"
    )


async def test_a_machine_of_another_cluster_of_this_name_is_refused(server: EtcdServer) -> None:
    settings = replace(settings_of(server, machine="b"), name="authority")
    await put_record(settings, replace(record_of(settings, {}), name="a", trust="sha256:1"))
    reason = await refusal_of(settings)
    assert "machine 'a' trusts another authority (cluster.tls.ca)" in reason
    assert "set `name` of one of the two to another name" in reason


async def test_a_machine_whose_address_the_others_cannot_reach_is_refused_by_its_setting(server: EtcdServer) -> None:
    settings = replace(settings_of(server, machine="b"), name="loopback")
    await put_record(settings, replace(record_of(settings, {}), name="a", advertise="10.0.0.11"))
    reason = await refusal_of(settings)
    assert "machine 'b' advertises 127.0.0.1, which machine 'a' at 10.0.0.11 cannot reach: set `advertise`" in reason


async def test_a_release_that_cannot_read_the_records_of_another_says_so(server: EtcdServer) -> None:
    settings = replace(settings_of(server, machine="b"), name="releases")
    newer = b'{"version": 9, "oldest_reader": 9, "machine": {"name": "a", "release": "9.0.0"}}'
    await put_record(settings, replace(record_of(settings, {}), name="a"), newer)
    reason = await refusal_of(settings)
    assert "machine 'a' cannot be understood" in reason
    assert "upgrade this machine" in reason


async def test_a_wrong_password_of_etcd_is_refused_in_its_words() -> None:
    with etcd() as server:
        for request in ("user/add", "user/grant"):
            server.ask(f"auth/{request}", '{"name": "root", "user": "root", "password": "right", "role": "root"}')
        server.ask("auth/enable", "{}")
        user = {"etcd_user": "root", "etcd_password": Secret("wrong")}
        reason = await refusal_of(settings_of(server, machine="b", **user))
        assert f"etcd at {server.url}: " in reason
    assert "authentication failed" in reason
    assert "expected a user of this etcd, and its password" in reason
    assert "wrong" not in reason


# Without a cluster


def test_nothing_of_clusters_is_imported_where_an_app_runs_without_one() -> None:
    probe = (
        "import sys, onelane.cli.main, onelane.cli.check, onelane.cli.run_apps\n"
        "import onelane.supervisor.supervisor, onelane.shard.process\n"
        "parts = 'cluster.coord', 'cluster.machines', 'cluster.overview', 'cluster.placements', 'cluster.xds', "
        "'supervisor.machine', 'supervisor.joining', 'supervisor.own_report', 'supervisor.cluster', "
        "'supervisor.coordinator', 'supervisor.xds'\n"
        "print([name for name in sys.modules if name.removeprefix('onelane.').startswith(parts)])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
