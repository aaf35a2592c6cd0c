"""Streams of a key that moves: ended with a status that says so, counted once, and followed by our stubs."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.core.moved import MOVED
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.follow.service import Follow
from tests.follow.v1.follow_pb2 import FollowReply, FollowRequest
from tests.follow.v1.follow_pb2_grpc import FollowStub
from tests.running_app import RunningApp, run_command, running

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
KEYS = [f"k{number}" for number in range(12)]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    # All lanes share one loop, on a machine that may be busy: none is late. What waits for a drain waits for too long.
    async with Cluster(Follow, shards=2, settings={"drain_s": 60}, trace=True) as running:
        yield running


def key_of(cluster: Cluster, shard: int) -> str:
    return next(key for key in KEYS if cluster.owner_of(key) == shard)


class Readers:
    """A stream of each key, read all the time."""

    def __init__(self, stub: Any, keys: list[str]) -> None:
        self.received: dict[str, list[Any]] = {}
        self._stub = stub
        self._changed = asyncio.Condition()
        self.tasks: list[asyncio.Future[None]] = []
        for key in keys:
            self.add(key, self._read(key))

    def add(self, key: str, reading: Coroutine[Any, Any, None]) -> None:
        self.received[key] = []
        self.tasks.append(asyncio.ensure_future(reading))

    async def _read(self, key: str) -> None:
        async for reply in self._stub.Watch(FollowRequest(key=key)):
            await self.take(key, reply)

    async def take(self, key: str, reply: Any) -> None:
        async with self._changed:
            self.received[key].append(reply)
            self._changed.notify_all()

    async def hear(self, stub: Any, text: str) -> None:
        """Say a text to every key; wait until every reader has it."""
        await asyncio.gather(*(stub.Say(FollowRequest(key=key, text=text)) for key in self.received))
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self._have(text)), BOUND_S)

    def _have(self, text: str) -> bool:
        return all(any(text in reply.text for reply in _replies(replies)) for replies in self.received.values())

    async def end(self) -> None:
        for task in self.tasks:
            assert not task.done()
            task.cancel()
        await asyncio.wait(self.tasks)


def _replies(received: list[Any]) -> list[FollowReply]:
    return [reply for reply in received if isinstance(reply, FollowReply)]


async def opened(stub: Any, method: str, key: str, *, text: str = "") -> Any:
    """A stream, whose handler runs."""
    request = FollowRequest(key=key, text=text)
    if method == "Listen":
        call = stub.Listen(request)
        await call.read()
        return call
    call = getattr(stub, method)()
    await call.write(request)
    if method == "Talk":
        await call.read()
    return call


async def outcome(call: Any) -> tuple[grpc.StatusCode, dict[str, Any]]:
    async with asyncio.timeout(BOUND_S):
        return await call.code(), dict(await call.trailing_metadata())


async def until_open(cluster: Cluster, key: str, *, shard: int) -> None:
    service = cluster.service(Follow, shard=shard)
    async with asyncio.timeout(BOUND_S):
        while not service.streams[key]:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)


async def count_of(cluster: Cluster, method: str, code: str = "") -> float:
    labels = {"rpc.method": f"follow.v1.Follow/{method}"} | ({"rpc.response.status_code": code} if code else {})
    return await cluster.stats("onelane.calls", labels)


@pytest.mark.parametrize("way", ["owner", "other", "grpcio"])
@pytest.mark.parametrize("method", ["Listen", "Talk", "Send"])
async def test_a_stream_whose_key_moves_ends_with_its_epoch_in_a_trailer_and_is_counted_once(
    cluster: Cluster, method: str, way: str
) -> None:
    """At its owner, by way of another shard, and for a client of grpcio."""
    key = key_of(cluster, 0)
    async with grpc.aio.insecure_channel(cluster._shards(None)[1].own_target) as channel:
        stub: Any = FollowStub(channel) if way == "grpcio" else cluster.stub(FollowStub, shard=int(way == "other"))
        call = await opened(stub, method, key)
        if method == "Send":
            await until_open(cluster, key, shard=0)
        await asyncio.wait_for(cluster.restart(0), BOUND_S)
        code, trailers = await outcome(call)
        assert await call.details() == f"its key has moved to another shard, in epoch {trailers[MOVED]}"
    assert code is UNAVAILABLE
    assert trailers.keys() == {MOVED}
    assert trailers[MOVED].isdecimal()
    assert (await count_of(cluster, method), await count_of(cluster, method, "UNAVAILABLE")) == (1, 1)
    (span,) = [s for s in cluster.spans if s.kind == "SERVER" and s.name.endswith(method)]
    assert span.status == "UNAVAILABLE"


@pytest.mark.parametrize("shard", [0, 1])
async def test_a_handler_that_catches_its_cancellation_and_returns_changes_nothing_of_that(
    cluster: Cluster, shard: int
) -> None:
    """shard: by which its client goes."""
    key = key_of(cluster, 0)
    call = await opened(cluster.stub(FollowStub, shard=shard), "Listen", key, text="stubborn")
    await asyncio.wait_for(cluster.restart(0), BOUND_S)
    code, trailers = await outcome(call)
    assert code is UNAVAILABLE
    assert trailers.keys() == {MOVED}
    assert (await count_of(cluster, "Listen"), await count_of(cluster, "Listen", "UNAVAILABLE")) == (1, 1)


@pytest.mark.parametrize("marks", [False, True])
async def test_streams_of_our_stubs_follow_their_keys_through_scaling_and_a_rolling_restart(
    cluster: Cluster, marks: bool
) -> None:
    stub: Any = cluster.stub(FollowStub, marks=marks)
    readers = Readers(stub, KEYS)
    await readers.hear(stub, "two")
    for shards in (4, 1, 3):
        await asyncio.wait_for(cluster.scale(shards), BOUND_S)
        await readers.hear(stub, f"{shards} shards")
    for shard in range(3):
        await asyncio.wait_for(cluster.restart(shard), BOUND_S)
    await readers.hear(stub, "restarted")
    await readers.end()
    for received in readers.received.values():
        epochs = [mark.epoch for mark in received if isinstance(mark, onelane.Moved)]
        assert bool(epochs) is marks
        assert epochs == sorted(epochs)
        # The state has moved along: a stream that is opened again begins with all that was said before.
        assert any(reply.text.startswith("two,4 shards,1 shards,3 shards") for reply in _replies(received))


async def test_a_stream_that_a_leaving_shard_only_sends_on_ends_at_once_as_if_its_key_had_moved(
    cluster: Cluster,
) -> None:
    """Not after a drain: the shard leaves for good, and its clients are to go another way."""
    call = await opened(cluster.stub(FollowStub, shard=1), "Listen", key := key_of(cluster, 0))
    await asyncio.wait_for(cluster.scale(1), BOUND_S)
    code, trailers = await outcome(call)
    assert code is UNAVAILABLE
    assert trailers.keys() == {MOVED}
    assert (await count_of(cluster, "Listen"), await count_of(cluster, "Listen", "UNAVAILABLE")) == (1, 1)
    assert cluster.service(Follow, shard=0).streams[key] == []


async def test_a_stream_of_a_shard_that_dies_ends_for_its_reader(cluster: Cluster) -> None:
    key = key_of(cluster, 0)
    call = cluster.stub(FollowStub, reopen=True).Watch(FollowRequest(key=key))
    await call.read()
    await cluster.crash(0)
    assert await outcome(call) == (UNAVAILABLE, {})


async def order(app: RunningApp, *arguments: str) -> None:
    done = await asyncio.to_thread(run_command, *arguments, "--admin", app.admin)
    assert done.returncode == 0, done.stderr


async def watch_by_hand(channel: grpc.aio.Channel, key: str, readers: Readers, moves: list[str]) -> None:
    """As a client does that knows nothing of keys."""
    while True:
        try:
            async for reply in FollowStub(channel).Watch(FollowRequest(key=key), wait_for_ready=True):
                await readers.take(key, reply)
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            if MOVED not in trailers:
                raise
            moves.append(str(trailers[MOVED]))


@pytest.mark.slow
async def test_streams_of_grpcio_are_opened_again_by_hand_and_ours_by_themselves_while_an_app_is_scaled(
    tmp_path: Path,
) -> None:
    toml = '[apps.follow]\nservices = ["tests.follow.service:Follow"]\nlisten = "127.0.0.1:0"\nshards = 1\n'
    with running(tmp_path, toml) as app:
        moves: list[str] = []
        async with (
            grpc.aio.insecure_channel(app.listen["follow"]) as stock,
            onelane.connect(app.listen["follow"], marks=True) as channel,
        ):
            by_stub, by_hand = Readers(FollowStub(channel), KEYS), Readers(None, [])
            for key in KEYS:
                by_hand.add(key, watch_by_hand(stock, key, by_hand, moves))
            for text, arguments in (
                ("one", ()),
                ("three", ("scale", "follow", "3")),
                ("two", ("scale", "follow", "2")),
            ):
                if arguments:
                    await order(app, *arguments)
                await by_stub.hear(FollowStub(channel), text)
                await by_hand.hear(FollowStub(channel), text)
            await by_stub.end()
            await by_hand.end()
    assert moves
    assert any(isinstance(item, onelane.Moved) for received in by_stub.received.values() for item in received)
