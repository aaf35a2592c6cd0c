"""Machines of one cluster that end together, or in the midst of a change; and who calls over their links."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import grpc.aio
import pytest
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, ClusterView
from onelane.cluster.placements import AppEntry, entry_of

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.etcd import etcd
from tests.machines import Certificates
from tests.running_app import ECHO, ROOT, RunningApp, descendants, echo, eventually
from tests.shard.test_assertions import ADMIN, OWN, ask, guarded
from tests.supervisor.cluster_variables import environment_of
from tests.supervisor.hanging import HANGS
from tests.supervisor.machines_up import KEYS, Machines, epoch_of, served_by

ARENA = ClusterKeys("arena")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with etcd("--election-timeout=4000") as server:
        yield Machines(server, tmp_path, Certificates(tmp_path / "certificates"))


def stored_in(view: ClusterView) -> AppEntry | None:
    stored = view.snapshot.entries.get(ARENA.app("echo"))
    return None if stored is None else entry_of(stored.value, "echo")


async def until_entry(machines: Machines, holds: Callable[[AppEntry], bool]) -> AppEntry:
    """The first entry of the app from now on of which this holds."""
    store = EtcdStore(etcd_address(machines.settings_of("a")))
    view = ClusterView(ARENA, await store.read(ARENA.prefix))
    async with aclosing(store.watch(ARENA.prefix, view.snapshot.revision)) as news:
        while (entry := stored_in(view)) is None or not holds(entry):
            view = view.after(await anext(news))
    await store.close()
    return entry


async def test_all_machines_that_are_stopped_at_once_wait_for_nobody(machines: Machines) -> None:
    with machines.up("a", 1, "drain_s = 300") as a, machines.up("b", 1, "drain_s = 300") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        await served_by(a)
        codes = await asyncio.gather(asyncio.to_thread(a.stop), asyncio.to_thread(b.stop))
        assert set(codes) == {0}


async def test_a_cluster_that_was_stopped_starts_again_with_the_entry_of_before(machines: Machines) -> None:
    with machines.up("a"), machines.up("b"):
        pass
    with machines.up("b") as b:
        before = epoch_of(b)
        assert set((await served_by(b)).values()) == {"b/echo-0"}
    with machines.up("a") as a, machines.up("b") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b) > before)
        assert set((await served_by(b, shards=2)).values()) == {"a/echo-0", "b/echo-0"}


async def test_a_machine_that_comes_back_alone_at_other_addresses_serves_the_keys_of_its_last_start(
    machines: Machines,
) -> None:
    """As a pod does. Nothing else happens in the cluster that would have it look again."""
    with machines.up("a") as a:
        before = epoch_of(a)
    with machines.up("a") as a:
        assert set((await served_by(a)).values()) == {"a/echo-0"}
        assert epoch_of(a) > before


async def test_a_machine_that_dies_as_keys_move_to_it_has_a_stand_in_until_they_are_back(
    machines: Machines, tmp_path: Path
) -> None:
    """Its shard is owed keys whose turns go on: their state is kept, and goes on from there."""
    with machines.up("a", 1, "drain_s = 15") as a:
        before: dict[str, int] = {}
        await served_by(a, before)
        async with grpc.aio.insecure_channel(a.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            held = [stub.Misbehave(EchoRequest(key=key, order="wait never"), timeout=120) for key in KEYS]
            (tmp_path / "b.toml").write_text(f'admin = "127.0.0.1:0"\n{echo(1)}')
            command = [sys.executable, "-m", "onelane", "up", str(tmp_path / "b.toml"), "--app-dir", str(ROOT)]
            environment = os.environ | environment_of(machines.settings_of("b"))
            with (tmp_path / "b.log").open("w") as log:
                killed = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220 - at once
            await until_entry(machines, lambda entry: entry.following is not None)
            for pid in (killed.pid, *descendants(killed.pid)):
                os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(killed.wait)
            await until_entry(machines, lambda entry: entry.stand_ins == {"b/echo-0": "a"})
            entry = await until_entry(
                machines, lambda entry: entry.following is None and len(entry.placement.members) == 1
            )
            await eventually(lambda: epoch_of(a) == entry.placement.epoch)
            after: dict[str, int] = {}
            for call in held:
                call.cancel()
            assert set((await served_by(a, after)).values()) == {"a/echo-0"}
            assert after == {key: seen + 1 for key, seen in before.items()}
        assert "shard.died" not in a.log.read_text()


async def test_a_life_whose_step_of_a_change_hangs_is_ended_and_no_other_one(
    machines: Machines, tmp_path: Path
) -> None:
    """Those that wait for it have not made their steps either, and keep their memory."""
    (hangs := tmp_path / "hangs").touch()
    toml = echo(1, "drain_s = 0").replace(ECHO, 'services = ["tests.supervisor.hanging:Echo"]')
    with machines.up_with("a", toml) as a, machines.up_with("b", toml, **{HANGS: str(hangs)}) as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        before: dict[str, int] = {}
        owners = await served_by(a, before, shards=2)
        assert set(owners.values()) == {"a/echo-0", "b/echo-0"}
        with machines.up_with("c", toml) as c:
            assert not hangs.exists()
            after: dict[str, int] = {}
            assert "c/echo-0" in (await served_by(c, after, shards=3)).values()
            assert all(after[key] == before[key] + 1 for key in KEYS if owners[key] == "a/echo-0")
            assert "change.life_killed shard=b/echo-0" in b.log.read_text()
            for app in (a, c):
                assert "change.life_killed" not in app.log.read_text()
                assert "shard.died" not in app.log.read_text()


async def test_a_shard_calls_one_of_another_machine_for_its_client(machines: Machines, tmp_path: Path) -> None:
    """Its assertion of who that is counts there, as all machines have one key."""
    toml = guarded("front", OWN.write(tmp_path / "keys.json"), "{}", "public")
    with machines.up_with("a", toml) as a, machines.up_with("b", toml) as b:
        await eventually(lambda: _epoch(a) == _epoch(b))
        for key in KEYS:
            assert await ask(a, "front", f"sibling {key} identity", ADMIN) == "ann admin jwt"


def _epoch(app: RunningApp) -> int:
    return int(app.status()["apps"]["front"]["epoch"])
