"""Trace context and sampling, as W3C and OpenTelemetry write them."""

from random import Random

import pytest
from onelane.spans import UNSAMPLED, Sampler, SpanRecord, TraceContext, parse_traceparent, sampler_of, start_span
from onelane.testing.clock import ManualClock
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_is_read_and_written() -> None:
    context = parse_traceparent(PARENT, "vendor=1")
    assert context == TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    assert context.traceparent() == PARENT


@pytest.mark.parametrize(
    "text",
    ["", "00-0-0-0", PARENT.replace("00-", "ff-", 1), PARENT.upper(), f"00-{'0' * 32}-b7ad6b7169203331-01"],
)
def test_a_malformed_traceparent_is_no_parent(text: str) -> None:
    assert parse_traceparent(text) is None


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
def test_the_ratio_sampler_decides_as_the_sdk_does(ratio: float) -> None:
    rng, sdk = Random(1), TraceIdRatioBased(ratio)
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)})
    for _ in range(500):
        trace_id = rng.getrandbits(128)
        ours = sampler.decides(f"{trace_id:032x}", None)
        assert ours is sdk.should_sample(None, trace_id, "x").decision.is_sampled()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("name", "parent_sampled", "sampled"),
    [
        ("parentbased_always_off", True, True),
        ("parentbased_always_on", False, False),
        ("always_on", False, True),
        ("always_off", True, False),
    ],
)
def test_a_parent_decides_where_it_is_asked(name: str, parent_sampled: bool, sampled: bool) -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", parent_sampled)
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": name})
    assert sampler.decides(parent.trace_id, parent) is sampled


def test_a_span_that_is_not_sampled_hands_its_parent_on() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)
    sampler = sampler_of({})
    made = start_span("x", "SERVER", parent, sampler, Random(1), ManualClock())
    assert made is parent


def test_a_child_stays_in_its_trace_with_an_id_of_its_own() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    made = start_span("x", "SERVER", parent, sampler_of({}), Random(1), ManualClock())
    assert isinstance(made, SpanRecord)
    assert (made.context.trace_id, made.parent_id) == (parent.trace_id, parent.span_id)
    assert made.context.tracestate == "vendor=1"
    assert made.context.span_id != parent.span_id


@pytest.mark.parametrize("parent_based", [True, False])
def test_what_begins_in_a_call_that_was_not_sampled_is_not_either(parent_based: bool) -> None:
    sampler = Sampler(parent_based, 0.5)
    clock = ManualClock()
    assert start_span("inner", "CLIENT", UNSAMPLED, sampler, Random(1), clock) is UNSAMPLED
