"""A batch of spans is the same after packing, whatever types its attributes have."""

from enum import StrEnum

from onelane.core.trace_context import TraceContext
from onelane.telemetry.sampling import sampler_of
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans
from onelane.telemetry.tracer import all_attributes

from tests.telemetry.test_tracer import tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_batch_arrives_as_it_was_packed() -> None:
    shard_tracer = tracer(sampler_of({}))
    server_span = shard_tracer.start(
        "a/B", "SERVER", TraceContext("0" * 31 + "1", "0" * 15 + "2", True, "vendor=1"), remote=True
    )
    assert isinstance(server_span, SpanRecord)
    server_span.set_attribute("room.size", 3)
    server_span.add_event("joined", {"player": "ann"}, 5)
    shard_tracer.end_call(server_span, status="INTERNAL", hop="direct", server=True)
    shard_tracer.end(shard_tracer.start("plain", "INTERNAL", None))
    unpacked = PackedSpans(pack_spans(shard_tracer.take()))
    assert [span.name for span in unpacked] == ["a/B", "plain"]
    as_made = {"is_ok": False, "links": None}
    assert vars(unpacked[0]) | as_made == vars(server_span) | as_made
    assert all_attributes(unpacked[0], "a-0") == {
        "onelane.shard": "a-0",
        "rpc.system.name": "grpc",
        "rpc.method": "a/B",
        "rpc.response.status_code": "INTERNAL",
        "onelane.hop": "direct",
        "room.size": 3,
        "error.type": "INTERNAL",
    }


def test_an_attribute_of_any_type_spoils_no_batch() -> None:
    class Name(StrEnum):
        ODD = "odd"

    shard_tracer = tracer(sampler_of({}))
    for name in (Name.ODD, "usual"):
        span = shard_tracer.start(name, "INTERNAL", None)
        assert isinstance(span, SpanRecord)
        span.set_attribute("raw", object if name is Name.ODD else 1)
        span.add_event(name, {"when": {1, 2}}, 5)
        shard_tracer.end(span)
    unpacked = PackedSpans(pack_spans(shard_tracer.take()))
    assert [span.name for span in unpacked] == ["odd", "usual"]
    assert unpacked[1].attributes == {"raw": 1}
    assert unpacked[0].events == [("odd", {"when": "{1, 2}"}, 5)]
