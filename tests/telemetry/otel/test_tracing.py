"""OpenTelemetry's trace API inside handlers: the current span is the call's, and new spans join its trace."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import grpc.aio
import onelane
import pytest
from onelane.telemetry.otel.tracing import LaneSpan
from onelane.telemetry.sampling import sampler_of
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.tracer import Tracer
from onelane.testing.clock import ManualClock
from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.trace import Link, SpanContext, StatusCode

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.otlp_receiver import HttpReceiver
from tests.running_app import ROOT, RunningApp, eventually, running

pytestmark = pytest.mark.slow
log = logging.getLogger("tests.traced")
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)


class Traced(echo_pb2_grpc.EchoServicer):
    """A service that uses OpenTelemetry's trace API and baggage."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.tracer = trace.get_tracer("tests")
        self.helper = shard.offload(object, name="helper")

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        span = trace.get_current_span()
        span.set_attribute("room.size", 3)
        span.set_attributes({"room.open": True, "room.tags": ("a", "b")})
        span.add_event("joined", {"player": "ann"})
        links = [Link(span.get_span_context())]
        with self.tracer.start_as_current_span("look up", attributes={"rows": 2}, links=links) as inner:
            assert trace.get_current_span() is inner
            log.warning("looking up")
            if request.order:
                peer = self.shard.stub(echo_pb2_grpc.EchoStub, to="traced")
                await peer.Plain(EchoRequest(key="other", text=str(baggage.get_baggage("user"))))
        with pytest.raises(ValueError, match="odd"), self.tracer.start_as_current_span("fail"):
            raise ValueError("odd")
        assert trace.get_current_span().get_span_context() == span.get_span_context()
        return EchoReply(text=format(span.get_span_context().trace_id, "032x"))

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        trace.get_current_span().set_attribute("baggage.user", str(baggage.get_baggage("user")))
        return EchoReply()

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Uses the API in jobs on a worker thread."""

        def work(_: object) -> str:
            with self.tracer.start_as_current_span("there"):
                seen = baggage.get_baggage("room"), baggage.get_baggage("user")
            otel.attach(baggage.set_baggage("room", "nobody's"))
            return str(seen)

        with self.tracer.start_as_current_span("here"):
            token = otel.attach(baggage.set_baggage("room", "r1"))
            first, second = [await self.helper.run(work) for _ in range(2)]
            otel.detach(token)
        assert first == second
        return EchoReply(text=first)

    async def Hold(self, request: EchoRequest, context: Any) -> EchoReply:
        """Sets an error status by the API, although the call succeeds."""
        span = trace.get_current_span()
        span.set_status(StatusCode.ERROR, "not as it should be")
        await asyncio.sleep(0)
        return EchoReply(text=str(span.is_recording()))


TOML = """
[apps.traced]
services = ["tests.telemetry.otel.test_tracing:Traced"]
listen = "127.0.0.1:0"
shards = 1
stall_s = 0
"""
"""Without stalls: that of a starved machine would be an event of its span."""


@pytest.fixture(scope="module")
def collector() -> Iterator[HttpReceiver]:
    with HttpReceiver() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: HttpReceiver) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("traced")
    environment = collector.environment | {
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with running(folder, TOML, "--app-dir", str(ROOT), **environment) as cluster:
        yield cluster


@pytest.fixture
async def stub(traced: RunningApp) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(traced.listen["traced"]) as channel:
        yield echo_pb2_grpc.EchoStub(channel)


def spans_of(collector: HttpReceiver, trace_id: str, *names: str) -> dict[str, Any]:
    spans = {span.name: span for span in collector.spans() if span.trace_id.hex() == trace_id}
    return spans if set(names) <= set(spans) else {}


def attributes_of(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


async def test_the_current_span_is_the_calls_and_spans_made_in_it_are_its_children(
    stub: Any, collector: HttpReceiver, traced: RunningApp
) -> None:
    reply = await stub.Unary(EchoRequest(key="k"), metadata=SAMPLED, timeout=BOUND_S)
    assert reply.text == TRACE
    await eventually(lambda: spans_of(collector, TRACE, "echo.v1.Echo/Unary", "look up", "fail"))
    spans = spans_of(collector, TRACE, "echo.v1.Echo/Unary")
    server, inner, failed = spans["echo.v1.Echo/Unary"], spans["look up"], spans["fail"]
    attributes = attributes_of(server)
    assert (attributes["room.size"], attributes["room.open"]) == (3, True)
    assert [value.string_value for value in attributes["room.tags"].values] == ["a", "b"]
    assert [event.name for event in server.events] == ["joined"]
    assert inner.parent_span_id == failed.parent_span_id == server.span_id
    assert attributes_of(inner)["rows"] == 2
    assert [link.span_id for link in inner.links] == [server.span_id]
    assert failed.status.message == "ValueError: odd"
    assert [event.name for event in failed.events] == ["exception"]
    # Log lines say in which trace they were written.
    lines = [line for line in traced.log.read_text().splitlines() if "looking up" in line]
    assert any(f"trace={TRACE}" in line for line in lines)


async def test_calls_made_inside_a_span_are_its_children_and_carry_the_baggage(
    stub: Any, collector: HttpReceiver
) -> None:
    trace_id = TRACE.replace("0af7", "1af7")
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"), ("baggage", "user=ann"))
    await stub.Unary(EchoRequest(key="k", order="call"), metadata=metadata, timeout=BOUND_S)
    await eventually(lambda: spans_of(collector, trace_id, "echo.v1.Echo/Plain", "look up"))
    plain = [s for s in collector.spans() if s.trace_id.hex() == trace_id and s.name == "echo.v1.Echo/Plain"]
    inner = spans_of(collector, trace_id, "look up")["look up"]
    client = next(span for span in plain if span.kind == 3)
    server = next(span for span in plain if span.kind == 2)
    assert client.parent_span_id == inner.span_id
    assert server.parent_span_id == client.span_id
    assert attributes_of(server)["baggage.user"] == "ann"


async def test_a_job_has_the_context_of_its_caller_and_leaves_none_on_the_worker_thread(
    stub: Any, collector: HttpReceiver
) -> None:
    trace_id = TRACE.replace("0af7", "3af7")
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"), ("baggage", "user=ann"))
    reply = await stub.Misbehave(EchoRequest(key="k"), metadata=metadata, timeout=BOUND_S)
    assert reply.text == "('r1', 'ann')"
    await eventually(lambda: spans_of(collector, trace_id, "here", "there", "offload helper"))
    spans = spans_of(collector, trace_id)
    assert spans["offload helper"].parent_span_id == spans["here"].span_id
    offloads = {s.span_id for s in collector.spans() if s.name == "offload helper"}
    assert {s.parent_span_id for s in collector.spans() if s.name == "there"} <= offloads


async def test_a_status_that_a_handler_sets_counts_and_an_unsampled_call_records_nothing(
    stub: Any, collector: HttpReceiver
) -> None:
    trace_id = TRACE.replace("0af7", "2af7")
    sampled = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    assert (await stub.Hold(EchoRequest(key="k"), metadata=sampled, timeout=BOUND_S)).text == "True"
    await eventually(lambda: spans_of(collector, trace_id, "echo.v1.Echo/Hold"))
    assert spans_of(collector, trace_id)["echo.v1.Echo/Hold"].status.message == "not as it should be"
    unsampled = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-00"),)
    assert (await stub.Hold(EchoRequest(key="k"), metadata=unsampled, timeout=BOUND_S)).text == "False"


def recording() -> tuple[Tracer, SpanRecord, LaneSpan]:
    clock = ManualClock()
    clock.advance(1.0)
    tracer = Tracer(shard="a-0", sampler=sampler_of({}), clock=clock, rng=Random(1))
    record = tracer.start("work", "INTERNAL", None)
    assert isinstance(record, SpanRecord)
    return tracer, record, LaneSpan(record, tracer)


def test_a_span_that_has_ended_is_not_changed_any_more() -> None:
    tracer, record, span = recording()
    span.set_attribute("rows", 2)
    span.end()
    span.set_attribute("rows", 3)
    span.add_event("late")
    span.update_name("late")
    span.set_status(StatusCode.ERROR, "late")
    span.end()
    assert tracer.take() == [record]
    assert (record.attributes, record.events, record.name, record.error) == ({"rows": 2}, None, "work", "")


def test_a_span_has_the_links_that_it_was_given() -> None:
    _, record, span = recording()
    other = SpanContext(int(TRACE, 16), 5, is_remote=True)
    span.add_link(other, {"queue": 3})
    span.add_link(trace.INVALID_SPAN_CONTEXT)
    assert record.links == [(TRACE, f"{5:016x}", "", {"queue": 3})]


def test_the_description_of_an_error_status_is_not_its_type() -> None:
    _, record, span = recording()
    span.set_status(StatusCode.ERROR, "the table of 300 rows is gone")
    span.end()
    assert record.error == "the table of 300 rows is gone"
    assert record.attributes is None


def test_attributes_of_any_type_become_plain_values() -> None:
    _, record, span = recording()
    span.set_attribute("nothing", None)
    span.set_attribute(7, {1})  # type: ignore[arg-type]
    span.add_event("at", {3: [4, [5]]}, 5.5)  # type: ignore[arg-type]
    assert record.attributes == {"7": "{1}"}
    assert record.events == [("at", {"3": [4, "[5]"]}, 5)]
