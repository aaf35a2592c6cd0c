"""Tail keeping: of the traces that were not sampled, those in which something failed or was slow are exported too.

The supervisor holds what is not sampled, by trace, until it knows: a child ends before its parent does. So the children
of a kept call are kept, wherever in the same supervisor's apps they ran.
Promises: what is held is bounded, the oldest trace goes first; a sampled span is never held.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from onelane.telemetry.spans import SpanRecord

SETTLE_S = 2.0
"""How long a trace is held after all of it that is known of came back well: others of it may still be under way."""
HOLD_S = 60.0
"""How long it is held at most."""
MAX_KEPT = 50_000
"""Traces of which it is remembered that they are kept."""
KEPT_S = 60.0
"""How long it is remembered that a trace is kept."""
MAX_HELD = 50_000
"""Spans that are held at once."""


class Owned(NamedTuple):
    """A span, and who made it."""

    app: str
    shard: str
    span: SpanRecord


@dataclass(frozen=True, slots=True)
class Rule:
    """What an app keeps of what is not sampled."""

    errors: bool = True
    """Traces with a span that ended in an error."""
    slower_s: float | None = None
    """Traces with a span that took as long, or longer."""

    def keeps(self, span: SpanRecord, slow: Mapping[str, float]) -> bool:
        """slow: method → seconds from which a call of it is among the slowest."""
        if self.errors and span.error:
            return True
        seconds = span.seconds
        if self.slower_s is not None and seconds >= self.slower_s:
            return True
        return span.kind == "SERVER" and seconds > slow.get(span.name, seconds)


@dataclass(slots=True)
class _Trace:
    begun: float
    until: float = 0.0
    spans: list[Owned] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    """Of its spans."""
    awaited: set[str] = field(default_factory=set)
    """Ids of spans that others have named as their parents in the same process, and that have not ended."""

    def take(self, one: Owned, now: float) -> None:
        span = one.span
        self.spans.append(one)
        self.ids.add(span.span_id)
        self.awaited.discard(span.span_id)
        if span.parent_id and not span.remote_parent and span.parent_id not in self.ids:
            self.awaited.add(span.parent_id)
        self.until = self.begun + HOLD_S if self.awaited else now + SETTLE_S


class Tail:
    """See the module. Owned by the supervisor."""

    def __init__(self, rules: Mapping[str, Rule], *, max_held: int = MAX_HELD) -> None:
        """rules: by app."""
        self.rules = rules
        self._max_held = max_held
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._kept: OrderedDict[str, float] = OrderedDict()
        self.slow: dict[str, dict[str, float]] = {app: {} for app in rules}
        """App → method → seconds from which a call is among the slowest."""
        self.held = 0

    def sift(self, spans: Iterable[Owned], now: float) -> list[Owned]:
        """What of these, and of those held, is to be exported now."""
        out: list[Owned] = []
        for one in spans:
            span = one.span
            if span.sampled or span.trace_id in self._kept:
                out.append(one)
            elif self.rules.get(one.app, _NOTHING).keeps(span, self.slow.get(one.app, {})):
                self._keep(span.trace_id, now)
                out += self._release(span.trace_id)
                out.append(one)
            else:
                self._hold(one, now)
        while self.held > self._max_held:
            self._release(next(iter(self._traces)))
        return out

    def forget(self, now: float) -> None:
        """Let go of what has been held long enough; to be called every second or so."""
        for trace_id in [i for i, trace in self._traces.items() if trace.until <= now]:
            self._release(trace_id)
        while self._kept and next(iter(self._kept.values())) <= now:
            self._kept.popitem(last=False)

    def _hold(self, one: Owned, now: float) -> None:
        trace = self._traces.get(one.span.trace_id)
        if trace is None:
            trace = self._traces[one.span.trace_id] = _Trace(now)
        trace.take(one, now)
        self.held += 1

    def _keep(self, trace_id: str, now: float) -> None:
        if len(self._kept) >= MAX_KEPT:
            self._kept.popitem(last=False)
        self._kept[trace_id] = now + KEPT_S

    def _release(self, trace_id: str) -> list[Owned]:
        trace = self._traces.pop(trace_id, None)
        if trace is None:
            return []
        self.held -= len(trace.spans)
        return trace.spans


_NOTHING = Rule(errors=False)
