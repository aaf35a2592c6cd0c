"""The last traces, for the admin page and `onelane trace`: what there is without a Jaeger."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from operator import itemgetter
from typing import Any

from onelane.telemetry.collector.tail_sampling import Owned
from onelane.telemetry.spans import ROW, Packed, SpanRecord
from onelane.telemetry.tracer import told

MAX_TRACES = 200
MAX_FAILED = 50
"""Of these, traces with an error, which are not pushed out by others."""
MAX_SPANS = 300
"""Of one trace."""
NEW_PER_S = 20
"""Traces that are taken up in a second; with more, those with an error go first."""


@dataclass(slots=True)
class _Trace:
    spans: list[Owned] = field(default_factory=list)
    failed: bool = False
    left_out: int = 0


class Recent:
    """See the module. Owned by the supervisor."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._second = 0
        self._taken = 0

    def add(self, app: str, shard: str, spans: Sequence[SpanRecord], now: float) -> None:
        """Take what is worth keeping of a shard's spans that have just been moved out. now: seconds."""
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        for index, (trace_id, error) in enumerate(_seen(spans)):
            trace = self._traces.get(trace_id)
            if trace is None:
                if self._taken >= NEW_PER_S and not error:
                    continue
                trace = self._take_up(trace_id)
            trace.failed = trace.failed or bool(error)
            if len(trace.spans) < MAX_SPANS:
                trace.spans.append(Owned(app, shard, spans[index]))
            else:
                trace.left_out += 1

    def _take_up(self, trace_id: str) -> _Trace:
        self._taken += 1
        if len(self._traces) >= MAX_TRACES:
            failed = sum(trace.failed for trace in self._traces.values())
            spared = failed <= MAX_FAILED and failed < len(self._traces)
            oldest = next(i for i, trace in self._traces.items() if not (spared and trace.failed))
            del self._traces[oldest]
        made = self._traces[trace_id] = _Trace()
        return made

    def summaries(self) -> list[dict[str, Any]]:
        """A row for each trace, the newest first."""
        rows = [_summary(trace_id, trace) for trace_id, trace in self._traces.items()]
        return sorted(rows, key=lambda row: row["start_ns"], reverse=True)

    def trace(self, trace_id: str) -> list[dict[str, Any]] | None:
        """The spans of one trace in the order of a tree, each with its `depth`; None where it is not here.

        trace_id: or its beginning.
        """
        found = [trace for key, trace in self._traces.items() if key.startswith(trace_id)] if trace_id else []
        return _in_order(found[0].spans) if len(found) == 1 else None


def _seen(spans: Sequence[SpanRecord]) -> Iterable[tuple[str, str]]:
    """Trace and error of each, without making what is packed into spans."""
    if isinstance(spans, Packed):
        return map(_OF_ROW, spans.rows)
    return ((span.trace_id, span.error) for span in spans)


_OF_ROW = itemgetter(ROW.index("trace_id"), ROW.index("error"))


def _summary(trace_id: str, trace: _Trace) -> dict[str, Any]:
    first = min((one.span for one in trace.spans), key=lambda span: span.start_ns)
    end_ns = max(one.span.end_ns for one in trace.spans)
    return {
        "trace_id": trace_id,
        "name": first.name,
        "start_ns": first.start_ns,
        "seconds": (end_ns - first.start_ns) / 1e9,
        "spans": len(trace.spans) + trace.left_out,
        "status": first.status or ("error" if first.error else "OK"),
        "errors": sum(bool(one.span.error) for one in trace.spans),
        "shards": sorted({one.shard for one in trace.spans}),
    }


def _in_order(spans: list[Owned]) -> list[dict[str, Any]]:
    ids = {one.span.span_id for one in spans}
    children: dict[str, list[Owned]] = {}
    for one in sorted(spans, key=lambda one: (one.span.start_ns, one.span.kind == "SERVER")):
        parent = one.span.parent_id if one.span.parent_id in ids else ""
        children.setdefault(parent, []).append(one)
    rows: list[dict[str, Any]] = []
    waiting = [(one, 0) for one in reversed(children.get("", []))]
    while waiting:
        one, depth = waiting.pop()
        rows.append(_row(one, depth))
        waiting += [(child, depth + 1) for child in reversed(children.pop(one.span.span_id, []))]
    return rows


def _row(one: Owned, depth: int) -> dict[str, Any]:
    span = one.span
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "depth": depth,
        "name": span.name,
        "kind": span.kind,
        "app": one.app,
        "shard": one.shard,
        "start_ns": span.start_ns,
        "seconds": span.seconds,
        "status": span.status,
        "error": span.error,
        "attributes": _shown(told(span, one.shard)),
        "events": [
            {"name": name, "attributes": _shown(said), "at_ns": at_ns} for name, said, at_ns in span.events or ()
        ],
    }


def _shown(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, which knows no infinity."""
    return {name: _finite(value) for name, value in attributes.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
