"""Tail sampling: of the traces that head sampling left out, those with an error or a slow span are exported too.

A child span ends before its parent, so the supervisor holds unsampled spans by trace until a rule decides. The
children of a kept call are kept in whichever app of the same supervisor they ran.
Promises: the number of held spans is bounded, and the oldest trace is dropped first; a sampled span is never held.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from onelane.telemetry.spans import SpanRecord

SETTLE_S = 2.0
"""How long a trace without open parents is held: spans of other shards may still arrive."""
HOLD_S = 60.0
"""How long a trace with open parents is held at most."""
MAX_KEPT_TRACES = 50_000
"""Kept traces whose ids are remembered, so that their later spans are exported too."""
KEPT_S = 60.0
"""How long the id of a kept trace is remembered."""
MAX_HELD_SPANS = 50_000
"""Spans held at a time."""


class ShardSpan(NamedTuple):
    """A span with the app and the shard that recorded it."""

    app: str
    shard: str
    span: SpanRecord


@dataclass(frozen=True, slots=True)
class TailRule:
    """Which unsampled traces an app exports."""

    errors: bool = True
    """Traces with a span that ended in an error."""
    slower_s: float | None = None
    """Traces with a span of this duration or longer."""

    def keeps(self, span: SpanRecord, slow: Mapping[str, float]) -> bool:
        """slow: method → duration in seconds above which a call counts as slow."""
        if self.errors and span.error:
            return True
        seconds = span.seconds
        if self.slower_s is not None and seconds >= self.slower_s:
            return True
        return span.kind == "SERVER" and seconds > slow.get(span.name, seconds)


@dataclass(slots=True)
class _HeldTrace:
    began: float
    hold_until: float = 0.0
    spans: list[ShardSpan] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    """Ids of `spans`."""
    open_parents: set[str] = field(default_factory=set)
    """Parents of held spans, in the same process, that have not ended."""

    def add(self, shard_span: ShardSpan, now: float) -> None:
        span = shard_span.span
        self.spans.append(shard_span)
        self.ids.add(span.span_id)
        self.open_parents.discard(span.span_id)
        if span.parent_id and not span.remote_parent and span.parent_id not in self.ids:
            self.open_parents.add(span.parent_id)
        self.hold_until = self.began + HOLD_S if self.open_parents else now + SETTLE_S


class TailSampler:
    """See the module. Owned by the supervisor."""

    def __init__(self, rules: Mapping[str, TailRule], *, max_held: int = MAX_HELD_SPANS) -> None:
        """rules: by app."""
        self.rules = rules
        self._max_held = max_held
        self._traces: OrderedDict[str, _HeldTrace] = OrderedDict()
        self._kept: OrderedDict[str, float] = OrderedDict()
        self.slow: dict[str, dict[str, float]] = {app: {} for app in rules}
        """App → method → duration in seconds above which a call counts as slow."""
        self.held = 0
        """Spans held now."""

    def filter(self, spans: Iterable[ShardSpan], now: float) -> list[ShardSpan]:
        """The spans to export now, of `spans` and of those held; the others are held."""
        exported: list[ShardSpan] = []
        for shard_span in spans:
            span = shard_span.span
            if span.sampled or span.trace_id in self._kept:
                exported.append(shard_span)
            elif self.rules.get(shard_span.app, _KEEP_NONE).keeps(span, self.slow.get(shard_span.app, {})):
                self._keep(span.trace_id, now)
                exported += self._release(span.trace_id)
                exported.append(shard_span)
            else:
                self._hold(shard_span, now)
        while self.held > self._max_held:
            self._release(next(iter(self._traces)))
        return exported

    def expire(self, now: float) -> None:
        """Drop the traces whose time is up, unexported; to be called about every second."""
        for trace_id in [i for i, trace in self._traces.items() if trace.hold_until <= now]:
            self._release(trace_id)
        while self._kept and next(iter(self._kept.values())) <= now:
            self._kept.popitem(last=False)

    def _hold(self, shard_span: ShardSpan, now: float) -> None:
        trace = self._traces.get(shard_span.span.trace_id)
        if trace is None:
            trace = self._traces[shard_span.span.trace_id] = _HeldTrace(now)
        trace.add(shard_span, now)
        self.held += 1

    def _keep(self, trace_id: str, now: float) -> None:
        if len(self._kept) >= MAX_KEPT_TRACES:
            self._kept.popitem(last=False)
        self._kept[trace_id] = now + KEPT_S

    def _release(self, trace_id: str) -> list[ShardSpan]:
        trace = self._traces.pop(trace_id, None)
        if trace is None:
            return []
        self.held -= len(trace.spans)
        return trace.spans


_KEEP_NONE = TailRule(errors=False)
