"""A collector that is away: calls do not notice, and what was recorded meanwhile comes when it is back."""

import asyncio
import socket
import time
from pathlib import Path

import grpc.aio
import pytest

from tests.collector import Collector
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import Cluster, echo, eventually, running

pytestmark = pytest.mark.slow
AWAY_S = 30.0
PACE_S = 0.02
DEADLINE_S = 2.0
"""Of every call; one that waited for a collector would miss it."""


@pytest.mark.timeout(120)
async def test_nothing_is_lost_and_no_call_fails_while_a_collector_is_stopped_for_30_s(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running(tmp_path, echo(2), **environment) as cluster:
        with Collector(port) as before:
            asked = await call_for(cluster, 1.0)
            await eventually(lambda: len(served(before)) == asked)
        away = await call_for(cluster, AWAY_S)
        with Collector(port) as after:
            asked += away + await call_for(cluster, 0.5)
            await eventually(lambda: len(served(before) | served(after)) == asked)
        assert cluster.metric("onelane_telemetry_dropped_total") == 0
        assert "otlp.failing signal=spans" in cluster.log.read_text()
        assert "otlp.recovered signal=spans" in cluster.log.read_text()


async def test_what_does_not_fit_is_dropped_oldest_first_and_counted(tmp_path: Path) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BSP_MAX_QUEUE_SIZE": "50",
    }
    with running(tmp_path, echo(1), **environment) as cluster:
        await call_for(cluster, 1.5)

        def dropped() -> float:
            labels = {"onelane_signal": "spans", "onelane_reason": "queue_full"}
            return cluster.metric("onelane_telemetry_dropped_total", **labels)

        await eventually(lambda: dropped() > 0)
        # Whoever looks at the page is told as well.
        assert "spans telemetry.dropped queue_full" in cluster.get("/snapshot")


async def call_for(cluster: Cluster, seconds: float) -> int:
    """Make calls one after another, none of which may fail or be late; how many."""
    count, until = 0, time.monotonic() + seconds
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        while time.monotonic() < until:
            await stub.Unary(EchoRequest(key=str(count)), timeout=DEADLINE_S)
            count += 1
            # The load, not a wait for anything.
            await asyncio.sleep(PACE_S)
    return count


def served(collector: Collector) -> set[str]:
    """The server spans that have come, by id: what was in flight at the end may come twice."""
    return {span.span_id.hex() for span in collector.spans() if span.kind == 2}
