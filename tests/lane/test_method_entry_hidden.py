"""Calls of the runtime's own services, health and reflection: not recorded, unless the app asks for them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["hidden", "shown"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    shows = "true" if request.param == "shown" else "false"
    with running(tmp_path_factory.mktemp("app"), echo(1, f"show_runtime_calls = {shows}")) as app:
        yield app


@asynccontextmanager
async def watches(app: RunningApp) -> AsyncIterator[grpc.aio.Channel]:
    """A channel on which health and the topology are watched, and two calls of other kinds have ended."""
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        topology: Any = topology_pb2_grpc.TopologyStub(channel)
        streams = [health.Watch(health_pb2.HealthCheckRequest()), topology.Watch(topology_pb2.WatchRequest())]
        for stream in streams:
            await stream.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await health.Check(health_pb2.HealthCheckRequest(service="none.such"))
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        await stub.Unary(EchoRequest(key="k"))
        yield channel


async def test_they_are_left_out_of_counts_calls_in_flight_and_traces(
    app: RunningApp, request: pytest.FixtureRequest
) -> None:
    shown = "shown" in request.node.name
    before = app.in_flight()
    async with watches(app):
        await eventually(lambda: app.metric("onelane_calls_total", rpc_method="echo.v1.Echo/Unary") > 0)
        assert app.in_flight() - before == (2 if shown else 0)
        assert (app.metric("onelane_calls_total", rpc_method="grpc.health.v1.Health/Check") > 0) == shown
        assert ("Health" in app.get("/metrics")) == shown
        roots = app.get("/traces")
        assert "echo.v1.Echo/Unary" in roots
        assert ("grpc.health.v1.Health/Check" in roots) == shown
