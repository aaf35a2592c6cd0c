"""Spans as plain records, W3C trace context, and the standard samplers, without an SDK.

Promises: a call without a `traceparent` and without sampling costs one draw. Ids come from the `rng` handed in.
Source: W3C Trace Context level 1; OpenTelemetry's `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
"""

import marshal
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, overload

from onelane.core.trace_context import TraceContext
from onelane.telemetry.values import whole

MAX_EVENTS, MAX_LINKS = 128, 128
"""Of one span, as in OpenTelemetry's specification."""


class SpanRecord:
    """One span. Appended to a plain list when it ends; exported elsewhere."""

    # Values of the class, so that making a record sets no more than it must.
    end_ns: int = 0
    tracestate: str = ""
    error: str = ""
    """Empty unless it ended in one."""
    status: str = ""
    """Of a call, its gRPC status."""
    hop: str = ""
    """Of a call, how it came here."""
    attributes: dict[str, Any] | None = None
    """What has been said of it beside these."""
    events: list[tuple[str, dict[str, Any], int]] | None = None
    """Name, attributes, and when, in nanoseconds since the Unix epoch."""
    links: list[tuple[str, str, str, dict[str, Any]]] | None = None
    """Other spans that it has to do with: trace id, span id, tracestate, and attributes."""
    is_ok = False
    """Its maker has said that it went well, whatever its status is."""

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

        sampled: else it is exported only where something went wrong with its trace; see `collector/tail_sampling`.
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
        """What is handed on of it."""
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


ROW = (
    *("trace_id", "span_id", "parent_id", "start_ns", "end_ns", "name", "kind", "sampled", "remote_parent", "error"),
    *("status", "hop", "is_ok", "attributes", "events", "links", "tracestate"),
)
"""What is moved of a span."""
_ROW = attrgetter(*ROW)


def pack(spans: Sequence[SpanRecord]) -> bytes:
    """A batch as bytes for another process of the same Python; some 1 µs a span.

    `marshal`, since both ends are ours and of one version, and nothing else comes near it in cost.
    """
    if isinstance(spans, Packed):
        return spans.packed
    rows = list(map(_ROW, spans))
    try:
        return marshal.dumps(rows)
    except ValueError:
        # Somebody has given a span what is no plain value; the others are not to suffer for it.
        return marshal.dumps(whole(rows))


class Packed(Sequence[SpanRecord]):
    """A batch that `pack` has packed. A span is made of its row when it is asked for: most are only passed on."""

    def __init__(self, packed: bytes, rows: list[tuple[Any, ...]] | None = None) -> None:
        """rows: the same, where whoever packed has them still."""
        self.packed = packed
        self.rows: list[tuple[Any, ...]] = rows if rows is not None else marshal.loads(packed) if packed else []
        """Of each span the values of `ROW`."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> SpanRecord: ...

    @overload
    def __getitem__(self, index: slice) -> "Packed": ...

    def __getitem__(self, index: int | slice) -> "SpanRecord | Packed":
        if isinstance(index, slice):
            rows = self.rows[index]
            return Packed(marshal.dumps(rows), rows)
        return _unpacked(self.rows[index])


def _unpacked(row: tuple[Any, ...]) -> SpanRecord:
    made = SpanRecord.__new__(SpanRecord)
    vars(made).update(zip(ROW, row, strict=True))
    return made
