"""A supervisor with real shards: addresses, failed starts, services and keys of the file, and the end of it all."""

import asyncio
import os
import re
import shutil
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
from onelane.supervisor import supervisor as supervisor_module
from onelane.supervisor.launcher import ProcessLauncher
from onelane.supervisor.shard_state import ShardState
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.supervisor.supervisor import Supervisor
from onelane.telemetry.codec import point_to_proto
from onelane.telemetry.stats import Stats
from onelane.v1 import control_pb2

from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, RunningApp, echo, eventually, is_running, run_to_end, running
from tests.supervisor.fake_launcher import FakeControl, FakeLauncher, settle

pytestmark = pytest.mark.slow


async def test_of_several_restarts_asked_for_in_one_turn_of_the_loop_the_first_alone_is_begun() -> None:
    supervisor = Supervisor(
        parse(tomllib.loads(echo(1))), ProcessLauncher(), app_dir=str(ROOT), sinks=[], telemetry=TelemetryOptions()
    )
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(on_ready=ready.set))
        await ready.wait()
        (shard,) = supervisor.apps[0].shards
        refusal = "the shard cannot restart now: another restart is under way, and shards restart one after another"
        assert [supervisor.begin("restart", "echo", 0) for _ in range(3)] == ["", refusal, refusal]
        await shard.ended.wait()
        (successor,) = supervisor.apps[0].shards
        assert successor.state is ShardState.READY
        supervisor.stop_asked.set()
    assert successor.restarts == 0


async def test_a_scrape_waits_no_longer_for_a_shard_that_dies_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "COLLECT_S", 3600.0)
    launcher = FakeLauncher([])
    config = parse(tomllib.loads(echo(1)))
    supervisor = Supervisor(config, launcher, app_dir=str(ROOT), sinks=[], telemetry=TelemetryOptions())
    async with asyncio.TaskGroup() as tasks:
        running_all = tasks.create_task(supervisor.run())
        await eventually(lambda: launcher.launched)
        launcher.shard("echo-0").line.deliver(ready=control_pb2.Ready(pid=7))
        await settle()
        scraping = tasks.create_task(supervisor.collections.wait_fresh())
        await settle()
        launcher.shard("echo-0").end("signal SIGKILL")
        await scraping
        running_all.cancel()


async def test_a_report_that_a_scrape_has_not_waited_for_is_counted_in_that_scrape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = FakeLauncher([])
    config = parse(tomllib.loads(echo(1)))
    supervisor = Supervisor(config, launcher, app_dir=str(ROOT), sinks=[], telemetry=TelemetryOptions())
    late = re.compile(r"^onelane_reports_late_total\{.*onelane_shard=\"echo-0\".*\} 1(?:\.0)?$", re.MULTILINE)
    async with asyncio.TaskGroup() as tasks:
        running_all = tasks.create_task(supervisor.run())
        await eventually(lambda: launcher.launched)
        line = launcher.shard("echo-0").line
        line.deliver(ready=control_pb2.Ready(pid=7))
        await settle()
        reported = tasks.create_task(report_when_asked(line))
        text, _ = await supervisor.metrics()
        assert "onelane_reports_late_total" not in text.decode()
        reported.cancel()
        monkeypatch.setattr(supervisor_module, "COLLECT_S", 0.0)
        text, _ = await supervisor.metrics()
        assert late.search(text.decode())
        running_all.cancel()


async def test_a_hundred_scrapes_at_once_cost_a_shard_two_reports_and_have_the_counts_of_the_second() -> None:
    launcher = FakeLauncher([])
    config = parse(tomllib.loads(echo(1)))
    supervisor = Supervisor(config, launcher, app_dir=str(ROOT), sinks=[], telemetry=TelemetryOptions())
    async with asyncio.TaskGroup() as tasks:
        running_all = tasks.create_task(supervisor.run())
        await eventually(lambda: launcher.launched)
        line = launcher.shard("echo-0").line
        line.deliver(ready=control_pb2.Ready(pid=7))
        await settle()
        reported = tasks.create_task(report_when_asked(line))
        first = tasks.create_task(supervisor.metrics())
        await eventually(lambda: collections_asked(line))
        texts = await asyncio.gather(first, *(supervisor.metrics() for _ in range(99)))
        reported.cancel()
        assert len(collections_asked(line)) == 2
        counts = [re.search(r"^onelane_calls_total.* (\S+)$", text.decode(), re.MULTILINE) for text, _ in texts]
        assert [float(count[1]) for count in counts if count] == [1.0] + [2.0] * 99
        running_all.cancel()


def collections_asked(line: FakeControl) -> list[int]:
    return [message.collect for message in line.sent if message.WhichOneof("kind") == "collect"]


async def report_when_asked(line: FakeControl) -> None:
    """Answer each request for a report, soon, with one more call."""
    answered = 0
    while True:
        await asyncio.sleep(0)
        for number in collections_asked(line)[answered:]:
            answered += 1
            await settle()
            stats = Stats()
            stats.counter("onelane.calls", unit="{call}", description="").add(1)
            points = [point_to_proto(point) for point in stats.take()]
            line.deliver(report=control_pb2.Report(seq=answered, collect=number, points=points))


async def test_an_app_that_listens_on_all_addresses_advertises_the_configured_one(tmp_path: Path) -> None:
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


async def test_no_shard_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        pids = [s["pid"] for s in cluster.shards()]
        cluster.process.kill()
        await eventually(lambda: not any(map(is_running, pids)))


def processes_of(app: str, cluster: RunningApp) -> list[tuple[int, int, int, str]]:
    """Of its shards: what is the same while nobody touches them. Stalls are not, on a machine that is busy."""
    return [(row["pid"], row["life"], row["restarts"], row["state"]) for row in cluster.shards(app)]


async def test_a_shard_comes_back_once_the_python_that_was_away_is_there_again(tmp_path: Path) -> None:
    """As where a deployment replaces the virtual environment under a running service."""
    python = virtual_environment(tmp_path)
    other = echo(1).replace("[apps.echo]", "[apps.other]")
    with running(tmp_path, f"{echo(1)}\n{other}", python=str(python)) as cluster:
        untouched = processes_of("other", cluster)
        away = python.rename(python.with_name("away"))
        os.kill(cluster.shards()[0]["pid"], signal.SIGKILL)
        await eventually(lambda: f"it cannot be run: [Errno 2] No such file or directory: '{python}'" in log(cluster))
        assert processes_of("other", cluster) == untouched
        away.rename(python)
        await eventually(lambda: cluster.shards()[0]["state"] == "ready")


def virtual_environment(folder: Path) -> Path:
    """A copy of this one, as far as a link can be: its python."""
    (folder / "venv/bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), folder / "venv")
    (folder / "venv/lib").symlink_to(Path(sys.prefix, "lib"))
    python = folder / "venv/bin/python"
    python.symlink_to(Path(sys.executable).resolve())
    return python


def log(cluster: RunningApp) -> str:
    return cluster.log.read_text()


async def test_every_call_that_a_client_saw_answered_is_exported_after_a_drain(tmp_path: Path) -> None:
    """The last report leaves after the last call; the sum is printed by the OTLP sink's fake collector."""
    from tests.otlp_receiver import HttpReceiver

    with HttpReceiver() as collector:
        with running(tmp_path, echo(2), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as cluster:
            where = Where(cluster)
            answers = await asyncio.gather(*(where.shared.Unary(EchoRequest(key=f"{n}")) for n in range(300)))
            assert cluster.stop() == 0
            await where.close()
        assert collector.sum("onelane.calls", **{"rpc.method": "echo.v1.Echo/Unary"}) == len(answers)


def test_every_shard_is_on_the_shared_port_and_on_its_own_without_reuseport(cluster: RunningApp) -> None:
    ports = {int(s["address"].rpartition(":")[2]) for s in cluster.shards()}
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                sock.bind(("127.0.0.1", port))


def test_two_supervisors_do_not_share_a_port_in_silence(tmp_path: Path, cluster: RunningApp) -> None:
    run = run_to_end(tmp_path, echo(1).replace("127.0.0.1:0", cluster.listen["echo"]))
    assert (run.returncode, "is taken by" in run.stderr) == (4, True)


@pytest.mark.parametrize("arguments", [[], ["--inline"]])
def test_a_shard_that_fails_at_start_shows_its_own_traceback(tmp_path: Path, arguments: list[str]) -> None:
    toml = echo(2).replace("tests.echo.service:Echo", "tests.broken:Broken")
    run = run_to_end(tmp_path, toml, *arguments)
    assert run.returncode == 1
    place = "apps.echo.services: tests.broken:Broken"
    assert f"failed to start: {place}: RuntimeError: this service cannot be made\nTraceback" in run.stderr
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
def test_every_kind_of_error_at_start_is_named_before_its_traceback(tmp_path: Path, service: str, reason: str) -> None:
    run = run_to_end(tmp_path, echo(1).replace("tests.echo.service:Echo", f"tests.broken:{service}"), "--inline")
    sentence = rf"apps\.echo\.services: tests\.broken:{service}: {reason}"
    assert re.search(rf"^onelane: shard echo-0 failed to start: {sentence}\n.*Traceback", run.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("plug", "fault"),
    [
        ("nowhere.at.all:X", "nowhere.at.all:X: no module 'nowhere'"),
        ("tests.echo.service:Ecko", "has no class 'Ecko'; it has ['Echo']"),
        ("tests.running_app:RunningApp", "derives from no generated …Servicer"),
    ],
)
def test_an_unknown_service_is_reported_in_one_sentence(tmp_path: Path, plug: str, fault: str) -> None:
    run = run_to_end(tmp_path, echo(1).replace("tests.echo.service:Echo", plug))
    assert run.returncode == 1
    assert fault in run.stderr
    assert "Traceback" not in run.stderr


def test_methods_without_a_key_are_refused_all_at_once(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, echo(1).replace("tests.echo.service:Echo", "tests.greeter.service:Greeter"))
    assert run.returncode == 1
    assert "greeter.v1.Greeter/Everyone: has no key" in run.stderr
    assert "greeter.v1.Greeter/Hello: has no key" in run.stderr


async def test_a_servicer_written_for_grpcio_runs_unchanged(tmp_path: Path) -> None:
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


def test_the_supervisor_loads_no_grpc() -> None:
    probe = (
        "import sys, onelane.cli.main, onelane.supervisor.supervisor, onelane.supervisor.admin.server; "
        "import onelane.telemetry.sinks.otlp.sink, onelane.supervisor.cluster_member; "
        "import onelane.supervisor.cluster_placing; "
        "print(sorted({'grpc', 'grpc_health', 'greenlet'} & {*sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_without_a_cluster_nothing_of_it_is_loaded() -> None:
    probe = (
        "import sys, onelane.cli.main, onelane.supervisor.supervisor, onelane.supervisor.admin.server; "
        "import onelane.shard.process, onelane.shard.lifecycle; "
        "names = ('core.lease', 'core.machine_links', 'lane.fence', 'cluster.coordination', 'cluster.machines', "
        "'cluster.placements', 'supervisor.machine', 'supervisor.cluster_', 'supervisor.placed_lives'); "
        "print([name for name in sys.modules if name.startswith(tuple(f'onelane.{name}' for name in names))])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_importing_onelane_starts_nothing_and_reads_no_environment() -> None:
    probe = "import sys, threading, onelane; print(threading.active_count(), 'asyncio' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "1 False\n"
