"""A store that is down while calls wait for it, or while keys move: nothing that was acknowledged is lost, and all goes
on by itself. With real processes, and files of SQLite that another process has locked."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.cli import admin_client

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, eventually, running

pytestmark = pytest.mark.slow
TOML = """
[apps.echo]
services = ["tests.state.kept_service:Kept"]
listen = "127.0.0.1:0"
shards = 2
[apps.echo.state]
folder = "{folder}"
patience_s = 60
"""
KEYS = [f"k{number}" for number in range(48)]
"""So many that each shard has some, at whatever ports."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def app(folder: Path) -> Iterator[RunningApp]:
    with running(folder, TOML.format(folder=folder / "state")) as app:
        yield app


@contextmanager
def locked(folder: Path, shard: str) -> Iterator[None]:
    """Nobody else writes to the file of a shard."""
    with closing(sqlite3.connect(folder / "state" / "echo" / f"{shard}.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.rollback()


async def keys_of(stub: Any, shard: str) -> list[str]:
    """Those of `KEYS` that a shard owns; each is counted once more."""
    replies = await asyncio.gather(*(stub.Unary(EchoRequest(key=key), timeout=BOUND_S) for key in KEYS))
    return [key for key, reply in zip(KEYS, replies, strict=True) if reply.shard == shard]


async def test_calls_whose_commit_is_under_way_when_their_process_is_killed_count_once_or_fail(
    app: RunningApp, folder: Path
) -> None:
    """Once with an id, which our stub sends; else they fail, and may have happened or not."""
    target = app.listen["echo"]
    async with grpc.aio.insecure_channel(target) as channel, onelane.connect(target) as onelane_channel:
        stock: Any = echo_pb2_grpc.EchoStub(channel)
        keys = await keys_of(stock, "echo-0")
        with_ids, without = keys[::2], keys[1::2]
        stub: Any = echo_pb2_grpc.EchoStub(onelane_channel)
        await stub.Misbehave(EchoRequest(key=keys[0]))
        with locked(folder, "echo-0"):
            calls = [stub.Unary(EchoRequest(key=key), timeout=BOUND_S) for key in with_ids]
            lost = [stock.Unary(EchoRequest(key=key), timeout=BOUND_S) for key in without]
            await eventually(lambda: app.in_flight(onelane_shard="echo-0") >= len(keys))
            os.kill(app.shards()[0]["pid"], signal.SIGKILL)
            assert [await call.code() for call in lost] == [grpc.StatusCode.UNAVAILABLE] * len(lost)
        assert [(await call).seen for call in calls] == [2] * len(calls)
        stored = [(await stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S)).seen for key in keys]
    assert stored[::2] == [2] * len(with_ids)
    assert set(stored[1::2]) <= {1, 2}


async def test_a_change_of_placement_goes_on_by_itself_once_a_locked_store_is_free(
    app: RunningApp, folder: Path
) -> None:
    """Calls wait for their commit, their keys cannot leave before it, and a third shard comes."""
    async with onelane.connect(app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        before = [(await stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S)).seen for key in KEYS]
        with locked(folder, "echo-0"):
            calls = [stub.Unary(EchoRequest(key=key), timeout=BOUND_S) for key in KEYS]
            await eventually(lambda: app.in_flight(onelane_shard="echo-0"))
            command = asyncio.to_thread(admin_client.command, app.admin, "/scale?app=echo&shards=3")
            scaling = asyncio.ensure_future(command)
            await eventually(lambda: app.status()["apps"]["echo"]["change"])
        await asyncio.wait_for(scaling, BOUND_S)
        assert [(await call).seen - count for call, count in zip(calls, before, strict=True)] == [1] * len(KEYS)
        stored = [(await stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S)).seen for key in KEYS]
    assert [count + 1 for count in before] == stored
    assert [shard["restarts"] for shard in app.shards()] == [0, 0, 0]
