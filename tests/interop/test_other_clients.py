"""Stock clients that have never heard of us: grpcio without asyncio, grpc-js, h2load."""

import asyncio
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests import tools
from tests.bench.load import Load, Target, run
from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp

pytestmark = pytest.mark.slow


def test_sync_grpcio_from_many_threads(cluster: RunningApp) -> None:
    with grpc.insecure_channel(cluster.listen["echo"]) as channel, ThreadPoolExecutor(8) as threads:
        stub = echo_pb2_grpc.EchoStub(channel)
        replies = list(
            threads.map(lambda n: stub.Unary(EchoRequest(key="one", text=str(n)), timeout=BOUND_S), range(200))
        )
        chat = [reply.text for reply in stub.Chat(iter([EchoRequest(key="one", text="a")]), timeout=BOUND_S)]
    assert len({reply.shard for reply in replies}) == 1
    assert sorted(reply.seen for reply in replies)[-1] >= 200
    assert chat == ["a"]


@pytest.mark.parametrize("key", ["k", "a room/ünder 100%"])
async def test_grpc_js_reaches_the_owner_with_every_call_type(cluster: RunningApp, where: Where, key: str) -> None:
    from onelane.core.keys import canonical

    owner = where.owner_of(canonical(key))
    run = await asyncio.to_thread(
        subprocess.run,
        [*tools.node_client(), cluster.listen["echo"], key],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["unary"]["shard"] == seen["trailers"]["onelane-shard"] == owner
    assert seen["download"] == [owner] * 3
    assert (seen["upload"]["text"], seen["upload"]["shard"]) == ("a,b", owner)
    assert seen["chat"] == ["x", "y"]
    assert seen["error"] == {"code": 5, "details": "no such thing: ünïcode"}


def test_h2load_is_answered_and_counted(cluster: RunningApp) -> None:
    tools.program("h2load", "Debian's nghttp2-client")
    labels = {"rpc_method": "echo.v1.Echo/Unary", "rpc_response_status_code": "OK"}
    before = cluster.metric("onelane_calls_total", **labels)
    run([Target(cluster.listen["echo"], "k")], [cluster.process.pid], Load(calls=2000))
    assert cluster.metric("onelane_calls_total", **labels) - before == 2000
