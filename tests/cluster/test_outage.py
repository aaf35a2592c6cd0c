"""A collector that is away: calls do not notice, and what was recorded meanwhile comes when it is back."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.otlp_receiver import HttpReceiver
from tests.ports import reserved
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
CALLS = 60
PACE_S = 0.005


async def test_nothing_is_lost_and_no_call_fails_while_a_collector_is_stopped(tmp_path: Path) -> None:
    """A longer outage, in virtual time: tests/telemetry/sinks/otlp/test_queue.py."""
    with reserved() as port:
        endpoint = f"http://127.0.0.1:{port}"
        environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running(tmp_path, echo(2), **environment) as cluster:
            with HttpReceiver(port) as before:
                asked = await call_on(cluster, lambda count: count >= CALLS)
                await eventually(lambda: len(served(before)) == asked)
            # A call that waited for the collector would hold these up for ever.
            asked += await call_on(
                cluster, lambda count: count >= CALLS and "otlp.failing signal=spans" in cluster.log.read_text()
            )
            with HttpReceiver(port) as after:
                asked += await call_on(cluster, lambda count: count >= CALLS)
                await eventually(lambda: len(served(before) | served(after)) == asked)
            assert cluster.metric("onelane_telemetry_dropped_total") == 0
            await eventually(lambda: "otlp.recovered signal=spans" in cluster.log.read_text())


async def test_what_does_not_fit_is_dropped_oldest_first_and_counted(tmp_path: Path) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BSP_MAX_QUEUE_SIZE": "50",
    }
    with running(tmp_path, echo(1), **environment) as cluster:
        labels = {"onelane_signal": "spans", "onelane_reason": "queue_full"}
        # A scrape for each call would have the calls wait for the scrapes.
        await call_on(
            cluster,
            lambda count: (
                count > 0 and count % CALLS == 0 and cluster.metric("onelane_telemetry_dropped_total", **labels) > 0
            ),
        )
        # Whoever looks at the page is told as well.
        assert "spans telemetry.dropped queue_full" in cluster.get("/snapshot")


async def call_on(cluster: RunningApp, is_enough: Callable[[int], bool]) -> int:
    """Make calls one after another, none of which may fail, until so many are enough; how many."""
    count = 0
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        while not is_enough(count):
            await stub.Unary(EchoRequest(key=str(count)), timeout=BOUND_S)
            count += 1
            # The load, not a wait for anything.
            await asyncio.sleep(PACE_S)
    return count


def served(collector: HttpReceiver) -> set[str]:
    """The server spans that have come, by id: what was in flight at the end may come twice."""
    return {span.span_id.hex() for span in collector.spans() if span.kind == 2}
