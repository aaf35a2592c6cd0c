"""Changes of placement of a real app, as an operator makes them: status, health, clients and sums follow."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from onelane.cli import admin_client
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.gate import Gate
from tests.running_app import (
    RunningApp,
    Scrape,
    descendants,
    echo,
    eventually,
    http_request,
    is_running,
    run_command,
    running,
)

pytestmark = pytest.mark.slow
RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """Each test leaves it with two shards."""
    with running(tmp_path_factory.mktemp("changes"), echo(2)) as app:
        yield app


async def order(app: RunningApp, *arguments: str) -> str:
    """A command of `onelane` for this app; what it prints."""
    done = await asyncio.to_thread(run_command, *arguments, "--admin", app.admin)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def told(app: RunningApp, *arguments: str) -> list[str]:
    """As `order`, in lines, without those on a change that takes long, as on a busy machine."""
    lines = (await order(app, *arguments)).splitlines()
    return [line for line in lines if not line.startswith("echo: epoch")]


@asynccontextmanager
async def dialled(app: RunningApp) -> AsyncIterator[Where]:
    where = Where(app)
    yield where
    await where.close()


async def shards_of(where: Where, keys: range) -> dict[str, str]:
    """Key → the shard that serves it, asked at the shared address."""
    return {key: (await where.shared.Unary(EchoRequest(key=key), timeout=BOUND_S)).shard for key in map(str, keys)}


async def test_an_app_that_is_scaled_up_and_down_serves_each_key_where_the_new_placement_has_it(
    app: RunningApp,
) -> None:
    epoch, away = app.status()["apps"]["echo"]["epoch"], ""
    for before, shards, steps in (
        (2, 4, ["echo-2 has joined", "echo-3 has joined"]),
        (4, 3, ["echo-3 has left"]),
        (3, 2, ["echo-2 has left"]),
    ):
        *lines, outcome = await told(app, "scale", "echo", str(shards))
        assert [line.partition(" (life")[0] for line in lines] == steps
        assert outcome == f"echo: {before} → {shards} shards"
        epoch += 1
        row = app.status()["apps"]["echo"]
        assert (row["epoch"], len(row["shards"]), row["leaving"]) == (epoch, shards, [])
        ring = row["service_config"]["loadBalancingConfig"][0]["ring_hash_experimental"]
        assert ring["minRingSize"] == 512 * shards
        assert http_request(f"http://{app.admin}/healthz") == (200, f"{shards}/{shards} shards ready\n")
        async with dialled(app) as where:
            assert await shards_of(where, range(24)) == {key: where.owner_of(key) for key in map(str, range(24))}
        away = away or row["shards"][3]["address"]
    async with grpc.aio.insecure_channel(away) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="refused"):
            await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="k"), timeout=BOUND_S)


async def test_under_load_no_call_fails_and_no_update_is_lost_or_doubled(app: RunningApp) -> None:
    """The echo service counts the calls of each key in a plain dict."""
    counts = dict.fromkeys((f"load-{number}" for number in range(6)), 0)
    is_over = asyncio.Event()

    async def call_regularly(stub: "echo_pb2_grpc.EchoAsyncStub", key: str) -> None:
        while not is_over.is_set():
            counts[key] += 1
            assert (await stub.Unary(EchoRequest(key=key), timeout=BOUND_S)).seen == counts[key]

    retried = {"name": [{}], "retryPolicy": RETRY_POLICY}
    options = [("grpc.service_config", json.dumps({"methodConfig": [retried]}))]
    async with grpc.aio.insecure_channel(app.listen["echo"], options) as channel, asyncio.TaskGroup() as tasks:
        for key in counts:
            tasks.create_task(call_regularly(echo_pb2_grpc.EchoStub(channel), key))
        for arguments in (("scale", "echo", "3"), ("scale", "echo", "2"), ("restart", "echo")):
            await order(app, *arguments)
        is_over.set()
    assert min(counts.values()) > 10


async def test_a_client_that_watches_the_placement_sees_each_new_one(app: RunningApp) -> None:
    async with grpc.aio.insecure_channel(app.shards()[0]["address"]) as channel:
        watch = topology_pb2_grpc.TopologyStub(channel).Watch(topology_pb2.WatchRequest())
        seen = []
        async for placement in watch:
            seen.append((len(placement.members), placement.epoch))
            if len(seen) == 3:
                break
            await order(app, "scale", "echo", str(4 - len(seen)))
        assert seen == [(2, seen[0][1]), (3, seen[0][1] + 1), (2, seen[0][1] + 2)]


async def test_the_series_of_a_shard_that_is_gone_go_and_the_sum_of_the_app_has_its_counts(app: RunningApp) -> None:
    await order(app, "scale", "echo", "3")
    async with dialled(app) as where:
        await where.home(where.key_of("echo-2")).Unary(EchoRequest(key=where.key_of("echo-2")))
    calls = "onelane_calls_total"
    assert app.metric(calls, onelane_shard="echo-2") >= 1
    before = sum_of(app, calls)
    await order(app, "scale", "echo", "2")
    assert app.metric(calls, onelane_shard="echo-2") == 0
    assert sum_of(app, calls) >= before


def sum_of(app: RunningApp, name: str, **labels: str) -> float:
    """Of one series for the whole app."""
    return Scrape(app.get("/metrics?by=app")).metric(name, **labels)


async def test_new_connections_go_to_the_owners_of_their_keys_in_a_change_and_every_call_counts_once(
    app: RunningApp,
) -> None:
    """By clients that repeat nothing, each call on a connection of its own: it is handed over while keys move."""
    calls, steered = "onelane_calls_total", "onelane_connections_total"
    unary, handed = {"rpc_method": "echo.v1.Echo/Unary"}, {"onelane_connection_steered": "true"}
    before, steered_before = sum_of(app, calls, **unary), sum_of(app, steered, **handed)
    calls_begun = 0

    async def call_on() -> None:
        nonlocal calls_begun
        while not changing.done():
            calls_begun += 1
            async with grpc.aio.insecure_channel(
                app.listen["echo"], [("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=str(calls_begun)), timeout=BOUND_S)

    async def change() -> None:
        for command in ("scale?app=echo&shards=3", "scale?app=echo&shards=2"):
            await asyncio.to_thread(admin_client.command, app.admin, f"/{command}")

    changing = asyncio.ensure_future(change())
    await asyncio.gather(*(call_on() for _ in range(2)))
    await changing
    await eventually(lambda: sum_of(app, calls, **unary) == before + calls_begun)
    assert sum_of(app, steered, **handed) > steered_before


async def test_a_pin_moves_its_key_and_is_kept_until_it_is_taken_out(app: RunningApp) -> None:
    async with dialled(app) as where:
        key = where.key_of("echo-0")
        assert await order(app, "pin", key, "echo-1") == f"{key} is on echo-1\n"
        assert (await where.shared.Unary(EchoRequest(key=key))).shard == "echo-1"
        lines = await told(app, "restart", "echo")
        lives = [shard["life"] for shard in app.shards()]
        replaced = [f"echo-{index} is replaced by life {life}" for index, life in enumerate(lives)]
        assert lines == [*replaced, "restarted echo"]
        assert (await where.shared.Unary(EchoRequest(key=key), wait_for_ready=True)).shard == "echo-1"
        assert await order(app, "unpin", key) == f"{key} is where the ring puts it\n"
        assert (await where.shared.Unary(EchoRequest(key=key))).shard == "echo-0"


async def test_a_rolling_restart_counts_every_call_once_and_no_crash(app: RunningApp) -> None:
    before, pids = sum_of(app, "onelane_restarts_total"), {shard["pid"] for shard in app.shards()}
    calls = sum_of(app, "onelane_calls_total")
    async with dialled(app) as where:
        await shards_of(where, range(10))
        assert json.loads(await order(app, "restart", "echo", "--json"))["restarted"] == "echo"
        await shards_of(where, range(10))
    assert not pids & {shard["pid"] for shard in app.shards()}
    assert [(shard["state"], shard["restarts"]) for shard in app.shards()] == [("ready", 0)] * 2
    assert sum_of(app, "onelane_restarts_total") == before
    assert sum_of(app, "onelane_calls_total") == calls + 20


async def test_ctrl_c_in_a_restart_ends_the_command_alone(app: RunningApp, tmp_path: Path) -> None:
    lives = {shard["life"] for shard in app.shards()}
    async with dialled(app) as where:
        gate, key = Gate(tmp_path), where.key_of("echo-0")
        held = where.home(key).Misbehave(EchoRequest(key=key, order=f"hold_at {gate}"))
        async with gate.occupied():
            command = [sys.executable, "-m", "onelane", "restart", "echo", "--admin", app.admin]
            asking = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            await eventually(app.is_changing)
            asking.send_signal(signal.SIGINT)
            _, errors = await asyncio.wait_for(asking.communicate(), BOUND_S)
            assert (asking.returncode, app.is_changing()) == (130, True)
            assert "the restart goes on; `onelane status` shows how far it is" in errors.decode()
        await held
    await eventually(lambda: not app.is_changing() and not lives & {shard["life"] for shard in app.shards()})


async def test_sighup_with_another_number_of_shards_scales(app: RunningApp) -> None:
    file = app.log.parent / "onelane.toml"
    text = await asyncio.to_thread(file.read_text)
    for shards in (3, 2):
        await asyncio.to_thread(file.write_text, text.replace("shards = 2", f"shards = {shards}"))
        app.process.send_signal(signal.SIGHUP)
        await eventually(lambda: len(app.shards()) == shards and not app.is_changing())  # noqa: B023
    assert "reload.changed echo.shards: 2 → 3" in await asyncio.to_thread(app.log.read_text)


async def test_inline_an_app_is_scaled_and_restarted_as_in_processes(tmp_path: Path) -> None:
    with running(tmp_path, echo(1), "--inline") as app:
        await order(app, "scale", "echo", "2")
        await order(app, "restart")
        async with dialled(app) as where:
            assert await shards_of(where, range(8)) == {key: where.owner_of(key) for key in map(str, range(8))}
        await order(app, "scale", "echo", "1")
        assert [shard["life"] for shard in app.shards()] == [3]


async def test_a_handler_that_catches_its_cancellation_does_not_cost_the_life_of_its_shard(tmp_path: Path) -> None:
    stuck = 'services = ["tests.supervisor.admin.stuck_service:Stuck"]'
    settings = f'[apps.echo]\n{stuck}\nlisten = "127.0.0.1:0"\nshards = 1\ndrain_s = 0.1\n'
    with running(tmp_path, settings) as app:
        async with dialled(app) as where:
            staying = where.home("k").Unary(EchoRequest(key="k", order="stay whatever comes"))
            await eventually(lambda: sum_of(app, "onelane_calls_in_flight") == 1)
            await order(app, "restart")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await staying
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        log = await asyncio.to_thread(app.log.read_text)
        assert "handoff.turn_given_up shard=echo-0 key='k'" in log
        assert "change.life_killed" not in log


async def test_where_the_supervisor_is_killed_in_a_change_no_life_outlives_it(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "stop_s = 0.1", "drain_s = 1")) as app:
        async with dialled(app) as where:
            gate, key = Gate(tmp_path), where.key_of("echo-0")
            held = where.home(key).Misbehave(EchoRequest(key=key, order=f"hold_at {gate}"))
            async with gate.occupied():
                pids = {app.shards()[0]["pid"]}
                app.process.send_signal(signal.SIGUSR2)
                await eventually(app.is_changing)
                pids |= descendants(app.process.pid)
                os.kill(app.process.pid, signal.SIGKILL)
                await eventually(lambda: not any(map(is_running, pids)))
            held.cancel()
