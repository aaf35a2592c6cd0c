"""The traps of grpc.aio do not bite here. Each was reproduced on bare grpc.aio before onelane was begun."""

import asyncio
import importlib.metadata
import signal
import socket
import time
from collections import Counter
from math import inf
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.config import App
from onelane.server.grpcio_listener import GrpcioListener
from onelane.server.listener import Bind, Serving

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.gate import Gate
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
BURST = 3000


def test_xds_protos_is_not_installed() -> None:
    """It overwrites opentelemetry/proto and breaks every OTLP exporter."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("xds-protos")


class Empty(Serving):
    def methods(self) -> list[Any]:
        return []

    async def serve(self, method: Any, call: Any, request: bytes | None) -> bytes:
        return b""


async def test_only_generic_handlers_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered ones cost a fifth of the throughput from grpcio 1.84 on."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a method was registered")

    monkeypatch.setattr(grpc.aio.Server, "add_registered_method_handlers", refuse)
    listener = GrpcioListener()
    settings = App(services=("a:B",), listen="127.0.0.1:0")
    await listener.start([Bind("127.0.0.1:0")], Empty(), settings)
    await listener.stop(0)


async def test_a_call_that_waits_in_grpcs_core_is_not_cancelled_for_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core ends calls that nobody has taken for 30 s: a starved lane's clients saw a bare CANCELLED."""
    ages: list[int] = []

    def server(**arguments: Any) -> grpc.aio.Server:
        ages.append(dict(arguments["options"])["grpc.server_max_unrequested_time_in_server"])
        return started(**arguments)

    started = grpc.aio.server
    monkeypatch.setattr(grpc.aio, "server", server)
    listener = GrpcioListener()
    await listener.start([Bind("127.0.0.1:0")], Empty(), App(services=("a:B",), listen="127.0.0.1:0"))
    await listener.stop(0)
    assert min(ages) >= 60 * 60


async def test_a_cancellation_that_leaks_from_a_handler_still_sends_a_status(where: Where) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="cancelled from inside") as caught:
        await where.home("k").Misbehave(EchoRequest(key="k", order="leak"), timeout=BOUND_S)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("side", ["home", "away"])
async def test_an_exceptions_text_stays_in_our_log(cluster: RunningApp, where: Where, side: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(where, side)("k").Misbehave(EchoRequest(key="k", order="raise password=hunter2"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    details = caught.value.details() or ""
    assert "hunter2" not in details
    error_id = details.rpartition(" ")[2]
    await eventually(lambda: error_id in cluster.log.read_text())
    assert "ValueError: password=hunter2" in cluster.log.read_text()


async def test_a_burst_is_answered_or_refused_never_bare_cancelled(cluster: RunningApp) -> None:
    """On bare grpc.aio 2,283 of 5,000 calls at once came back as CANCELLED."""
    codes = await burst(cluster.listen["echo"])
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes[grpc.StatusCode.OK] > 0


@pytest.mark.parametrize("arguments", [(), ("--inline",)], ids=["processes", "inline"])
async def test_a_burst_is_answered_whole_where_lateness_is_allowed(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Also where one shard has all the connections, and half of the calls wait until it has one to their owner."""
    with running(tmp_path, echo(2), *arguments) as cluster:
        assert await burst(cluster.shards()[0]["address"]) == {grpc.StatusCode.OK: BURST}


async def burst(address: str) -> Counter[grpc.StatusCode]:
    """What became of so many calls at once."""
    channels = [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(5)]
    for channel in channels:
        # On a busy machine a connection may take longer than a call that does not wait for it would.
        await channel.channel_ready()
    sends: list[Any] = [c.unary_unary("/echo.v1.Echo/Unary") for c in channels]
    requests = [EchoRequest(key=f"{n}").SerializeToString() for n in range(BURST)]
    calls = [sends[n % 5](requests[n], timeout=BOUND_S) for n in range(BURST)]
    codes = Counter([await call.code() for call in calls])
    for channel in channels:
        await channel.close()
    return codes


async def test_more_calls_than_the_bound_are_refused_at_once_and_counted(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "max_in_flight = 10")) as cluster:
        where = Where(cluster)
        held = [where.shared.Hold(EchoRequest(key="k")) for _ in range(10)]
        await eventually(lambda: cluster.metric("onelane_calls_in_flight") == 10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await where.shared.Unary(EchoRequest(key="k"), timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("grpc-retry-pushback-ms", "100") in tuple(caught.value.trailing_metadata() or ())
        assert cluster.metric("onelane_calls_total", rpc_response_status_code="RESOURCE_EXHAUSTED") == 1
        for call in held:
            call.cancel()
        await where.close()


async def test_a_drain_loses_no_queued_call(tmp_path: Path) -> None:
    """What gRPC's core had taken when the signal came is answered, or refused with UNAVAILABLE; never CANCELLED."""
    with running(tmp_path, echo(1)) as cluster:
        where, gate = Where(cluster), Gate(tmp_path)
        stalling = where.shared.Misbehave(EchoRequest(key="k", order=f"stall_at {gate}"))
        async with gate.occupied():
            queued = [where.shared.Unary(EchoRequest(key="k")) for _ in range(300)]
            cluster.process.send_signal(signal.SIGTERM)
            await eventually(lambda: cluster.shards()[0]["state"] == "draining")
        codes = [await call.code() for call in (stalling, *queued)]
        assert await asyncio.to_thread(cluster.process.wait, 30) == 0
        await where.close()
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert codes[0] is grpc.StatusCode.OK


async def test_a_dead_collector_delays_the_end_by_at_most_three_seconds(tmp_path: Path) -> None:
    """It takes connections and never answers; the SDK's own shutdown waited 7 s for traces, then 7 for metrics."""
    delay_s = inf
    # A busy machine adds to either end, and is asked again; a delay of the runtime's own would be there each time.
    while delay_s > 4.0:
        with socket.create_server(("127.0.0.1", 0), backlog=128) as dead:
            endpoint = f"http://127.0.0.1:{dead.getsockname()[1]}"
            delay_s = await end_s(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) - await end_s(tmp_path)


async def end_s(folder: Path, **environment: str) -> float:
    """How long an app takes to end that has answered 50 calls."""
    with running(folder, echo(1), **environment) as app:
        where = Where(app)
        for number in range(50):
            await where.shared.Unary(EchoRequest(key=f"{number}"))
        await where.close()
        began = time.monotonic()
        assert await asyncio.to_thread(app.stop) == 0
        return time.monotonic() - began


async def test_health_and_reflection_answer_on_the_shared_port(cluster: RunningApp, where: Where) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    health: Any = health_pb2_grpc.HealthStub(where.shared_channel)
    for service in ("", "echo.v1.Echo"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    shared: Any = where.shared_channel
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(shared)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in reflection.ServerReflectionInfo(iter([asked])):
        names = {service.name for service in answer.list_services_response.service}
    assert {"echo.v1.Echo", "onelane.v1.Topology", "grpc.health.v1.Health"} <= names


async def test_two_deep_calls_do_not_starve_each_other(where: Where) -> None:
    """Forwards from A to B while B forwards to A: neither waits for the other's loop."""
    keys = [f"cross-{n}" for n in range(200)]
    replies = await asyncio.gather(*(where.away(key).Unary(EchoRequest(key=key)) for key in keys))
    assert [reply.shard for reply in replies] == [where.owner_of(key) for key in keys]
