"""The sockets that shards share: a shard that does not accept costs no new connection."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onelane.server import sockets

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, http_request, running

SICK = "echo-1"
CONNECTIONS = 60
NEW_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@pytest.mark.parametrize(("shards", "count"), [(1, 1), (2, 1), (7, 1), (8, 2), (11, 2), (64, 16)])
def test_each_shared_socket_has_at_least_four_shards_where_there_are_so_many(shards: int, count: int) -> None:
    assert sockets.shared_count(shards) == count


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("shared")
    with running(folder, echo(2).replace("tests.echo.service:Echo", "tests.broken:Unwilling")) as app:
        yield app


@pytest.fixture
async def where(app: RunningApp) -> AsyncIterator[Where]:
    where = Where(app)
    yield where
    await where.close()


def pid_of_sick(app: RunningApp) -> int:
    return next(int(shard["pid"]) for shard in app.shards() if shard["name"] == SICK)


def state_of_sick(app: RunningApp) -> str:
    return next(str(shard["state"]) for shard in app.shards() if shard["name"] == SICK)


@asynccontextmanager
async def stopped(app: RunningApp) -> AsyncIterator[None]:
    pid = pid_of_sick(app)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def drained(app: RunningApp) -> AsyncIterator[None]:
    shard = f"http://{app.admin}/shards/echo/1"
    assert http_request(f"{shard}/drain", method="POST", X_Onelane="1")[0] == 200
    await eventually(lambda: state_of_sick(app) == "drained")
    yield
    assert http_request(f"{shard}/restart", method="POST", X_Onelane="1")[0] == 200
    await eventually(lambda: state_of_sick(app) == "ready")


@asynccontextmanager
async def failing_at_start(app: RunningApp, how: str) -> AsyncIterator[None]:
    """Killed once, and then each new process `dies` or `hangs` while it makes its service."""
    fault = app.log.parent / "fault"
    fault.write_text(f"{how} {SICK}")
    os.kill(pid_of_sick(app), signal.SIGKILL)
    await eventually(lambda: state_of_sick(app) == "restarting")
    try:
        yield
    finally:
        fault.unlink()
    await eventually(lambda: state_of_sick(app) == "ready")


SICKNESSES: dict[str, Callable[[RunningApp], AbstractAsyncContextManager[None]]] = {
    "stopped by SIGSTOP": stopped,
    "drained": drained,
    "dies at each start": lambda app: failing_at_start(app, "dies"),
    "hangs in its constructor": lambda app: failing_at_start(app, "hangs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("sickness", SICKNESSES)
async def test_a_shard_that_does_not_accept_costs_no_new_connection(
    app: RunningApp, where: Where, sickness: str
) -> None:
    keys = islice(where.keys_of("echo-0"), CONNECTIONS)
    async with SICKNESSES[sickness](app):
        replies = await asyncio.gather(*(call_on_new_connection(app, key) for key in keys))
        healthy = await asyncio.gather(*(check_on_new_connection(app) for _ in range(10)))
    assert replies == ["echo-0"] * CONNECTIONS
    assert healthy == [health_pb2.HealthCheckResponse.SERVING] * 10


@pytest.mark.slow
async def test_connections_in_the_queue_outlive_every_shard(app: RunningApp, where: Where) -> None:
    pids = [int(shard["pid"]) for shard in app.shards()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.ensure_future(call_on_new_connection(app, key)) for key in islice(where.keys_of("echo-0"), 20)]
    await eventually(lambda: waiting_connections(app) >= len(calls))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert await asyncio.gather(*calls) == ["echo-0"] * len(calls)


@pytest.mark.slow
async def test_eight_shards_listen_on_two_sockets_and_serve_every_key(tmp_path: Path) -> None:
    with running(tmp_path, echo(8), "--inline") as app:
        assert len(listening_rows(app)) == 2
        where = Where(app)
        keys = [where.key_of(shard["name"]) for shard in app.shards()]
        replies = await asyncio.gather(*(call_on_new_connection(app, key) for key in keys))
        assert replies == [where.owner_of(key) for key in keys]
        await where.close()


@pytest.mark.slow
def test_no_other_program_can_listen_beside_the_shared_socket(app: RunningApp) -> None:
    assert len(listening_rows(app)) == 1
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port_of(app)))


def port_of(app: RunningApp) -> int:
    return int(app.listen["echo"].rpartition(":")[2])


def listening_rows(app: RunningApp) -> list[list[str]]:
    """The rows of /proc/net/tcp of the sockets that listen on the shared address."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port_of(app)]


def waiting_connections(app: RunningApp) -> int:
    return sum(int(row[4].partition(":")[2], 16) for row in listening_rows(app))


async def call_on_new_connection(app: RunningApp, key: str) -> str:
    async with grpc.aio.insecure_channel(app.listen["echo"], NEW_CONNECTION) as channel:
        return (await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=key), timeout=BOUND_S)).shard


async def check_on_new_connection(app: RunningApp) -> int:
    async with grpc.aio.insecure_channel(app.listen["echo"], NEW_CONNECTION) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)
        return int(answer.status)
