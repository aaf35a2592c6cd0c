"""A trace over machines of a cluster, as a real Jaeger tells it: each exports its own spans, and they are one tree."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.etcd import etcd
from tests.jaeger import Trace, jaeger
from tests.machines import Certificates
from tests.running_app import RunningApp, eventually
from tests.supervisor.machines_up import Machines, epoch_of, served_by

pytestmark = pytest.mark.slow
CALLER = "b7ad6b7169203331"
ACROSS, UNARY = "echo.v1.Echo/Across", "echo.v1.Echo/Unary"


async def call_inside_trace(app: RunningApp, trace_id: str, key: str, other: str) -> str:
    """Have the owner of `key` call `other`; the shard that has served that."""
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Across(
            EchoRequest(key=key, order=f"by_name {other}"),
            metadata=(("traceparent", f"00-{trace_id}-{CALLER}-01"),),
            timeout=BOUND_S,
        )
        return str((await call).text)


async def test_a_call_over_three_machines_is_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_id, traces = f"{time.time_ns():032x}", list[Trace]()
    with jaeger() as seen, etcd("--election-timeout=4000") as store:
        await eventually(seen.is_ready)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", seen.otlp)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        machines = Machines(store, tmp_path, Certificates(tmp_path / "certificates"))
        with machines.up("a") as a, machines.up("b") as b, machines.up("c") as c:
            await eventually(lambda: epoch_of(a) == epoch_of(b) == epoch_of(c))
            owners = {shard: key for key, shard in (await served_by(a, shards=3)).items()}
            asked = await call_inside_trace(a, trace_id, owners["b/echo-0"], owners["c/echo-0"])
            assert asked == "c/echo-0"
            # What has been recorded leaves at the end at the latest.
            codes = await asyncio.gather(*(asyncio.to_thread(app.stop) for app in (a, b, c)))
            assert codes == [0, 0, 0]

        def is_whole() -> bool:
            traces[:] = [trace for trace in [seen.trace(trace_id)] if trace is not None and len(trace.spans) >= 4]
            return bool(traces)

        await eventually(is_whole)
    [trace] = traces
    called = ["echo", "client", UNARY, [["echo", "server", UNARY, []]]]
    assert trace.tree(CALLER) == [["echo", "client", ACROSS, [["echo", "server", ACROSS, [called]]]]]
    rows = [(trace.tags(span)["span.kind"], trace.resource(span)["onelane.shard"]) for span in in_depth(trace, CALLER)]
    assert rows == [("client", "a/echo-0"), ("server", "b/echo-0"), ("client", "b/echo-0"), ("server", "c/echo-0")]
    instances = {trace.resource(span)["service.instance.id"] for span in trace.spans}
    assert {instance.partition("/")[2] for instance in instances} == {"a/echo-0", "b/echo-0", "c/echo-0"}
    # The only parent that Jaeger has not seen is the test's own.
    assert all(CALLER in warning for warning in trace.warnings)


def in_depth(trace: Trace, parent_id: str) -> list[dict[str, Any]]:
    """The spans below one, from parent to child, where each has one."""
    spans = trace.children(parent_id)
    return [*spans, *(below for span in spans for below in in_depth(trace, span["spanID"]))]
