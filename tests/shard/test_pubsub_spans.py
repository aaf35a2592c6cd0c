"""The spans of publishing and of deliveries, in two shards of a cluster."""

import asyncio

import pytest
from onelane.core.context import current_call
from onelane.shard.shard import Shard
from onelane.shard.topics import Lost
from onelane.telemetry.spans import SpanRecord
from onelane.testing.cluster import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Newspaper(echo_pb2_grpc.EchoServicer):
    """Publishes what it is sent; reads it by a callback, and in a stream."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.deadlines: list[float | None] = []

    async def Unary(self, request: EchoRequest, context: object) -> EchoReply:
        self.shard.publish("news", EchoReply(text=request.text), at_once=True)
        return EchoReply()

    def read(self, message: EchoReply | Lost) -> None:
        call = current_call()
        assert call is not None
        self.deadlines.append(call.deadline_at)
        if isinstance(message, EchoReply) and message.text == "bad":
            raise ValueError("bad news")


def named(cluster: Cluster, name: str) -> list[SpanRecord]:
    return [span for span in cluster.spans if span.name == name]


async def test_a_publish_has_a_span_in_its_calls_trace_and_each_delivery_one_that_links_to_it() -> None:
    async with Cluster(Newspaper, shards=2, trace=True) as cluster:
        papers = [cluster.service(Newspaper, shard=index) for index in range(2)]  # type: ignore[type-abstract]
        heard = asyncio.Event()
        for paper in papers:
            paper.shard.subscribe("news", EchoReply, paper.read)
        papers[1].shard.subscribe("news", EchoReply, lambda message: heard.set())
        stub = cluster.stub(echo_pb2_grpc.EchoStub, shard=0)
        await stub.Unary(EchoRequest(key=next(k for k in "abcdef" if cluster.owner_of(k) == 0)), timeout=BOUND_S)
        await heard.wait()
        await cluster.stats("onelane.calls")
        (publish,) = named(cluster, "publish")
        (call,) = [span for span in named(cluster, "echo.v1.Echo/Unary") if span.kind == "SERVER"]
        assert (publish.kind, publish.trace_id, publish.parent_id) == ("PRODUCER", call.trace_id, call.span_id)
        deliveries = named(cluster, "deliver")
        assert len(deliveries) == 3
        for span in deliveries:
            assert (span.kind, span.parent_id) == ("CONSUMER", "")
            assert [link[:2] for link in span.links or ()] == [(publish.trace_id, publish.span_id)]
        assert papers[0].deadlines == papers[1].deadlines == [None]


async def test_a_message_that_is_iterated_over_is_a_delivery_and_one_that_a_callback_fails_on_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Cluster(Newspaper, shards=1, trace=True) as cluster:
        paper = cluster.service(Newspaper, shard=0)  # type: ignore[type-abstract]
        paper.shard.subscribe("news", EchoReply, paper.read)
        with paper.shard.subscribe("news", EchoReply) as subscription:
            paper.shard.publish("news", EchoReply(text="bad"), at_once=True)
            await anext(aiter(subscription))
        await cluster.stats("onelane.calls")
        assert sorted(span.error for span in named(cluster, "deliver")) == ["", "ValueError"]
        assert "subscription.failed topic=news" in caplog.text


async def test_what_is_not_sampled_has_no_spans() -> None:
    async with Cluster(Newspaper, shards=1) as cluster:
        paper = cluster.service(Newspaper, shard=0)  # type: ignore[type-abstract]
        paper.shard.subscribe("news", EchoReply, paper.read)
        paper.shard.publish("news", EchoReply(), at_once=True)
        await cluster.stats("onelane.calls")
        assert not cluster.spans
        assert paper.deadlines == [None]
