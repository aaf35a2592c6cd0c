"""The lane's side of tracing: span records in a plain list, moved out once per tick.

Attribute names follow OpenTelemetry's RPC conventions 1.44 (release candidate); this is the one place that holds them.
"""

from collections.abc import Mapping
from random import Random

from onelane.clock import Clock
from onelane.spans import NEVER, Sampler, SpanRecord, TraceContext, parse_traceparent, start_span

MAX_WAITING = 20_000
SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses that make a server span an error; for a client every status but OK is one."""

SYSTEM = "rpc.system.name"
METHOD = "rpc.method"
STATUS = "rpc.response.status_code"
ERROR = "error.type"
SHARD = "onelane.shard"
HOP = "onelane.hop"

Span = SpanRecord | TraceContext | None
"""A record while sampled, else what is handed on."""


class Tracer:
    """Starts and ends the spans of one shard. Owned by its lane."""

    def __init__(self, *, shard: str, sampler: Sampler = NEVER, clock: Clock, rng: Random) -> None:
        self.shard = shard
        self._sampler = sampler
        self._clock = clock
        self._rng = rng
        self._ended: list[SpanRecord] = []
        self.dropped = 0
        self.idle = sampler == NEVER
        """No span can come of a call without a parent; and none of one with, unless parent-based."""

    def start(self, name: str, kind: str, parent: TraceContext | None, *, remote: bool = False) -> Span:
        if self.idle:
            return parent
        return start_span(name, kind, parent, self._sampler, self._rng, self._clock, remote_parent=remote)

    def end(
        self,
        span: Span,
        *,
        error: str = "",
        attributes: Mapping[str, str] | None = None,
        at_ns: int | None = None,
    ) -> None:
        """End `span` where it is a record, now or at a time that its maker names."""
        if not isinstance(span, SpanRecord):
            return
        span.end_ns = at_ns or self._clock.wall_ns()
        # Who has said by OpenTelemetry's API how it went knows better.
        span.error = "" if span.is_ok else span.error or error
        span.attributes |= {SHARD: self.shard} | dict(attributes or {})
        if error:
            span.attributes[ERROR] = error
        if len(self._ended) < MAX_WAITING:
            self._ended.append(span)
        else:
            self.dropped += 1

    def end_call(self, span: Span, *, status: str, hop: str = "", server: bool) -> None:
        """End the span of a call with its status."""
        if not isinstance(span, SpanRecord):
            return
        span.attributes |= {SYSTEM: "grpc", METHOD: span.name, STATUS: status}
        if hop:
            span.attributes[HOP] = hop
        failed = status in SERVER_ERRORS if server else status != "OK"
        self.end(span, error=status if failed else "")

    def take(self) -> list[SpanRecord]:
        """Move the ended spans out: one swap."""
        taken, self._ended = self._ended, []
        return taken


def context_of(span: Span) -> TraceContext | None:
    """What a call made inside `span` carries."""
    return span.context if isinstance(span, SpanRecord) else span


def inbound(traceparent: str | bytes | None, tracestate: str | bytes | None) -> TraceContext | None:
    """The trace that a call's metadata carries."""
    if not isinstance(traceparent, str):
        return None
    return parse_traceparent(traceparent, tracestate if isinstance(tracestate, str) else "")


def outbound(trace: TraceContext | None) -> tuple[tuple[str, str], ...]:
    """The metadata that carries `trace` onward."""
    if trace is None:
        return ()
    if trace.tracestate:
        return (("traceparent", trace.traceparent()), ("tracestate", trace.tracestate))
    return (("traceparent", trace.traceparent()),)
