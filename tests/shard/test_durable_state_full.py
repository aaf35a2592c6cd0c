"""A disk that is really full while turns commit and keys move: nothing that was acknowledged is lost, status says why
calls fail, and all goes on by itself once there is space. With real processes, and files of SQLite on a small disk."""

import asyncio
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.cli import admin_client
from onelane.errors import Transient

from tests import tools
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, eventually, http_request, running

pytestmark = pytest.mark.slow
TOML = """
[apps.echo]
services = ["tests.state.kept_service:Kept"]
listen = "127.0.0.1:0"
shards = 2
[apps.echo.state]
folder = "{disk}/state"
patience_s = 1
"""
KEYS = [f"k{number}" for number in range(16)]
DISK = 32 << 20
"""Bytes. The files of three shards take half of it, however many turns commit, since SQLite begins the log of a file
again at 1,000 pages: so what fills it is what the test puts there."""
LEFT = 128 << 10
"""Bytes that commits find free, and fill: fewer than the log of a file takes before SQLite begins it again."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of `DISK` bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode:
        tools.absent(f"a file system cannot be mounted here, which needs root: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all the space but `LEFT` bytes; returns the file that has it."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - LEFT))
    return filler


class Clients:
    """One for each key, that adds one again and again and remembers what was acknowledged."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.acknowledged: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.details: set[str] = set()
        """Of calls that have failed."""
        self._stub: Any = echo_pb2_grpc.EchoStub(channel)
        self._is_over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def count_once(self) -> None:
        """Count each key once."""
        await asyncio.gather(*map(self._count, KEYS))
        assert all(self.acknowledged[key] == 1 for key in KEYS)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep_counting(key)) for key in KEYS]

    async def _keep_counting(self, key: str) -> None:
        while not self._is_over.is_set():
            if not await self._count(key):
                await asyncio.sleep(0.01)

    async def _count(self, key: str) -> bool:
        """Whether it is acknowledged."""
        self.sent[key] += 1
        call = self._stub.Unary(EchoRequest(key=key), timeout=BOUND_S)
        if (code := await call.code()) is grpc.StatusCode.OK:
            self.acknowledged[key] += 1
            assert self.acknowledged[key] <= (await call).seen <= self.sent[key], key
            return True
        assert code is grpc.StatusCode.UNAVAILABLE, await call.details()
        self.details.add(await call.details())
        return False

    async def stop(self) -> None:
        self._is_over.set()
        await asyncio.gather(*self._tasks)

    async def go_on(self) -> None:
        """Wait until every key is counted again."""
        before = self.acknowledged.copy()
        await eventually(lambda: self._all_go_on() and all(self.acknowledged[key] > before[key] for key in KEYS))

    def _all_go_on(self) -> bool:
        """Raises what one of them has ended with."""
        for task in self._tasks:
            if task.done():
                task.result()
        return True


def health(app: RunningApp) -> str:
    return str(http_request(f"http://{app.admin}/healthz")[1])


async def scaled(app: RunningApp, shards: int) -> None:
    await asyncio.to_thread(admin_client.command, app.admin, f"/scale?app=echo&shards={shards}")


async def test_on_a_full_disk_nothing_acknowledged_is_lost_and_keys_that_moved_are_back_with_the_space(
    tmp_path: Path, disk: Path
) -> None:
    with running(tmp_path, TOML.format(disk=disk)) as app:
        async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
            clients = Clients(channel)
            await clients.count_once()
            filler = fill(disk)
            clients.start()
            await eventually(lambda: "the store of echo-0 fails" in health(app) and "echo-1 fails" in health(app))
            # A new shard has no file, and needs one.
            with pytest.raises(
                Transient, match=r"not changed: shard echo-2 failed to start: .*echo-2.sqlite: the disk is full"
            ):
                await scaled(app, 3)
            await scaled(app, 1)
            # What the file of the other shard gives up, if it does, is soon full as well.
            await eventually(lambda: health(app) == "1/1 shards ready; the store of echo-0 fails\n")
            filler.unlink()
            await eventually(lambda: health(app) == "1/1 shards ready\n")
            await clients.go_on()
            # What the shard that did not start has left behind is no obstacle.
            await scaled(app, 3)
            await clients.go_on()
            await clients.stop()
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            stored = {key: (await stub.Misbehave(EchoRequest(key=key), timeout=BOUND_S)).seen for key in KEYS}
        assert [shard["restarts"] for shard in app.shards()] == [0, 0, 0]
    assert all(clients.acknowledged[key] <= stored[key] <= clients.sent[key] for key in KEYS)
    assert "full" in app.log.read_text()
    assert not any(str(disk) in details for details in clients.details)
