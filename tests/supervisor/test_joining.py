"""What a machine tells the others of itself, and whose cluster it does not join."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from onelane.cluster.coordination import CoordinationRefused, Put
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, JoinRefused, MachineRecord, record_bytes
from onelane.config import App
from onelane.core.cluster_settings import ClusterSettings, ClusterTls
from onelane.core.validation import Secret, checked
from onelane.errors import BadConfig
from onelane.supervisor.cluster_member import ClusterMember
from onelane.supervisor.joining import page_url, record_of, settings_digest

from tests.etcd import EtcdServer, etcd
from tests.supervisor.cluster_variables import settings_of
from tests.supervisor.scripted_lives import ScriptedLives

ECHO = {"services": ("tests.echo.service:Echo",), "listen": "127.0.0.1:50051"}
LOCAL = ClusterSettings(name="arena", etcd=("http://127.0.0.1:1",), advertise="10.0.0.1", insecure=True, machine="b")


def app_of(**settings: Any) -> App:
    app: App = checked(App, ECHO | settings)
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


# What it tells


def test_the_record_has_the_name_the_release_and_a_start_of_its_own() -> None:
    first, second = (record_of(LOCAL, {"echo": app_of()}) for _ in range(2))
    assert (first.name, first.advertise, first.trust, first.lease_s) == ("b", "10.0.0.1", "", 5)
    assert first.release
    assert first.start != second.start
    assert first.settings == second.settings


def test_fewer_ports_for_links_than_shards_are_refused() -> None:
    settings = replace(LOCAL, link_ports="20000-20001")
    assert record_of(settings, {"echo": app_of(shards=2)}).name == "b"
    with pytest.raises(BadConfig, match="20000-20001 are 2 ports, expected one for each of the 3 shards, better two"):
        record_of(settings, {"echo": app_of(shards=3)})


@pytest.mark.parametrize(
    ("admin", "is_tls", "page"),
    [
        ("127.0.0.1:9464", False, ""),
        ("[::1]:9464", False, ""),
        ("unix:/run/onelane.sock", False, ""),
        ("10.0.0.1:9464", True, "https://10.0.0.1:9464"),
        ("0.0.0.0:9464", False, "http://b.internal:9464"),
        ("[::]:9464", True, "https://b.internal:9464"),
    ],
)
def test_the_record_has_the_url_of_a_page_that_others_can_reach(admin: str, is_tls: bool, page: str) -> None:
    assert page_url(admin, "b.internal", is_tls=is_tls) == page
    assert page_url("[::]:1", "fd00::1", is_tls=False) == "http://[fd00::1]:1"
    assert record_of(LOCAL, {}, page=page).admin == page


def test_machines_may_differ_in_addresses_and_numbers_of_shards(tmp_path: Path) -> None:
    other = app_of(listen="10.0.0.2:1", shards=7, max_in_flight=9, state={"folder": str(tmp_path)})
    assert settings_digest(other) == settings_digest(app_of())


@pytest.mark.parametrize(
    "settings",
    [
        {"keys": {"echo.v1.Echo/Unary": "text"}},
        {"turns": {"echo.v1.Echo/Unary": "FREE"}},
        {"points": 64},
        {"services": ("tests.lane.counting:Counting",)},
        {"state": {"store": "memory"}},
    ],
)
def test_machines_may_not_differ_in_what_decides_about_keys(settings: dict[str, Any]) -> None:
    assert settings_digest(app_of(**settings)) != settings_digest(app_of())


def test_the_authority_of_links_is_known_by_its_certificates_in_any_order(tmp_path: Path) -> None:
    def trust_of(*authorities: trustme.CA) -> str:
        file = tmp_path / "ca.pem"
        file.write_bytes(b"# a comment\n" + b"".join(authority.cert_pem.bytes() for authority in authorities))
        tls = ClusterTls(ca=str(file), cert="", key="")
        return record_of(replace(LOCAL, insecure=False, tls=tls), {}).trust

    authority, other = trustme.CA(), trustme.CA()
    assert trust_of(authority, other) == trust_of(other, authority)
    assert len({trust_of(authority), trust_of(other), trust_of(authority, other)}) == 3


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_of_the_authority_that_cannot_be_used_is_told_by_its_setting(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    settings = replace(LOCAL, insecure=False, tls=ClusterTls(ca=f"{tmp_path}/ca.pem", cert="", key=""))
    with pytest.raises(BadConfig, match=r"tls\.ca: .*ca\.pem"):
        record_of(settings, {})


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"listener": "grpcio"}, "echo.listener: expected \"native\" with [cluster], not 'grpcio'"),
        ({"membership": "static"}, 'echo.membership: expected "supervisor" with [cluster]'),
        ({"pins": {"k": 0}}, "echo.pins: expected none with [cluster]"),
    ],
)
def test_an_app_that_no_other_machine_could_take_over_from_is_refused_by_its_setting(settings: Any, fault: str) -> None:
    with pytest.raises(BadConfig) as caught:
        record_of(LOCAL, {"echo": app_of(**settings)})
    (reason,) = caught.value.faults
    assert reason.startswith(fault)


# Whose cluster it does not join


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
        "'supervisor.machine', 'supervisor.joining', 'supervisor.cluster', 'supervisor.coordinator', 'supervisor.xds'\n"
        "print([name for name in sys.modules if name.removeprefix('onelane.').startswith(parts)])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
