"""The command line: exit codes, signals, and the choice of an app."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, echo, eventually, is_running, run_to_end, running, running_command

pytestmark = pytest.mark.slow
BESIDE_AND_CURRENT = """
[apps.echo]
services = ["beside:Echo", "current:Greeter"]
keys = { "greeter.v1.Greeter/*" = "ANY" }
listen = "127.0.0.1:0"
shards = 1
"""


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "drain_s = 60")) as cluster:
        where = Where(cluster)
        held = where.shared.Hold(EchoRequest(key="k"))
        await eventually(lambda: cluster.metric("onelane_calls_in_flight"))
        pid = cluster.shards()[0]["pid"]
        cluster.process.send_signal(signal.SIGINT)
        await eventually(lambda: cluster.shards()[0]["state"] == "draining")
        cluster.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(cluster.process.wait, 30) == 130
        await eventually(lambda: not is_running(pid))
        held.cancel()
        await where.close()


def test_the_process_that_holds_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        run = run_to_end(tmp_path, echo(1).replace("127.0.0.1:0", address))
    assert run.returncode == 4
    assert f"{address} is taken by" in run.stderr
    assert f"(pid {os.getpid()})" in run.stderr


def test_bad_configuration_is_exit_code_three(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, echo(1, "shardz = 3"))
    assert (run.returncode, "did you mean 'shards'?" in run.stderr) == (3, True)


async def test_serve_runs_one_app_of_a_file(tmp_path: Path) -> None:
    toml = f"{echo(1)}\n{echo(1).replace('[apps.echo]', '[apps.other]')}"
    with running(tmp_path, toml, "--app", "other", command="serve") as cluster:
        assert list(cluster.status()["apps"]) == ["other"]
        async with grpc.aio.insecure_channel(cluster.listen["other"]) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            assert (await stub.Unary(EchoRequest(key="k"))).shard == "other-0"


@pytest.mark.parametrize("mode", [[], ["--inline"]], ids=["processes", "inline"])
def test_services_are_looked_for_beside_the_file_and_in_the_current_folder(tmp_path: Path, mode: list[str]) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "beside.py").write_text("from tests.echo.service import Echo\n")
    (tmp_path / "current.py").write_text("from tests.greeter.service import Greeter\n")
    (tmp_path / "deploy" / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{BESIDE_AND_CURRENT}')
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    arguments = ("up", "deploy/onelane.toml", *mode)
    with running_command(*arguments, cwd=tmp_path, log=tmp_path / "log", PYTHONPATH=path) as app:
        assert len(app.status()["apps"]["echo"]["shards"]) == 1
