"""It feels like grpcio: its interceptors, its health, reflection and channelz servicers, its command line client."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests import tools
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ECHO, RunningApp, echo, running

pytestmark = pytest.mark.slow
TOKEN = (("token", "sesame"),)


@pytest.fixture(scope="module", params=["native", "grpcio"])
def like(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    services = f'{ECHO[:-1]}, "grpc_channelz.v1.channelz:ChannelzServicer"]'
    toml = [
        *("[apps.echo]", services, 'listen = "127.0.0.1:0"', "shards = 1", "reflection = true"),
        *(
            f'listener = "{request.param}"',
            'interceptors = ["tests.interceptors:Denying", "tests.interceptors:Stamping"]',
        ),
    ]
    with running(tmp_path_factory.mktemp("like"), "\n".join(toml)) as app:
        yield app


async def test_server_interceptors_stand_before_every_shape(like: RunningApp) -> None:
    async with grpc.aio.insecure_channel(like.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        request = EchoRequest(key="k", text="t", times=2)
        call = stub.Unary(request, metadata=TOKEN)
        assert (await call).text == "t"
        assert ("x-stamp", "seen") in tuple(await call.trailing_metadata())
        assert len([r async for r in stub.Download(request, metadata=TOKEN)]) == 2
        assert (await stub.Upload(iter([request, request]), metadata=TOKEN)).text == "t,t"
        assert len([r async for r in stub.Chat(iter([request]), metadata=TOKEN)]) == 1
        for denied in (stub.Unary(request), stub.Download(request), stub.Upload(iter([])), stub.Chat(iter([]))):
            code, details = await denied.code(), await denied.details()
            # The key of a stream is in its first message: without one there is no handler to stand before.
            wanted = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT}
            assert code in wanted, details


@pytest.mark.parametrize(
    ("plug", "words"),
    [
        ("tests.interceptors:Nothing", "expected a class of grpc.aio.ServerInterceptor"),
        ("tests.nowhere:X", "no module"),
    ],
)
def test_an_interceptor_that_is_none_stops_the_start(tmp_path: Path, plug: str, words: str) -> None:
    with pytest.raises(AssertionError) as caught, running(tmp_path, echo(1, f'interceptors = ["{plug}"]')):
        pass
    assert plug in str(caught.value)
    assert words in str(caught.value)


async def test_health_reflection_and_channelz_answer(like: RunningApp) -> None:
    async with grpc.aio.insecure_channel(like.listen["echo"]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "echo.v1.Echo"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watching = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)
        # What it lists is of gRPC's C core; that it answers is ours.
        assert (await channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=TOKEN)).end


def test_the_reflection_client_finds_the_services(like: RunningApp) -> None:
    with grpc.insecure_channel(like.listen["echo"]) as channel:
        database: Any = ProtoReflectionDescriptorDatabase(channel)
        assert {"echo.v1.Echo", "grpc.health.v1.Health", "onelane.v1.Topology"} <= set(database.get_services())


def grpcurl(*arguments: str) -> str:
    run = subprocess.run(
        [tools.grpcurl(), "-plaintext", *arguments], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    return run.stdout + run.stderr


def test_grpcurl_lists_describes_and_calls(like: RunningApp) -> None:
    address = like.listen["echo"]
    assert "echo.v1.Echo" in grpcurl(address, "list").split()
    assert "rpc Unary" in grpcurl(address, "describe", "echo.v1.Echo")
    called = ("-d", '{"key": "k", "text": "from grpcurl"}', address, "echo.v1.Echo/Unary")
    assert '"text": "from grpcurl"' in grpcurl("-H", "token: sesame", *called)
    assert "Code: PermissionDenied" in grpcurl(*called)
