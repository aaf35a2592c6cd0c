"""Spans as plain records, W3C trace context, and the standard samplers, without an SDK.

Promises: a call without a `traceparent` and without sampling costs one comparison. Ids come from the `rng` handed in.
Source: W3C Trace Context level 1; OpenTelemetry's `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random, getrandbits
from typing import Any

from onelane.clock import Clock

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?").fullmatch


@dataclass(frozen=True, slots=True)
class TraceContext:
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
    if match is None or match[1] == "ff" or not int(match[2], 16) or not int(match[3], 16):
        return None
    return TraceContext(match[2], match[3], bool(int(match[4], 16) & 1), tracestate)


MAX_EVENTS = 128
"""Of one span, as in OpenTelemetry's specification."""


@dataclass(slots=True)
class SpanRecord:
    """One span. Appended to a plain list when it ends; exported elsewhere."""

    context: TraceContext
    parent_id: str
    """Empty for a root."""
    name: str
    kind: str
    """SERVER, CLIENT or INTERNAL."""
    start_ns: int
    end_ns: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """Empty unless it ended in an error."""
    remote_parent: bool = False
    is_ok: bool = False
    """Its maker has said that it went well, whatever its status is."""
    events: list[tuple[str, dict[str, Any], int]] | None = None
    """Name, attributes, and when, in nanoseconds since the Unix epoch."""

    def add_event(self, name: str, attributes: Mapping[str, Any], at_ns: int) -> None:
        if self.events is None:
            self.events = []
        if len(self.events) < MAX_EVENTS:
            self.events.append((name, dict(attributes), at_ns))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which traces are recorded: parent-based or not, always, never, or by a ratio of trace ids."""

    parent_based: bool
    ratio: float
    """0.0 to 1.0, for traces whose parent does not decide."""

    bound: int = field(init=False, default=0)
    """Traces are sampled whose low 64 bits are below it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bound", round(self.ratio * 2**64))

    def decides(self, trace_id: str, parent: TraceContext | None) -> bool:
        if self.parent_based and parent is not None:
            return parent.sampled
        # OpenTelemetry's TraceIdRatioBased: the low 64 bits against ratio · 2^64.
        return int(trace_id[16:], 16) < self.bound


UNSAMPLED = TraceContext("", "", False)
"""A trace that begins here and is not recorded; it gets an id only where it is handed on."""
NEVER = Sampler(parent_based=False, ratio=0.0)


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """The sampler that `OTEL_TRACES_SAMPLER` names; unknown names and bad ratios fall back to the default, as
    OpenTelemetry asks."""
    name = environment.get("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    try:
        ratio = min(1.0, max(0.0, float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1.0"))))
    except ValueError:
        ratio = 1.0
    ratios = {"always_on": 1.0, "always_off": 0.0, "traceidratio": ratio}
    return Sampler(name.startswith("parentbased_"), ratios.get(name.removeprefix("parentbased_"), 1.0))


def start_span(
    name: str,
    kind: str,
    parent: TraceContext | None,
    sampler: Sampler,
    rng: Random,
    clock: Clock,
    *,
    remote_parent: bool = False,
) -> SpanRecord | TraceContext:
    """Begin one span: a record where it is sampled, else the context to hand on. An unsampled root costs one draw."""
    if parent is None:
        low = rng.getrandbits(64)
        if low >= sampler.bound:
            return UNSAMPLED
        trace_id, parent_id, tracestate = f"{rng.getrandbits(64):016x}{low or 1:016x}", "", ""
    elif parent is not UNSAMPLED and sampler.decides(parent.trace_id, parent):
        trace_id, parent_id, tracestate = parent.trace_id, parent.span_id, parent.tracestate
    else:
        return parent
    context = TraceContext(trace_id, f"{rng.getrandbits(64) or 1:016x}", True, tracestate)
    return SpanRecord(context, parent_id, name, kind, clock.wall_ns(), remote_parent=remote_parent)
