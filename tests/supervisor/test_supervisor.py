"""Shards live and die under their supervisor, and nobody else notices."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.config import parse
from onelane.supervisor.app import Exporting
from onelane.supervisor.launcher import ProcessLauncher
from onelane.supervisor.supervisor import Supervisor

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, Cluster, echo, eventually, running

pytestmark = pytest.mark.slow


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


async def test_a_shard_that_dies_is_restarted_and_the_others_are_untouched(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        before = {s["name"]: s for s in cluster.shards()}
        os.kill(before["echo-0"]["pid"], signal.SIGKILL)
        await eventually(lambda: cluster.shards()[0]["restarts"] == 1 and cluster.shards()[0]["state"] == "ready")
        after = {s["name"]: s for s in cluster.shards()}
        assert after["echo-0"]["pid"] != before["echo-0"]["pid"]
        assert after["echo-0"]["address"] == before["echo-0"]["address"]
        assert (after["echo-1"]["pid"], after["echo-1"]["restarts"]) == (before["echo-1"]["pid"], 0)
        assert cluster.metric("onelane_restarts_total", onelane_shard="echo-0") == 1
        where = Where(cluster)
        for key in map(str, range(20)):
            reply = await where.away(key).Unary(EchoRequest(key=key), wait_for_ready=True, timeout=10)
            assert reply.shard == where.owner_of(key)
        await where.close()


async def test_of_those_who_ask_in_one_turn_of_the_loop_to_restart_a_shard_one_is_heard() -> None:
    supervisor = Supervisor(
        parse(tomllib.loads(echo(1))), ProcessLauncher(), app_dir=str(ROOT), sinks=[], exporting=Exporting()
    )
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(on_ready=ready.set))
        await ready.wait()
        (shard,) = supervisor.apps[0].shards
        before = shard.pid
        assert [supervisor.begin("restart", "echo", 0) for _ in range(3)] == [True, False, False]
        await eventually(lambda: shard.state == "ready" and shard.pid != before)
        supervisor.stop_asked.set()
    assert shard.restarts == 0


async def test_usr2_restarts_the_shards_one_by_one_and_loses_no_held_call(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        before = [s["pid"] for s in cluster.shards()]
        held = where.home("k").Hold(EchoRequest(key="k", text="kept"))
        await eventually(lambda: cluster.metric("onelane_calls_in_flight"))
        cluster.process.send_signal(signal.SIGUSR2)
        await where.home("k").Release(EchoRequest(key="k"))
        assert (await held).text == "kept"
        await eventually(lambda: "supervisor.recycled" in cluster.log.read_text())
        after = cluster.shards()
        assert not set(before) & {s["pid"] for s in after}
        assert [(s["state"], s["restarts"]) for s in after] == [("ready", 0)] * 2
        assert (await where.home("k").Unary(EchoRequest(key="k"), wait_for_ready=True)).shard == where.owner_of("k")
        await where.close()


async def test_listening_on_all_addresses_advertises_the_one_that_clients_reach(tmp_path: Path) -> None:
    toml = echo(2, 'advertise = "127.0.0.1"').replace("127.0.0.1:0", "0.0.0.0:0")
    with running(tmp_path, toml) as cluster:
        assert all(s["address"].startswith("127.0.0.1:") for s in cluster.shards())
        where = Where(cluster)
        for key in map(str, range(20)):
            assert (await where.home(key).Unary(EchoRequest(key=key))).shard == where.owner_of(key)
        await where.close()


async def test_forwarding_to_a_dead_shard_is_unavailable_with_its_name(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        key = next(k for k in map(str, range(100)) if where.owner_of(k) == "echo-0")
        with pytest.raises(grpc.aio.AioRpcError, match="shard echo-0 does not answer") as caught:
            await where.away(key).Misbehave(EchoRequest(key=key, order="die"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await where.close()


@pytest.mark.parametrize("mode", ["processes", "inline"])
async def test_a_drain_lets_calls_finish_and_exits_with_zero(tmp_path: Path, mode: str) -> None:
    """The held call is forwarded, so its owner must outlive the drain of the shard it landed on."""
    inline = ["--inline"] if mode == "inline" else []
    with running(tmp_path, echo(2), *inline) as cluster:
        where = Where(cluster)
        held = where.away("k").Misbehave(EchoRequest(key="k", order="sleep 1.0"))
        await eventually(lambda: cluster.metric("onelane_forwards_total"))
        pids = [s["pid"] for s in cluster.shards()]
        cluster.process.send_signal(signal.SIGTERM)
        assert (await held).shard == where.owner_of("k")
        assert await asyncio.to_thread(cluster.process.wait, 20) == 0
        assert not any(map(alive, pids))
        await where.close()


async def test_a_drain_is_bounded(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "drain_s = 0.3")) as cluster:
        where = Where(cluster)
        held = where.shared.Hold(EchoRequest(key="k"))
        await eventually(lambda: cluster.metric("onelane_calls_in_flight"))
        cluster.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held
        assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert await asyncio.to_thread(cluster.process.wait, 20) == 0
        await where.close()


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "drain_s = 60")) as cluster:
        where = Where(cluster)
        held = where.shared.Hold(EchoRequest(key="k"))
        await eventually(lambda: cluster.metric("onelane_calls_in_flight"))
        pid = cluster.shards()[0]["pid"]
        cluster.process.send_signal(signal.SIGINT)
        await eventually(lambda: cluster.shards()[0]["state"] == "draining")
        cluster.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(cluster.process.wait, 5) == 130
        await eventually(lambda: not alive(pid))
        held.cancel()
        await where.close()


async def test_no_shard_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        pids = [s["pid"] for s in cluster.shards()]
        cluster.process.kill()
        await eventually(lambda: not any(map(alive, pids)))


async def test_what_clients_saw_answered_is_what_is_exported_after_a_drain_too(tmp_path: Path) -> None:
    """The last report leaves after the last call; the sum is printed by the OTLP sink's fake collector."""
    from tests.collector import Collector

    with Collector() as collector:
        with running(tmp_path, echo(2), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as cluster:
            where = Where(cluster)
            answers = await asyncio.gather(*(where.shared.Unary(EchoRequest(key=f"{n}")) for n in range(300)))
            assert cluster.stop() == 0
            await where.close()
        assert collector.sum("onelane.calls", **{"rpc.method": "echo.v1.Echo/Unary"}) == len(answers)


def test_every_shard_is_on_the_shared_port_and_on_its_own_without_reuseport(cluster: Cluster) -> None:
    ports = {int(s["address"].rpartition(":")[2]) for s in cluster.shards()}
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                sock.bind(("127.0.0.1", port))


def start(folder: Path, toml: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `onelane up` to its own end."""
    (folder / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{toml}')
    command = [sys.executable, "-m", "onelane", "up", str(folder / "onelane.toml"), "--app-dir", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=folder, check=False)


def test_a_port_that_is_taken_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = start(tmp_path, echo(1).replace("127.0.0.1:0", address))
    assert run.returncode == 4
    assert f"{address} is taken by" in run.stderr
    assert f"(pid {os.getpid()})" in run.stderr


def test_two_supervisors_do_not_share_a_port_in_silence(tmp_path: Path, cluster: Cluster) -> None:
    run = start(tmp_path, echo(1).replace("127.0.0.1:0", cluster.listen["echo"]))
    assert (run.returncode, "is taken by" in run.stderr) == (4, True)


@pytest.mark.parametrize("arguments", [[], ["--inline"]])
def test_a_shard_that_fails_at_start_shows_its_own_traceback(tmp_path: Path, arguments: list[str]) -> None:
    toml = echo(2).replace("tests.echo.service:Echo", "tests.broken:Broken")
    run = start(tmp_path, toml, *arguments)
    assert run.returncode == 1
    assert "failed to start: RuntimeError: this service cannot be made\nTraceback" in run.stderr
    assert run.stderr.endswith("RuntimeError: this service cannot be made\n")
    assert "ExceptionGroup" not in run.stderr


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("Grouped", "OSError: disk full"),
        ("Noted", "ValueError: first line\nsecond line"),
        ("Misspelt", "SyntaxError: invalid syntax"),
    ],
)
def test_whatever_a_shard_fails_with_is_named_before_its_traceback(tmp_path: Path, service: str, reason: str) -> None:
    run = start(tmp_path, echo(1).replace("tests.echo.service:Echo", f"tests.broken:{service}"), "--inline")
    assert re.search(rf"^onelane: shard echo-0 failed to start: {reason}\n.*Traceback", run.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("plug", "told"),
    [
        ("nowhere.at.all:X", "nowhere.at.all:X: no module 'nowhere'"),
        ("tests.echo.service:Ecko", "has no class 'Ecko'; it has ['Echo']"),
        ("tests.running_app:Cluster", "derives from no generated …Servicer"),
    ],
)
def test_an_unknown_service_is_told_in_one_sentence(tmp_path: Path, plug: str, told: str) -> None:
    run = start(tmp_path, echo(1).replace("tests.echo.service:Echo", plug))
    assert run.returncode == 1
    assert told in run.stderr
    assert "Traceback" not in run.stderr


def test_methods_without_a_key_are_refused_all_at_once(tmp_path: Path) -> None:
    run = start(tmp_path, echo(1).replace("tests.echo.service:Echo", "tests.greeter.service:Greeter"))
    assert run.returncode == 1
    assert "greeter.v1.Greeter/Everyone: has no key" in run.stderr
    assert "greeter.v1.Greeter/Hello: has no key" in run.stderr


async def test_a_servicer_written_without_us_runs_unchanged(tmp_path: Path) -> None:
    from tests.greeter.v1 import greeter_pb2, greeter_pb2_grpc

    keys = '[apps.echo.keys]\n"greeter.v1.Greeter/Hello" = "name"\n"greeter.v1.Greeter/*" = "ANY"'
    toml = echo(2).replace("tests.echo.service:Echo", "tests.greeter.service:Greeter")
    with running(tmp_path, f"{toml}\n{keys}") as cluster:
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            stub: Any = greeter_pb2_grpc.GreeterStub(channel)
            assert (await stub.Hello(greeter_pb2.HelloRequest(name="ada"))).text == "hello ada"
            people = [greeter_pb2.HelloRequest(name=name) for name in ("a", "b")]
            assert [r.text async for r in stub.Everyone(iter(people))] == ["hello a", "hello b"]
            with pytest.raises(grpc.aio.AioRpcError, match="name is empty"):
                await stub.Hello(greeter_pb2.HelloRequest())


async def test_serve_runs_one_app_of_a_file(tmp_path: Path) -> None:
    toml = f"{echo(1)}\n{echo(1).replace('[apps.echo]', '[apps.other]')}"
    with running(tmp_path, toml, "--app", "other", command="serve") as cluster:
        assert list(cluster.status()["apps"]) == ["other"]
        async with grpc.aio.insecure_channel(cluster.listen["other"]) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            assert (await stub.Unary(EchoRequest(key="k"))).shard == "other-0"


async def test_composite_and_metadata_keys_of_the_configuration_route(tmp_path: Path) -> None:
    keys = '[apps.echo.keys]\n"echo.v1.Echo/Unary" = "key,times"\n"echo.v1.Echo/Plain" = "metadata:x-user"'
    with running(tmp_path, f"{echo(2)}\n{keys}") as cluster:
        where = Where(cluster)
        for n in range(20):
            unary = await where.shared.Unary(EchoRequest(key="a/b", times=n))
            assert unary.shard == where.owner_of(f"a%2Fb/{n}")
            plain = await where.shared.Plain(EchoRequest(), metadata=(("x-user", f"ann {n}"),))
            assert plain.shard == where.owner_of(f"ann%20{n}")
        with pytest.raises(grpc.aio.AioRpcError, match="metadata x-user is missing or empty"):
            await where.shared.Plain(EchoRequest(key="k"))
        await where.close()


def test_bad_configuration_is_exit_code_three(tmp_path: Path) -> None:
    run = start(tmp_path, echo(1, "shardz = 3"))
    assert (run.returncode, "did you mean 'shards'?" in run.stderr) == (3, True)


def test_the_supervisor_loads_no_grpc() -> None:
    probe = (
        "import sys, onelane.cli.main, onelane.supervisor.supervisor, onelane.supervisor.admin.server; "
        "import onelane.telemetry.sinks.otlp.sink; "
        "print(sorted({'grpc', 'grpc_health', 'greenlet'} & {*sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_importing_onelane_starts_nothing_and_reads_no_environment() -> None:
    probe = "import sys, threading, onelane; print(threading.active_count(), 'asyncio' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "1 False\n"
