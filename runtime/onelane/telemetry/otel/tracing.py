"""OpenTelemetry's trace API inside handlers: the current span is the call's, and spans made by the API join its trace.

A call whose handler does not use the API costs nothing here: `otel/context` derives the API's context from the call in
progress on demand, and keeps an attached one in `onelane.core.context.attached_context`.
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
"""Limit of one span, as in OpenTelemetry's specification; further attributes are dropped."""
_BAGGAGE = W3CBaggagePropagator()
_KIND_NAMES = {kind: kind.name for kind in SpanKind}


def attach(context: Context) -> AttachedContext:
    """A context that OpenTelemetry's API attaches, with the trace and the baggage that outgoing calls read."""
    headers: dict[str, str] = {}
    if baggage.get_all(context):
        _BAGGAGE.inject(headers, context)
    return AttachedContext(context, _trace_context_of(trace.get_current_span(context)), headers.get("baggage", ""))


def with_current_span(attached: AttachedContext, span: SpanRecord) -> AttachedContext:
    """`attached` with `span` as the current span."""
    context = trace.set_span_in_context(LaneSpan(span, None), attached.context)
    return replace(attached, context=context, trace=span.context)


def context_of_call(call: CallContext) -> Context:
    """OpenTelemetry's context of a call: its span and its baggage."""
    context = _BAGGAGE.extract({"baggage": call.baggage}, Context()) if call.baggage else Context()
    return trace.set_span_in_context(LaneSpan(call.span, None), context)


class LaneSpan(trace.Span):
    """A span of a lane as a span of OpenTelemetry's API. The lane ends the span of a call."""

    def __init__(self, span: Span, tracer: Tracer | None) -> None:
        """tracer: ends the span; None for the span of a call."""
        self._span = span
        self._record = span if isinstance(span, SpanRecord) else None
        self._tracer = tracer

    @property
    def trace_context(self) -> TraceContext | None:
        """The trace context that calls made inside the span carry."""
        return context_of(self._span)

    def get_span_context(self) -> SpanContext:
        context = self.trace_context
        if context is None or not context.trace_id:
            return trace.INVALID_SPAN_CONTEXT
        flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
        state = TraceState.from_header([context.tracestate]) if context.tracestate else TraceState()
        return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), False, flags, state)

    def is_recording(self) -> bool:
        return self._open_record() is not None

    def _open_record(self) -> SpanRecord | None:
        """The record, or None where the span is not recorded or has ended."""
        return self._record if self._record is not None and not self._record.end_ns else None

    def set_attribute(self, key: str, value: Any) -> None:
        """Set one attribute; None is ignored, as in the SDK."""
        record = self._open_record()
        if record is None or value is None:
            return
        name, attributes = as_text(key), record.attributes or {}
        if name in attributes or len(attributes) < MAX_ATTRIBUTES:
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
        """Add a link; an invalid context is ignored, as in the SDK."""
        if (record := self._open_record()) is not None and context is not None and context.is_valid:
            record.add_link(_from_span_context(context), _attribute_values(attributes))

    def update_name(self, name: str) -> None:
        if (record := self._open_record()) is not None:
            if self._tracer is None:
                # The span of a call: its name is the method, which must not be lost.
                record.set_attribute(METHOD, record.name)
            record.name = as_text(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        record = self._open_record()
        if record is None or record.is_ok:
            return
        code, text = (status.status_code, status.description) if isinstance(status, Status) else (status, description)
        record.is_ok = code is StatusCode.OK
        if code is StatusCode.ERROR:
            record.error = as_text(text or "error")

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        exception_attributes = {
            "exception.type": type(exception).__qualname__,
            "exception.message": exception,
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
        }
        self.add_event("exception", exception_attributes | dict(attributes or {}), timestamp)

    def end(self, end_time: int | None = None) -> None:
        if self._tracer is not None and (record := self._open_record()) is not None:
            self._tracer.end(record, at_ns=end_time and int(end_time))

    def __exit__(self, kind: Any, error: BaseException | None, trace_: Any) -> None:
        if error is not None and self.is_recording():
            self.record_exception(error)
            self.set_status(StatusCode.ERROR, f"{type(error).__qualname__}: {error}")
        self.end()


class LaneTracer(trace.Tracer):
    """Starts spans of the lane whose code uses it; outside any lane they record nothing."""

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
        binding = bound_shard()
        if binding is None:
            return LaneSpan(parent, None)
        record = binding.tracer.start(as_text(name), _KIND_NAMES[kind], parent)
        span = LaneSpan(record, binding.tracer)
        if attributes:
            span.set_attributes(attributes)
        for link in links or ():
            span.add_link(link.context, link.attributes)
        if start_time is not None and isinstance(record, SpanRecord):
            record.start_ns = int(start_time)
        return span

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
        ) as current:
            yield current


class LaneTracerProvider(trace.TracerProvider):
    """OpenTelemetry's tracer provider in a process with lanes."""

    def get_tracer(self, *_: Any, **__: Any) -> LaneTracer:
        return LaneTracer()


_is_tracer_provider_set = False


def install() -> None:
    """Set `LaneTracerProvider` as OpenTelemetry's provider; further calls do nothing."""
    global _is_tracer_provider_set
    if not _is_tracer_provider_set:
        _is_tracer_provider_set = True
        trace.set_tracer_provider(LaneTracerProvider())


def _trace_context_of(span: trace.Span) -> TraceContext | None:
    """The trace context of any span of the API."""
    if isinstance(span, LaneSpan):
        return span.trace_context
    context = span.get_span_context()
    return _from_span_context(context) if context.is_valid else None


def _from_span_context(context: SpanContext) -> TraceContext:
    return TraceContext(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        context.trace_flags.sampled,
        context.trace_state.to_header(),
    )


def _attribute_values(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {as_text(name): attribute_value(value) for name, value in attributes.items()} if attributes else {}
