"""Samplers decide as OpenTelemetry's SDK does, by the same variables."""

from random import Random

import pytest
from onelane.core.trace_context import TraceContext
from onelane.telemetry.sampling import sampler_of
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
def test_the_ratio_sampler_decides_as_the_sdk_does(ratio: float) -> None:
    rng, sdk = Random(1), TraceIdRatioBased(ratio)
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)})
    for _ in range(500):
        trace_id = rng.getrandbits(128)
        is_sampled = sampler.samples(f"{trace_id:032x}", None)
        assert is_sampled is sdk.should_sample(None, trace_id, "x").decision.is_sampled()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("name", "parent_sampled", "sampled"),
    [
        ("parentbased_always_off", True, True),
        ("parentbased_always_on", False, False),
        ("always_on", False, True),
        ("always_off", True, False),
    ],
)
def test_a_parent_decides_for_parent_based_samplers(name: str, parent_sampled: bool, sampled: bool) -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", parent_sampled)
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": name})
    assert sampler.samples(parent.trace_id, parent) is sampled


def test_an_unknown_sampler_falls_back_to_the_default() -> None:
    assert sampler_of({"OTEL_TRACES_SAMPLER": "jaeger_remote"}) == sampler_of({})
    assert sampler_of({"OTEL_TRACES_SAMPLER": "parentbased_nope"}) == sampler_of({})
