"""Spans as plain records, W3C trace context, and the standard samplers, without an SDK.

Promises: a call without a `traceparent` and without sampling costs one draw. Ids come from the `rng` handed in.
Source: W3C Trace Context level 1; OpenTelemetry's `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
"""

import marshal
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from random import getrandbits
from typing import Any, NamedTuple, overload

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch


class TraceContext(NamedTuple):
    """What a call carries of its trace."""

    trace_id: str
    """32 lower-case hex digits."""
    span_id: str
    """16 lower-case hex digits: the caller's span."""
    sampled: bool
    tracestate: str = ""

    def traceparent(self) -> str:
        if not self.trace_id:
            return f"00-{getrandbits(128) or 1:032x}-{getrandbits(64) or 1:016x}-00"
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: str, tracestate: str = "") -> TraceContext | None:
    """The context in a `traceparent`, or None where it is malformed, as W3C asks."""
    match = _TRACEPARENT(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (more and version == "00"):
        return None
    return TraceContext(trace_id, span_id, flags == "01" or bool(int(flags, 16) & 1), tracestate)


_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
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


def whole(value: Any, depth: int = 6) -> Any:
    """`value` with everything in it made plain; what is nested deeper than any record of ours becomes text."""
    if value is None:
        return None
    if isinstance(value, dict) and depth:
        return {text(name): whole(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list | tuple) and depth:
        made = [whole(one, depth - 1) for one in value]
        return made if isinstance(value, list) else tuple(made)
    return plain(value)


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


def plain(value: Any) -> Any:
    """An attribute's value as OpenTelemetry has them: texts, truth values, numbers, lists of these; else its text."""
    kind = type(value)
    if kind in _PLAIN or (kind is int and _LEAST <= value <= _MOST):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [_scalar(one) for one in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """A text, a truth value, a number of 64 bits: of a subclass, such as an enum's, its value; of all else its text."""
    if isinstance(value, str):
        # Not `str(value)`, which is for the subclass to say.
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float.__float__(value)
    try:
        if isinstance(value, int) and _LEAST <= value <= _MOST:
            return int(value)
        return str(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


def text(value: Any) -> str:
    """A name that somebody has given, as text whatever it is."""
    return value if type(value) is str else str(_scalar(value))


_PLAIN = frozenset({str, bool, float})
_LEAST, _MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which traces are recorded: parent-based or not, always, never, by a ratio, or so many in a second."""

    parent_based: bool
    ratio: float
    """0.0 to 1.0, for traces whose parent does not decide."""
    per_s: float = 0.0
    """Traces that begin in one shard and are recorded beside those, in a second."""

    bound: int = field(init=False, default=0)
    """Traces are sampled whose low 64 bits are below it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bound", round(self.ratio * 2**64))

    @property
    def is_idle(self) -> bool:
        """It samples nothing, whatever a parent says."""
        return not (self.parent_based or self.bound or self.per_s)

    def decides(self, trace_id: str, parent: TraceContext | None) -> bool:
        if self.parent_based and parent is not None:
            return parent.sampled
        # OpenTelemetry's TraceIdRatioBased: the low 64 bits against ratio · 2^64.
        return int(trace_id[16:], 16) < self.bound


UNSAMPLED = TraceContext("", "", False)
"""A trace that begins here and is not recorded; it gets an id only where it is handed on."""
NEVER = Sampler(parent_based=False, ratio=0.0)
SOME_PER_S = 10.0
"""Traces in a second of one shard that are recorded for the admin page, where no exporter and no sampler is named."""
USUAL = "parentbased_always_on"
SOME = "onelane_some"
"""Not one of OpenTelemetry's: what is sampled where nobody has said."""


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """The sampler that `OTEL_TRACES_SAMPLER` names; unknown names and bad ratios fall back to the default, as
    OpenTelemetry asks."""
    name = environment.get("OTEL_TRACES_SAMPLER", USUAL)
    if name == SOME:
        return Sampler(parent_based=True, ratio=0.0, per_s=SOME_PER_S)
    try:
        ratio = min(1.0, max(0.0, float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1.0"))))
    except ValueError:
        ratio = 1.0
    ratios = {"always_on": 1.0, "always_off": 0.0, "traceidratio": ratio}
    if name.removeprefix("parentbased_") not in ratios:
        name = USUAL
    return Sampler(name.startswith("parentbased_"), ratios[name.removeprefix("parentbased_")])
