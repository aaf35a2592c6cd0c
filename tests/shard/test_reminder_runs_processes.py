"""Reminders over the ends of processes, with files of SQLite."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.cli import admin_client

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, running

pytestmark = pytest.mark.slow

RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
OPTIONS = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRY_POLICY}]}))]
KEYS = [f"k{number}" for number in range(24)]


def toml(folder: Path) -> str:
    return f"""
[apps.echo]
services = ["tests.shard.reminded:Reminded"]
listen = "127.0.0.1:0"
shards = 2
turns = {{ "echo.v1.Echo/*" = "KEYED" }}
state = {{ folder = "{folder}/state" }}
"""


async def do(app: RunningApp, *orders: tuple[str, str]) -> list[int]:
    """Carry orders out, each in a turn of its key; returns how often the reminders of these keys have run."""
    async with grpc.aio.insecure_channel(app.listen["echo"], options=OPTIONS) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        calls = (
            stub.Misbehave(EchoRequest(key=key, order=order), timeout=BOUND_S, wait_for_ready=True)
            for key, order in orders
        )
        return [reply.seen for reply in await asyncio.gather(*calls)]


async def wait_counts(app: RunningApp, count: int) -> None:
    """Wait until every reminder has run so often."""
    async with asyncio.timeout(BOUND_S):
        while await do(app, *((key, f"list {key}") for key in KEYS)) != [count] * len(KEYS):  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.1)


async def test_each_runs_once_while_shards_are_scaled_and_killed_and_after_a_restart_of_all(tmp_path: Path) -> None:
    with running(tmp_path, toml(tmp_path)) as app:
        await do(app, *((key, f"set {key} {0.3 + number / 20} - a") for number, key in enumerate(KEYS)))
        for shard in await asyncio.to_thread(app.shards):
            os.kill(shard["pid"], signal.SIGKILL)
        await asyncio.to_thread(admin_client.command, app.admin, "/scale?app=echo&shards=3")
        await wait_counts(app, 1)
        await do(app, *((key, f"set {key} 1.5 - b") for key in KEYS))
        app.stop()
    with running(tmp_path, toml(tmp_path)) as app:
        await wait_counts(app, 2)
