"""Injected faults hit the calls of the methods that their patterns match."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.testing import Cluster
from onelane.testing.faults import Fault, Faults

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest


class OneFaultPerMethod(Faults):
    rules = (
        Fault("echo.v1.Echo/Unary", drop=True),
        Fault("echo.v1.Echo/Plain", delay_s=0.05),
        Fault("echo.v1.Echo/Download", abort=grpc.StatusCode.DATA_LOSS, details="torn"),
    )


class HalfOfTheCalls(Faults):
    rules = (Fault("echo.v1.Echo/*", share=0.5, abort=grpc.StatusCode.DATA_LOSS),)
    seed = 3


def settings(faults: type[Faults]) -> dict[str, list[str]]:
    return {"interceptors": [f"tests.testing.test_faults:{faults.__name__}"]}


async def test_calls_are_dropped_delayed_or_aborted() -> None:
    async with Cluster("tests.echo.service:Echo", settings=settings(OneFaultPerMethod)) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        assert await stub.Unary(EchoRequest(key="k"), timeout=0.2).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        assert (await stub.Plain(EchoRequest(key="k", text="late"), timeout=BOUND_S)).text == "late"
        assert loop.time() - sent_at >= 0.05
        download = stub.Download(EchoRequest(key="k", times=2), timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError, match="torn"):
            await download.read()


async def test_the_same_seed_hits_the_same_calls() -> None:
    async def codes() -> list[grpc.StatusCode]:
        async with Cluster("tests.echo.service:Echo", shards=1, settings=settings(HalfOfTheCalls)) as cluster:
            stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
            return [await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S).code() for _ in range(20)]

    first, second = await codes(), await codes()
    assert first == second
    assert set(first) == {grpc.StatusCode.OK, grpc.StatusCode.DATA_LOSS}
