"""What telemetry costs a lane, beside OpenTelemetry's SDK: spans, counts and points, moved out as each tick does.

The SDK's spans are made and ended and go nowhere; ours are made, ended, moved and packed.
"""

import gc
import timeit
from collections.abc import Callable
from random import Random

from onelane.core.clock import SystemClock
from onelane.shard.lifecycle import GC_THRESHOLDS
from onelane.telemetry.sampling import sampler_of
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

SPAN, UNSAMPLED, SDK_SPAN, SDK_UNSAMPLED = "a sampled span", "an unsampled call", "SDK: a span", "SDK: an unsampled one"
COUNT, POINT, SDK_COUNT, SDK_POINT = "a count", "a histogram's point", "SDK: a count", "SDK: a histogram's point"
TICK = 500
"""Calls between two ticks: what a lane that takes 5,000 a second has."""
TICKS = 20
NAME = "echo.v1.Echo/Unary"
ATTRIBUTES = {"rpc.system.name": "grpc", "rpc.method": NAME, "rpc.response.status_code": "OK"}


def costs_us() -> dict[str, float]:
    """Microseconds of each, by the name of its row."""
    before = gc.get_threshold()
    # As in a shard.
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return {name: _best_us(make()) for name, make in MEASURED.items()}
    finally:
        gc.set_threshold(*before)


def _best_us(tick: Callable[[], object]) -> float:
    return min(timeit.repeat(tick, number=TICKS, repeat=41)) / TICKS / TICK * 1e6


def _spans(ratio: str) -> Callable[[], object]:
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio})
    tracer = Tracer(shard="echo-0", sampler=sampler, clock=SystemClock(), rng=Random(1))

    def tick() -> list[bytes]:
        for _ in range(TICK):
            span = tracer.start(NAME, "SERVER", None, remote=True)
            # As a lane does it.
            if isinstance(span, SpanRecord):
                tracer.end_call(span, status="OK", hop="direct", server=True)
        return tracer.take_packed()

    return tick


class _Nowhere(SpanProcessor):
    """Takes what the SDK has ended."""


def _sdk_spans(ratio: float) -> Callable[[], object]:
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)))
    provider.add_span_processor(_Nowhere())
    tracer = provider.get_tracer("bench")

    def tick() -> None:
        for _ in range(TICK):
            tracer.start_span(NAME, attributes=ATTRIBUTES).end()

    return tick


def _count() -> Callable[[], object]:
    stats = Stats()
    add = stats.counter("calls").at(ATTRIBUTES).add

    def tick() -> object:
        for _ in range(TICK):
            add()
        return stats.take()

    return tick


def _point() -> Callable[[], object]:
    stats = Stats()
    record = stats.histogram("duration").at(ATTRIBUTES).record
    rng = Random(1)
    values = [rng.lognormvariate(-8, 1) for _ in range(TICK)]

    def tick() -> object:
        for value in values:
            record(value)
        return stats.take()

    return tick


def _sdk_count() -> Callable[[], object]:
    add = MeterProvider([InMemoryMetricReader()]).get_meter("bench").create_counter("calls").add

    def tick() -> None:
        for _ in range(TICK):
            add(1, ATTRIBUTES)

    return tick


def _sdk_point() -> Callable[[], object]:
    record = MeterProvider([InMemoryMetricReader()]).get_meter("bench").create_histogram("duration").record

    def tick() -> None:
        for _ in range(TICK):
            record(0.001, ATTRIBUTES)

    return tick


MEASURED: dict[str, Callable[[], Callable[[], object]]] = {
    SPAN: lambda: _spans("1.0"),
    UNSAMPLED: lambda: _spans("0.0"),
    SDK_SPAN: lambda: _sdk_spans(1.0),
    SDK_UNSAMPLED: lambda: _sdk_spans(0.0),
    COUNT: _count,
    POINT: _point,
    SDK_COUNT: _sdk_count,
    SDK_POINT: _sdk_point,
}
