"""Spans as plain records, and batches of them as bytes for another process of the same Python, without an SDK.

Promises: a span that is not unpacked costs no object; an attribute of any type spoils no batch.
"""

import marshal
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, overload

from onelane.core.trace_context import TraceContext
from onelane.telemetry.values import plain_tree

MAX_EVENTS, MAX_LINKS = 128, 128
"""Limits of one span, as in OpenTelemetry's specification."""


class SpanRecord:
    """One span. The tracer starts it, and appends it to a plain list when it ends."""

    # Defaults stand on the class, so that `__init__` sets only what differs from span to span.
    end_ns: int = 0
    tracestate: str = ""
    error: str = ""
    """Empty unless the span ended in an error."""
    status: str = ""
    """The gRPC status of a call by name; empty for other spans."""
    hop: str = ""
    """How a call reached this shard: `direct` or `forwarded`."""
    attributes: dict[str, Any] | None = None
    """Further attributes; see `tracer.all_attributes`."""
    events: list[tuple[str, dict[str, Any], int]] | None = None
    """Name, attributes, and nanoseconds since the Unix epoch."""
    links: list[tuple[str, str, str, dict[str, Any]]] | None = None
    """Linked spans: trace id, span id, tracestate, and attributes."""
    is_ok = False
    """Status OK was set by OpenTelemetry's API, which overrides an error."""

    def __init__(
        self,
        trace_id: str,
        span_id: str,
        parent_id: str,
        name: str,
        kind: str,
        start_ns: int,
        sampled: bool = True,
        remote_parent: bool = False,
    ) -> None:
        """parent_id: "" for a root. kind: SERVER, CLIENT, PRODUCER, CONSUMER or INTERNAL. start_ns: nanoseconds since
        the Unix epoch.

        sampled: an unsampled span is exported only where tail sampling keeps its trace; see `collector/tail_sampling`.
        """
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.name = name
        self.kind = kind
        self.start_ns = start_ns
        self.sampled = sampled
        self.remote_parent = remote_parent

    @property
    def context(self) -> TraceContext:
        """The trace context that its children get."""
        return TraceContext(self.trace_id, self.span_id, self.sampled, self.tracestate)

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def set_attribute(self, name: str, value: Any) -> None:
        if self.attributes is None:
            self.attributes = {}
        self.attributes[name] = value

    def add_event(self, name: str, attributes: Mapping[str, Any], at_ns: int) -> None:
        if self.events is None:
            self.events = []
        if len(self.events) < MAX_EVENTS:
            self.events.append((name, dict(attributes), at_ns))

    def add_link(self, to: TraceContext, attributes: Mapping[str, Any]) -> None:
        if self.links is None:
            self.links = []
        if len(self.links) < MAX_LINKS:
            self.links.append((to.trace_id, to.span_id, to.tracestate, dict(attributes)))


ROW_FIELDS = (
    *("trace_id", "span_id", "parent_id", "start_ns", "end_ns", "name", "kind", "sampled", "remote_parent", "error"),
    *("status", "hop", "is_ok", "attributes", "events", "links", "tracestate"),
)
"""The attributes of a `SpanRecord` that are packed."""
_row_of = attrgetter(*ROW_FIELDS)


def pack_spans(spans: Sequence[SpanRecord]) -> bytes:
    """A batch as bytes for another process of the same Python; some 1 µs a span.

    `marshal`, because both processes run the same Python, and no other serializer comes near it in cost.
    """
    if isinstance(spans, PackedSpans):
        return spans.packed
    rows = list(map(_row_of, spans))
    try:
        return marshal.dumps(rows)
    except ValueError:
        # marshal takes only built-in types. One odd attribute must not drop the whole batch.
        return marshal.dumps(plain_tree(rows))


class PackedSpans(Sequence[SpanRecord]):
    """A batch made by `pack_spans`. A row becomes a `SpanRecord` only when it is indexed: most are only passed on."""

    def __init__(self, packed: bytes, rows: list[tuple[Any, ...]] | None = None) -> None:
        """rows: the content of `packed`, where the caller has it unpacked already."""
        self.packed = packed
        self.rows: list[tuple[Any, ...]] = rows if rows is not None else marshal.loads(packed) if packed else []
        """The values of `ROW_FIELDS` of each span."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> SpanRecord: ...

    @overload
    def __getitem__(self, index: slice) -> "PackedSpans": ...

    def __getitem__(self, index: int | slice) -> "SpanRecord | PackedSpans":
        if isinstance(index, slice):
            rows = self.rows[index]
            return PackedSpans(marshal.dumps(rows), rows)
        return _span_of_row(self.rows[index])


def _span_of_row(row: tuple[Any, ...]) -> SpanRecord:
    span = SpanRecord.__new__(SpanRecord)
    vars(span).update(zip(ROW_FIELDS, row, strict=True))
    return span
