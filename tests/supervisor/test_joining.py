"""A machine and the clusters that it does not join, on etcd."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from onelane.cluster.coordination import CoordinationRefused, Put
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, JoinRefused, MachineRecord, record_bytes
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.validation import Secret
from onelane.supervisor.cluster_member import ClusterMember
from onelane.supervisor.machine_record import record_of

from tests.etcd import EtcdServer, etcd
from tests.supervisor.cluster_variables import app_of, settings_of
from tests.supervisor.scripted_lives import ScriptedLives


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
