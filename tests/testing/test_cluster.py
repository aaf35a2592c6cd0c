"""The kit for users' tests: a whole app in this process, whose time and whose shards a test holds in its hands."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.errors import BadConfig
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.conftest import late_words
from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import ROOT

ARENA = ROOT / "services" / "arena" / "onelane.toml"


class Beating(echo_pb2_grpc.EchoServicer):
    """Counts by a timer."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.beats = 0
        shard.every(10, self.beat)

    def beat(self) -> None:
        self.beats += 1

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.shard.stats.counter("beating.asked").add(1)
        return EchoReply(text=str(self.beats), shard=self.shard.name)


def beats(cluster: Cluster) -> list[int]:
    kind: Any = Beating
    return [cluster.service(kind, shard=index).beats for index in range(2)]


KEYS = {"keys": {"echo.v1.Echo/*": "key"}}


@pytest.fixture
async def echoes() -> AsyncIterator[Cluster]:
    async with Cluster(Echo, shards=3) as cluster:
        yield cluster


def key_of(cluster: Cluster, shard: int) -> str:
    return next(key for key in map(str, range(200)) if cluster.owner_of(key) == shard)


@pytest.mark.parametrize(("settings", "refused"), [({}, False), ({"max_late_s": 0.04}, True)])
async def test_a_busy_machine_refuses_no_calls_unless_the_settings_say_when(
    settings: dict[str, float], refused: bool
) -> None:
    async with Cluster(Echo, shards=1, settings=settings) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        # Nine of them are more than the half second that a burst may take.
        calls = [stub.Misbehave(EchoRequest(key=str(number), order="block 0.06")) for number in range(10)]
        codes = [await call.code() for call in calls]
        assert (grpc.StatusCode.RESOURCE_EXHAUSTED in codes) is refused


async def test_calls_reach_the_owner_and_each_shard_by_itself(echoes: Cluster) -> None:
    stub: Any = echoes.stub(echo_pb2_grpc.EchoStub)
    for number in range(20):
        reply = await stub.Unary(EchoRequest(key=str(number)))
        assert reply.shard == f"app-{echoes.owner_of(str(number))}"
    away: Any = echoes.stub(echo_pb2_grpc.EchoStub, shard=0)
    reply = await away.Unary(EchoRequest(key=key_of(echoes, 2)))
    assert reply.shard == "app-2"
    assert await echoes.stats("onelane.forwards") >= 1


async def test_the_stats_are_those_of_all_shards(echoes: Cluster) -> None:
    stub: Any = echoes.stub(echo_pb2_grpc.EchoStub)
    for number in range(9):
        await stub.Unary(EchoRequest(key=str(number)))
    asked = {"rpc.method": "echo.v1.Echo/Unary"}
    assert await echoes.stats("onelane.calls", asked) == 9
    assert await echoes.stats("onelane.calls", asked | {"onelane.shard": "app-0"}) < 9


async def test_timers_follow_the_clock(onelane_cluster: Callable[..., Cluster]) -> None:
    async with onelane_cluster(Beating, shards=2, settings=KEYS) as cluster:
        assert beats(cluster) == [0, 0]
        await cluster.advance(35)
        assert beats(cluster) == [3, 3]
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        assert (await stub.Unary(EchoRequest(key="k"))).text == "3"
        assert await cluster.stats("beating.asked") == 1


async def test_a_killed_shard_loses_its_state_and_comes_back(echoes: Cluster) -> None:
    stub: Any = echoes.stub(echo_pb2_grpc.EchoStub)
    key, other = key_of(echoes, 1), key_of(echoes, 2)
    assert [(await stub.Unary(EchoRequest(key=key))).seen for _ in range(3)] == [1, 2, 3]
    await stub.Unary(EchoRequest(key=other))
    under_way = stub.Misbehave(EchoRequest(key=key, order="wait for-ever"))
    while not echoes.service(Echo, shard=1).began:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)
    await echoes.kill(1)
    assert await under_way.code() is grpc.StatusCode.UNAVAILABLE
    # The others do not notice.
    assert (await stub.Unary(EchoRequest(key=other))).seen == 2
    await echoes.restart(1)
    assert (await stub.Unary(EchoRequest(key=key), wait_for_ready=True, timeout=BOUND_S)).seen == 1


async def test_a_stalled_shard_lets_its_calls_wait_and_the_others_go_on(echoes: Cluster) -> None:
    stub: Any = echoes.stub(echo_pb2_grpc.EchoStub)
    key, other = key_of(echoes, 1), key_of(echoes, 2)
    await stub.Unary(EchoRequest(key=key))
    with echoes.stall(1):
        waiting = stub.Unary(EchoRequest(key=key))
        assert [(await stub.Unary(EchoRequest(key=other))).seen for _ in range(5)] == [1, 2, 3, 4, 5]
        assert not waiting.done()
        late = stub.Unary(EchoRequest(key=key), timeout=0.05)
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await waiting).seen == 2


async def test_a_stub_of_one_shard_follows_no_key(echoes: Cluster) -> None:
    with pytest.raises(ValueError, match="a stub of one shard follows no key"):
        echoes.stub(echo_pb2_grpc.EchoStub, shard=0, marks=True)


async def test_what_is_published_comes_with_the_tick(echoes: Cluster) -> None:
    stub: Any = echoes.stub(echo_pb2_grpc.EchoStub)
    for index in range(3):
        await stub.Across(EchoRequest(key=key_of(echoes, index), order="subscribe news"))
    await stub.Across(EchoRequest(key=key_of(echoes, 0), order="publish news 2 at_once"))
    while any(len(echoes.service(Echo, shard=n).heard["news"]) < 2 for n in range(3)):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    assert [echoes.service(Echo, shard=index).heard["news"] for index in range(3)] == [["app-0:0", "app-0:1"]] * 3


async def test_a_trace_is_there_to_look_at() -> None:
    async with Cluster(Echo, shards=2, trace=True) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub, shard=0)
        await stub.Unary(EchoRequest(key=key_of(cluster, 1)))
        await cluster.advance(0.2)
        kinds = sorted((span.kind, span.name) for span in cluster.spans if span.name.endswith("Unary"))
        assert kinds == [("CLIENT", "echo.v1.Echo/Unary"), ("SERVER", "echo.v1.Echo/Unary")]


async def test_the_wait_for_a_turn_is_a_span_of_its_call() -> None:
    async with Cluster(Echo, shards=1, trace=True) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        first = stub.Misbehave(EchoRequest(key="k", order="wait k"))
        while not cluster.service(Echo, shard=0).began:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        second = stub.Unary(EchoRequest(key="k"))
        code, details = await late_words(lambda: stub.Unary(EchoRequest(key="k"), timeout=0.2))
        assert (code, "waited for the turn of its key" in details) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
        await stub.Release(EchoRequest(key="k"))
        await asyncio.gather(first, second)
        await cluster.advance(0.2)
        waits = [span for span in cluster.spans if span.name == "turn"]
        calls = {span.context.span_id: span for span in cluster.spans if span.kind == "SERVER"}
        # In the order of their ends. Before them those of calls that their clients gave up first.
        assert [span.error for span in waits][-2:] == ["DEADLINE_EXCEEDED", ""]
        for span in waits:
            parent = calls[span.parent_id]
            assert parent.name == "echo.v1.Echo/Unary"
            assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns


async def test_nothing_of_a_cluster_is_left_when_it_ends() -> None:
    before = asyncio.all_tasks()
    async with Cluster(Echo, shards=2) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        await stub.Unary(EchoRequest(key="k"))
        folders = {Path(path.removeprefix("unix:")).parent for path in cluster._resolver_overrides.values()}
    assert not any(folder.exists() for folder in folders)
    # What its peers have to close first takes some turns of the loop, and a busy machine more of them.
    while asyncio.all_tasks() != before:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)


def test_a_setting_that_does_not_fit_is_told() -> None:
    with pytest.raises(BadConfig, match="max_in_flight"):
        Cluster(Echo, settings={"max_in_flight": 0})


async def test_a_timer_is_due_after_exactly_its_time_however_many_ticks_that_is() -> None:
    async with Cluster(Beating, settings=KEYS) as cluster:
        await cluster.advance(10)
        assert beats(cluster) == [1, 1]
