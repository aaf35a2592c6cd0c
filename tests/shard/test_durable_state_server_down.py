"""A process that starts while its database is down: what needs it is refused by a sentence that names the database, and
a shard that had run before comes back by itself, with all that was acknowledged."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.cli import admin_client
from onelane.errors import Transient

from tests import postgres
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.postgres import PostgresServer
from tests.running_app import RunningApp, eventually, run_to_end, running

pytestmark = pytest.mark.slow
TOML = """
[apps.echo]
services = ["tests.state.kept_service:Kept"]
listen = "127.0.0.1:0"
shards = 1
[apps.echo.state]
store = "postgresql"
dsn = "{dsn}"
patience_s = 60
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres.server() as server:
        yield server


async def scaled(app: RunningApp, shards: int) -> None:
    await asyncio.to_thread(admin_client.command, app.admin, f"/scale?app=echo&shards={shards}")


def reason(server: PostgresServer) -> str:
    """Why a shard does not start."""
    place = f"postgresql {server.folder}:5432/postgres"
    return f"{re.escape(place)}: .*Is the server running locally and accepting connections on that socket"


async def test_a_change_is_refused_by_name_while_the_database_is_down_and_the_shards_go_on_by_themselves_after_it(
    tmp_path: Path, server: PostgresServer
) -> None:
    """The change is asked for again: a new shard may fail to start for a reason that stays."""
    with running(tmp_path, TOML.format(dsn=server.dsn)) as app:
        async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            assert (await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)).seen == 1
            await asyncio.to_thread(server.stop)
            refusal = "echo has not changed: shard echo-1 failed to start: " + reason(server)
            with pytest.raises(Transient, match=refusal):
                await scaled(app, 2)
            # What is in memory is served meanwhile.
            assert (await stub.Misbehave(EchoRequest(key="k"), timeout=BOUND_S)).seen == 1
            (pid,) = [shard["pid"] for shard in app.shards()]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: app.shards()[0]["restarts"] >= 2)
            assert re.search("shard.restart_failed shard=echo-0 reason=" + reason(server), app.log.read_text())
            await asyncio.to_thread(server.start)
            assert (await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S, wait_for_ready=True)).seen == 2
            await scaled(app, 2)


def test_an_app_does_not_start_while_its_database_is_down_and_says_why(tmp_path: Path, server: PostgresServer) -> None:
    server.stop()
    ended = run_to_end(tmp_path, TOML.format(dsn=server.dsn))
    assert ended.returncode == 1
    assert re.search(reason(server), ended.stderr)
    server.start()
    with running(tmp_path, TOML.format(dsn=server.dsn)):
        pass
