"""A lane of real processes stalls: the place is reported, the others do not notice, and waiting calls are served."""

import asyncio
import linecache
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.gate import Gate
from tests.otlp_receiver import HttpReceiver
from tests.running_app import ROOT, RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
SERVICE = str(ROOT / "tests" / "echo" / "service.py")


def order(where: Where, shard: str, text: str) -> Any:
    """Send an order to a shard, over its own port."""
    key = where.key_of(shard)
    return where.home(key).Misbehave(EchoRequest(key=key, order=text))


def stalls_in(cluster: RunningApp, function: str, index: int = 0) -> list[dict[str, Any]]:
    """The last stalls of a shard in this function; on a busy machine it may have others, without a CPU."""
    return [stall for stall in cluster.shards()[index]["last_stalls"] if stall["function"] == function]


def longest_stall(cluster: RunningApp, known: list[dict[str, Any]]) -> dict[str, Any]:
    """Of those that are not known yet."""
    stalls = [stall for stall in cluster.shards()[0]["last_stalls"] if stall not in known]
    return max(stalls, key=lambda stall: stall["seconds"], default={"seconds": 0.0})


async def call_over_its_own_connection(cluster: RunningApp, key: str) -> str:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(cluster.listen["echo"], options) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        return str((await stub.Unary(EchoRequest(key=key))).shard)


async def test_while_one_shard_is_stalled_the_others_go_on_and_take_all_new_connections(tmp_path: Path) -> None:
    """It is stalled until the others have answered: a lane that waited for it would end this test by its timeout."""
    gate = Gate(tmp_path)
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        key = where.key_of("echo-1")
        stalling = order(where, "echo-0", f"stall_at {gate}")
        async with gate.occupied():
            connecting = [asyncio.create_task(call_over_its_own_connection(cluster, key)) for _ in range(24)]
            for _ in range(200):
                assert (await where.home(key).Unary(EchoRequest(key=key))).shard == "echo-1"
            assert set(await asyncio.gather(*connecting)) == {"echo-1"}
            assert not stalling.done()
        await stalling
        await where.close()


async def test_a_stall_is_in_the_log_the_counts_the_span_and_the_status_with_where_it_was(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with (
        HttpReceiver() as collector,
        running(tmp_path, echo(2), **collector.environment, OTEL_BSP_SCHEDULE_DELAY="50") as cluster,
    ):
        where = Where(cluster)
        stalling = order(where, "echo-0", f"stall_at {gate}")
        logged = re.compile(rf"lane\.stalled shard=echo-0 kind=blocked for_ms=\d+ at={SERVICE}:\d+.* trace=(\w+)")
        async with gate.occupied():
            # It is logged while it lasts.
            await eventually(lambda: logged.search(cluster.log.read_text()))
        await stalling
        await eventually(lambda: stalls_in(cluster, "Echo._stall_at"))
        (stall,) = stalls_in(cluster, "Echo._stall_at")
        assert (stall["kind"], stall["method"]) == ("blocked", "echo.v1.Echo/Misbehave")
        path, _, line = stall["where"].rpartition(":")
        assert path == SERVICE
        assert "read_bytes" in linecache.getline(SERVICE, int(line))
        assert stall["seconds"] > 0
        assert logged.findall(cluster.log.read_text()) == [stall["trace_id"]]
        assert cluster.metric("onelane_stalls_total", onelane_shard="echo-0", onelane_stall_kind="blocked") >= 1
        assert cluster.shards()[0]["stalls"] >= 1
        assert stalls_in(cluster, "Echo._stall_at", 1) == []
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
        at = f"at {stall['where']} Echo._stall_at, in echo.v1.Echo/Misbehave, trace {stall['trace_id']}"
        assert at in shown.stdout
        await where.close()


async def test_inline_a_stall_is_attributed_to_the_shard_of_its_call(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with running(tmp_path, echo(2), "--inline") as cluster:
        where = Where(cluster)
        stalling = order(where, "echo-1", f"stall_at {gate}")
        async with gate.occupied():
            await eventually(lambda: "lane.stalled shard=echo-1 kind=blocked" in cluster.log.read_text())
        await stalling
        await eventually(lambda: stalls_in(cluster, "Echo._stall_at", 1))
        assert stalls_in(cluster, "Echo._stall_at", 0) == []
        await where.close()


async def test_a_lane_that_gets_no_cpu_is_starved_and_no_code_is_blamed(tmp_path: Path) -> None:
    """Its thread shares one CPU with processes that compute without end."""
    with running(tmp_path, echo(1)) as cluster:
        where = Where(cluster)
        pid = cluster.shards()[0]["pid"]
        async with without_cpu(pid, hogs=4):
            while "lane.starved shard=echo-0 kind=starved" not in cluster.log.read_text():
                await order(where, "echo-0", "compute 0.1")
        starved = [line for line in cluster.log.read_text().splitlines() if "lane.starved" in line]
        assert [line for line in starved if " INFO " not in line or "=-" in line or "= " in line] == []
        await where.close()


@asynccontextmanager
async def without_cpu(pid: int, hogs: int) -> AsyncIterator[list[int]]:
    """A process shares one CPU with so many that compute without end, which are yielded."""
    cpus = os.sched_getaffinity(0)
    # They end with this process, however that ends.
    hog = f"import os; os.sched_setaffinity(0, {{{min(cpus)}}}); print(flush=True)\n"
    hog += f"while os.getppid() == {os.getpid()}: pass"
    program = [sys.executable, "-IS", "-c", hog]
    # Each in a session of its own, as shards are: Linux shares the CPU fairly among sessions.
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "start_new_session": True}
    computing = []
    with ExitStack() as stack:
        for _ in range(hogs):
            process = stack.enter_context(subprocess.Popen(program, **options))  # noqa: ASYNC220 - at once
            stack.callback(process.kill)
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            computing.append(process.pid)
        os.sched_setaffinity(pid, {min(cpus)})
        yield computing
        os.sched_setaffinity(pid, cpus)


@pytest.mark.parametrize(("hogs", "computes_s"), [(0, 0.3), (9, 0.1)], ids=["", "and gets little CPU then"])
async def test_a_process_that_was_stopped_is_starved_and_not_replaced_however_long(
    tmp_path: Path, hogs: int, computes_s: float
) -> None:
    """computes_s: of a CPU that it has alone, or a tenth of."""
    with running(tmp_path, echo(1, "replace_stalled_s = 1")) as cluster:
        where = Where(cluster)
        # A first one, that does not hide the second; on a busy machine a start may have stalls of its own as well.
        (before,) = cluster.shards()
        await stop_for(before["pid"], 0.5)
        await eventually(lambda: cluster.shards()[0]["last_stalls"])
        known = cluster.shards()[0]["last_stalls"]
        longest_s = max(stall["seconds"] for stall in known)
        async with without_cpu(before["pid"], hogs) as computing:
            # With a call that its lane begins to work on the moment it goes on.
            stopping = stop_for(before["pid"], max(2.1, 2.1 * longest_s), computing)
            seconds, _ = await asyncio.gather(stopping, order(where, "echo-0", f"compute {computes_s}"))
        await eventually(lambda: longest_stall(cluster, known)["seconds"] > seconds - 1)
        assert longest_stall(cluster, known)["kind"] == "starved"
        (after,) = cluster.shards()
        assert (after["pid"], after["restarts"]) == (before["pid"], 0)
        await where.close()


async def kinds_of(cluster: RunningApp, call: Any, function: str) -> set[str]:
    """As what the stalls of this function were told, once a call has stalled its lane; not all without a CPU are."""
    before = cluster.metric("onelane_stalls_total")
    await call
    await eventually(lambda: cluster.metric("onelane_stalls_total") > before)
    return {stall["kind"] for stall in stalls_in(cluster, f"Echo._{function}")}


@pytest.mark.parametrize(
    ("hogs", "computes_s", "numbers"),
    [(0, 0.2, 20_000_000), (9, 0.05, 4_000_000)],
    ids=["alone", "beside nine processes that compute on its CPU"],
)
async def test_only_a_lane_that_computes_is_told_as_computing(
    tmp_path: Path, hogs: int, computes_s: float, numbers: int
) -> None:
    """And a process that was stopped as that alone, whatever its lane does then. What the machine lets a lane do is not
    asked here: where it gave it no CPU, that is the cause. computes_s: of a CPU that it has alone, or a tenth of.
    numbers: that another thread adds up."""
    with running(tmp_path, echo(1)) as cluster:
        where, gate, computing_call = Where(cluster), Gate(tmp_path), f"compute {computes_s}"
        pid = cluster.shards()[0]["pid"]
        async with without_cpu(pid, hogs) as computing:
            known = cluster.shards()[0]["last_stalls"]
            longest_s = max((stall["seconds"] for stall in known), default=0.0)
            stopping = stop_for(pid, max(2.1, 2.1 * longest_s), computing)
            seconds, _ = await asyncio.gather(stopping, order(where, "echo-0", computing_call))
            await eventually(lambda: longest_stall(cluster, known)["seconds"] > seconds - 1)
            assert longest_stall(cluster, known)["kind"] == "starved"
            stalling = order(where, "echo-0", f"stall_at {gate}")
            async with gate.occupied():
                # However much its lane has waited for a CPU before.
                await eventually(lambda: "lane.stalled shard=echo-0 kind=blocked" in cluster.log.read_text())
            await stalling
            held = await kinds_of(cluster, order(where, "echo-0", "keep 1"), "keep")
            assert held <= {"blocked", "starved"}
            waiting = order(where, "echo-0", f"wait_for_interpreter {numbers}")
            waited = await kinds_of(cluster, waiting, "wait_for_interpreter")
            assert waited <= {"interpreter", "blocked", "starved"}
            computed = await kinds_of(cluster, order(where, "echo-0", computing_call), "compute")
            assert computed <= {"computing", "starved"}
        await where.close()


async def stop_for(pid: int, seconds: float, hogs: Sequence[int] = ()) -> float:
    """Stop a process for so long; how long it was on this machine. hogs: of what it would not feel anything meanwhile,
    they stop as well and go on before it does."""
    for each in (pid, *hogs):
        os.kill(each, signal.SIGSTOP)
    began = time.monotonic()
    await asyncio.sleep(seconds)
    for each in (*hogs, pid):
        os.kill(each, signal.SIGCONT)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("order_name", "how"),
    [
        ("block", "its lane stood still for replace_stalled_s"),
        ("keep", "its lane kept the interpreter for twice replace_stalled_s"),
    ],
    ids=["blocked", "with the interpreter kept"],
)
async def test_a_shard_that_is_stalled_for_too_long_is_replaced_after_the_stacks_of_all_threads_are_written(
    tmp_path: Path, order_name: str, how: str
) -> None:
    with running(tmp_path, echo(2, "replace_stalled_s = 1")) as cluster:
        where = Where(cluster)
        before = cluster.shards()
        with pytest.raises(grpc.aio.AioRpcError):
            await order(where, "echo-0", f"{order_name} 50")
        await eventually(lambda: cluster.shards()[0]["restarts"] == 1 and cluster.shards()[0]["state"] == "ready")
        log = cluster.log.read_text()
        assert f"shard.died shard=echo-0 how={how}" in log
        stacks = log[log.index("(most recent call first)") :]
        assert f"in _{order_name}" in stacks, "the lane's"
        assert 'offload/thread.py", line' in stacks, "a worker thread's"
        assert cluster.shards()[1]["pid"] == before[1]["pid"]
        key = where.key_of("echo-0")
        assert (await where.home(key).Unary(EchoRequest(key=key), wait_for_ready=True)).seen == 1
        await where.close()


async def test_stall_s_0_turns_the_watchdog_off(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "stall_s = 0")) as cluster:
        where = Where(cluster)
        await order(where, "echo-0", "block 0.3")
        assert cluster.metric("onelane_stalls_total") == 0
        assert "lane.stalled" not in cluster.log.read_text()
        await where.close()
