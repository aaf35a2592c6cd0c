"""Whether the store of a shard works is seen by gRPC's health service, and found again without a call."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from onelane.errors import Fenced, StoreUnavailable
from onelane.shard import store_health
from onelane.shard.store_health import StoreHealth
from onelane.state.journal import Journal
from onelane.state.journal_metrics import JournalMetrics
from onelane.state.memory_store import MemoryStore
from onelane.state.store import KeyState, StoreOptions
from onelane.state.store_thread import StoreThread
from onelane.telemetry.stats import Stats

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, eventually, http_request, running
from tests.state.journals import OneDict

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
TOML = """
[apps.kept]
services = ["tests.state.kept_service:Kept"]
listen = "127.0.0.1:0"
shards = 1
[apps.kept.state]
folder = "{folder}"
patience_s = 0.1
[apps.plain]
services = ["tests.echo.service:Echo"]
listen = "127.0.0.1:0"
shards = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("health")


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[RunningApp]:
    with running(folder, TOML.format(folder=folder / "state")) as app:
        yield app


@pytest.fixture
async def channel(app: RunningApp) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(app.listen["kept"]) as channel:
        yield channel


async def check(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    reply = await stub.Check(HealthCheckRequest(service=service), timeout=BOUND_S)
    return int(reply.status)


@pytest.mark.slow
async def test_a_failing_store_is_not_serving_by_its_own_name_alone_and_comes_back_without_a_call(
    app: RunningApp, channel: grpc.aio.Channel, folder: Path
) -> None:
    stub = echo_pb2_grpc.EchoStub(channel)
    assert (await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)).seen == 1
    health: Any = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(HealthCheckRequest(service="onelane.state"), timeout=BOUND_S)
    assert (await watch.read()).status == SERVING
    with closing(sqlite3.connect(folder / "state/kept/kept-0.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = stub.Unary(EchoRequest(key="other"), timeout=BOUND_S)
        assert await refused.code() is grpc.StatusCode.UNAVAILABLE
        assert (await watch.read()).status == NOT_SERVING
        assert await check(channel, "onelane.state") == NOT_SERVING
        assert [await check(channel, name) for name in ("", "echo.v1.Echo")] == [SERVING, SERVING]
        await eventually(lambda: http_request(f"http://{app.admin}/healthz")[0] == 503)
        # A restart would help nobody, and no other place has another store for these keys.
        assert [http_request(f"http://{app.admin}/{path}")[0] for path in ("livez", "readyz")] == [200, 200]
        # What is in memory can still be read.
        assert (await stub.Misbehave(EchoRequest(key="k"), timeout=BOUND_S)).seen == 1
    assert (await watch.read()).status == SERVING
    await eventually(lambda: http_request(f"http://{app.admin}/healthz")[0] == 200)
    watch.cancel()
    assert (await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)).seen == 2


@pytest.mark.slow
async def test_of_an_app_that_keeps_nothing_there_is_no_such_health(app: RunningApp) -> None:
    async with grpc.aio.insecure_channel(app.listen["plain"]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await check(channel, "onelane.state")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


class TriedStore(MemoryStore):
    """Counts what is tried, and fails to order."""

    loads = 0
    probes = 0
    is_full = False
    error: Exception | None = None

    def load(self, keys: Sequence[str], **more: Any) -> dict[str, KeyState]:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return super().load(keys, **more)

    def probe(self) -> None:
        self.probes += 1
        if self.is_full:
            raise StoreUnavailable("file", "full")


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[TriedStore, StoreThread]]:
    monkeypatch.setattr(store_health, "TRY_S", 0.001)
    tried = TriedStore(StoreOptions(app="a", shard="a-0", life=1, folder=tmp_path))
    thread = StoreThread(lambda: tried, "a-0")
    await thread.start()
    yield tried, thread
    await thread.aclose(5)


@pytest.mark.parametrize(("epoch", "error", "probes"), [(1, None, 0), (1, Fenced(["k"]), 1), (0, None, 1)])
async def test_the_key_that_failed_is_claimed_unless_another_shard_owns_it_now(
    store: tuple[TriedStore, StoreThread], epoch: int, error: Exception | None, probes: int
) -> None:
    tried, thread = store
    metrics = JournalMetrics("a-0", Stats())
    journal = Journal(OneDict(), thread, metrics, epoch=lambda key: 1, in_turn=lambda key: False)
    changes: asyncio.Queue[bool] = asyncio.Queue()
    health = StoreHealth(journal, thread, epoch=lambda key: epoch if key == "k" else 0)
    health.on_change = changes.put_nowait
    tried.error, journal.failed_key = StoreUnavailable("file", "full") if epoch else None, "k"
    journal.metrics.failed("commit", StoreUnavailable("file", "full"))
    assert await changes.get() is False
    if epoch:
        await eventually(lambda: tried.loads > 2)
        assert not health.works
    tried.error = error
    async with asyncio.timeout(BOUND_S):
        assert await changes.get() is True
    assert (health.works, tried.probes) == (True, probes)
    health.cancel()


@pytest.mark.parametrize("epoch", [0, 1], ids=["left", "claimed-by-its-next-owner"])
async def test_a_store_that_can_only_be_read_fails_also_where_the_key_that_failed_has_left(
    store: tuple[TriedStore, StoreThread], epoch: int
) -> None:
    """As a disk that is full."""
    tried, thread = store
    journal = Journal(OneDict(), thread, JournalMetrics("a-0", Stats()), epoch=lambda key: 1, in_turn=lambda key: False)
    health = StoreHealth(journal, thread, epoch=lambda key: epoch)
    tried.error, tried.is_full, journal.failed_key = Fenced(["k"]), True, "k"
    journal.metrics.failed("commit", StoreUnavailable("file", "full"))
    await eventually(lambda: tried.probes > 2)
    assert not health.works
    tried.is_full = False
    await eventually(lambda: health.works)
    health.cancel()
