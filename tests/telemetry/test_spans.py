"""Trace context and sampling, as W3C and OpenTelemetry write them."""

from enum import StrEnum

from onelane.core.trace_context import TraceContext
from onelane.telemetry.sampling import sampler_of
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans
from onelane.telemetry.tracer import all_attributes

from tests.telemetry.test_tracer import tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_batch_arrives_as_it_was_packed() -> None:
    ours = tracer(sampler_of({}))
    whole = ours.start("a/B", "SERVER", TraceContext("0" * 31 + "1", "0" * 15 + "2", True, "vendor=1"), remote=True)
    assert isinstance(whole, SpanRecord)
    whole.set_attribute("room.size", 3)
    whole.add_event("joined", {"player": "ann"}, 5)
    ours.end_call(whole, status="INTERNAL", hop="direct", server=True)
    ours.end(ours.start("plain", "INTERNAL", None))
    found = PackedSpans(pack_spans(ours.take()))
    assert [span.name for span in found] == ["a/B", "plain"]
    as_made = {"is_ok": False, "links": None}
    assert vars(found[0]) | as_made == vars(whole) | as_made
    assert all_attributes(found[0], "a-0") == {
        "onelane.shard": "a-0",
        "rpc.system.name": "grpc",
        "rpc.method": "a/B",
        "rpc.response.status_code": "INTERNAL",
        "onelane.hop": "direct",
        "room.size": 3,
        "error.type": "INTERNAL",
    }


def test_what_is_no_plain_value_spoils_no_batch() -> None:
    class Name(StrEnum):
        ODD = "odd"

    ours = tracer(sampler_of({}))
    for name in (Name.ODD, "usual"):
        span = ours.start(name, "INTERNAL", None)
        assert isinstance(span, SpanRecord)
        span.set_attribute("raw", object if name is Name.ODD else 1)
        span.add_event(name, {"when": {1, 2}}, 5)
        ours.end(span)
    found = PackedSpans(pack_spans(ours.take()))
    assert [span.name for span in found] == ["odd", "usual"]
    assert found[1].attributes == {"raw": 1}
    assert found[0].events == [("odd", {"when": "{1, 2}"}, 5)]
