"""The lane's side of tracing: span records in a plain list, moved out once per tick.

Attribute names follow OpenTelemetry's RPC conventions 1.44 (release candidate); this is the one place that holds them.
What every call's span says of itself (system, method, status, shard) is added where it is exported; see `told`.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from onelane.core.clock import Clock
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.telemetry.sampling import NEVER, Sampler
from onelane.telemetry.spans import SpanRecord

MAX_WAITING = 20_000
SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses that make a server span an error; for a client every status but OK is one."""

SYSTEM = "rpc.system.name"
METHOD = "rpc.method"
STATUS = "rpc.response.status_code"
ERROR = "error.type"
SHARD = "onelane.shard"
HOP = "onelane.hop"
ATTEMPT = "rpc.grpc.attempt"

Span = SpanRecord | TraceContext | None
"""A record while it is recorded, else what is handed on."""


class Tracer:
    """Starts and ends the spans of one shard. Owned by its lane."""

    def __init__(
        self, *, shard: str, sampler: Sampler = NEVER, clock: Clock, rng: Random, records_all: bool = False
    ) -> None:
        """records_all: what is not sampled too, for `collector/tail_sampling` to decide on."""
        self.shard = shard
        self._sampler = sampler
        self._parent_based = sampler.parent_based
        self._bound = sampler.bound
        self._spare = sampler.per_s
        self._spare_at = clock.now()
        self._records_all = records_all
        self._clock = clock
        self._now_ns: Callable[[], int] = clock.wall_ns
        self._draw = rng.getrandbits
        self._ended: list[SpanRecord] = []
        self.dropped = 0
        self.idle = sampler.is_idle and not records_all
        """No span can come of any call."""

    def start(self, name: str, kind: str, parent: TraceContext | None, *, remote: bool = False) -> Span:
        """Begin one span: a record, or where none is wanted the context to hand on. An unsampled root costs a draw."""
        if self.idle:
            return parent
        sampled = True
        if parent is None:
            low = self._draw(64)
            if low >= self._bound:
                if self._spare >= 1.0:
                    self._spare -= 1.0
                elif self._records_all:
                    sampled = False
                else:
                    return UNSAMPLED
            # One draw and one text for both ids; the low half of the trace's is what the ratio was held to.
            drawn = (self._draw(128) << 64 | low or 1).to_bytes(24, "big").hex()
            return SpanRecord(drawn[16:], drawn[:16], "", name, kind, self._now_ns(), sampled)
        trace_id, parent_id, sampled, tracestate = parent
        if not self._parent_based and trace_id:
            sampled = self._sampler.decides(trace_id, parent)
        if not sampled and not (self._records_all and trace_id):
            return parent
        span_id = (self._draw(64) or 1).to_bytes(8, "big").hex()
        made = SpanRecord(trace_id, span_id, parent_id, name, kind, self._now_ns(), sampled, remote)
        if tracestate:
            made.tracestate = tracestate
        return made

    def end(
        self,
        span: Span,
        *,
        error: str = "",
        attributes: Mapping[str, Any] | None = None,
        at_ns: int | None = None,
    ) -> None:
        """End `span` where it is a record, now or at a time that its maker names."""
        if not isinstance(span, SpanRecord):
            return
        span.end_ns = at_ns or self._now_ns()
        if attributes:
            span.attributes = {**(span.attributes or {}), **attributes}
        # Who has said by OpenTelemetry's API how it went knows better.
        if span.is_ok:
            span.error = ""
        elif error:
            span.set_attribute(ERROR, error)
            span.error = span.error or error
        if len(self._ended) < MAX_WAITING:
            self._ended.append(span)
        else:
            self.dropped += 1

    def end_call(self, span: Span, *, status: str, hop: str = "", server: bool) -> None:
        """End the span of a call with its status."""
        if not isinstance(span, SpanRecord):
            return
        span.status = status
        if hop:
            span.hop = hop
        if status == "OK" and not span.is_ok and len(self._ended) < MAX_WAITING:
            # Written out: nearly every call.
            span.end_ns = self._now_ns()
            self._ended.append(span)
        else:
            failed = status in SERVER_ERRORS if server else status != "OK"
            self.end(span, error=status if failed else "")

    def take(self) -> list[SpanRecord]:
        """Move the ended spans out."""
        taken = self._ended[:]
        # Not a swap: a helper thread may be appending to this very list.
        del self._ended[: len(taken)]
        if per_s := self._sampler.per_s:
            now = self._clock.now()
            self._spare = min(per_s, self._spare + (now - self._spare_at) * per_s)
            self._spare_at = now
        return taken


def told(span: SpanRecord, shard: str) -> dict[str, Any]:
    """All attributes of a span: its own, and what every span of a call or of a shard has."""
    made: dict[str, Any] = {SHARD: shard}
    if span.status:
        made |= {SYSTEM: "grpc", METHOD: span.name, STATUS: span.status}
        if span.hop:
            made[HOP] = span.hop
    return made | (span.attributes or {})


def context_of(span: Span) -> TraceContext | None:
    """What a call made inside `span` carries."""
    return span.context if isinstance(span, SpanRecord) else span
