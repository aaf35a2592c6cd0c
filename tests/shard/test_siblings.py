"""Lanes of one app talk to each other: to the owner of a key, to every shard, and to whoever listens to a topic."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.errors import Overloaded
from onelane.shard.topics import Inbox, Lost, Outbox, Subscriber

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import Cluster, echo, eventually, running

SHARDS = 3

# Queues, purely


def subscribed(capacity: int = 1000) -> tuple[Inbox, Subscriber[EchoReply], list[int]]:
    lost: list[int] = []
    inbox = Inbox(lost=lost.append)
    subscriber = Subscriber("t", EchoReply, capacity=capacity, wake=lambda: None)
    inbox.add(subscriber)
    return inbox, subscriber, lost


def taken(subscriber: Subscriber[EchoReply]) -> list[Any]:
    items: list[Any] = list(iter(subscriber.take, None))
    return [item if isinstance(item, Lost) else item.text for item in items]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["arrives", "is lost", "arrives twice"])), max_size=30))
def test_each_message_comes_at_most_once_in_order_and_what_is_missing_is_told(batches: list[tuple[int, str]]) -> None:
    inbox, subscriber, _ = subscribed()
    outbox = Outbox("a-0", 7, limit=10)
    numbers = iter(range(10_000))
    sent = missing = 0
    seen: list[int] = []
    arrived: list[int] = []
    for size, fate in batches:
        texts = [next(numbers) for _ in range(size)]
        for number in texts:
            outbox.add("t", EchoReply(text=str(number)))
        batch = outbox.take()
        sent += size
        for _ in range({"arrives": 1, "is lost": 0, "arrives twice": 2}[fate]):
            inbox.receive(batch)
        arrived += texts if fate != "is lost" else []
    for item in taken(subscriber):
        if isinstance(item, Lost):
            missing += item.count
        else:
            seen.append(int(item))
    assert seen == arrived
    # What was lost before the first batch that came, or after the last, nobody here can know.
    assert missing <= sent - len(arrived)
    if arrived and batches[0][1] != "is lost" and batches[-1][1] != "is lost":
        assert missing == sent - len(arrived)


def test_a_subscriber_that_lags_loses_the_oldest_and_is_told_first() -> None:
    inbox, subscriber, lost = subscribed(capacity=3)
    outbox = Outbox("a-0", 7, limit=10)
    for number in range(8):
        outbox.add("t", EchoReply(text=str(number)))
    inbox.receive(outbox.take())
    assert taken(subscriber) == [Lost(5), "5", "6", "7"]
    assert sum(lost) == 5


def test_a_publisher_that_was_restarted_begins_anew() -> None:
    inbox, subscriber, _ = subscribed()
    for incarnation in (7, 8):
        outbox = Outbox("a-0", incarnation, limit=10)
        outbox.add("t", EchoReply(text=str(incarnation)))
        inbox.receive(outbox.take())
    assert taken(subscriber) == ["7", "8"]


def test_messages_of_another_kind_are_left_out() -> None:
    inbox, subscriber, _ = subscribed()
    outbox = Outbox("a-0", 7, limit=10)
    outbox.add("t", EchoRequest(text="another"))
    outbox.add("u", EchoReply(text="another topic"))
    outbox.add("t", EchoReply(text="this"))
    inbox.receive(outbox.take())
    assert taken(subscriber) == ["this"]


def test_what_may_be_published_in_one_tick_is_bounded() -> None:
    outbox = Outbox("a-0", 7, limit=2)
    outbox.add("t", EchoReply())
    outbox.add("t", EchoReply())
    with pytest.raises(Overloaded, match="shard a-0, what it publishes is full: 2 waiting already"):
        outbox.add("t", EchoReply())


# Real shards


@pytest.fixture(scope="module", params=["native", "grpcio", "inline"])
def app(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    listener = "grpcio" if request.param == "grpcio" else "native"
    more = ("--inline",) if request.param == "inline" else ()
    toml = echo(SHARDS, f'listener = "{listener}"', "max_lag = 5")
    with running(tmp_path_factory.mktemp("across"), toml, *more) as cluster:
        yield cluster


@pytest.fixture
async def where(app: Cluster) -> AsyncIterator[Where]:
    made = Where(app)
    yield made
    await made.close()


class Shards:
    """Each shard, to be asked by itself."""

    def __init__(self, where: Where) -> None:
        found: dict[str, str] = {}
        for number in range(200):
            found.setdefault(where.owner_of(f"k{number}"), f"k{number}")
        self.keys = [found[f"echo-{index}"] for index in range(SHARDS)]

    async def ask(self, cluster: Cluster, index: int, order: str) -> str:
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            reply = await stub.Across(EchoRequest(key=self.keys[index], order=order), timeout=20)
            return str(reply.text)


pytestmark = pytest.mark.slow


async def test_a_call_reaches_the_owner_of_the_key_wherever_it_is_made(app: Cluster, where: Where) -> None:
    shards = Shards(where)
    for index in range(SHARDS):
        for to in range(SHARDS):
            order = f"call {shards.keys[to]} began" if to != index else f"by_name k-{index}"
            expected = f"echo-{to}" if to != index else where.owner_of(f"k-{index}")
            assert await shards.ask(app, index, order) == expected


async def test_a_call_of_a_call_to_its_own_key_enters(app: Cluster, where: Where) -> None:
    shards = Shards(where)
    assert await shards.ask(app, 0, f"call {shards.keys[0]} add 3") == "echo-0"


async def test_a_status_of_another_lane_comes_back_as_it_is(app: Cluster, where: Where) -> None:
    shards = Shards(where)
    for to in range(SHARDS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await shards.ask(app, 0, f"call {shards.keys[to]} abort")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no such thing: ünïcode"


async def test_every_shard_answers_and_a_failure_stands_beside_the_answers(app: Cluster, where: Where) -> None:
    shards = Shards(where)
    assert await shards.ask(app, 0, "each") == "echo-0=echo-0 echo-1=echo-1 echo-2=echo-2"
    assert await shards.ask(app, 1, "each fail 2") == "echo-0=echo-0 echo-1=echo-1 echo-2=DATA_LOSS"
    assert await shards.ask(app, 1, "each fail 1") == "echo-0=echo-0 echo-1=DATA_LOSS echo-2=echo-2"
    assert await shards.ask(app, 2, "each sleep 0") == "echo-0=DEADLINE_EXCEEDED echo-1=echo-1 echo-2=echo-2"
    assert await shards.ask(app, 0, "each sleep 0") == "echo-0=DEADLINE_EXCEEDED echo-1=echo-1 echo-2=echo-2"


@pytest.mark.parametrize("how", ["batched", "at_once"])
async def test_what_is_published_comes_to_every_shard_in_order(app: Cluster, where: Where, how: str) -> None:
    shards, topic = Shards(where), f"news-{how}"
    for index in range(SHARDS):
        await shards.ask(app, index, f"subscribe {topic}")
    await asyncio.gather(*(shards.ask(app, index, f"publish {topic} 4 {how}") for index in range(SHARDS)))
    for index in range(SHARDS):
        heard: list[str] = []
        while len(heard) < 4 * SHARDS:
            heard = (await shards.ask(app, index, f"heard {topic}")).split()
        for publisher in range(SHARDS):
            assert [one for one in heard if one.startswith(f"echo-{publisher}:")] == [
                f"echo-{publisher}:{number}" for number in range(4)
            ]
        assert len(heard) == 4 * SHARDS


async def test_a_slow_subscriber_is_told_what_it_lost(app: Cluster, where: Where) -> None:
    shards = Shards(where)
    await shards.ask(app, 0, "lag slow")
    await shards.ask(app, 0, "subscribe slow")
    await shards.ask(app, 1, "publish slow 9 batched")
    while len((await shards.ask(app, 0, "heard slow")).split()) < 9:
        pass
    assert await shards.ask(app, 0, "read slow") == "lost:4 echo-1:4 echo-1:5 echo-1:6 echo-1:7 echo-1:8"
    assert app.metric("onelane_messages_lost_total", onelane_reason="slow") >= 4


async def test_nobody_but_a_sibling_may_publish(app: Cluster) -> None:
    from onelane.v1 import siblings_pb2, siblings_pb2_grpc

    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await siblings_pb2_grpc.SiblingsStub(channel).Publish(siblings_pb2.PublishRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_sibling_that_was_restarted_gets_what_is_published_then(tmp_path: Path) -> None:
    with running(tmp_path, echo(SHARDS)) as cluster:
        where = Where(cluster)
        shards = Shards(where)
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            dying = EchoRequest(key=shards.keys[2], order="die")
            with pytest.raises(grpc.aio.AioRpcError):
                await echo_pb2_grpc.EchoStub(channel).Misbehave(dying, timeout=20)
        await eventually(lambda: all(shard["state"] == "ready" for shard in cluster.shards()))
        await eventually(lambda: cluster.shards()[2]["restarts"] == 1)
        await shards.ask(cluster, 2, "subscribe later")
        await shards.ask(cluster, 0, "publish later 3 batched")
        heard: list[str] = []
        while len(heard) < 3:
            heard = (await shards.ask(cluster, 2, "heard later")).split()
        assert heard == ["echo-0:0", "echo-0:1", "echo-0:2"]
        await where.close()
