"""The span of what one life hands over to another in a change of placement, in the trace of the change.

Promises: one span for each receiver that is sent any key, however many messages that takes; none without a trace. The
text of a key is in none of them.
"""

from onelane.core.placement import Member
from onelane.core.trace_context import TraceContext
from onelane.telemetry.tracer import STATUS, Span, Tracer

SENT_AGAIN = "onelane.handoff.repeated"
"""The event of a message that was not acknowledged, and is sent again."""


class HandoffSpan:
    """See the module. Begins with the first key that is to leave."""

    def __init__(self, tracer: Tracer, trace: TraceContext | None, to: Member) -> None:
        """trace: of the change; None for none."""
        self._tracer = tracer
        self._trace = trace
        self._to = to
        self._span: Span = None
        self._keys = self._batches = self._size = 0

    def begin(self) -> None:
        """A key is to leave. Again and again: it has begun already."""
        if self._span is None and self._trace is not None:
            self._span = self._tracer.start("handoff", "INTERNAL", self._trace, remote=True)

    def acknowledged(self, keys: int, size: int) -> None:
        """The receiver has a message. keys: in it; 0 of the last one. size: in bytes."""
        if not keys:
            self.end()
            return
        self._keys += keys
        self._size += size
        self._batches += 1

    def repeated(self, status: str) -> None:
        """A batch is sent again."""
        self._tracer.add_event(self._span, SENT_AGAIN, {STATUS: status})

    def end(self, error: str = "") -> None:
        """The change, or this part of it, is over. error: the receiver has not got everything."""
        attributes = {
            "onelane.handoff.to": self._to.name,
            "onelane.handoff.keys": self._keys,
            "onelane.handoff.size": self._size,
            "onelane.handoff.batches": self._batches,
        }
        self._tracer.end(self._span, error=error, attributes=attributes)
        self._span = self._trace = None
