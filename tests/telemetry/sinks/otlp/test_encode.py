"""Encoded OTLP requests, decoded again: every field arrives, and an odd item spoils no other."""

from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.logs import pack_logs
from onelane.telemetry.sinks.otlp.encode import Encoder
from onelane.telemetry.sinks.otlp.queue import (
    Chunk,
)
from onelane.telemetry.spans import SpanRecord, pack_spans
from onelane.telemetry.stats import Instrument, Point
from onelane.telemetry.tracer import all_attributes
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.telemetry.sinks.test_seam import RECORD, SPAN, SPAN_ID, TRACE_ID

ids = st.integers(1, 2**64 - 1)


texts = st.text(max_size=200)


attributes = st.none() | st.dictionaries(texts, texts | st.integers() | st.booleans() | st.lists(texts), max_size=3)


events = st.none() | st.lists(st.tuples(texts, st.dictionaries(texts, texts, max_size=2), ids), min_size=1, max_size=2)


@st.composite
def spans_(draw: st.DrawFn) -> SpanRecord:
    parent_id = draw(st.just("") | ids.map("{:016x}".format))
    trace_id, span_id = f"{draw(ids):016x}{draw(ids):016x}", f"{draw(ids):016x}"
    kind = draw(st.sampled_from(["SERVER", "CLIENT", "INTERNAL"]))
    record = SpanRecord(trace_id, span_id, parent_id, draw(texts), kind, draw(ids), draw(st.booleans()))
    record.remote_parent = bool(parent_id) and draw(st.booleans())
    record.end_ns, record.error, record.status = draw(ids), draw(st.just("") | texts), draw(st.sampled_from(["", "OK"]))
    record.attributes, record.events, record.is_ok = draw(attributes), draw(events), draw(st.booleans())
    record.tracestate = draw(st.sampled_from(["", "vendor=1"]))
    record.links = draw(st.none() | st.just([(TRACE_ID, SPAN_ID, "vendor=2", {"why": "batch"})]))
    return record


@given(st.lists(spans_(), max_size=5))
def test_a_span_encoded_in_parts_is_decoded_whole(records: list[SpanRecord]) -> None:
    encoded, left_out = Encoder("i", 0).traces([Chunk(("lobby", "lobby-0"), pack_spans(records * 2), 2 * len(records))])
    assert left_out == 0
    request = ExportTraceServiceRequest.FromString(encoded)
    decoded = [span for resource in request.resource_spans for span in resource.scope_spans[0].spans]
    assert len(decoded) == 2 * len(records)
    for span, record in zip(decoded, records * 2, strict=True):
        assert (span.trace_id.hex(), span.span_id.hex()) == (record.trace_id, record.span_id)
        assert (span.parent_span_id.hex(), span.trace_state, span.name) == (
            record.parent_id,
            record.tracestate,
            record.name,
        )
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (record.start_ns, record.end_ns)
        assert span.kind == {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3}[record.kind]
        assert span.flags == record.sampled | 0x100 | (0x200 if record.remote_parent else 0)
        assert span.status.code == (2 if record.error else 1 if record.is_ok else 0)
        assert span.status.message == record.error
        assert {pair.key for pair in span.attributes} == set(all_attributes(record, "lobby-0"))
        assert [(link.trace_id.hex(), link.span_id.hex(), link.trace_state) for link in span.links] == [
            link[:3] for link in record.links or ()
        ]
        assert [(event.name, event.time_unix_nano) for event in span.events] == [
            (e[0], e[2]) for e in record.events or ()
        ]


def test_a_span_that_cannot_be_encoded_spoils_no_other_and_is_counted() -> None:
    odd = [SpanRecord("1" * 32, "2" * 16, "", "odd", "SERVER", start) for start in (-1, 2**70, 1.5)]  # type: ignore[arg-type]
    odd.append(SpanRecord("no hex", "2" * 16, "", "odd", "SERVER", 1))
    packed = pack_spans([*odd, SPAN])
    encoded, left_out = Encoder("i", 0).traces([Chunk(("lobby", "lobby-0"), packed, 5)])
    (resource,) = ExportTraceServiceRequest.FromString(encoded).resource_spans
    assert [span.name for span in resource.scope_spans[0].spans] == ["a/B"]
    assert left_out == 4


def test_numbers_and_booleans_of_a_metric_keep_their_type() -> None:
    attributes = (("b", True), ("i", 5), ("onelane.app", "lobby"), ("onelane.shard", "lobby-0"), ("x", 0.5))
    encoded, _ = Encoder("i", 0).metrics([Point(Instrument("depth"), "gauge", attributes, 1.0)], 1)
    request = ExportMetricsServiceRequest.FromString(encoded)
    (point,) = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    values = {pair.key: pair.value for pair in point.attributes}
    assert (values["b"].bool_value, values["i"].int_value, values["x"].double_value) == (True, 5, 0.5)


def test_a_log_record_that_cannot_be_encoded_spoils_no_other_and_is_counted() -> None:
    packed = pack_logs([RECORD._replace(trace_id="no hex"), RECORD])
    encoded, left_out = Encoder("i", 0).logs([Chunk(("lobby", "lobby-0"), packed, 2)])
    (resource,) = ExportLogsServiceRequest.FromString(encoded).resource_logs
    assert [record.body.string_value for record in resource.scope_logs[0].log_records] == [RECORD.text]
    assert left_out == 1
