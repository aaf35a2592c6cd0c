"""Durable state of a real app that is scaled, killed, and started again with other shards."""

import asyncio
import itertools
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests import postgres
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.postgres import PostgresServer
from tests.running_app import RunningApp, eventually, running
from tests.shard.test_durable_state import CLIENTS, KEYS, Counting
from tests.supervisor.test_changes_processes import order

pytestmark = pytest.mark.slow
PAUSE_S = 0.02
"""Of a client: together they still call many times while a key moves."""


class Books:
    """What was sent and acknowledged, over all starts of the app."""

    def __init__(self, prefix: str) -> None:
        """prefix: of the keys."""
        self._prefix = prefix
        self.sent: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()

    @asynccontextmanager
    async def counting(self, app: RunningApp) -> AsyncIterator[Counting]:
        """Clients count until the end of the block; then every key has what was acknowledged."""
        async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            counting = Counting(stub, self._prefix, pause_s=PAUSE_S)
            counting.sent, counting.acknowledged = self.sent, self.acknowledged
            await self.check(stub)
            clients = [asyncio.ensure_future(counting.count(number)) for number in range(CLIENTS)]
            yield counting
            counting.is_over = True
            await asyncio.gather(*clients)
            await self.check(stub)

    async def check(self, stub: Any) -> None:
        for number in range(KEYS):
            key = f"{self._prefix}{number}"
            stored = (await stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S, wait_for_ready=True)).seen
            assert self.acknowledged[key] <= stored <= self.sent[key], key


def spread_prefix(app: RunningApp) -> str:
    """Of keys that are not all one shard's: while that one is dead, no call would reach the others and their store."""
    placement = app.placement()
    prefixes = (f"k{number}-" for number in itertools.count())
    return next(p for p in prefixes if len({placement.owner_of(f"{p}{number}") for number in range(KEYS)}) > 1)


def toml(folder: Path, shards: int, dsn: str, *, drain_s: float = 2.0, patience_s: float = 5.0) -> str:
    store = f'store = "postgresql"\ndsn = "{dsn}"' if dsn else f'folder = "{folder / "state"}"'
    return f"""
[apps.echo]
services = ["tests.state.kept_service:Kept"]
listen = "127.0.0.1:0"
shards = {shards}
drain_s = {drain_s}
[apps.echo.state]
{store}
patience_s = {patience_s}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer | None]:
    if request.param == "sqlite":
        yield None
        return
    with postgres.server() as server:
        yield server


async def kill_some_shard(app: RunningApp, seed: random.Random) -> None:
    pids = [shard["pid"] for shard in await asyncio.to_thread(app.shards) if shard["pid"]]
    # One of them may have ended since.
    with suppress(ProcessLookupError):
        os.kill(seed.choice(pids), signal.SIGKILL)


def has_all_shards(app: RunningApp) -> bool:
    """Whether all the shards run that a change has, and that it began with."""
    row = app.status()["apps"]["echo"]
    return row["change"] is not None and not row["change"]["starting"] and all(s["pid"] for s in row["shards"])


def set_epoch(folder: Path, epoch: int) -> None:
    """As if the clock had been far ahead."""
    for path in (folder / "state" / "echo").glob("*.sqlite"):
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("UPDATE keys SET epoch = ?", (epoch,))


async def test_nothing_is_lost_as_shards_come_go_and_are_killed_and_the_app_starts_with_fewer(
    tmp_path: Path, server: PostgresServer | None
) -> None:
    """And their database crashes, and is down, while keys move."""
    seed = random.Random(14)
    dsn = server.dsn if server else ""
    with running(tmp_path, toml(tmp_path, 2, dsn)) as app:
        books = Books(spread_prefix(app))
        async with books.counting(app) as counting:
            for shards in (3,) if dsn else (4, 3):
                scaling = asyncio.ensure_future(order(app, "scale", "echo", str(shards)))
                await counting.count_on(50)
                await kill_some_shard(app, seed)
                if server:
                    # A shard that starts while the database is down fails, and with it the change: the clear way out.
                    await eventually(lambda: scaling.done() or has_all_shards(app))  # noqa: B023
                    await asyncio.to_thread(server.stop, signal.SIGQUIT)
                    await eventually(lambda: app.metric("onelane_state_failing_ratio"))
                    await asyncio.to_thread(server.start)
                await scaling
            await counting.count_on(50)
        assert "change.life_killed" not in app.log.read_text()
        epoch = app.status()["apps"]["echo"]["epoch"]
        assert app.stop() == 0
    if not dsn:
        epoch = 5_000_000_000
        set_epoch(tmp_path, epoch)
    with running(tmp_path, toml(tmp_path, 2, dsn)) as app:
        async with books.counting(app) as counting:
            await counting.count_on(50)
        assert app.status()["apps"]["echo"]["epoch"] > epoch
        assert app.stop() == 0
    files = {path.stem for path in (tmp_path / "state").rglob("*.sqlite")}
    assert files == (set() if dsn else {"echo-0", "echo-1"})


async def test_a_change_waits_for_a_database_that_hangs_and_costs_no_shard_its_life(tmp_path: Path) -> None:
    """Nor what is in memory of all keys, also those that stay."""
    with (
        postgres.server() as server,
        running(tmp_path, toml(tmp_path, 2, server.dsn, drain_s=0.1, patience_s=2.0)) as app,
    ):
        books = Books(spread_prefix(app))
        async with books.counting(app) as counting:
            await counting.count_on(50)
            pids = server.pids
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            # Of each key a call waits for the database, also of those that are to leave.
            await eventually(lambda: counting.sent.total() - counting.acknowledged.total() == CLIENTS)
            await order(app, "scale", "echo", "1")
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            await counting.count_on(50)
        (shard,) = app.shards()
        assert (shard["life"], shard["restarts"]) == (1, 0)
        assert "change.life_killed" not in app.log.read_text()
