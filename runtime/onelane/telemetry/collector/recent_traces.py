"""The newest traces in memory, for the admin page and `onelane trace`: a view of traces without Jaeger."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from operator import itemgetter
from typing import Any

from onelane.telemetry.collector.tail_sampling import ShardSpan
from onelane.telemetry.spans import ROW_FIELDS, PackedSpans, SpanRecord
from onelane.telemetry.tracer import all_attributes

MAX_RECENT_TRACES = 200
MAX_FAILED_TRACES = 50
"""Traces with an error, of `MAX_RECENT_TRACES`, that traces without one do not displace."""
MAX_TRACE_SPANS = 300
"""Spans that are kept of one trace."""
MAX_NAMES = 30
"""Names of spans in the summary of one trace, by which it is searched."""
CHANGE_SPAN = "move"
"""The supervisor's span of a change of placement."""
RUNTIME_SERVICES = ("grpc.", "onelane.")
"""Beginnings of the methods of the runtime's own services."""
NEW_PER_S = 20
"""New traces that are kept per second; beyond that, only traces with an error."""


@dataclass(slots=True)
class _RecentTrace:
    spans: list[ShardSpan] = field(default_factory=list)
    failed: bool = False
    left_out: int = 0
    """Spans beyond `MAX_TRACE_SPANS`."""


class RecentTraces:
    """See the module. Owned by the supervisor."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, _RecentTrace] = OrderedDict()
        self._second = 0
        self._started = 0

    def add(self, app: str, shard: str, spans: Sequence[SpanRecord], now: float) -> None:
        """Keep a selection of the spans that a shard reported. now: seconds."""
        if int(now) != self._second:
            self._second, self._started = int(now), 0
        for index, (trace_id, error) in enumerate(_ids_and_errors(spans)):
            trace = self._traces.get(trace_id)
            if trace is None:
                # The supervisor's own are few, and what is asked for after an incident.
                if self._started >= NEW_PER_S and not error and shard:
                    continue
                trace = self._start_trace(trace_id)
            trace.failed = trace.failed or bool(error)
            if len(trace.spans) < MAX_TRACE_SPANS:
                trace.spans.append(ShardSpan(app, shard, spans[index]))
            else:
                trace.left_out += 1

    def _start_trace(self, trace_id: str) -> _RecentTrace:
        self._started += 1
        if len(self._traces) >= MAX_RECENT_TRACES:
            failed = sum(trace.failed for trace in self._traces.values())
            keeps_failed = failed <= MAX_FAILED_TRACES and failed < len(self._traces)
            oldest = next(i for i, trace in self._traces.items() if not (keeps_failed and trace.failed))
            del self._traces[oldest]
        trace = self._traces[trace_id] = _RecentTrace()
        return trace

    def summaries(self) -> list[dict[str, Any]]:
        """A row per trace, the newest first."""
        rows = [_summary(trace_id, trace) for trace_id, trace in self._traces.items()]
        return sorted(rows, key=lambda row: row["start_ns"], reverse=True)

    def trace(self, trace_id: str) -> list[dict[str, Any]] | None:
        """The spans of one trace in depth-first order, each with its `depth`; None where no single trace matches.

        trace_id: the id or a prefix of it.
        """
        matches = [trace for key, trace in self._traces.items() if key.startswith(trace_id)] if trace_id else []
        return _in_order(matches[0].spans) if len(matches) == 1 else None


def _ids_and_errors(spans: Sequence[SpanRecord]) -> Iterable[tuple[str, str]]:
    """Trace id and error of each span, without unpacking a packed batch into records."""
    if isinstance(spans, PackedSpans):
        return map(_id_and_error_of_row, spans.rows)
    return ((span.trace_id, span.error) for span in spans)


_id_and_error_of_row = itemgetter(ROW_FIELDS.index("trace_id"), ROW_FIELDS.index("error"))


def _summary(trace_id: str, trace: _RecentTrace) -> dict[str, Any]:
    first = min((shard_span.span for shard_span in trace.spans), key=lambda span: span.start_ns)
    end_ns = max(shard_span.span.end_ns for shard_span in trace.spans)
    return {
        "trace_id": trace_id,
        "name": first.name,
        "start_ns": first.start_ns,
        "seconds": (end_ns - first.start_ns) / 1e9,
        "spans": len(trace.spans) + trace.left_out,
        "status": first.status or ("error" if first.error else "OK"),
        "errors": sum(bool(shard_span.span.error) for shard_span in trace.spans),
        "shards": sorted({shard_span.shard for shard_span in trace.spans if shard_span.shard}),
        "apps": sorted({shard_span.app for shard_span in trace.spans}),
        "names": sorted({shard_span.span.name for shard_span in trace.spans})[:MAX_NAMES],
        "is_runtime": first.name == CHANGE_SPAN or first.name.startswith(RUNTIME_SERVICES),
    }


def _in_order(spans: list[ShardSpan]) -> list[dict[str, Any]]:
    ids = {shard_span.span.span_id for shard_span in spans}
    children: dict[str, list[ShardSpan]] = {}
    for shard_span in sorted(
        spans, key=lambda shard_span: (shard_span.span.start_ns, shard_span.span.kind == "SERVER")
    ):
        parent = shard_span.span.parent_id if shard_span.span.parent_id in ids else ""
        children.setdefault(parent, []).append(shard_span)
    rows: list[dict[str, Any]] = []
    stack = [(root, 0) for root in reversed(children.get("", []))]
    while stack:
        shard_span, depth = stack.pop()
        rows.append(_span_row(shard_span, depth))
        stack += [(child, depth + 1) for child in reversed(children.pop(shard_span.span.span_id, []))]
    return rows


def _span_row(shard_span: ShardSpan, depth: int) -> dict[str, Any]:
    span = shard_span.span
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "depth": depth,
        "name": span.name,
        "kind": span.kind,
        "app": shard_span.app,
        "shard": shard_span.shard,
        "start_ns": span.start_ns,
        "seconds": span.seconds,
        "status": span.status,
        "error": span.error,
        "attributes": _json_attributes(all_attributes(span, shard_span.shard)),
        "events": [
            {"name": name, "attributes": _json_attributes(attributes), "at_ns": at_ns}
            for name, attributes, at_ns in span.events or ()
        ],
    }


def _json_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` as JSON can write them: it has no NaN and no infinity."""
    return {name: _json_value(value) for name, value in attributes.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_json_value(element) for element in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
