"""Clients reach the owner: ours by itself, a stock one by the service config that `status` prints."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client import ring_channel
from onelane.core.context import TaskContext, current_call_var
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, run_command, running
from tests.servers import stock

pytestmark = pytest.mark.slow


async def test_connect_goes_straight_to_the_owner(cluster: RunningApp, where: Where) -> None:
    before = cluster.metric("onelane_forwards_total")
    async with onelane.connect(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for key in map(str, range(200)):
            assert (await stub.Unary(EchoRequest(key=key))).shard == where.owner_of(key)
        async for reply in stub.Download(EchoRequest(key="k", times=3)):
            assert reply.shard == where.owner_of("k")
    assert cluster.metric("onelane_forwards_total") == before


async def test_connect_serves_every_call_type_and_its_status(cluster: RunningApp) -> None:
    async with onelane.connect(cluster.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        first, second = EchoRequest(key="k", text="1"), EchoRequest(key="k", text="2")
        assert (await stub.Upload(iter([first, second]))).text == "1,2"
        assert [r.text async for r in stub.Chat(iter([first, second]))] == ["1", "2"]
        with pytest.raises(grpc.aio.AioRpcError, match="no such thing") as caught:
            await stub.Misbehave(EchoRequest(key="k", order="abort"))
        assert ("x-why", "aborted") in tuple(caught.value.trailing_metadata() or ())
        call = stub.Misbehave(EchoRequest(key="k", order="metadata"))
        await call
        assert ("x-initial", "first") in tuple(await call.initial_metadata())


async def test_connect_falls_back_to_the_shared_port_and_comes_home_again(tmp_path: Path) -> None:
    """While the owner is down its keys are UNAVAILABLE; all others are served, and it is reached when it is back."""
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        mine, other = where.key_of("echo-0"), where.key_of("echo-1")
        async with onelane.connect(cluster.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            os.kill(cluster.shards()[0]["pid"], signal.SIGKILL)
            await eventually(lambda: cluster.shards()[0]["restarts"] == 1 and cluster.shards()[0]["state"] == "ready")
            await channel.channel_ready()
            reply = await stub.Unary(EchoRequest(key=other), wait_for_ready=True)
            assert reply.shard == "echo-1"
            hop: str | bytes = ""
            while hop != "direct":
                call = stub.Unary(EchoRequest(key=mine), wait_for_ready=True, metadata=(("onelane-debug", "1"),))
                assert (await call).shard == "echo-0"
                hop = dict(await call.trailing_metadata())["onelane-hop"]
        await where.close()


async def test_a_peer_that_is_down_is_unavailable_at_once_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_channel, "READY_S", 0.1)
    async with onelane.connect("127.0.0.1:1", name="profile") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="profile: failed to connect") as caught:
            await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="k"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_details_of_a_servers_own_unavailable_stay_as_they_are() -> None:
    async def closed(request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "closed on Sundays")

    async with (
        stock(Unary=grpc.unary_unary_rpc_method_handler(closed)) as (address, _),
        onelane.connect(address, name="profile") as channel,
    ):
        call = channel.unary_unary("/t.T/Unary")(b"")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert [caught.value.details(), await call.details()] == ["closed on Sundays"] * 2


async def test_connect_has_a_default_deadline(cluster: RunningApp) -> None:
    async with onelane.connect(cluster.listen["echo"], deadline_s=0.2) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo_pb2_grpc.EchoStub(channel).Misbehave(EchoRequest(key="k", order="sleep 30"))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(("asked", "left"), [(300.0, 50.0), (None, 50.0), (30.0, 30.0)])
async def test_a_call_made_in_a_call_gets_what_is_left_of_its_deadline(
    cluster: RunningApp, asked: float | None, left: float
) -> None:
    async with onelane.connect(cluster.listen["echo"]) as channel:
        token = current_call_var.set(TaskContext("outer", time.monotonic() + 50.0))
        call = echo_pb2_grpc.EchoStub(channel).Misbehave(EchoRequest(key="k", order="remaining"), timeout=asked)
        current_call_var.reset(token)
        await call
        # gRPC writes a timeout with few digits and rounds it up: by less than 1 %.
        assert 0 < float(dict(await call.trailing_metadata())["x-remaining"]) <= left * 1.01


async def test_every_shard_streams_the_topology(cluster: RunningApp, where: Where) -> None:
    for channel in where.channels.values():
        watch = topology_pb2_grpc.TopologyStub(channel).Watch(topology_pb2.WatchRequest())
        placement = await anext(aiter(watch))
        watch.cancel()
        assert (placement.app, placement.epoch, placement.listen) == (
            "echo",
            where.placement.epoch,
            cluster.listen["echo"],
        )
        assert [m.address for m in placement.members] == [m.address for m in where.placement.members]
        assert json.loads(placement.service_config) == where.placement.service_config()


async def test_a_server_without_topology_is_an_ordinary_peer() -> None:
    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.v1.Echo", {"Unary": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with onelane.connect(f"127.0.0.1:{port}") as channel:
        reply = await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="k"))
        assert reply.text == "k"
    await server.stop(None)


STOCK = """
import json, os, sys, grpc
os.environ["GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"] = "true"
config, addresses = sys.argv[1], sys.argv[2]
with grpc.insecure_channel("ipv4:" + addresses, [("grpc.service_config", config)]) as channel:
    from tests.echo.v1 import echo_pb2, echo_pb2_grpc
    stub = echo_pb2_grpc.EchoStub(channel)
    for n in range(300):
        key = f"room-{n}"
        print(stub.Unary(echo_pb2.EchoRequest(key=key), metadata=[("onelane-key", key)], timeout=10).shard)
"""


def test_a_stock_client_with_the_printed_service_config_pays_no_hop(cluster: RunningApp) -> None:
    shown = run_command("status", "--json", cluster.listen["echo"])
    app = json.loads(shown.stdout)["apps"]["echo"]
    addresses = ",".join(s["address"] for s in app["shards"])
    before = cluster.metric("onelane_forwards_total")
    run = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(app["service_config"]), addresses],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(run.stdout.split()) == {"echo-0", "echo-1"}
    assert cluster.metric("onelane_forwards_total") == before


@pytest.mark.parametrize("ask", ["admin", "shared"])
def test_status_prints_the_fixed_shape(cluster: RunningApp, ask: str) -> None:
    target = cluster.admin if ask == "admin" else cluster.listen["echo"]
    shown = run_command("status", "--json", target)
    app = json.loads(shown.stdout)["apps"]["echo"]
    # Pins are keys, which the admin address alone tells.
    pins = {"pins"} if ask == "admin" else set()
    assert set(app) == {"listen", "epoch", "service_config", "shards", "change", "leaving", "build"} | pins
    assert app["listen"] == cluster.listen["echo"]
    fields = {"name", "index", "pid", "address", "state", "restarts", "config", "calls", "forwarded"}
    fields |= {"stalls", "last_stalls", "connections", "descriptors_left", "life", "durable"}
    assert [set(shard) for shard in app["shards"]] == [fields, fields]
    assert {name for shard in app["shards"] for name in shard["connections"]} == {
        "open",
        "refused",
        "goaways",
        "tls_failures",
    }
    assert all(shard["descriptors_left"] > 0 for shard in app["shards"])


async def test_status_shows_how_many_keys_each_keyed_dict_holds(cluster: RunningApp, where: Where) -> None:
    for n in range(10):
        await where.shared.Unary(EchoRequest(key=f"held-{n}"))
    held = sum(shard["keyed"]["seen"] for shard in cluster.shards())
    assert held >= 10
    shown = await asyncio.to_thread(run_command, "status", cluster.admin, COLUMNS="160")
    assert "seen" in shown.stdout


def test_status_of_nobody_is_told_plainly() -> None:
    run = run_command("status", "127.0.0.1:1")
    assert run.returncode == 1
    assert "nothing listens at 127.0.0.1:1" in run.stderr
