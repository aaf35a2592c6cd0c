"""Time is an object that a test holds; deadlines never grow."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from onelane.core.context import sooner
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.tracer import Tracer
from onelane.testing.clock import ManualClock


def test_a_span_takes_its_time_from_the_clock() -> None:
    clock = ManualClock(now=5.0)
    tracer = Tracer(shard="s", sampler=Sampler(parent_based=False, ratio=1.0), clock=clock, rng=Random(1))
    span = tracer.start("x", "SERVER", None)
    clock.advance(1.5)
    tracer.end(span)
    (record,) = tracer.take()
    assert (record.start_ns, record.end_ns) == (5_000_000_000, 6_500_000_000)


moments = st.none() | st.floats(0, 100)


@given(moments, moments)
def test_the_sooner_of_two_never_grows(a: float | None, b: float | None) -> None:
    chosen = sooner(a, b)
    for one in (a, b):
        assert one is None or (chosen is not None and chosen <= one)
