"""Shards that are forked are processes like any other: nothing of the server, or of one another, is theirs."""

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.shard.fork_server import Files

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, eventually, is_running, running

FACTS = (
    '[apps.facts]\nservices = ["tests.shard.process_facts:ProcessFacts"]\nlisten = "127.0.0.1:0"\nshards = 2\n'
    'keys = { "echo.v1.Echo/*" = "ANY" }\n'
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("facts"), FACTS, PROCESS_FACTS="of the supervisor") as app:
        yield app


async def facts_of(address: str) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        facts: dict[str, Any] = json.loads((await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest())).text)
        return facts


async def facts(app: RunningApp) -> list[dict[str, Any]]:
    return [await facts_of(shard["address"]) for shard in app.shards("facts")]


async def test_shards_are_forks_of_one_process_each_in_a_session_of_its_own(app: RunningApp) -> None:
    first, other = await facts(app)
    assert first["parent"] == other["parent"] != app.process.pid
    assert [first["session"], other["session"]] == [first["pid"], other["pid"]]


async def test_shards_share_no_random_numbers(app: RunningApp) -> None:
    first, other = await facts(app)
    assert not {*first["random"]} & {*other["random"]}


async def test_a_shard_has_the_signals_the_collector_and_the_environment_of_a_fresh_process(app: RunningApp) -> None:
    (fact, _) = await facts(app)
    assert (fact["hangup"], fact["collects"]) == (str(signal.SIG_DFL), True)
    assert fact["variable"] == "of the supervisor"


async def test_signals_to_all_processes_of_a_service_do_not_end_the_server(app: RunningApp) -> None:
    server = (await facts(app))[0]["parent"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(server, number)
    os.kill(app.shards("facts")[0]["pid"], signal.SIGKILL)
    await eventually(lambda: app.shards("facts")[0]["restarts"] == 1 and app.shards("facts")[0]["state"] == "ready")
    assert [fact["parent"] for fact in await facts(app)] == [server] * 2


async def test_the_server_ends_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, FACTS) as app:
        server = (await facts_of(app.listen["facts"]))["parent"]
        app.process.kill()
        await eventually(lambda: not is_running(server))


def test_a_file_that_was_replaced_since_it_was_imported_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "once_imported.py"
    module.write_text("VERSION = 1")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("once_imported")
    files = Files()
    assert files.changed() == ""
    (tmp_path / "new").write_text("VERSION = 2")
    (tmp_path / "new").rename(module)
    assert files.changed() == str(module)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import grpc", "grpcio's core is loaded"),
        ("import threading; threading.Timer(3600, print).start()", "it has 2 threads"),
        ("import os; del os.pidfd_open", "AttributeError: module 'os' has no attribute 'pidfd_open'"),
    ],
)
async def test_a_process_that_must_not_be_forked_says_so(code: str, reason: str) -> None:
    code += "; import os; from onelane.shard import fork_server; print(fork_server._unfit(), flush=True); os._exit(0)"
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND_S
    )
    assert run.stdout == f"{reason}\n"
