"""What a shard publishes comes to the subscribers in every shard, once and in order; what is lost is counted."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.core.placement import Member, Placement
from onelane.errors import Overloaded
from onelane.shard import pubsub
from onelane.shard.pubsub import MAX_BATCHES
from onelane.shard.topics import Lost
from onelane.shard.wiring import ShardParts
from onelane.v1 import siblings_pb2, siblings_pb2_grpc

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import echo, eventually, running
from tests.shard.parts import setup, wired
from tests.shard.shards import SHARDS, Shards

SELF = Member("echo-0", "127.0.0.1:50061", "/nowhere/echo-0")
GONE = Member("echo-1", "127.0.0.1:50062", "/nowhere/echo-1")
"""A sibling whose socket is not there."""


def publish(parts: ShardParts, *texts: str, at_once: bool = False) -> None:
    for text in texts:
        parts.shard.publish("news", EchoReply(text=text), at_once=at_once)


async def close(parts: ShardParts) -> None:
    await parts.pubsub.aclose()
    await parts.sibling_channels.aclose()


def lost(parts: ShardParts) -> dict[str, Any]:
    """Reason → messages that were lost."""
    points = [point for point in parts.shard.stats.take() if point.instrument.name == "onelane.messages.lost"]
    return {dict(point.attributes)["onelane.reason"]: point.value for point in points}


async def test_an_iteration_has_the_messages_in_order_and_ends_with_its_subscription() -> None:
    parts, _ = wired()
    heard: list[str] = []

    async def listen() -> None:
        async for message in subscription:
            assert not isinstance(message, Lost)
            heard.append(message.text)
            if message.text == "2":
                subscription.close()

    with parts.shard.subscribe("news", EchoReply) as subscription:
        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        publish(parts, "1", at_once=True)
        publish(parts, "2", at_once=True)
        await listening
    assert heard == ["1", "2"]
    await close(parts)


@pytest.mark.parametrize("error", [ValueError, SystemExit, BaseException, asyncio.CancelledError])
async def test_a_callback_that_raises_is_logged_and_has_the_next_message(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    parts, _ = wired()
    heard: list[str] = []

    def hear(message: EchoReply | Lost) -> None:
        assert not isinstance(message, Lost)
        heard.append(message.text)
        if message.text == "bad":
            raise error("cannot read it")

    parts.shard.subscribe("news", EchoReply, hear)
    publish(parts, "bad", "good")
    await close(parts)
    assert heard == ["bad", "good"]
    assert caplog.text.count("subscription.failed topic=news") == 1


async def test_the_end_of_a_shard_sends_what_waits_and_ends_every_iteration() -> None:
    parts, _ = wired()
    subscription = parts.shard.subscribe("news", EchoReply)
    publish(parts, "last")
    await close(parts)
    assert [message async for message in subscription] == [EchoReply(text="last")]


async def test_what_may_be_published_in_one_tick_is_bounded_and_the_next_tick_has_room() -> None:
    parts, _ = wired(setup(max_published=2))
    publish(parts, "1", "2")
    with pytest.raises(Overloaded):
        publish(parts, "3")
    parts.pubsub._send_batch()
    publish(parts, "3")
    await close(parts)


async def test_batches_that_a_sibling_does_not_take_are_lost_to_it_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts, _ = wired()
    parts.lane.place(Placement(2, (SELF, GONE)))
    publish(parts, "1", "2", at_once=True)
    await parts.pubsub._senders[GONE.socket].flush()
    assert lost(parts) == {"undelivered": 2}
    assert "publish.undelivered shard=echo-0 to=echo-1 code=UNAVAILABLE" in caplog.text
    await close(parts)


async def test_a_queue_of_batches_that_is_full_takes_no_more_and_does_not_wait() -> None:
    parts, _ = wired()
    parts.lane.place(Placement(2, (SELF, GONE)))
    # No turn of the loop between them, so nothing is sent meanwhile.
    publish(parts, *map(str, range(MAX_BATCHES + 3)), at_once=True)
    assert lost(parts) == {"undelivered": 3}
    await close(parts)


async def test_a_sibling_that_has_left_the_placement_and_has_ended_is_sent_nothing_more() -> None:
    parts, _ = wired()
    parts.lane.place(Placement(2, (SELF, GONE)))
    publish(parts, "1", at_once=True)
    assert set(parts.pubsub._senders) == {GONE.socket}
    parts.lane.place(Placement(3, (SELF,)))
    publish(parts, "2", at_once=True)
    await parts.pubsub._senders[GONE.socket].flush()
    publish(parts, "3", at_once=True)
    assert (parts.pubsub._senders, parts.sibling_channels._channels, lost(parts)) == ({}, {}, {})
    await close(parts)


class BusySibling(siblings_pb2_grpc.SiblingsServicer):
    """Does not take the first batches."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.messages = 0

    async def Publish(self, request: siblings_pb2.PublishRequest, context: Any) -> siblings_pb2.PublishReply:
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.messages += len(request.messages)
        return siblings_pb2.PublishReply()

    async def HandOver(self, request: siblings_pb2.HandOverRequest, context: Any) -> siblings_pb2.HandOverReply:
        raise NotImplementedError

    async def Hurry(self, request: siblings_pb2.HurryRequest, context: Any) -> siblings_pb2.HurryReply:
        raise NotImplementedError

    async def Remind(self, request: siblings_pb2.RemindRequest, context: Any) -> siblings_pb2.RemindReply:
        raise NotImplementedError


@pytest.mark.parametrize(("deliver_s", "taken"), [(5.0, 2), (0.0, 0)], ids=["in time", "too late"])
async def test_a_sibling_that_has_left_and_finishes_its_calls_is_sent_a_batch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deliver_s: float, taken: int
) -> None:
    monkeypatch.setattr(pubsub, "DELIVER_S", deliver_s)
    parts, _ = wired()
    left = Member("echo-1", "127.0.0.1:50062", f"{tmp_path}/echo-1")
    server, sibling = grpc.aio.server(), BusySibling(failures=2)
    siblings_pb2_grpc.add_SiblingsServicer_to_server(sibling, server)
    server.add_insecure_port(f"unix:{left.socket}")
    await server.start()
    parts.lane.place(Placement(2, (SELF, left)))
    publish(parts, "1", at_once=True)
    parts.lane.place(Placement(3, (SELF,)))
    publish(parts, "2", at_once=True)
    await parts.pubsub._senders[left.socket].flush()
    assert sibling.messages == taken
    assert lost(parts) == ({} if taken else {"undelivered": 2})
    await close(parts)
    await server.stop(0)


# Real shards


@pytest.mark.slow
@pytest.mark.parametrize("how", ["batched", "at_once"])
async def test_what_is_published_comes_to_every_shard_in_order(shards: Shards, how: str) -> None:
    topic = f"news-{how}"
    for index in range(SHARDS):
        await shards.ask(index, f"subscribe {topic}")
    await asyncio.gather(*(shards.ask(index, f"publish {topic} 4 {how}") for index in range(SHARDS)))
    for index in range(SHARDS):
        heard: list[str] = []
        while len(heard) < 4 * SHARDS:
            heard = (await shards.ask(index, f"heard {topic}")).split()
        for publisher in range(SHARDS):
            assert [message for message in heard if message.startswith(f"echo-{publisher}:")] == [
                f"echo-{publisher}:{number}" for number in range(4)
            ]
        assert len(heard) == 4 * SHARDS


@pytest.mark.slow
async def test_a_slow_subscriber_is_told_what_it_lost(shards: Shards) -> None:
    await shards.ask(0, "lag slow")
    await shards.ask(0, "subscribe slow")
    await shards.ask(1, "publish slow 9 batched")
    while len((await shards.ask(0, "heard slow")).split()) < 9:
        pass
    assert await shards.ask(0, "read slow") == "lost:4 echo-1:4 echo-1:5 echo-1:6 echo-1:7 echo-1:8"
    assert shards.app.metric("onelane_messages_lost_total", onelane_reason="slow") >= 4


@pytest.mark.slow
async def test_nobody_but_a_sibling_may_publish(shards: Shards) -> None:
    async with grpc.aio.insecure_channel(shards.app.listen["echo"]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await siblings_pb2_grpc.SiblingsStub(channel).Publish(siblings_pb2.PublishRequest(), timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.slow
async def test_a_sibling_that_was_restarted_gets_what_is_published_then(tmp_path: Path) -> None:
    with running(tmp_path, echo(SHARDS)) as app:
        shards = Shards(app)
        async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
            dying = EchoRequest(key=shards.keys[2], order="die")
            with pytest.raises(grpc.aio.AioRpcError):
                await echo_pb2_grpc.EchoStub(channel).Misbehave(dying, timeout=BOUND_S)
        # Of one moment: it is `ready` as well until its supervisor has seen it die.
        await eventually(lambda: app.shards()[2]["restarts"] == 1 and app.shards()[2]["state"] == "ready")
        await shards.ask(2, "subscribe later")
        await shards.ask(0, "publish later 3 batched")
        heard: list[str] = []
        while len(heard) < 3:
            heard = (await shards.ask(2, "heard later")).split()
        assert heard == ["echo-0:0", "echo-0:1", "echo-0:2"]
