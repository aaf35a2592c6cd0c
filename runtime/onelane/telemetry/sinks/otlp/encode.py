"""OTLP's requests, as bytes, of what the shards have moved out.

Made of protobuf's classes directly: by way of the SDK's own objects a span costs five times as much. Of spans, which
are many, only what differs is written each time; see `_span`, and
`tests/telemetry/sinks/otlp/test_sink.py`, which reads it back.
"""

import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from struct import Struct
from typing import Any, TypeVar

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource as SdkResource

from onelane.telemetry import logs as log_records
from onelane.telemetry import spans
from onelane.telemetry.histogram import MAX_EXPORTED, Buckets, Exemplar
from onelane.telemetry.sinks.otlp.queue import Chunk
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Attributes, Instrument, Point
from onelane.telemetry.tracer import all_attributes

SCOPE = InstrumentationScope(name="onelane", version=version("onelane"))
RESOURCE_ATTRIBUTES = ("onelane.app", "onelane.shard")
"""Attributes of points that are told by their resource."""
_OTLP_KINDS = {"SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_KIND_INTERNAL, _STATUS_ERROR, _STATUS_OK = 1, 2, 1
MAX_CACHED = 10_000
"""Kinds of spans whose encoding is kept."""
_HAS_REMOTE, _IS_REMOTE = 0x100, 0x200
T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)
CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


class Encoder:
    """Makes requests, and says how many items it had to leave out of one: whatever is wrong with those, the others of
    their batch are well.

    instance: unique to this run of the supervisor; started_ns: when that began.
    """

    def __init__(self, instance: str, started_ns: int) -> None:
        self._instance = instance
        self._started_ns = started_ns
        self._resources: dict[tuple[str, str], Resource] = {}
        self._shared_cache: dict[tuple[Any, ...], bytes] = {}

    def traces(self, chunks: Iterable[Chunk]) -> tuple[bytes, int]:
        by_source: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        left_out = 0
        for chunk in chunks:
            packed, shard = spans.PackedSpans(chunk.packed), chunk.source[1]
            for index, row in enumerate(packed.rows):
                try:
                    by_source[chunk.source].append(self._span(row, packed, index, shard))
                except Exception:
                    left_out += 1
        request = b"".join(
            _field(
                1,
                trace_pb2.ResourceSpans(resource=self._resource(source)).SerializeToString()
                + _field(2, _SCOPE_SPANS + b"".join(made)),
            )
            for source, made in by_source.items()
        )
        return request, left_out

    def logs(self, chunks: Iterable[Chunk]) -> tuple[bytes, int]:
        by_source: dict[tuple[str, str], list[logs_pb2.LogRecord]] = defaultdict(list)
        left_out = 0
        for chunk in chunks:
            for one in log_records.unpack_logs(chunk.packed):
                try:
                    by_source[chunk.source].append(_encoded(one, self._log_record))
                except Exception:
                    left_out += 1
        request = ExportLogsServiceRequest(
            resource_logs=[
                logs_pb2.ResourceLogs(
                    resource=self._resource(source), scope_logs=[logs_pb2.ScopeLogs(scope=SCOPE, log_records=made)]
                )
                for source, made in by_source.items()
            ]
        )
        return request.SerializeToString(), left_out

    def metrics(self, points: Sequence[Point], now_ns: int) -> tuple[bytes, int]:
        by_source: dict[tuple[str, str], dict[tuple[Instrument, str], list[Point]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for point in points:
            there = dict(point.attributes)
            source = (there.get("onelane.app", "onelane"), there.get("onelane.shard", ""))
            by_source[source][point.instrument, point.kind].append(point)
        request = ExportMetricsServiceRequest(
            resource_metrics=[
                metrics_pb2.ResourceMetrics(
                    resource=self._resource(source),
                    scope_metrics=[
                        metrics_pb2.ScopeMetrics(
                            scope=SCOPE, metrics=[self._metric(*key, found, now_ns) for key, found in kinds.items()]
                        )
                    ],
                )
                for source, kinds in by_source.items()
            ]
        )
        return request.SerializeToString(), 0

    def _resource(self, source: tuple[str, str]) -> Resource:
        if source not in self._resources:
            app, shard = source
            identity = {
                "service.name": app,
                "service.instance.id": f"{self._instance}/{shard}" if shard else self._instance,
                "host.name": socket.gethostname(),
                "telemetry.distro.name": "onelane",
                "telemetry.distro.version": version("onelane"),
            }
            if shard:
                identity["onelane.shard"] = shard
            # With what OTEL_RESOURCE_ATTRIBUTES adds.
            found = SdkResource.create(identity).attributes
            self._resources[source] = Resource(attributes=[_pair(key, value) for key, value in found.items()])
        return self._resources[source]

    def _span(self, row: tuple[Any, ...], packed: spans.PackedSpans, index: int, shard: str) -> bytes:
        """One span as an item of `ScopeSpans.spans`.

        What differs from call to call has one size in protobuf's encoding, and the rest is the same again and again, so
        it is encoded once: a message whose bytes are put behind another's adds to it.
        """
        trace_id, span_id, parent_id, start_ns, end_ns, *same, attributes, events, links, tracestate = row
        if attributes is None and events is None and links is None and not tracestate:
            key = (shard, *same)
            shared = self._shared_cache.get(key)
            if shared is None:
                shared = _encoded(packed[index], partial(_shared_fields, shard=shard)).SerializeToString()
                if len(self._shared_cache) < MAX_CACHED:
                    self._shared_cache[key] = shared
        else:
            shared = _encoded(packed[index], partial(_shared_fields, shard=shard)).SerializeToString()
        ids = bytes.fromhex(trace_id), b"\x12\x08", bytes.fromhex(span_id)
        if parent_id:
            ours = _CHILD.pack(b"\n\x10", *ids, b"\x22\x08", bytes.fromhex(parent_id), 0x39, start_ns, 0x41, end_ns)
        else:
            ours = _ROOT.pack(b"\n\x10", *ids, 0x39, start_ns, 0x41, end_ns)
        return _field(2, ours + shared)

    def _log_record(self, record: log_records.LogRecord) -> logs_pb2.LogRecord:
        return logs_pb2.LogRecord(
            time_unix_nano=record.at_ns,
            observed_time_unix_nano=record.at_ns,
            severity_number=record.severity,  # type: ignore[arg-type]
            severity_text=record.level,
            body=AnyValue(string_value=record.text),
            trace_id=bytes.fromhex(record.trace_id),
            span_id=bytes.fromhex(record.span_id),
            attributes=[_pair("logger.name", record.logger), *(_pair(*pair) for pair in record.attributes.items())],
        )

    def _metric(self, instrument: Instrument, kind: str, points: Sequence[Point], now_ns: int) -> metrics_pb2.Metric:
        made = metrics_pb2.Metric(name=instrument.name, unit=instrument.unit, description=instrument.description)
        if kind == "histogram":
            made.exponential_histogram.aggregation_temporality = CUMULATIVE
            rows = [self._histogram_point(point, now_ns) for point in points]
            made.exponential_histogram.data_points.extend(rows)
        elif kind == "gauge":
            made.gauge.data_points.extend(self._number_point(point, now_ns) for point in points)
        else:
            made.sum.aggregation_temporality = CUMULATIVE
            made.sum.is_monotonic = kind == "counter"
            made.sum.data_points.extend(self._number_point(point, now_ns) for point in points)
        return made

    def _number_point(self, point: Point, now_ns: int) -> metrics_pb2.NumberDataPoint:
        assert not isinstance(point.value, Buckets)
        return metrics_pb2.NumberDataPoint(
            attributes=_attribute_pairs(point.attributes),
            start_time_unix_nano=self._started_ns,
            time_unix_nano=now_ns,
            as_double=point.value,
        )

    def _histogram_point(self, point: Point, now_ns: int) -> metrics_pb2.ExponentialHistogramDataPoint:
        assert isinstance(point.value, Buckets)
        value = point.value.fitted_to(MAX_EXPORTED)
        made = metrics_pb2.ExponentialHistogramDataPoint(
            attributes=_attribute_pairs(point.attributes),
            start_time_unix_nano=self._started_ns,
            time_unix_nano=now_ns,
            count=value.count,
            sum=value.sum,
            scale=value.scale,
            zero_count=value.zeros,
            exemplars=map(_otlp_exemplar, value.exemplars),
        )
        if value.counts:
            first, last = min(value.counts), max(value.counts)
            made.positive.offset = first
            made.positive.bucket_counts.extend(value.counts.get(index, 0) for index in range(first, last + 1))
        return made


def _shared_fields(span: SpanRecord, shard: str) -> trace_pb2.Span:
    """All of a span but its ids and times."""
    made = trace_pb2.Span(
        name=span.name,
        kind=_OTLP_KINDS.get(span.kind, _KIND_INTERNAL),  # type: ignore[arg-type]
        trace_state=span.tracestate,
        flags=span.sampled | _HAS_REMOTE | (_IS_REMOTE if span.remote_parent else 0),
        attributes=[_pair(name, value) for name, value in all_attributes(span, shard).items()],
    )
    if span.error:
        made.status.code, made.status.message = _STATUS_ERROR, span.error  # type: ignore[assignment]
    elif span.is_ok:
        made.status.code = _STATUS_OK  # type: ignore[assignment]
    for name, attributes, at_ns in span.events or ():
        made.events.add(
            name=name, time_unix_nano=at_ns, attributes=[_pair(key, value) for key, value in attributes.items()]
        )
    for trace_id, span_id, tracestate, attributes in span.links or ():
        made.links.add(
            trace_id=bytes.fromhex(trace_id),
            span_id=bytes.fromhex(span_id),
            trace_state=tracestate,
            attributes=[_pair(key, value) for key, value in attributes.items()],
        )
    return made


def _field(number: int, payload: bytes) -> bytes:
    """A field of a message: its number, its length, and its bytes."""
    size, length = len(payload), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((number << 3 | 2, *length, size)) + payload


_CHILD = Struct("<2s16s2s8s2s8sBQBQ")
_ROOT = Struct("<2s16s2s8sBQBQ")
"""Ids and times of `trace_pb2.Span`, with the numbers and lengths of their fields."""
_SCOPE_SPANS = trace_pb2.ScopeSpans(scope=SCOPE).SerializeToString()


def _encoded(item: T, write: Callable[[T], MessageT]) -> MessageT:
    """`item` as a message; where a text of it is none that UTF-8 can write, with question marks instead."""
    try:
        return write(item)
    except UnicodeEncodeError:
        return write(_with_valid_utf8(item))


def _with_valid_utf8(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case log_records.LogRecord():
            return log_records.LogRecord(*map(_with_valid_utf8, value))
        case list() | tuple():
            return type(value)(map(_with_valid_utf8, value))
        case dict():
            return {_with_valid_utf8(name): _with_valid_utf8(one) for name, one in value.items()}
        case SpanRecord():
            made = SpanRecord.__new__(SpanRecord)
            vars(made).update({name: _with_valid_utf8(one) for name, one in vars(value).items()})
            return made
    return value


def _otlp_exemplar(one: Exemplar) -> metrics_pb2.Exemplar:
    return metrics_pb2.Exemplar(
        time_unix_nano=one.at_ns,
        as_double=one.value,
        trace_id=bytes.fromhex(one.trace_id),
        span_id=bytes.fromhex(one.span_id),
    )


def _attribute_pairs(attributes: Attributes) -> list[KeyValue]:
    return [_pair(key, value) for key, value in attributes if key not in RESOURCE_ATTRIBUTES]


def _pair(name: str, value: Any) -> KeyValue:
    return KeyValue(key=name, value=_any_value(value))


def _any_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value) if -(2**63) <= value < 2**63 else AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list | tuple):
        return AnyValue(array_value=ArrayValue(values=map(_any_value, value)))
    return AnyValue(string_value=str(value))
