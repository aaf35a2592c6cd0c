"""A connection goes to the shard its first request belongs to, before anything but SETTINGS was answered.

Here with stock clients and real processes; byte by byte, and with owners that die: the scenarios beside this file.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.server.native_listener import UNDECIDED_S
from onelane.wire.driver import PIECE
from onelane.wire.framing import frame

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
LOCAL = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("native"), echo(2, 'listener = "native"')) as app:
        yield app


@pytest.fixture
async def where(native: RunningApp) -> AsyncIterator[Where]:
    where = Where(native)
    yield where
    await where.close()


async def call_on_new_connection(address: str, key: str, **more: Any) -> EchoReply:
    async with grpc.aio.insecure_channel(address, LOCAL) as channel:
        reply: EchoReply = await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=key), timeout=BOUND_S, **more)
        return reply


async def test_stock_clients_with_one_key_each_are_never_forwarded(native: RunningApp, where: Where) -> None:
    def steered() -> float:
        return native.metric("onelane_connections_total", onelane_connection_steered="true")

    forwards, before = native.metric("onelane_forwards_total"), steered()
    for key in map(str, range(40)):
        assert (await call_on_new_connection(native.listen["echo"], key)).shard == where.owner_of(key)
    assert native.metric("onelane_forwards_total") == forwards
    assert steered() > before


async def test_a_key_in_metadata_steers_as_well(native: RunningApp, where: Where) -> None:
    forwards = native.metric("onelane_forwards_total")
    for key in map(str, range(20)):
        reply = await call_on_new_connection(native.listen["echo"], key, metadata=(("onelane-key", key),))
        assert reply.shard == where.owner_of(key)
    assert native.metric("onelane_forwards_total") == forwards


async def test_later_calls_with_other_keys_are_forwarded(native: RunningApp, where: Where) -> None:
    async with grpc.aio.insecure_channel(native.listen["echo"], LOCAL) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        before = native.metric("onelane_forwards_total")
        keys = [str(n) for n in range(30)]
        assert [(await stub.Unary(EchoRequest(key=k))).shard for k in keys] == [where.owner_of(k) for k in keys]
        away = sum(where.owner_of(k) != where.owner_of(keys[0]) for k in keys)
        assert native.metric("onelane_forwards_total") == before + away


async def test_a_stream_steers_by_its_first_message_and_goes_on_whole(native: RunningApp, where: Where) -> None:
    forwards, late = native.metric("onelane_forwards_total"), 0
    for key in map(str, range(12)):
        async with grpc.aio.insecure_channel(native.listen["echo"], LOCAL) as channel:
            await channel.channel_ready()
            began = time.monotonic()
            texts = [f"{key}-{n}" for n in range(50)]
            requests = [EchoRequest(key=key, text=text) for text in texts]
            chat: Any = echo_pb2_grpc.EchoStub(channel).Chat(iter(requests))
            replies: list[EchoReply] = []
            async for reply in chat:
                # A busy machine may bring the first message so long after the call's head that a shard has kept it.
                late += not replies and time.monotonic() - began >= UNDECIDED_S
                replies.append(reply)
            assert [reply.text for reply in replies] == texts
            assert {reply.shard for reply in replies} == {where.owner_of(key)}
    assert forwards <= native.metric("onelane_forwards_total") <= forwards + late


async def test_requests_that_came_with_the_first_are_answered_by_the_owner(native: RunningApp) -> None:
    async with grpc.aio.insecure_channel(native.listen["echo"], LOCAL) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        calls: list[Any] = [stub.Unary(EchoRequest(key="same", text=str(n)), timeout=BOUND_S) for n in range(300)]
        assert [(await call).text for call in calls] == [str(n) for n in range(300)]


async def test_own_ports_are_never_steered(where: Where) -> None:
    for key in map(str, range(10)):
        for name, stub in where.stubs.items():
            call = stub.Unary(EchoRequest(key=key), metadata=(("onelane-debug", "1"),))
            await call
            hop = dict(tuple(await call.trailing_metadata()))["onelane-hop"]
            assert hop == ("direct" if name == where.owner_of(key) else "forwarded")


async def back(cluster: RunningApp, restarts: int) -> None:
    """Wait until shard 0 has been restarted once more."""

    def is_back() -> bool:
        shard = cluster.shards()[0]
        return bool(shard["restarts"] > restarts and shard["state"] == "ready")

    await eventually(is_back)


async def test_a_dead_sibling_gets_no_connection(tmp_path: Path) -> None:
    """Its keys are UNAVAILABLE until it is back; the connection itself is served, and all other keys on it."""
    with running(tmp_path, echo(2, 'listener = "native"')) as cluster:
        where = Where(cluster)
        os.kill(cluster.shards()[0]["pid"], signal.SIGKILL)
        for _ in range(10):
            reply = await call_on_new_connection(cluster.listen["echo"], where.key_of("echo-1"))
            assert reply.shard == "echo-1"
        await back(cluster, 0)
        reply = await call_on_new_connection(cluster.listen["echo"], where.key_of("echo-0"))
        assert reply.shard == "echo-0"
        await where.close()


async def test_while_a_shard_restarts_connecting_is_never_refused(tmp_path: Path) -> None:
    """The supervisor holds the sockets: who comes to a dead shard's waits for its successor."""
    with running(tmp_path, echo(2, 'listener = "native"')) as cluster:
        where = Where(cluster)
        keys = [where.key_of("echo-0"), where.key_of("echo-1")]
        await where.close()
        answered = 0
        for _ in range(3):
            victim = cluster.shards()[0]
            os.kill(victim["pid"], signal.SIGKILL)
            calls = [call_on_new_connection(cluster.listen["echo"], key) for key in keys * 10]
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(outcome, EchoReply):
                    answered += 1
                    continue
                # A call whose key lives at the dead shard may fail; that nobody listened may not be the reason.
                assert isinstance(outcome, grpc.aio.AioRpcError)
                assert "refused" not in (outcome.details() or "").lower()
                assert "echo-0" in (outcome.details() or ""), outcome
            await back(cluster, victim["restarts"])
        assert answered >= 30


async def test_a_rolling_restart_fails_no_call_of_a_stock_client(tmp_path: Path) -> None:
    """USR2: each shard sends its clients away by GOAWAY, finishes, and comes back; calls go on all the while."""
    with running(tmp_path, echo(2, 'listener = "native"')) as cluster:
        done = asyncio.Event()

        async def hammer(number: int) -> int:
            answered = 0
            async with grpc.aio.insecure_channel(cluster.listen["echo"], LOCAL) as channel:
                stub = echo_pb2_grpc.EchoStub(channel)
                while not done.is_set():
                    await stub.Unary(EchoRequest(key=f"{number}-{answered}"), timeout=BOUND_S)
                    answered += 1
            return answered

        pids = [shard["pid"] for shard in cluster.shards()]
        hammering = [asyncio.create_task(hammer(number)) for number in range(6)]
        cluster.process.send_signal(signal.SIGUSR2)

        def all_new() -> bool:
            shards = cluster.shards()
            return all(s["state"] == "ready" and s["pid"] not in pids for s in shards)

        await eventually(all_new)
        done.set()
        assert min(await asyncio.gather(*hammering)) > 0


async def test_a_connection_that_begins_with_a_large_read_is_answered_whole(native: RunningApp) -> None:
    """The first piece of the read says who its owner is; the rest of it belongs to the connection too."""
    calls = 500
    message = EchoRequest(key="many").SerializeToString()
    asked = b"".join(
        h2.headers(n, h2.request(b"/echo.v1.Echo/Unary"))
        + h2.frame(h2.DATA, frame(message), stream=n, flags=h2.END_STREAM)
        for n in range(1, 2 * calls, 2)
    )
    assert len(asked) > PIECE
    host, _, port = native.listen["echo"].rpartition(":")
    for _ in range(12):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(h2.HELLO + asked)
        ended: list[int] = []
        async for _, flags, stream, _ in h2.frames(reader):
            if stream and flags & h2.END_STREAM:
                ended.append(stream)
            if len(ended) == calls:
                break
        writer.close()
        assert sorted(ended) == list(range(1, 2 * calls, 2))
