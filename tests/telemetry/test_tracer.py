"""A tracer starts spans in the trace of their parent, samples roots, and buffers ended spans for the tick."""

from random import Random

import pytest
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.telemetry.sampling import DEFAULT_TRACES_PER_S, RATE_LIMITED, Sampler, sampler_of
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.tracer import Tracer
from onelane.testing.clock import ManualClock
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased


def tracer(sampler: Sampler, *, records_all: bool = False, clock: ManualClock | None = None) -> Tracer:
    return Tracer(shard="a-0", sampler=sampler, clock=clock or ManualClock(), rng=Random(1), records_all=records_all)


def test_a_span_that_is_not_sampled_hands_its_parent_on() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)
    assert tracer(sampler_of({})).start("x", "SERVER", parent) is parent


def test_a_child_stays_in_its_trace_with_an_id_of_its_own() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    made = tracer(sampler_of({})).start("x", "SERVER", parent)
    assert isinstance(made, SpanRecord)
    assert (made.context.trace_id, made.parent_id) == (parent.trace_id, parent.span_id)
    assert made.context.tracestate == "vendor=1"
    assert made.context.span_id != parent.span_id


@pytest.mark.parametrize("parent_based", [True, False])
def test_what_begins_in_a_call_that_was_not_sampled_is_not_either(parent_based: bool) -> None:
    assert tracer(Sampler(parent_based, 0.5)).start("inner", "CLIENT", UNSAMPLED) is UNSAMPLED


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_roots_are_sampled_as_the_sdk_would_sample_their_ids(ratio: float) -> None:
    ours, sdk = tracer(Sampler(True, ratio), records_all=True), TraceIdRatioBased(ratio)
    for _ in range(300):
        made = ours.start("x", "SERVER", None)
        assert isinstance(made, SpanRecord)
        decided = sdk.should_sample(None, int(made.trace_id, 16), "x").decision
        assert made.sampled is decided.is_sampled()  # type: ignore[no-untyped-call]
        assert (len(made.trace_id), len(made.span_id), made.parent_id) == (32, 16, "")


def test_where_nobody_has_said_some_traces_of_a_second_are_recorded() -> None:
    clock = ManualClock()
    ours = tracer(sampler_of({"OTEL_TRACES_SAMPLER": RATE_LIMITED}), clock=clock)

    def recorded() -> int:
        return sum(isinstance(ours.start("x", "SERVER", None), SpanRecord) for _ in range(100))

    assert recorded() == DEFAULT_TRACES_PER_S
    clock.advance(0.5)
    ours.take()
    assert recorded() == DEFAULT_TRACES_PER_S / 2
