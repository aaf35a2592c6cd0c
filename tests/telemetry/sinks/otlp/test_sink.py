"""OTLP, by HTTP and by gRPC: all that leaves arrives whole, or is counted as lost."""

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from onelane.errors import BadConfig
from onelane.telemetry.logs import pack_logs
from onelane.telemetry.sinks.otlp.encode import Encoder
from onelane.telemetry.sinks.otlp.pipe import LOGS, TRACES
from onelane.telemetry.sinks.otlp.queue import (
    CLOSED,
    MAX_BATCH_BYTES,
    MAX_CHUNK_BYTES,
    REFUSED,
    Chunk,
    ExportQueue,
    QueueLimits,
    chunks,
)
from onelane.telemetry.sinks.otlp.sink import OtlpSink, interval_s
from onelane.telemetry.sinks.otlp.target import target_of
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans
from onelane.telemetry.stats import Instrument, Point
from onelane.telemetry.tracer import all_attributes
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.collector import Collector, GrpcCollector, Receiver
from tests.running_app import eventually
from tests.telemetry.sinks.test_seam import POINTS, RECORD, SOURCE, SPAN, SPAN_ID, TRACE_ID


@pytest.fixture(params=["http/protobuf", "grpc"])
def collector(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with GrpcCollector() if request.param == "grpc" else Collector() as made:
        yield made


_open: list[OtlpSink] = []


@pytest.fixture(autouse=True)
def all_closed() -> Iterator[None]:
    """However a test ends, no exporter process outlives it."""
    yield
    while _open:
        _open.pop().close(1.0)


def otlp(collector: Receiver, **more: str) -> OtlpSink:
    _open.append(OtlpSink(collector.environment | more))
    return _open[-1]


@pytest.mark.slow
def test_otlp_carries_points_with_their_shard_as_the_resource(collector: Receiver) -> None:
    sink = otlp(collector, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    sink.points(POINTS)
    sink.close(20.0)
    (resource,) = collector.metrics[-1].resource_metrics
    identity = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert (identity["service.name"], identity["onelane.shard"]) == ("lobby", "lobby-0")
    assert identity["service.instance.id"].endswith("/lobby-0")
    assert identity["deployment.environment.name"] == "test"
    assert collector.sum("onelane.calls", **{"rpc.method": "a/B"}) == 7
    by_name = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert by_name["onelane.calls"].sum.is_monotonic
    assert not by_name["there"].sum.is_monotonic
    took = by_name["took"].exponential_histogram.data_points[0]
    assert (took.scale, took.count, took.sum, took.zero_count) == (5, 4, 12, 0)
    assert sum(took.positive.bucket_counts) == 4
    # 0.5 is the upper bound of its bucket: (2^((i)/32), 2^((i+1)/32)].
    assert 2 ** ((took.positive.offset + 1) / 32) == 0.5
    assert took.exemplars[0].trace_id.hex() == TRACE_ID


@pytest.mark.slow
def test_otlp_carries_spans_whole(collector: Receiver) -> None:
    sink = otlp(collector)
    sink.spans("lobby", "lobby-0", [SPAN])
    sink.close(20.0)
    (span,) = collector.spans()
    assert (span.trace_id.hex(), span.span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert (span.parent_span_id.hex(), span.trace_state) == (SPAN.parent_id, "vendor=1")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000, 2_000)
    assert (span.status.code, span.status.message) == (2, "INTERNAL")
    assert span.flags == 0x301


@pytest.mark.slow
def test_a_text_that_utf8_cannot_write_costs_no_other_span(collector: Receiver) -> None:
    odd = SpanRecord("1" * 32, "2" * 16, "", "a/B\ud800", "SERVER", 1_000)
    odd.set_attribute("who", ["\udfff", 1])
    odd.add_event("\ud801", {"x": "\ud802"}, 5)
    sink = otlp(collector)
    sink.spans("lobby", "lobby-0", [odd, SPAN])
    sink.logs("lobby", "lobby-0", [RECORD._replace(text="\ud800 left")])
    sink.close(20.0)
    assert [span.name for span in collector.spans()] == ["a/B?", "a/B"]
    assert collector.logs[0].resource_logs[0].scope_logs[0].log_records[0].body.string_value == "? left"


ids = st.integers(1, 2**64 - 1)
texts = st.text(max_size=200)
attributes = st.none() | st.dictionaries(texts, texts | st.integers() | st.booleans() | st.lists(texts), max_size=3)
events = st.none() | st.lists(st.tuples(texts, st.dictionaries(texts, texts, max_size=2), ids), min_size=1, max_size=2)


@st.composite
def spans_(draw: st.DrawFn) -> SpanRecord:
    parent_id = draw(st.just("") | ids.map("{:016x}".format))
    trace_id, span_id = f"{draw(ids):016x}{draw(ids):016x}", f"{draw(ids):016x}"
    kind = draw(st.sampled_from(["SERVER", "CLIENT", "INTERNAL"]))
    made = SpanRecord(trace_id, span_id, parent_id, draw(texts), kind, draw(ids), draw(st.booleans()))
    made.remote_parent = bool(parent_id) and draw(st.booleans())
    made.end_ns, made.error, made.status = draw(ids), draw(st.just("") | texts), draw(st.sampled_from(["", "OK"]))
    made.attributes, made.events, made.is_ok = draw(attributes), draw(events), draw(st.booleans())
    made.tracestate = draw(st.sampled_from(["", "vendor=1"]))
    made.links = draw(st.none() | st.just([(TRACE_ID, SPAN_ID, "vendor=2", {"why": "batch"})]))
    return made


@given(st.lists(spans_(), max_size=5))
def test_what_is_encoded_in_parts_is_read_as_a_whole(several: list[SpanRecord]) -> None:
    encoded, left_out = Encoder("i", 0).traces([Chunk(("lobby", "lobby-0"), pack_spans(several * 2), 2 * len(several))])
    assert left_out == 0
    request = ExportTraceServiceRequest.FromString(encoded)
    found = [span for resource in request.resource_spans for span in resource.scope_spans[0].spans]
    assert len(found) == 2 * len(several)
    for span, one in zip(found, several * 2, strict=True):
        assert (span.trace_id.hex(), span.span_id.hex()) == (one.trace_id, one.span_id)
        assert (span.parent_span_id.hex(), span.trace_state, span.name) == (one.parent_id, one.tracestate, one.name)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (one.start_ns, one.end_ns)
        assert span.kind == {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3}[one.kind]
        assert span.flags == one.sampled | 0x100 | (0x200 if one.remote_parent else 0)
        assert span.status.code == (2 if one.error else 1 if one.is_ok else 0)
        assert span.status.message == one.error
        assert {pair.key for pair in span.attributes} == set(all_attributes(one, "lobby-0"))
        assert [(link.trace_id.hex(), link.span_id.hex(), link.trace_state) for link in span.links] == [
            link[:3] for link in one.links or ()
        ]
        assert [(event.name, event.time_unix_nano) for event in span.events] == [(e[0], e[2]) for e in one.events or ()]


def test_a_span_that_cannot_be_written_costs_no_other_and_is_counted() -> None:
    odd = [SpanRecord("1" * 32, "2" * 16, "", "odd", "SERVER", start) for start in (-1, 2**70, 1.5)]  # type: ignore[arg-type]
    odd.append(SpanRecord("no hex", "2" * 16, "", "odd", "SERVER", 1))
    packed = pack_spans([*odd, SPAN])
    encoded, left_out = Encoder("i", 0).traces([Chunk(("lobby", "lobby-0"), packed, 5)])
    (resource,) = ExportTraceServiceRequest.FromString(encoded).resource_spans
    assert [span.name for span in resource.scope_spans[0].spans] == ["a/B"]
    assert left_out == 4


def test_a_log_record_that_cannot_be_written_costs_no_other_and_is_counted() -> None:
    packed = pack_logs([RECORD._replace(trace_id="no hex"), RECORD])
    encoded, left_out = Encoder("i", 0).logs([Chunk(("lobby", "lobby-0"), packed, 2)])
    (resource,) = ExportLogsServiceRequest.FromString(encoded).resource_logs
    assert [record.body.string_value for record in resource.scope_logs[0].log_records] == [RECORD.text]
    assert left_out == 1


@pytest.mark.slow
async def test_what_cannot_be_written_counts_as_refused(collector: Receiver) -> None:
    sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
    sink.spans("lobby", "lobby-0", [SpanRecord("1" * 32, "2" * 16, "", "odd", "SERVER", -1), SPAN])
    await eventually(lambda: sink.losses() == {("spans", REFUSED): 1})
    assert [span.name for span in collector.spans()] == ["a/B"]


@pytest.mark.parametrize("make", [list, lambda several: PackedSpans(pack_spans(several))])
def test_what_is_too_much_at_once_goes_in_several_batches(make: Any) -> None:
    def big(size: int) -> SpanRecord:
        made = SpanRecord(TRACE_ID, SPAN_ID, "", f"{size}", "SERVER", 1_000)
        made.set_attribute("text", "x" * size)
        return made

    several = [*(big(n) for n in range(1500)), *(big(300_000 + n) for n in range(8)), big(5 << 20), SPAN]
    made = list(chunks(("lobby", "lobby-0"), make(several), pack_spans, 512))
    assert [span.name for chunk in made for span in PackedSpans(chunk.packed)] == [span.name for span in several]
    assert all(chunk.count == len(PackedSpans(chunk.packed)) <= 512 for chunk in made)
    assert [chunk.count for chunk in made if len(chunk.packed) > MAX_CHUNK_BYTES] == [1]
    box = ExportQueue(QueueLimits(10_000, 2048, 1.0), Random(1))
    for chunk in made:
        box.put(chunk, 0.0)
    batches = []
    while box.due_at() is not None:
        batches.append(list(box.begin_batch()))
        box.acknowledge(0.0)
    assert [chunk for batch in batches for chunk in batch] == made
    assert all(len(batch) == 1 or sum(len(one.packed) for one in batch) <= MAX_BATCH_BYTES for batch in batches)


@pytest.mark.slow
async def test_what_a_collector_did_not_take_of_a_batch_is_counted(collector: Receiver) -> None:
    collector.rejects = 2
    sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20", OTEL_BLRP_SCHEDULE_DELAY="20")
    sink.spans("lobby", "lobby-0", [SPAN] * 3)
    sink.logs("lobby", "lobby-0", [RECORD] * 3)
    await eventually(lambda: sink.losses() == {("spans", REFUSED): 2, ("logs", REFUSED): 2})
    assert len(collector.spans()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("recovers", [True, False])
async def test_what_is_too_much_for_a_collector_is_tried_again_only_where_it_says_so(recovers: bool) -> None:
    with GrpcCollector() as collector:
        collector.recovers = recovers
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: collector.refusals)
        if recovers:
            collector.recovers = None
            await eventually(lambda: len(collector.spans()) == 3)
        else:
            await eventually(lambda: sink.losses() == {("spans", REFUSED): 3})


@pytest.mark.slow
async def test_a_redirect_is_not_followed_and_nothing_counts_as_sent() -> None:
    with Collector() as collector:
        collector.answer = 302
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: sink.losses() == {("spans", REFUSED): 3})
        assert collector.refusals == 1


@pytest.mark.slow
def test_what_was_counted_while_metrics_were_under_way_is_sent_at_the_end(collector: Receiver) -> None:
    sink = otlp(collector, OTEL_METRIC_EXPORT_INTERVAL="1")
    sink.points(POINTS)
    while not collector.metrics:
        threading.Event().wait(0.001)
    last = Point(Instrument("last"), "counter", SOURCE, 1)
    sink.points([*POINTS, last])
    sink.close(20.0)
    assert collector.sum("last") == 1


@pytest.mark.parametrize("said", ["", "soon", "0", "-5", "nan"])
def test_an_interval_that_cannot_be_meant_is_the_usual_one(said: str) -> None:
    assert interval_s({"OTEL_METRIC_EXPORT_INTERVAL": said}) == interval_s({}) == 60.0


@pytest.mark.slow
def test_otlp_carries_log_records_with_their_trace(collector: Receiver) -> None:
    sink = otlp(collector)
    sink.logs("lobby", "lobby-0", [RECORD])
    sink.close(20.0)
    (record,) = [
        record
        for request in collector.logs
        for resource in request.resource_logs
        for record in resource.scope_logs[0].log_records
    ]
    assert (record.body.string_value, record.severity_text, record.severity_number) == ("full", "WARNING", 13)
    assert (record.trace_id.hex(), record.span_id.hex(), record.time_unix_nano) == (TRACE_ID, SPAN_ID, 5_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Collector, GrpcCollector])
async def test_otlp_goes_over_tls_with_headers_and_gzip(
    kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with kind(cert=ca.issue_cert("127.0.0.1")) as collector:
        more = {
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem"),
            "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=secret",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        sink = otlp(collector, **more)
        sink.spans("lobby", "lobby-0", [SPAN])
        sink.close(20.0)
        assert [span.name for span in collector.spans()] == ["a/B"]
        assert collector.headers["x-api-key"] == "secret"
        # Somebody else's certificate is not taken.
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        doubting = otlp(collector, **more, OTEL_BSP_SCHEDULE_DELAY="20", OTEL_EXPORTER_OTLP_TIMEOUT="1")
        doubting.spans("lobby", "lobby-0", [SPAN])
        await eventually(lambda: "otlp.failing signal=spans" in caplog.text)
        doubting.close(0.1)
        assert doubting.losses() == {("spans", CLOSED): 1}
        assert len(collector.spans()) == 1


@pytest.mark.slow
async def test_what_waits_for_a_collector_that_is_away_is_sent_when_it_is_back(collector: Receiver) -> None:
    collector.is_away = True
    sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
    sink.spans("lobby", "lobby-0", [SPAN] * 3)
    await eventually(lambda: collector.refusals)
    sink.spans("lobby", "lobby-0", [SPAN] * 4)
    collector.is_away = False
    await eventually(lambda: len(collector.spans()) == 7)
    assert not any(sink.losses().values())
    sink.close(20.0)


@pytest.mark.slow
async def test_what_a_collector_will_never_take_is_dropped_and_counted() -> None:
    with Collector() as collector:
        collector.answer = 400
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: sink.losses().get(("spans", REFUSED)) == 3)
        sink.close(20.0)


@pytest.mark.slow
async def test_an_exporter_process_that_dies_is_started_anew_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def keep(*arguments: Any, **named: Any) -> Any:
        started.append(popen(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    with Collector() as collector:
        collector.is_away = True
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: collector.refusals)
        started[0].kill()
        collector.is_away = False
        await eventually(lambda: len(collector.spans()) >= 3)
        sink.close(20.0)
    assert len(started) == 2
    assert not any(sink.losses().values())


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "is 'http/json', expected one of http/protobuf, grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "is 'zstd', expected none or gzip"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318", "is '127.0.0.1:4318', expected http://"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "is 'soon', expected seconds"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_refused_by_name(variable: str, value: str, told: str) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | {variable: value}
    with pytest.raises(BadConfig, match=f"{variable} {re.escape(told)}"):
        target_of(environment, TRACES)


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
)
def test_traces_leave_only_where_the_standard_variables_ask_for_them(environment: dict[str, str]) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} if environment else {}
    assert target_of(endpoint | environment, TRACES) is None


def test_a_signal_has_a_target_of_its_own_where_the_variables_give_it_one() -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://all:4318/base/",
        "OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a%20b,x=y",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs:4317",
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "gzip",
    }
    traces, logs = target_of(environment, TRACES), target_of(environment, LOGS)
    assert traces is not None
    assert logs is not None
    assert (traces.endpoint, traces.is_secure, traces.gzip) == ("https://all:4318/base/v1/traces", True, False)
    assert traces.headers == (("api-key", "a b"), ("x", "y"))
    assert (logs.protocol, logs.endpoint, logs.is_secure, logs.gzip) == ("grpc", "logs:4317", False, True)
