"""A lane of real processes stands still: it is told where, the others do not notice, and what waits is not lost."""

import asyncio
import linecache
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.collector import Collector
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, Cluster, echo, eventually, running

pytestmark = pytest.mark.slow
SERVICE = str(ROOT / "tests" / "echo" / "service.py")
STALL_S = 5.0


def key_of(where: Where, shard: str) -> str:
    return next(key for key in map(str, range(999)) if where.owner_of(key) == shard)


def order(where: Where, shard: str, text: str) -> Any:
    """Have a shard do something, over its own port."""
    key = key_of(where, shard)
    return where.home(key).Misbehave(EchoRequest(key=key, order=text))


def last_stall(cluster: Cluster, index: int = 0) -> dict[str, Any]:
    stalls: list[dict[str, Any]] = cluster.shards()[index]["last_stalls"]
    return stalls[-1] if stalls else {}


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def latencies(where: Where, shard: str, until: asyncio.Event, *, at_least: int) -> list[float]:
    key = key_of(where, shard)
    taken: list[float] = []
    while len(taken) < at_least or not until.is_set():
        began = time.perf_counter()
        assert (await where.home(key).Unary(EchoRequest(key=key))).shard == shard
        taken.append(time.perf_counter() - began)
    return taken


async def call_over_its_own_connection(cluster: Cluster, key: str) -> str:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(cluster.listen["echo"], options) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        return str((await stub.Unary(EchoRequest(key=key))).shard)


async def test_while_one_shard_stands_for_5_s_the_others_keep_their_p99_and_waiting_connections_are_served(
    tmp_path: Path,
) -> None:
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        now, over = asyncio.Event(), asyncio.Event()
        now.set()
        await latencies(where, "echo-1", now, at_least=100)
        before = await latencies(where, "echo-1", now, at_least=500)

        async def stall() -> float:
            began = time.perf_counter()
            await order(where, "echo-0", f"block {STALL_S}")
            over.set()
            return time.perf_counter() - began

        async def connect() -> tuple[str, bool]:
            shard = await call_over_its_own_connection(cluster, key_of(where, "echo-1"))
            return shard, over.is_set()

        stalling = asyncio.create_task(stall())
        await eventually(lambda: "lane.stalled shard=echo-0" in cluster.log.read_text())
        connecting = [asyncio.create_task(connect()) for _ in range(24)]
        during = await latencies(where, "echo-1", over, at_least=100)
        took = await stalling
        connected = await asyncio.gather(*connecting)

        # Bounds that only a lane that waits for the other would break; `make bench` has the figures.
        assert took >= STALL_S
        assert max(during) < STALL_S / 5
        assert statistics.median(during) < 3 * statistics.median(before) + 0.005
        assert p99(during) < 3 * p99(before) + 0.05
        assert {shard for shard, _ in connected} == {"echo-1"}
        assert {was_over for _, was_over in connected} == {False, True}, "some wait at either shard's socket"
        await where.close()


async def test_a_stall_is_in_the_log_the_counts_the_span_and_the_status_with_where_it_was(tmp_path: Path) -> None:
    with (
        Collector() as collector,
        running(tmp_path, echo(2), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as cluster,
    ):
        where = Where(cluster)
        await order(where, "echo-0", "block 0.4")
        await eventually(lambda: last_stall(cluster))
        stall = last_stall(cluster)
        assert (stall["kind"], stall["method"]) == ("blocked", "echo.v1.Echo/Misbehave")
        assert stall["where"].startswith(f"{SERVICE}:")
        assert stall["function"] == "Echo._block"
        line = int(stall["where"].rpartition(":")[2])
        assert "time.sleep" in linecache.getline(SERVICE, line)
        assert 0.3 < stall["seconds"] < 5
        assert cluster.metric("onelane_stalls_total", onelane_shard="echo-0", onelane_stall_kind="blocked") == 1
        assert (cluster.shards()[0]["stalls"], cluster.shards()[1]["stalls"]) == (1, 0)
        log = cluster.log.read_text()
        assert (
            f"lane.stalled shard=echo-0 kind=blocked for_ms={log.partition('for_ms=')[2].split()[0]} at={SERVICE}"
            in log
        )
        assert int(log.partition("for_ms=")[2].split()[0]) < 400, "it is told while it lasts"
        assert f"trace={stall['trace_id']}" in log
        await eventually(lambda: any(span.name == "echo.v1.Echo/Misbehave" for span in collector.spans()))
        (span,) = (span for span in collector.spans() if span.name == "echo.v1.Echo/Misbehave")
        assert span.trace_id.hex() == stall["trace_id"]
        (event,) = span.events
        assert event.name == "onelane.stall"
        assert {a.key: a.value.string_value for a in event.attributes}["onelane.stall.at"].startswith(SERVICE)
        shown = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "onelane", "status", cluster.admin],
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "160"},
        )
        assert "echo-0 stalled (blocked) for" in shown.stdout
        assert f"at {stall['where']} Echo._block, in echo.v1.Echo/Misbehave, trace {stall['trace_id']}" in shown.stdout
        await where.close()


async def test_inline_a_stall_is_told_of_the_shard_whose_call_it_was(tmp_path: Path) -> None:
    with running(tmp_path, echo(2), "--inline") as cluster:
        where = Where(cluster)
        await order(where, "echo-1", "block 0.4")
        await eventually(lambda: last_stall(cluster, 1))
        assert last_stall(cluster, 1)["function"] == "Echo._block"
        assert cluster.shards()[0]["last_stalls"] == []
        await where.close()


async def test_a_lane_that_the_machine_starves_is_told_apart_and_nobody_is_blamed(tmp_path: Path) -> None:
    """Its thread shares one CPU with processes that compute without end."""
    with running(tmp_path, echo(1)) as cluster:
        where = Where(cluster)
        pid = cluster.shards()[0]["pid"]
        cpus = os.sched_getaffinity(0)
        hog = f"import os; os.sched_setaffinity(0, {{{min(cpus)}}}); print(flush=True)\nwhile True: pass"
        program = [sys.executable, "-c", hog]
        # Each in a session of its own, as shards are: Linux shares the CPU fairly among sessions.
        more: dict[str, Any] = {"stdout": subprocess.PIPE, "start_new_session": True}
        hogs = [subprocess.Popen(program, **more) for _ in range(4)]  # noqa: ASYNC220 - at once
        try:
            for process in hogs:
                assert process.stdout is not None
                await asyncio.to_thread(process.stdout.readline)
            os.sched_setaffinity(pid, {min(cpus)})
            computing = asyncio.ensure_future(order(where, "echo-0", "compute 0.3"))
            await eventually(lambda: "lane.starved shard=echo-0 kind=starved" in cluster.log.read_text())
        finally:
            os.sched_setaffinity(pid, cpus)
            for process in hogs:
                process.kill()
                process.communicate()
        await computing
        await where.close()


async def test_a_process_that_was_stopped_is_starved_and_not_replaced(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "replace_stalled_s = 1")) as cluster:
        pid = cluster.shards()[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + 1.5
        await eventually(lambda: time.monotonic() > until)
        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: last_stall(cluster).get("kind") == "starved")
        assert (cluster.shards()[0]["pid"], cluster.shards()[0]["restarts"]) == (pid, 0)


@pytest.mark.parametrize(
    ("what", "how"),
    [("block", "its lane stood still for replace_stalled_s"), ("keep", "exit code 1")],
    ids=["blocked", "with the interpreter kept"],
)
async def test_a_shard_that_stands_for_too_long_is_replaced_after_the_stacks_of_all_threads_are_written(
    tmp_path: Path, what: str, how: str
) -> None:
    with running(tmp_path, echo(2, "replace_stalled_s = 1")) as cluster:
        where = Where(cluster)
        before = cluster.shards()
        with pytest.raises(grpc.aio.AioRpcError):
            await order(where, "echo-0", f"{what} 50")
        await eventually(lambda: cluster.shards()[0]["restarts"] == 1 and cluster.shards()[0]["state"] == "ready")
        log = cluster.log.read_text()
        assert f"shard.died shard=echo-0 how={how}" in log
        stacks = log[log.index("(most recent call first)") :]
        assert f"in _{what}" in stacks, "the lane's"
        assert 'thread.py", line' in stacks, "a helper's"
        assert cluster.shards()[1]["pid"] == before[1]["pid"]
        key = key_of(where, "echo-0")
        assert (await where.home(key).Unary(EchoRequest(key=key), wait_for_ready=True)).seen == 1
        await where.close()


async def test_stall_s_0_watches_nothing(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "stall_s = 0")) as cluster:
        where = Where(cluster)
        await order(where, "echo-0", "block 0.3")
        assert cluster.metric("onelane_stalls_total") == 0
        assert "lane.stalled" not in cluster.log.read_text()
        await where.close()
