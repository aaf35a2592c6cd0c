"""Faults of an app, as a test orders them."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.testing import Cluster
from onelane.testing.faults import Fault, Faults

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest


class LateAndLost(Faults):
    rules = (
        Fault("echo.v1.Echo/Unary", drop=True),
        Fault("echo.v1.Echo/Plain", delay_s=0.05),
        Fault("echo.v1.Echo/Download", abort=grpc.StatusCode.DATA_LOSS, details="torn"),
    )


async def test_faults_are_late_lost_or_fail_as_they_are_told() -> None:
    settings = {"interceptors": ["tests.testing.test_faults:LateAndLost"]}
    async with Cluster("tests.echo.service:Echo", settings=settings) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        assert await stub.Unary(EchoRequest(key="k"), timeout=0.2).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await stub.Plain(EchoRequest(key="k", text="late"), timeout=10)).text == "late"
        assert loop.time() - began >= 0.05
        download = stub.Download(EchoRequest(key="k", times=2), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match="torn"):
            await download.read()
