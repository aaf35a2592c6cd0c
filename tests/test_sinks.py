"""Every sink takes the same points and spans; each writes them in its own world's words."""

from collections.abc import Iterator

import pytest
from onelane.errors import BadConfig, BadService
from onelane.plugs import plug
from onelane.sinks import Sink
from onelane.sinks.otlp import OtlpSink, wants
from onelane.sinks.prometheus import PrometheusSink
from onelane.spans import SpanRecord, TraceContext
from onelane.stats import Buckets, Instrument, Point
from prometheus_client.parser import text_string_to_metric_families

from tests.collector import Collector

SOURCE = (("onelane.app", "lobby"), ("onelane.shard", "lobby-0"))
POINTS = [
    Point(Instrument("onelane.calls", "{call}"), "count", (*SOURCE, ("rpc.method", "a/B")), 7),
    Point(Instrument("onelane.queue.depth", "{job}"), "gauge", SOURCE, 3.0),
    Point(Instrument("took", "s"), "histogram", SOURCE, Buckets((1.0, 2.0), (2, 1, 1), 12.0)),
]
SPAN = SpanRecord(
    TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1"),
    "00f067aa0ba902b7",
    "a/B",
    "SERVER",
    1_000,
    2_000,
    {"rpc.method": "a/B"},
    "INTERNAL",
)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


def otlp(collector: Collector) -> OtlpSink:
    return OtlpSink({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})


@pytest.mark.parametrize("name", ["prometheus", "otlp"])
def test_every_sink_takes_what_it_is_given_and_closes(name: str, collector: Collector) -> None:
    sink: Sink = plug("onelane.sinks", name)({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    sink.points(POINTS)
    sink.spans("lobby", "lobby-0", [SPAN])
    sink.close(3.0)


def test_prometheus_reads_what_prometheus_writes() -> None:
    sink = PrometheusSink({})
    sink.points(POINTS)
    families = {f.name: f for f in text_string_to_metric_families(sink.render().decode())}
    (calls,) = families["onelane_calls"].samples
    assert (calls.name, calls.value, calls.labels["rpc_method"]) == ("onelane_calls_total", 7, "a/B")
    assert families["onelane_queue_depth"].samples[0].value == 3
    took = {(s.name, s.labels.get("le", "")): s.value for s in families["took_seconds"].samples}
    assert took["took_seconds_bucket", "2.0"] == 3
    assert (took["took_seconds_count", ""], took["took_seconds_sum", ""]) == (4, 12)


def test_otlp_carries_points_with_their_shard_as_the_resource(collector: Collector) -> None:
    sink = otlp(collector)
    sink.points(POINTS)
    sink.close(3.0)
    (resource,) = collector.metrics[-1].resource_metrics
    identity = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert (identity["service.name"], identity["onelane.shard"]) == ("lobby", "lobby-0")
    assert identity["service.instance.id"].endswith("/lobby-0")
    assert collector.sum("onelane.calls", **{"rpc.method": "a/B"}) == 7
    took = next(m for m in resource.scope_metrics[0].metrics if m.name == "took").histogram.data_points[0]
    assert (list(took.bucket_counts), took.count, took.sum) == ([2, 1, 1], 4, 12)


def test_otlp_carries_spans_whole(collector: Collector) -> None:
    sink = otlp(collector)
    sink.spans("lobby", "lobby-0", [SPAN])
    sink.close(3.0)
    (span,) = collector.spans()
    assert (span.trace_id.hex(), span.span_id.hex()) == (SPAN.context.trace_id, SPAN.context.span_id)
    assert (span.parent_span_id.hex(), span.trace_state) == (SPAN.parent_id, "vendor=1")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000, 2_000)
    assert (span.status.code, span.status.message) == (2, "INTERNAL")


def test_a_protocol_that_is_not_offered_is_refused_by_name() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(BadConfig, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"):
        wants(environment, "TRACES")


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
)
def test_traces_leave_only_where_the_standard_variables_ask_for_them(environment: dict[str, str]) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} if environment else {}
    assert not wants(endpoint | environment, "TRACES")


def test_a_plug_that_is_not_installed_is_told_with_those_that_are() -> None:
    with pytest.raises(BadService, match=r"'nope' is not installed; there are \['grpcio', 'memory', 'native'\]"):
        plug("onelane.listeners", "nope")
