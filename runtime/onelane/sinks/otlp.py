"""OTLP over HTTP, by the OpenTelemetry SDK and its standard `OTEL_*` variables, one exporter for each machine.

Promises: nothing here runs on the supervisor's loop but an append; a dead collector costs at most `close`'s timeout.
Leaves out: OTLP over gRPC, since the supervisor loads no grpcio.
"""

import threading
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import export
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from onelane.clock import SystemClock
from onelane.errors import BadConfig
from onelane.spans import SpanRecord
from onelane.stats import Buckets, Instrument, Point

SCOPE = InstrumentationScope("onelane")
_IDENTITY = ("onelane.app", "onelane.shard")


def wants(environment: Mapping[str, str], signal: str) -> bool:
    """Whether the `OTEL_*` variables ask for OTLP export of `signal`: TRACES or METRICS.

    Raises:
        BadConfig: they ask for a protocol that is not offered here.
    """
    endpoint = environment.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or environment.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get(f"OTEL_{signal}_EXPORTER", "otlp") == "none":
        return False
    protocol = environment.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environment.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol != "http/protobuf":
        raise BadConfig(
            "environment", [f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; onelane exports OTLP by http/protobuf"]
        )
    return True


class OtlpSink:
    """See `onelane.sinks.Sink`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._instance = str(uuid.uuid4())
        self._clock = SystemClock()
        self._started_ns = self._clock.wall_ns()
        self._resources: dict[tuple[str, str], Resource] = {}
        self._processor = BatchSpanProcessor(OTLPSpanExporter()) if wants(environment, "TRACES") else None
        self._newest: Sequence[Point] = ()
        self._exporter = OTLPMetricExporter() if wants(environment, "METRICS") else None
        self._interval_s = float(environment.get("OTEL_METRIC_EXPORT_INTERVAL", "60000")) / 1000
        self._stopping = threading.Event()
        if self._exporter is not None:
            threading.Thread(target=self._export_regularly, name="otlp-metrics", daemon=True).start()

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        if self._processor is None:
            return
        resource = self._resource(app, shard)
        for span in spans:
            self._processor.on_end(_readable(span, resource))

    def points(self, points: Sequence[Point]) -> None:
        self._newest = points

    def close(self, timeout_s: float) -> None:
        """Flush traces and metrics side by side; give up after `timeout_s`."""
        self._stopping.set()
        work = [self._close_spans, self._export_metrics]
        threads = [threading.Thread(target=one, daemon=True) for one in work]
        for thread in threads:
            thread.start()
        give_up = self._clock.now() + timeout_s
        for thread in threads:
            thread.join(max(0.0, give_up - self._clock.now()))

    def _close_spans(self) -> None:
        if self._processor is not None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _export_regularly(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._export_metrics()

    def _export_metrics(self) -> None:
        if self._exporter is not None and self._newest:
            self._exporter.export(self._metrics(self._newest))

    def _resource(self, app: str, shard: str) -> Resource:
        key = (app, shard)
        if key not in self._resources:
            identity = {"service.name": app, "service.instance.id": f"{self._instance}/{shard}", "onelane.shard": shard}
            self._resources[key] = Resource.create(identity)
        return self._resources[key]

    def _metrics(self, points: Sequence[Point]) -> export.MetricsData:
        by_source: dict[tuple[str, str], dict[tuple[Instrument, str], list[Point]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for point in points:
            there = dict(point.attributes)
            source = (there.get("onelane.app", "onelane"), there.get("onelane.shard", ""))
            by_source[source][point.instrument, point.kind].append(point)
        now = self._clock.wall_ns()
        return export.MetricsData(
            [
                export.ResourceMetrics(
                    self._resource(*source),
                    [export.ScopeMetrics(SCOPE, [self._metric(*key, found, now) for key, found in kinds.items()], "")],
                    "",
                )
                for source, kinds in by_source.items()
            ]
        )

    def _metric(self, instrument: Instrument, kind: str, points: Sequence[Point], now: int) -> export.Metric:
        rows: list[Any] = [self._row(point, now) for point in points]
        cumulative = export.AggregationTemporality.CUMULATIVE
        data: Any
        if kind == "histogram":
            data = export.Histogram(rows, cumulative)
        elif kind == "gauge":
            data = export.Gauge(rows)
        else:
            data = export.Sum(rows, cumulative, is_monotonic=True)
        return export.Metric(instrument.name, instrument.description, instrument.unit, data)

    def _row(self, point: Point, now: int) -> Any:
        attributes = {key: value for key, value in point.attributes if key not in _IDENTITY}
        if not isinstance(point.value, Buckets):
            return export.NumberDataPoint(attributes, self._started_ns, now, point.value)
        absent: Any = None
        return export.HistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=self._started_ns,
            time_unix_nano=now,
            count=sum(point.value.counts),
            sum=point.value.sum,
            bucket_counts=point.value.counts,
            explicit_bounds=point.value.bounds,
            # Not kept; the protocol lets them be absent, the SDK's type does not say so.
            min=absent,
            max=absent,
        )


def _readable(span: SpanRecord, resource: Resource) -> ReadableSpan:
    trace_id = int(span.context.trace_id, 16)
    state = TraceState.from_header([span.context.tracestate]) if span.context.tracestate else TraceState()

    def context(span_id: str, *, remote: bool) -> SpanContext:
        return SpanContext(trace_id, int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED), state)

    return ReadableSpan(
        name=span.name,
        context=context(span.context.span_id, remote=False),
        parent=context(span.parent_id, remote=span.remote_parent) if span.parent_id else None,
        resource=resource,
        attributes=span.attributes,
        events=[Event(name, attributes, at_ns) for name, attributes, at_ns in span.events or ()],
        kind=SpanKind[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=SCOPE,
    )
