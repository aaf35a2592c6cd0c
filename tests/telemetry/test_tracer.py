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


def test_an_unsampled_span_propagates_its_parent() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)
    assert tracer(sampler_of({})).start("x", "SERVER", parent) is parent


def test_a_child_stays_in_its_trace_with_an_id_of_its_own() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    child = tracer(sampler_of({})).start("x", "SERVER", parent)
    assert isinstance(child, SpanRecord)
    assert (child.context.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)
    assert child.context.tracestate == "vendor=1"
    assert child.context.span_id != parent.span_id


@pytest.mark.parametrize("parent_based", [True, False])
def test_a_child_of_an_unsampled_call_is_not_sampled(parent_based: bool) -> None:
    assert tracer(Sampler(parent_based, 0.5)).start("inner", "CLIENT", UNSAMPLED) is UNSAMPLED


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_roots_are_sampled_as_the_sdk_would_sample_their_ids(ratio: float) -> None:
    shard_tracer, sdk = tracer(Sampler(True, ratio), records_all=True), TraceIdRatioBased(ratio)
    for _ in range(300):
        root = shard_tracer.start("x", "SERVER", None)
        assert isinstance(root, SpanRecord)
        decided = sdk.should_sample(None, int(root.trace_id, 16), "x").decision
        assert root.sampled is decided.is_sampled()  # type: ignore[no-untyped-call]
        assert (len(root.trace_id), len(root.span_id), root.parent_id) == (32, 16, "")


def test_without_a_configured_sampler_some_traces_per_second_are_recorded() -> None:
    clock = ManualClock()
    shard_tracer = tracer(sampler_of({"OTEL_TRACES_SAMPLER": RATE_LIMITED}), clock=clock)

    def recorded() -> int:
        return sum(isinstance(shard_tracer.start("x", "SERVER", None), SpanRecord) for _ in range(100))

    assert recorded() == DEFAULT_TRACES_PER_S
    clock.advance(0.5)
    shard_tracer.take()
    assert recorded() == DEFAULT_TRACES_PER_S / 2
