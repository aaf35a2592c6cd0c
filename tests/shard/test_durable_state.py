"""Durable state over the ends of its process, with files of SQLite."""

import asyncio
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import onelane
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, eventually, running

KILLS, OWN_KILLS, CLIENTS, KEYS = 2, 2, 16, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def durable_app(folder: Path) -> Iterator[RunningApp]:
    toml = f"""
[apps.echo]
services = ["tests.state.kept_service:Kept"]
listen = "127.0.0.1:0"
shards = 1
[apps.echo.state]
folder = "{folder}"
patience_s = 0.1
"""
    with running(folder, toml) as app:
        yield app


class Counting:
    """Clients that count, and what they were told."""

    def __init__(self, stub: Any, prefix: str, *, pause_s: float = 0.0) -> None:
        """prefix: of the keys. pause_s: of a client, from an answer to its next call."""
        self._stub = stub
        self._prefix = prefix
        self._pause_s = pause_s
        self.sent: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        self.is_over = False
        self._counted = asyncio.Event()

    async def count(self, number: int) -> None:
        while not self.is_over:
            key = f"{self._prefix}{number % KEYS}"
            self.sent[key] += 1
            try:
                await self._stub.Unary(EchoRequest(key=key), timeout=BOUND_S)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
            else:
                self.acknowledged[key] += 1
                self._counted.set()
                await asyncio.sleep(self._pause_s)

    async def count_on(self, more: int) -> None:
        """Wait until so many more are acknowledged."""
        goal = self.acknowledged.total() + more
        async with asyncio.timeout(BOUND_S):
            while self.acknowledged.total() < goal:
                self._counted.clear()
                await self._counted.wait()


async def count_while_killed(app: RunningApp, stub: Any, prefix: str, *, kills: int) -> tuple[Counting, Counter[str]]:
    """Count while the shard is killed now and then; also returns what is stored in the end."""
    counting = Counting(stub, prefix)
    clients = [asyncio.ensure_future(counting.count(number)) for number in range(CLIENTS)]
    for _ in range(kills):
        await counting.count_on(200)
        (shard,) = await asyncio.to_thread(app.shards)
        os.kill(shard["pid"], signal.SIGKILL)
    await counting.count_on(200)
    counting.is_over = True
    await asyncio.gather(*clients)
    stored = {key: (await stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S)).seen for key in counting.sent}
    return counting, Counter(stored)


async def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(durable_app: RunningApp) -> None:
    async with grpc.aio.insecure_channel(durable_app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        counting, stored = await count_while_killed(durable_app, stub, "stock", kills=KILLS)
    assert counting.acknowledged <= stored <= counting.sent


async def test_no_call_of_our_own_stub_fails_and_each_counts_once_when_the_process_is_killed(
    durable_app: RunningApp,
) -> None:
    async with onelane.connect(durable_app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        counting, stored = await count_while_killed(durable_app, stub, "own", kills=OWN_KILLS)
    assert counting.acknowledged == stored == counting.sent


async def test_a_file_that_is_locked_for_a_while_refuses_and_is_back_by_itself(
    durable_app: RunningApp, folder: Path
) -> None:
    async with grpc.aio.insecure_channel(durable_app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        before = (await stub.Unary(EchoRequest(key="locked"), timeout=BOUND_S)).seen
        lock = sqlite3.connect(folder / "echo" / "echo-0.sqlite", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        try:
            for method in (stub.Unary, stub.Misbehave):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await method(EchoRequest(key="locked"), timeout=BOUND_S)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await eventually(lambda: durable_app.metric("onelane_state_failing_ratio") == 1)
        finally:
            lock.rollback()
            lock.close()
        assert (await stub.Unary(EchoRequest(key="locked"), timeout=BOUND_S)).seen == before + 1
        await eventually(lambda: durable_app.metric("onelane_state_failing_ratio") == 0)
        assert "state.store_back shard=echo-0" in durable_app.log.read_text()
