"""OpenTelemetry's trace API inside handlers: the current span is the call's, and spans made by the API join its trace.

Nothing here runs for a call whose handler does not ask: the API's context is looked up in the call in progress when it
is asked for (`context`), and what the API attaches is kept beside it (`onelane.core.context.attached_context`).
Leaves out: spans that outlive their shard.
"""

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from onelane.core.context import AttachedContext, CallContext, bound_shard, current_trace
from onelane.core.trace_context import TraceContext
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.tracer import METHOD, Span, Tracer, context_of
from onelane.telemetry.values import as_text, attribute_value

MAX_ATTRIBUTES = 128
"""Of one span, as in OpenTelemetry's specification; what is over that is dropped."""
_BAGGAGE = W3CBaggagePropagator()
_KIND_NAMES = {kind: kind.name for kind in SpanKind}


def attach(context: Context) -> AttachedContext:
    """What is kept of a context that OpenTelemetry's API attaches."""
    carried: dict[str, str] = {}
    if baggage.get_all(context):
        _BAGGAGE.inject(carried, context)
    return AttachedContext(context, _trace_context_of(trace.get_current_span(context)), carried.get("baggage", ""))


def with_current_span(found: AttachedContext, span: SpanRecord) -> AttachedContext:
    """The same, with `span` as the current one."""
    return replace(found, context=trace.set_span_in_context(LaneSpan(span, None), found.context), trace=span.context)


def context_of_call(call: CallContext) -> Context:
    """What the call in progress amounts to, in OpenTelemetry's terms."""
    made = _BAGGAGE.extract({"baggage": call.baggage}, Context()) if call.baggage else Context()
    return trace.set_span_in_context(LaneSpan(call.span, None), made)


class LaneSpan(trace.Span):
    """A span of a lane as OpenTelemetry's API sees it. Of the call's own, the lane says when it ends."""

    def __init__(self, span: Span, tracer: Tracer | None) -> None:
        """tracer: ends it; None for the call's own."""
        self._span = span
        self._record = span if isinstance(span, SpanRecord) else None
        self._tracer = tracer

    @property
    def trace_context(self) -> TraceContext | None:
        """What calls made inside carry."""
        return context_of(self._span)

    def get_span_context(self) -> SpanContext:
        found = self.trace_context
        if found is None or not found.trace_id:
            return trace.INVALID_SPAN_CONTEXT
        flags = TraceFlags(TraceFlags.SAMPLED if found.sampled else TraceFlags.DEFAULT)
        state = TraceState.from_header([found.tracestate]) if found.tracestate else TraceState()
        return SpanContext(int(found.trace_id, 16), int(found.span_id, 16), False, flags, state)

    def is_recording(self) -> bool:
        return self._open_record() is not None

    def _open_record(self) -> SpanRecord | None:
        """Its record, as long as it may be changed."""
        return self._record if self._record is not None and not self._record.end_ns else None

    def set_attribute(self, key: str, value: Any) -> None:
        """None says nothing, as in the SDK."""
        record = self._open_record()
        if record is None or value is None:
            return
        name, there = as_text(key), record.attributes or {}
        if name in there or len(there) < MAX_ATTRIBUTES:
            record.set_attribute(name, attribute_value(value))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        if (record := self._open_record()) is not None:
            record.add_event(
                as_text(name), _attribute_values(attributes), time.time_ns() if timestamp is None else int(timestamp)
            )

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """What is no valid context is ignored, as in the SDK."""
        if (record := self._open_record()) is not None and context is not None and context.is_valid:
            record.add_link(_from_span_context(context), _attribute_values(attributes))

    def update_name(self, name: str) -> None:
        if (record := self._open_record()) is not None:
            if self._tracer is None:
                # The call's own, whose method is told by its name.
                record.set_attribute(METHOD, record.name)
            record.name = as_text(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        record = self._open_record()
        if record is None or record.is_ok:
            return
        code, words = (status.status_code, status.description) if isinstance(status, Status) else (status, description)
        record.is_ok = code is StatusCode.OK
        if code is StatusCode.ERROR:
            record.error = as_text(words or "error")

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        told = {
            "exception.type": type(exception).__qualname__,
            "exception.message": exception,
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
        }
        self.add_event("exception", told | dict(attributes or {}), timestamp)

    def end(self, end_time: int | None = None) -> None:
        if self._tracer is not None and (record := self._open_record()) is not None:
            self._tracer.end(record, at_ns=end_time and int(end_time))

    def __exit__(self, kind: Any, error: BaseException | None, trace_: Any) -> None:
        if error is not None and self.is_recording():
            self.record_exception(error)
            self.set_status(StatusCode.ERROR, f"{type(error).__qualname__}: {error}")
        self.end()


class LaneTracer(trace.Tracer):
    """Makes spans of the lane whose code asks; outside of any, spans that record nothing."""

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> LaneSpan:
        parent = current_trace() if context is None else _trace_context_of(trace.get_current_span(context))
        home = bound_shard()
        if home is None:
            return LaneSpan(parent, None)
        span = home.tracer.start(as_text(name), _KIND_NAMES[kind], parent)
        made = LaneSpan(span, home.tracer)
        if attributes:
            made.set_attributes(attributes)
        for link in links or ():
            made.add_link(link.context, link.attributes)
        if start_time is not None and isinstance(span, SpanRecord):
            span.start_ns = int(start_time)
        return made

    @contextmanager
    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[trace.Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(
            span,
            end_on_exit=end_on_exit,
            record_exception=record_exception,
            set_status_on_exception=set_status_on_exception,
        ) as made:
            yield made


class LaneTracerProvider(trace.TracerProvider):
    """OpenTelemetry's provider in a process of lanes."""

    def get_tracer(self, *_: Any, **__: Any) -> LaneTracer:
        return LaneTracer()


_is_tracer_provider_set = False


def install() -> None:
    """Make OpenTelemetry's trace API speak of this process's lanes; once is enough."""
    global _is_tracer_provider_set
    if not _is_tracer_provider_set:
        _is_tracer_provider_set = True
        trace.set_tracer_provider(LaneTracerProvider())


def _trace_context_of(span: trace.Span) -> TraceContext | None:
    """The trace of any span of the API's."""
    if isinstance(span, LaneSpan):
        return span.trace_context
    found = span.get_span_context()
    return _from_span_context(found) if found.is_valid else None


def _from_span_context(found: SpanContext) -> TraceContext:
    return TraceContext(
        f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled, found.trace_state.to_header()
    )


def _attribute_values(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {as_text(name): attribute_value(value) for name, value in attributes.items()} if attributes else {}
