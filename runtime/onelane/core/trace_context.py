"""W3C trace context: the identity of a trace and of the calling span, as metadata of a call.

Sources: W3C Trace Context level 1, W3C Baggage.
"""

import re
from random import getrandbits
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
"""The names of the metadata that carry a trace."""
MAX_TRACESTATE = 512
"""Characters of a `tracestate` that every implementation passes on (section 3.3.1.5); a longer one is dropped."""
MAX_BAGGAGE = 8192
"""Bytes of a `baggage` that every implementation passes on; a longer one is dropped."""
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
"""Ids that W3C declares invalid."""
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch


class TraceContext(NamedTuple):
    """The trace that a call belongs to, and the span that made the call."""

    trace_id: str
    """32 lower-case hex digits."""
    span_id: str
    """16 lower-case hex digits: the caller's span."""
    sampled: bool
    tracestate: str = ""

    def traceparent(self) -> str:
        """The `traceparent` of an outgoing call; with random ids for `UNSAMPLED`."""
        if not self.trace_id:
            return f"00-{getrandbits(128) or 1:032x}-{getrandbits(64) or 1:016x}-00"
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: str, tracestate: str = "") -> TraceContext | None:
    """The context in a `traceparent`; None if it is malformed, as W3C demands: the trace then starts anew. Each span
    and each further call of the trace would carry a long `tracestate` on: it is dropped."""
    match = _TRACEPARENT(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, suffix = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (suffix and version == "00"):
        return None
    vendors = tracestate if len(tracestate) <= MAX_TRACESTATE else ""
    return TraceContext(trace_id, span_id, flags == "01" or bool(int(flags, 16) & 1), vendors)


UNSAMPLED: Final = TraceContext("", "", False)
"""A trace that begins here and is not recorded. It gets an id only when a call carries it on."""


def trace_of_metadata(traceparent: str | bytes | None, tracestate: str | bytes | None) -> TraceContext | None:
    """The trace in a call's metadata; None without one, or if it is malformed."""
    if not isinstance(traceparent, str):
        return None
    return parse_traceparent(traceparent, tracestate if isinstance(tracestate, str) else "")


def trace_metadata(trace: TraceContext | None) -> tuple[tuple[str, str], ...]:
    """The metadata of an outgoing call that belongs to `trace`."""
    if trace is None:
        return ()
    if trace.tracestate:
        return ((TRACEPARENT, trace.traceparent()), (TRACESTATE, trace.tracestate))
    return ((TRACEPARENT, trace.traceparent()),)
