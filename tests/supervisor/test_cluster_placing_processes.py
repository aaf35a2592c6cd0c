"""Supervisors of one cluster, as real processes at a real etcd: their apps have one placement."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.etcd import etcd
from tests.running_app import RunningApp, echo, eventually, http_request, run_to_end, running
from tests.supervisor.cluster_variables import environment_of
from tests.supervisor.machines_up import KEYS, Callers, Machines, epoch_of, order, served_by


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with etcd("--election-timeout=4000") as server:
        yield Machines(server, tmp_path)


async def test_two_machines_have_one_placement_and_calls_go_between_them(machines: Machines) -> None:
    with machines.up("a") as a, machines.up("b") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        by_a, by_b = await served_by(a, shards=2), await served_by(b, shards=2)
        assert by_a == by_b
        assert set(by_a.values()) == {"a/echo-0", "b/echo-0"}


async def test_a_machine_leaves_on_term_with_its_keys_moved_first_and_no_call_fails(machines: Machines) -> None:
    with machines.up("a") as a:
        before: dict[str, int] = {}
        async with Callers(a) as callers:
            with machines.up("b", 2) as b:
                await eventually(lambda: epoch_of(a) == epoch_of(b))
                owners = await served_by(a, before, shards=3)
                assert set(owners.values()) == {"a/echo-0", "b/echo-0", "b/echo-1"}
                await callers.answered(3)
                assert await asyncio.to_thread(b.stop) == 0
            await callers.answered(3)
        after: dict[str, int] = {}
        assert set((await served_by(a, after)).values()) == {"a/echo-0"}
        assert all(after[key] > before[key] for key in KEYS), "memory is kept"
        assert callers.seen_once()
        assert callers.failed == []


async def test_a_machine_is_rolled_and_no_call_fails_and_memory_is_kept(machines: Machines) -> None:
    with machines.up("a", 2) as a, machines.up("b", 2) as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        lives = {shard["life"] for shard in b.shards()}
        async with Callers(a) as callers:
            await callers.answered(2)
            assert await asyncio.to_thread(order, b, "restart?app=echo") == 200
            await callers.answered(3)
        assert lives.isdisjoint(shard["life"] for shard in b.shards())
        assert [shard["restarts"] for shard in b.shards()] == [0, 0]
        assert callers.seen_once()
        assert callers.failed == []


async def test_a_machine_has_more_and_fewer_shards(machines: Machines) -> None:
    with machines.up("a") as a, machines.up("b") as b:
        async with Callers(b) as callers:
            for shards in (3, 1):
                assert await asyncio.to_thread(order, a, f"scale?app=echo&shards={shards}") == 200
                await eventually(lambda: epoch_of(a) == epoch_of(b))
                await callers.answered(2)
                names = {"b/echo-0", *(f"a/echo-{index}" for index in range(shards))}
                assert set((await served_by(b, shards=len(names))).values()) == names
        assert callers.seen_once()
        assert callers.failed == []


async def test_a_key_is_pinned_to_a_shard_of_another_machine_and_back(machines: Machines) -> None:
    with machines.up("a") as a, machines.up("b") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        owners = await served_by(a, shards=2)
        key = next(key for key, owner in owners.items() if owner == "a/echo-0")
        assert await asyncio.to_thread(order, a, f"pin?shard=b/echo-0&key={key}") == 200
        assert (await served_by(a, shards=2))[key] == "b/echo-0"
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        (row,) = b.status()["apps"]["echo"]["pins"]
        assert (row["key"], row["shard"], row["waiting"]) == (key, "b/echo-0", False)
        address = f"http://{a.admin}/pin?shard=c/echo-0&key={key}"
        status, reason = await asyncio.to_thread(http_request, address, method="POST", X_Onelane="1")
        assert (status, "no shard is called c/echo-0: echo has a/echo-0, b/echo-0" in reason) == (409, True)
        assert await asyncio.to_thread(order, b, f"unpin?key={key}") == 200
        assert await served_by(b, shards=2) == owners


async def test_a_shard_that_is_killed_is_followed_in_its_place_and_the_others_are_left_alone(
    machines: Machines,
) -> None:
    with machines.up("a") as a, machines.up("b") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        epoch, before, after = epoch_of(a), dict[str, int](), dict[str, int]()
        owners = await served_by(a, before)
        (killed,) = b.shards()
        os.kill(killed["pid"], signal.SIGKILL)
        await eventually(lambda: b.shards()[0]["state"] == "ready" and b.shards()[0]["pid"] != killed["pid"])
        assert await served_by(a, after) == owners
        assert epoch_of(a) == epoch_of(b) == epoch
        assert all(after[key] == before[key] + 1 for key in KEYS if owners[key] == "a/echo-0")
        assert all(after[key] == 1 for key in KEYS if owners[key] == "b/echo-0")
        assert b.shards()[0]["life"] > killed["life"]


async def test_the_keys_of_a_machine_that_is_killed_are_served_elsewhere_once_its_lease_has_ended(
    machines: Machines,
) -> None:
    """It comes back with its name, and has its keys again."""
    with machines.up("a") as a:
        with machines.up("b", 2) as b:
            await eventually(lambda: epoch_of(a) == epoch_of(b))
            owners, epoch = await served_by(a, shards=3), epoch_of(a)
            for pid in (b.process.pid, *(shard["pid"] for shard in b.shards())):
                os.kill(pid, signal.SIGKILL)
            await eventually(lambda: epoch_of(a) > epoch)
            assert set((await served_by(a)).values()) == {"a/echo-0"}
        with machines.up("b", 2) as b:
            await eventually(lambda: epoch_of(a) == epoch_of(b))
            again = await served_by(a, shards=3)
            assert set(again.values()) == set(owners.values())


async def test_a_machine_whose_supervisor_is_stopped_is_given_up_and_comes_back_with_other_lives(
    machines: Machines,
) -> None:
    with machines.up("a") as a, machines.up("b") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        (before,) = b.shards()
        epoch = epoch_of(a)
        os.kill(b.process.pid, signal.SIGSTOP)
        try:
            await eventually(lambda: epoch_of(a) > epoch)
            assert set((await served_by(a)).values()) == {"a/echo-0"}
        finally:
            os.kill(b.process.pid, signal.SIGCONT)
        await eventually(lambda: b.shards()[0]["pid"] not in (0, before["pid"]))
        await eventually(lambda: epoch_of(a) == epoch_of(b) and not b.is_changing())
        assert set((await served_by(b, shards=2)).values()) == {"a/echo-0", "b/echo-0"}
        assert b.shards()[0]["restarts"] == 0


def test_durable_state_in_files_of_one_machine_is_refused(machines: Machines, tmp_path: Path) -> None:
    settings = environment_of(machines.settings_of("a"))
    toml = '[apps.kept]\nservices = ["tests.state.kept_service:Kept"]\nlisten = "127.0.0.1:0"\nshards = 1'
    run = run_to_end(tmp_path, toml, **settings)
    assert run.returncode != 0
    assert 'apps.kept: state.store: "sqlite" has its files on one machine' in run.stderr
    assert "Traceback" not in run.stderr


async def test_a_change_is_one_trace_over_the_machines_and_each_shows_it_while_it_lasts(machines: Machines) -> None:
    with machines.up("a", 1, "drain_s = 60") as a, machines.up("b", 1, "drain_s = 60") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        # So many that each shard has some of them before and after.
        keys = [f"held-{number}" for number in range(96)]
        async with grpc.aio.insecure_channel(b.listen["echo"]) as channel:
            # Keys whose turns go on do not move.
            stub = echo_pb2_grpc.EchoStub(channel)
            held = [stub.Misbehave(EchoRequest(key=key, order="wait never"), timeout=120) for key in keys]
            await eventually(lambda: a.in_flight() + b.in_flight() >= len(keys))
            scaling = asyncio.ensure_future(asyncio.to_thread(order, a, "scale?app=echo&shards=2"))
            waits_for = ["a/echo-0", "a/echo-1", "b/echo-0"]
            await eventually(lambda: [waits_of(app) for app in (a, b)] == [waits_for] * 2)
            await eventually(lambda: change_of(a)["lives"] and change_of(b)["lives"])
            of_b, of_a = change_of(b), change_of(a)
            assert (of_a["what"], of_b["what"]) == ("2 shards", "a/echo-1 joins")
            assert (of_b["from"], of_b["to"]) == (of_a["from"], of_a["to"])
            assert (of_b["waiting"], of_b["starting"]) == (0, [])
            assert [life["name"] for life in of_b["lives"]] == ["b/echo-0"]
            assert {life["name"] for life in of_a["lives"]} <= {"a/echo-0", "a/echo-1"}
            assert of_b["since_s"] > 0
            for call in held:
                call.cancel()
        await scaling
        await eventually(lambda: change_of(a) is None and change_of(b) is None)
        await eventually(lambda: moves_of(a))
        [trace_id] = moves_of(a)
        await eventually(lambda: trace_id in {row["trace_id"] for row in traces_of(b)})
        # A shard's spans come with its next tick.
        await eventually(lambda: {"", "a/echo-0", "b/echo-0"} <= shards_of(trace_id, a, b))


def change_of(app: RunningApp) -> Any:
    return app.status()["apps"]["echo"]["change"]


def waits_of(app: RunningApp) -> Any:
    return (change_of(app) or {}).get("waits_for")


def moves_of(app: RunningApp) -> list[str]:
    """The traces of changes."""
    return [row["trace_id"] for row in traces_of(app) if row["name"] == "move"]


def shards_of(trace_id: str, *apps: RunningApp) -> set[str]:
    """Those that have spans of a trace; "" is a supervisor."""
    return {span["shard"] for app in apps for span in json.loads(app.get(f"/traces/{trace_id}"))["spans"]}


def traces_of(app: RunningApp) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(app.get("/traces"))["traces"]
    return rows


async def test_a_machine_whose_shards_are_in_its_supervisor_is_one_as_any_other(
    machines: Machines, tmp_path: Path
) -> None:
    """`--inline`, for a debugger: keys move to it with their state, and back as it leaves."""
    folder = tmp_path / "inline"
    folder.mkdir()
    with machines.up("a") as a:
        before: dict[str, int] = {}
        await served_by(a, before)
        with running(folder, echo(2), "--inline", **environment_of(machines.settings_of("b"))) as b:
            await eventually(lambda: epoch_of(a) == epoch_of(b))
            lives = {row["shard"] for row in lives_of(b)}
            assert {"b/echo-0", "b/echo-1"} < lives == {*(await served_by(a, shards=3)).values()}
            assert await asyncio.to_thread(b.stop) == 0
        after: dict[str, int] = {}
        assert set((await served_by(a, after)).values()) == {"a/echo-0"}
        assert after == {key: seen + 2 for key, seen in before.items()}


def lives_of(app: RunningApp) -> list[dict[str, Any]]:
    machines = app.status()["cluster"]["machines"]
    return [{"shard": row["name"]} for machine in machines for row in machine["apps"].get("echo", ()) if row["placed"]]
