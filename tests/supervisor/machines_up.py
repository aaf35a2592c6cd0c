"""Machines of a cluster on this one: each an `onelane up` of an echo app, at one etcd."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from onelane.core.cluster_settings import ClusterSettings, ClusterTls

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.etcd import EtcdServer
from tests.machines import Certificates
from tests.running_app import RunningApp, echo, http_request, running
from tests.supervisor.cluster_variables import environment_of, settings_of

LEASE_S = 6
KEYS = [f"k{number}" for number in range(24)]
MORE_KEYS = [f"k{number}" for number in range(24, 1000)]


class Machines:
    """Machines of one cluster, each an `onelane up` of an echo app."""

    def __init__(self, server: EtcdServer, folder: Path, certificates: Certificates | None = None) -> None:
        """certificates: of links; without them these are insecure."""
        self.server = server
        self._folder = folder
        self._certificates = certificates

    def settings_of(self, machine: str) -> ClusterSettings:
        settings = settings_of(self.server, machine=machine, lease_s=LEASE_S)
        if self._certificates is None:
            return settings
        files = self._certificates.links(machine).files
        assert files is not None
        tls = ClusterTls(ca=files.ca, cert=files.cert, key=files.key)
        return replace(settings, insecure=False, tls=tls)

    @contextmanager
    def up(self, machine: str, shards: int = 1, *more: str) -> Iterator[RunningApp]:
        with self.up_with(machine, echo(shards, *more)) as app:
            yield app

    @contextmanager
    def up_with(self, machine: str, toml: str, **environment: str) -> Iterator[RunningApp]:
        folder = self._folder / machine
        folder.mkdir(exist_ok=True)
        with running(folder, toml, **environment_of(self.settings_of(machine)), **environment) as app:
            yield app


async def served_by(app: RunningApp, seen: dict[str, int] | None = None, *, shards: int = 1) -> dict[str, str]:
    """Key → the shard that has served a call of it, which this machine's app was sent: of each of KEYS, and of more
    until so many shards have served one (which keys those are depends on the ports of this run)."""
    owners: dict[str, str] = {}
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        for key in (*KEYS, *MORE_KEYS):
            if len(owners) >= len(KEYS) and len({*owners.values()}) >= shards:
                break
            reply = await stub.Unary(EchoRequest(key=key), timeout=BOUND_S, wait_for_ready=True)
            owners[key] = reply.shard
            if seen is not None:
                seen[key] = reply.seen
    return owners


class Callers:
    """Calls every key again and again, by a stock client that repeats nothing."""

    def __init__(self, app: RunningApp) -> None:
        self._address = app.listen["echo"]
        self.failed: list[str] = []
        self._seen: dict[str, list[int]] = {key: [] for key in KEYS}
        self._answered = asyncio.Event()
        self._rounds = 0

    async def __aenter__(self) -> "Callers":
        self._task = asyncio.ensure_future(self._call())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _call(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            while True:
                await asyncio.gather(*(self._call_one(stub, key) for key in KEYS))
                self._rounds += 1
                self._answered.set()
                self._answered = asyncio.Event()

    async def _call_one(self, stub: Any, key: str) -> None:
        try:
            reply = await stub.Unary(EchoRequest(key=key), timeout=60, wait_for_ready=True)
            self._seen[key].append(reply.seen)
        except grpc.aio.AioRpcError as error:
            self.failed.append(f"{key}: {error.code()} {error.details()}")

    async def answered(self, rounds: int) -> None:
        """Until each key has been called so many times more."""
        until = self._rounds + rounds
        while self._rounds < until:
            await self._answered.wait()

    def seen_once(self) -> bool:
        """Whether the counter of each key only grew: memory was kept."""
        return all(seen == sorted({*seen}) for seen in self._seen.values())


def order(app: RunningApp, command: str) -> int:
    """Have the admin address carry out a command; its status."""
    status, body = http_request(f"http://{app.admin}/{command}", method="POST", X_Onelane="1")
    assert status == 200, body
    return status


def epoch_of(app: RunningApp) -> int:
    return int(app.status()["apps"]["echo"]["epoch"])
