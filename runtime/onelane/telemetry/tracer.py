"""The tracer of a lane: ended span records go to a plain list, which each tick takes out.

Attribute names follow OpenTelemetry's RPC conventions 1.44 (release candidate); this module defines all of them.
The attributes that every call's span has (system, method, status, shard) are added at export; see `all_attributes`.
"""

import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from onelane.core.clock import Clock
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.telemetry.sampling import NEVER, Sampler
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans

MAX_ENDED_SPANS: Final = 20_000
"""Ended spans that wait for the tick; further ones are dropped and counted."""
PACKED_SPANS: Final = 250
"""Ended spans that are packed together, while they are still in the processor's caches. The lane is held for as long as
that takes, some 0.2 ms."""
REMOTE_PER_S = 1000.0
SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses that make a server span an error."""
CLIENT_SUCCESSES = frozenset({"OK", "CANCELLED"})
"""Statuses that make a client span no error: who cancels a call has what it wanted."""

SYSTEM = "rpc.system.name"
METHOD = "rpc.method"
STATUS = "rpc.response.status_code"
ERROR = "error.type"
SHARD = "onelane.shard"
HOP_ATTRIBUTE = "onelane.hop"

Span = SpanRecord | TraceContext | None
"""A record of a span that is recorded, else the context to propagate."""


class Tracer:
    """Starts and ends the spans of one shard. Owned by its lane."""

    def __init__(
        self,
        *,
        shard: str,
        sampler: Sampler = NEVER,
        clock: Clock,
        rng: Random,
        records_all: bool = False,
        remote_per_s: float = REMOTE_PER_S,
    ) -> None:
        """records_all: record unsampled spans too; `collector/tail_sampling` decides which of them are exported.
        remote_per_s: sampled flags of clients that a parent-based sampler follows in a second."""
        self.shard = shard
        self._sampler = sampler
        self._parent_based = sampler.parent_based
        self._threshold = sampler.threshold
        self._spare_traces = sampler.traces_per_s
        self._refilled_at = clock.now()
        self._records_all = records_all
        self._clock = clock
        self._now_ns: Callable[[], int] = clock.wall_ns
        self._draw = rng.getrandbits
        self._owner = threading.get_ident()
        self._ended: list[SpanRecord] = []
        """Those that are not packed yet. Other threads append to it, and do nothing else."""
        self._packed: list[bytes] = []
        self._packed_spans = 0
        """Spans in `_packed`."""
        self._unpacked_limit = PACKED_SPANS - 1
        """Ended spans up to which `_ended` just grows; none once MAX_ENDED_SPANS wait."""
        self.dropped = 0
        self.unfollowed = 0
        """Sampled flags of clients beyond `remote_per_s`, since this was last set to 0."""
        self._remote_per_s = self._spare_flags = remote_per_s
        self.idle = sampler.is_idle and not records_all
        """No call of this shard can record a span."""

    def start(self, name: str, kind: str, parent: TraceContext | None, *, remote: bool = False) -> Span:
        """Start a span: a record, or the context to propagate where it is not recorded. An unsampled root costs one
        random number."""
        if self.idle:
            return parent
        sampled = True
        if parent is None:
            low = self._draw(64)
            if low >= self._threshold:
                if self._spare_traces >= 1.0:
                    self._spare_traces -= 1.0
                elif self._records_all:
                    sampled = False
                else:
                    return UNSAMPLED
            # One random number and one hex text make both ids. The trace id's low half is the number that was compared
            # with the threshold, so any other ratio sampler decides alike.
            drawn = (self._draw(128) << 64 | low or 1).to_bytes(24, "big").hex()
            return SpanRecord(drawn[16:], drawn[:16], "", name, kind, self._now_ns(), sampled)
        trace_id, parent_id, sampled, tracestate = parent
        if not self._parent_based and trace_id:
            sampled = self._sampler.samples(trace_id, parent)
        if not sampled and not (self._records_all and trace_id):
            return parent
        span_id = (self._draw(64) or 1).to_bytes(8, "big").hex()
        record = SpanRecord(trace_id, span_id, parent_id, name, kind, self._now_ns(), sampled, remote)
        if tracestate:
            record.tracestate = tracestate
        return record

    def start_linked(self, name: str, kind: str, to: TraceContext, parent: TraceContext | None) -> Span:
        """Start a span that links to another, and is sampled as that one is: within the trace of `parent` where that is
        sampled, else in a new trace."""
        if self.idle:
            return parent
        if parent is not None and parent.sampled:
            trace_id, parent_id = parent.trace_id, parent.span_id
        else:
            trace_id, parent_id = f"{self._draw(128) or 1:032x}", ""
        record = SpanRecord(trace_id, f"{self._draw(64) or 1:016x}", parent_id, name, kind, self._now_ns(), to.sampled)
        record.add_link(to, {})
        return record

    def follow(self, trace: TraceContext) -> TraceContext:
        """The trace of a client's call whose sampled flag is set: with the flag where the sampler follows its parents,
        up to `remote_per_s`; else as the sampler decides about a trace that begins here."""
        if self._sampler is NEVER:
            # Without tracing the flag is passed on as it came.
            return trace
        if not self._parent_based:
            sampled = self._sampler.samples(trace.trace_id, None)
        elif self._spare_flags >= 1.0:
            self._spare_flags -= 1.0
            return trace
        else:
            # Not by the trace id, which the client has chosen.
            sampled = self._draw(64) < self._threshold
            self.unfollowed += not sampled
        return trace if sampled else trace._replace(sampled=False)

    def end(
        self,
        span: Span,
        *,
        error: str = "",
        attributes: Mapping[str, Any] | None = None,
        at_ns: int | None = None,
    ) -> None:
        """End `span` if it is a record, now or at `at_ns`."""
        if not isinstance(span, SpanRecord):
            return
        span.end_ns = at_ns or self._now_ns()
        if attributes:
            span.attributes = {**(span.attributes or {}), **attributes}
        # A status that the handler set by OpenTelemetry's API overrides ours.
        if span.is_ok:
            span.error = ""
        elif error:
            span.set_attribute(ERROR, error)
            span.error = span.error or error
        if self._packed_spans + len(self._ended) >= MAX_ENDED_SPANS:
            self.dropped += 1
            return
        self._ended.append(span)
        if len(self._ended) >= PACKED_SPANS and threading.get_ident() == self._owner:
            self._pack()

    def _pack(self) -> None:
        """Pack the ended spans; on the tracer's own thread. Not a swap of lists: a worker thread may append to this one
        meanwhile."""
        spans = self._ended[:]
        del self._ended[: len(spans)]
        self._packed.append(pack_spans(spans))
        self._packed_spans += len(spans)
        if self._packed_spans >= MAX_ENDED_SPANS:
            self._unpacked_limit = 0

    def add_event(self, span: Span, name: str, attributes: Mapping[str, Any]) -> None:
        """Add an event of now to `span` if it is a record."""
        if isinstance(span, SpanRecord):
            span.add_event(name, attributes, self._now_ns())

    def end_call(self, span: Span, *, status: str, hop: str = "", server: bool) -> None:
        """End the span of a call with its status."""
        if not isinstance(span, SpanRecord):
            return
        span.status = status
        if hop:
            span.hop = hop
        if status == "OK" and not span.is_ok and len(self._ended) < self._unpacked_limit:
            # Inlined from `end`: the path of nearly every call.
            span.end_ns = self._now_ns()
            self._ended.append(span)
        else:
            failed = status in SERVER_ERRORS if server else status not in CLIENT_SUCCESSES
            self.end(span, error=status if failed else "")

    def take(self) -> list[SpanRecord]:
        """Remove and return the ended spans."""
        spans = self._ended[:]
        del self._ended[: len(spans)]
        return [*(span for packed in self.take_packed() for span in PackedSpans(packed)), *spans]

    def take_packed(self) -> list[bytes]:
        """Remove the ended spans and return them, in the order of their ends, in batches as `pack_spans` makes them."""
        if self._ended:
            self._pack()
        taken = self._packed[:]
        del self._packed[: len(taken)]
        self._packed_spans, self._unpacked_limit = 0, PACKED_SPANS - 1
        now = self._clock.now()
        passed_s, self._refilled_at = now - self._refilled_at, now
        traces_per_s, flags_per_s = self._sampler.traces_per_s, self._remote_per_s
        self._spare_traces = min(traces_per_s, self._spare_traces + passed_s * traces_per_s)
        self._spare_flags = min(flags_per_s, self._spare_flags + passed_s * flags_per_s)
        return taken


def all_attributes(span: SpanRecord, shard: str) -> dict[str, Any]:
    """All attributes of a span: its own, and those that every span of a shard or of a call has."""
    attributes: dict[str, Any] = {SHARD: shard} if shard else {}
    if span.status:
        attributes |= {SYSTEM: "grpc", METHOD: span.name, STATUS: span.status}
        if span.hop:
            attributes[HOP_ATTRIBUTE] = span.hop
    return attributes | (span.attributes or {})


def context_of(span: Span) -> TraceContext | None:
    """The trace context that a call made inside `span` carries."""
    return span.context if isinstance(span, SpanRecord) else span
