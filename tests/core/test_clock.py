"""Time comes from a clock, which a test may hold."""

import time
from random import Random

from onelane.core.clock import SystemClock
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


def test_the_system_clock_is_this_machines() -> None:
    clock = SystemClock()
    assert clock.now() <= time.monotonic() <= clock.now()
    assert clock.wall_ns() <= time.time_ns() <= clock.wall_ns()
