"""The trace of a change of placement: a span `move` of the supervisor's own, in which its lives record what they hand
over.

Promises: one span for each change, sampled, exported and shown as those of the app's calls; the number of its events is
bounded. No call has part in it.
"""

from random import Random

from onelane.core.clock import SystemClock
from onelane.telemetry.collector.collector import Collector
from onelane.telemetry.collector.recent_traces import CHANGE_SPAN
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.tracer import SHARD, Span, Tracer

EPOCH, WHAT = "onelane.epoch", "onelane.change"


class ChangeTraces:
    """Begins the trace of each change of one app. Owned by the app's supervisor."""

    def __init__(self, app: str, collector: Collector, *, sampler: Sampler, records_all: bool) -> None:
        """sampler: as the app's shards have it. records_all: as of `Tracer`."""
        self._app = app
        self._collector = collector
        self._tracer = Tracer(shard="", sampler=sampler, clock=SystemClock(), rng=Random(), records_all=records_all)

    def begin(self, *, epoch: int, what: str) -> "ChangeTrace":
        """epoch: the one that the change leads to. what: in words."""
        span = self._tracer.start(CHANGE_SPAN, "INTERNAL", None)
        if isinstance(span, SpanRecord):
            span.attributes = {EPOCH: epoch, WHAT: what}
        return ChangeTrace(self, span)

    def add_event(self, span: Span, event: str, shard: str) -> None:
        self._tracer.add_event(span, f"onelane.change.{event}", {SHARD: shard} if shard else {})

    def end(self, span: Span, error: str) -> None:
        self._tracer.end(span, error=error)
        if ended := self._tracer.take():
            self._collector.add_spans(self._app, "", ended)


class ChangeTrace:
    """The trace of one change."""

    def __init__(self, traces: ChangeTraces, span: Span) -> None:
        self._traces = traces
        self._span = span
        self._error = ""

    @property
    def traceparent(self) -> str:
        """For the lives that have part in the change; "" where nothing is recorded."""
        return self._span.context.traceparent() if isinstance(self._span, SpanRecord) else ""

    def add_event(self, event: str, shard: str = "", *, error: str = "") -> None:
        """event: `onelane.change.…`. shard: of the life that it is about. error: the change goes on, and its span ends
        with this."""
        self._error = self._error or error
        self._traces.add_event(self._span, event, shard)

    def end(self, error: str = "") -> None:
        """error: it was given up, or failed."""
        self._traces.end(self._span, error or self._error)
