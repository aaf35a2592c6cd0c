"""Spans, log records and points encoded as OTLP requests.

Uses protobuf's classes directly: a span encoded by the SDK's objects costs five times as much. Of spans, which are
many, only the fields that differ are encoded each time; see `_span`.
`tests/telemetry/sinks/otlp/test_encode.py` decodes the requests again.
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
"""Attributes of points that the resource carries instead."""
_OTLP_KINDS = {"SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_KIND_INTERNAL, _STATUS_ERROR, _STATUS_OK = 1, 2, 1
MAX_CACHED = 10_000
"""Encoded `_shared_fields` that are cached."""
_HAS_REMOTE, _IS_REMOTE = 0x100, 0x200
T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)
CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


class Encoder:
    """Encodes requests. An item that cannot be encoded is left out and counted, and spoils no other of its batch.

    instance: unique to this run of the supervisor; started_ns: when that began.
    """

    def __init__(self, instance: str, started_ns: int) -> None:
        self._instance = instance
        self._started_ns = started_ns
        self._resources: dict[tuple[str, str], Resource] = {}
        self._shared_cache: dict[tuple[str, tuple[Any, ...]], _SharedFields] = {}

    def traces(self, chunks: Iterable[Chunk]) -> tuple[bytes, int]:
        """An ExportTraceServiceRequest, and the number of spans left out."""
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
                + _field(2, _SCOPE_SPANS + b"".join(encoded_spans)),
            )
            for source, encoded_spans in by_source.items()
        )
        return request, left_out

    def logs(self, chunks: Iterable[Chunk]) -> tuple[bytes, int]:
        """An ExportLogsServiceRequest, and the number of records left out."""
        by_source: dict[tuple[str, str], list[logs_pb2.LogRecord]] = defaultdict(list)
        left_out = 0
        for chunk in chunks:
            for record in log_records.unpack_logs(chunk.packed):
                try:
                    by_source[chunk.source].append(_encoded(record, self._log_record))
                except Exception:
                    left_out += 1
        request = ExportLogsServiceRequest(
            resource_logs=[
                logs_pb2.ResourceLogs(
                    resource=self._resource(source), scope_logs=[logs_pb2.ScopeLogs(scope=SCOPE, log_records=records)]
                )
                for source, records in by_source.items()
            ]
        )
        return request.SerializeToString(), left_out

    def metrics(self, points: Sequence[Point], now_ns: int) -> tuple[bytes, int]:
        """An ExportMetricsServiceRequest, and the number of points left out: 0."""
        by_source: dict[tuple[str, str], dict[tuple[Instrument, str], list[Point]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for point in points:
            attributes = dict(point.attributes)
            source = (attributes.get("onelane.app", "onelane"), attributes.get("onelane.shard", ""))
            by_source[source][point.instrument, point.kind].append(point)
        request = ExportMetricsServiceRequest(
            resource_metrics=[
                metrics_pb2.ResourceMetrics(
                    resource=self._resource(source),
                    scope_metrics=[
                        metrics_pb2.ScopeMetrics(
                            scope=SCOPE, metrics=[self._metric(*key, series, now_ns) for key, series in kinds.items()]
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
            # `create` adds OTEL_RESOURCE_ATTRIBUTES.
            attributes = SdkResource.create(identity).attributes
            self._resources[source] = Resource(attributes=[_pair(key, value) for key, value in attributes.items()])
        return self._resources[source]

    def _span(self, row: tuple[Any, ...], packed: spans.PackedSpans, index: int, shard: str) -> bytes:
        """One span as an item of `ScopeSpans.spans`.

        Ids and times differ from span to span and have a fixed size in protobuf's encoding, so `Struct` packs them.
        The other fields repeat and are encoded once. Protobuf merges concatenated messages.
        """
        trace_id, span_id, parent_id, start_ns, end_ns = row[:5]
        repeated = row[5:]
        if repeated[_OWN_FIELDS:] == _NO_OWN_FIELDS:
            shared = self._shared_cache.get((shard, repeated))
            if shared is None:
                shared = _SharedFields(
                    _encoded(packed[index], partial(_shared_fields, shard=shard)).SerializeToString()
                )
                if len(self._shared_cache) < MAX_CACHED:
                    self._shared_cache[shard, repeated] = shared
        else:
            shared = _SharedFields(_encoded(packed[index], partial(_shared_fields, shard=shard)).SerializeToString())
        ids = bytes.fromhex(trace_id), b"\x12\x08", bytes.fromhex(span_id)
        if parent_id:
            head = _CHILD.pack(b"\n\x10", *ids, b"\x22\x08", bytes.fromhex(parent_id), 0x39, start_ns, 0x41, end_ns)
            return shared.of_child + head + shared.encoded
        return shared.of_root + _ROOT.pack(b"\n\x10", *ids, 0x39, start_ns, 0x41, end_ns) + shared.encoded

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
        metric = metrics_pb2.Metric(name=instrument.name, unit=instrument.unit, description=instrument.description)
        if kind == "histogram":
            metric.exponential_histogram.aggregation_temporality = CUMULATIVE
            rows = [self._histogram_point(point, now_ns) for point in points]
            metric.exponential_histogram.data_points.extend(rows)
        elif kind == "gauge":
            metric.gauge.data_points.extend(self._number_point(point, now_ns) for point in points)
        else:
            metric.sum.aggregation_temporality = CUMULATIVE
            metric.sum.is_monotonic = kind == "counter"
            metric.sum.data_points.extend(self._number_point(point, now_ns) for point in points)
        return metric

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
        data_point = metrics_pb2.ExponentialHistogramDataPoint(
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
            data_point.positive.offset = first
            data_point.positive.bucket_counts.extend(value.counts.get(index, 0) for index in range(first, last + 1))
        return data_point


def _shared_fields(span: SpanRecord, shard: str) -> trace_pb2.Span:
    """All fields of a span but its ids and times."""
    message = trace_pb2.Span(
        name=span.name,
        kind=_OTLP_KINDS.get(span.kind, _KIND_INTERNAL),  # type: ignore[arg-type]
        trace_state=span.tracestate,
        flags=span.sampled | _HAS_REMOTE | (_IS_REMOTE if span.remote_parent else 0),
        attributes=[_pair(name, value) for name, value in all_attributes(span, shard).items()],
    )
    if span.error:
        message.status.code, message.status.message = _STATUS_ERROR, span.error  # type: ignore[assignment]
    elif span.is_ok:
        message.status.code = _STATUS_OK  # type: ignore[assignment]
    for name, attributes, at_ns in span.events or ():
        message.events.add(
            name=name, time_unix_nano=at_ns, attributes=[_pair(key, value) for key, value in attributes.items()]
        )
    for trace_id, span_id, tracestate, attributes in span.links or ():
        message.links.add(
            trace_id=bytes.fromhex(trace_id),
            span_id=bytes.fromhex(span_id),
            trace_state=tracestate,
            attributes=[_pair(key, value) for key, value in attributes.items()],
        )
    return message


class _SharedFields:
    """The encoded fields of a span but its ids and times, and what stands before a span that has them."""

    __slots__ = ("encoded", "of_child", "of_root")

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self.of_root = _field_head(2, _ROOT.size + len(encoded))
        """Of a span without a parent."""
        self.of_child = _field_head(2, _CHILD.size + len(encoded))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message: number, length, payload."""
    return _field_head(number, len(payload)) + payload


def _field_head(number: int, size: int) -> bytes:
    """The number of a length-delimited field, and its length."""
    length = bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((number << 3 | 2, *length, size))


_CHILD = Struct("<2s16s2s8s2s8sBQBQ")
_ROOT = Struct("<2s16s2s8sBQBQ")
"""Ids and times of `trace_pb2.Span`, with their field tags and lengths."""
_OWN_FIELDS = spans.ROW_FIELDS.index("attributes") - 5
_NO_OWN_FIELDS = (None, None, None, "")
"""Attributes, events, links and tracestate of a span that has none of them, at the end of its row."""
_SCOPE_SPANS = trace_pb2.ScopeSpans(scope=SCOPE).SerializeToString()


def _encoded(item: T, write: Callable[[T], MessageT]) -> MessageT:
    """`item` as a message; characters that UTF-8 cannot encode (lone surrogates) become question marks."""
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
            return {_with_valid_utf8(name): _with_valid_utf8(element) for name, element in value.items()}
        case SpanRecord():
            span = SpanRecord.__new__(SpanRecord)
            vars(span).update({name: _with_valid_utf8(field) for name, field in vars(value).items()})
            return span
    return value


def _otlp_exemplar(exemplar: Exemplar) -> metrics_pb2.Exemplar:
    return metrics_pb2.Exemplar(
        time_unix_nano=exemplar.at_ns,
        as_double=exemplar.value,
        trace_id=bytes.fromhex(exemplar.trace_id),
        span_id=bytes.fromhex(exemplar.span_id),
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
