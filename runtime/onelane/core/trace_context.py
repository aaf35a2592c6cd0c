"""W3C trace context: what a call carries of its trace.

Source: W3C Trace Context level 1.
"""

import re
from random import getrandbits
from typing import NamedTuple

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""The metadata that carry a trace."""
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


UNSAMPLED = TraceContext("", "", False)
"""A trace that begins here and is not recorded; it gets an id only where it is handed on."""


def trace_of_metadata(traceparent: str | bytes | None, tracestate: str | bytes | None) -> TraceContext | None:
    """The trace that a call's metadata carry; None where they carry none that is well formed."""
    if not isinstance(traceparent, str):
        return None
    return parse_traceparent(traceparent, tracestate if isinstance(tracestate, str) else "")


def trace_metadata(trace: TraceContext | None) -> tuple[tuple[str, str], ...]:
    """The metadata that carry `trace` to the server of a call."""
    if trace is None:
        return ()
    if trace.tracestate:
        return ((TRACEPARENT, trace.traceparent()), (TRACESTATE, trace.tracestate))
    return ((TRACEPARENT, trace.traceparent()),)
