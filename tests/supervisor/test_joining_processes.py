"""`onelane up` of a machine that finds no etcd, or cannot join: real processes, and what they tell."""

import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onelane.cluster.coordination import Put
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, MachineRecord, record_bytes
from onelane.core.cluster_settings import ClusterSettings

from tests.etcd import EtcdServer, etcd
from tests.running_app import echo, run_to_end, running
from tests.supervisor.cluster_variables import environment_of, settings_of
from tests.supervisor.machines_up import served_by

A = MachineRecord(name="a", advertise="127.0.0.1", release="9.0.0", lease_s=5.0, start="a-1")
NEWER = {"version": 9, "oldest_reader": 9, "machine": {"name": "a", "release": "9.0.0"}}


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


def up(folder: Path, settings: ClusterSettings, **environment: str) -> subprocess.CompletedProcess[str]:
    """A machine that ends by itself, before it serves."""
    ended = run_to_end(folder, echo(1), **environment_of(settings), **environment)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "ready" not in ended.stdout
    return ended


async def test_without_etcd_a_machine_says_so_and_waits_and_joins_once_it_is_there(tmp_path: Path) -> None:
    with etcd() as server:
        server.stop()
        expected = f"machine.waits name=b reason=etcd at {server.url} does not answer"
        log = tmp_path / "log"

        def start_when_it_is_told() -> None:
            while not log.exists() or expected not in log.read_text():
                threading.Event().wait(0.01)
            server.start()

        starts = threading.Thread(target=start_when_it_is_told)
        starts.start()
        with running(tmp_path, echo(1), **environment_of(settings_of(server, machine="b"))) as app:
            starts.join()
            assert set((await served_by(app)).values()) == {"b/echo-0"}


async def test_a_wrong_password_ends_it_with_the_words_of_etcd_and_without_the_password(tmp_path: Path) -> None:
    with etcd() as server:
        for request in ("user/add", "user/grant"):
            server.ask(f"auth/{request}", '{"name": "root", "user": "root", "password": "right", "role": "root"}')
        server.ask("auth/enable", "{}")
        user = {"ONELANE_CLUSTER__ETCD_USER": "root", "ONELANE_CLUSTER__ETCD_PASSWORD": "swordfish"}
        ended = up(tmp_path, settings_of(server, machine="b"), **user)
        assert f"etcd at {server.url}: " in ended.stderr
        assert "expected a user of this etcd, and its password" in ended.stderr
        assert "swordfish" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("newer", json.dumps(NEWER).encode(), ("it runs onelane 9.0.0", "upgrade this machine")),
        (
            "other",
            record_bytes(replace(A, trust="sha256:1")),
            ("machine 'a' trusts another authority", "set `name` of one of the two to another name"),
        ),
    ],
    ids=["another release", "another cluster of this name"],
)
async def test_a_machine_that_cannot_join_names_the_other_one_and_what_to_do(
    server: EtcdServer, tmp_path: Path, name: str, value: bytes, expected: Any
) -> None:
    settings = replace(settings_of(server, machine="b"), name=name)
    store = EtcdStore(etcd_address(settings))
    await store.commit([], [Put(ClusterKeys(name).machine("a"), value)])
    ended = up(tmp_path, settings)
    assert f"cannot join the cluster {name!r}: machine 'a'" in ended.stderr
    assert all(words in ended.stderr for words in expected), ended.stderr
    left = await store.read(ClusterKeys(name).prefix)
    assert [*left.entries] == [ClusterKeys(name).machine("a")], "it has left nothing behind"
    await store.close()
