"""Supervisors of one cluster, as real processes at a real etcd: their apps have one placement."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.etcd import EtcdServer, etcd
from tests.running_app import RunningApp, echo, eventually, running
from tests.supervisor.leased import MODULE, environment_of, settings_of

LEASE_S = 6
KEYS = [f"k{number}" for number in range(24)]


class Machines:
    """Machines of one cluster, each an `onelane up` of an echo app."""

    def __init__(self, server: EtcdServer, folder: Path) -> None:
        self.server = server
        self._folder = folder

    @contextmanager
    def up(self, machine: str, shards: int = 1, *more: str) -> Iterator[RunningApp]:
        folder = self._folder / machine
        folder.mkdir(exist_ok=True)
        settings = settings_of(self.server, machine=machine, lease_s=LEASE_S)
        with running(folder, echo(shards, *more), module=MODULE, **environment_of(settings)) as app:
            yield app


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with etcd("--election-timeout=4000") as server:
        yield Machines(server, tmp_path)


async def served_by(app: RunningApp, seen: dict[str, int] | None = None) -> dict[str, str]:
    """Key → the shard that has served a call of it, which this machine's app was sent."""
    owners = {}
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        for key in KEYS:
            reply = await stub.Unary(EchoRequest(key=key), timeout=20, wait_for_ready=True)
            owners[key] = reply.shard
            if seen is not None:
                seen[key] = reply.seen
    return owners


def epoch_of(app: RunningApp) -> int:
    return int(app.status()["apps"]["echo"]["epoch"])


async def test_two_machines_have_one_placement_and_calls_go_between_them(machines: Machines) -> None:
    with machines.up("a") as a, machines.up("b") as b:
        await eventually(lambda: epoch_of(a) == epoch_of(b))
        by_a, by_b = await served_by(a), await served_by(b)
        assert by_a == by_b
        assert set(by_a.values()) == {"a/echo-0", "b/echo-0"}
