"""Blocking work runs on worker threads behind a bounded queue; the lane never waits for it, and hanging jobs show."""

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onelane.config import App
from onelane.core.clock import SystemClock
from onelane.errors import BadService, DeadlinePassed, Draining, Overloaded
from onelane.shard.offload.offload import Offload
from onelane.shard.shard import Shard
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

from tests.bounds import BOUND_S
from tests.shard.offload.parts import (
    HANGS_AT,
    Resource,
    Resources,
    counted,
    deadline,
    deadlines_by_hand,
    hang,
    logged,
    until,
    work,
)


async def test_results_and_exceptions_come_back_to_the_lane(
    offload_and_resource: tuple[Offload[Resource], Resource],
) -> None:
    offload, _ = offload_and_resource
    assert await offload.run(work("a")) == "a"
    with pytest.raises(ZeroDivisionError):
        await offload.run(lambda r: 1 / 0)


async def test_a_full_queue_refuses_at_once(offload_and_resource: tuple[Offload[Resource], Resource]) -> None:
    offload, resource = offload_and_resource
    waiting = [asyncio.ensure_future(offload.run(hang)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="offload r is full: 3 waiting already"):
        await offload.run(work("x"))
    resource.gate.set()
    await asyncio.gather(*waiting)


async def test_the_deadline_of_a_call_frees_the_call(offload_and_resource: tuple[Offload[Resource], Resource]) -> None:
    offload, resource = offload_and_resource
    holding = asyncio.ensure_future(offload.run(hang))
    await asyncio.sleep(0)
    with deadline(0.02), pytest.raises(DeadlinePassed, match="offload r was busy"):
        await offload.run(work("late"))
    resource.gate.set()
    await holding
    assert await offload.run(work("next")) == "next"
    assert resource.done == ["next"]


async def test_a_job_whose_deadline_has_passed_already_is_not_queued(
    offload_and_resource: tuple[Offload[Resource], Resource],
) -> None:
    offload, resource = offload_and_resource
    with deadline(-1), pytest.raises(DeadlinePassed, match="before offload r was called"):
        await offload.run(work("late"))
    await offload.run(work("next"))
    assert resource.done == ["next"]


async def test_a_cancelled_job_that_has_not_begun_never_runs(
    offload_and_resource: tuple[Offload[Resource], Resource],
) -> None:
    offload, resource = offload_and_resource
    holding = asyncio.ensure_future(offload.run(hang))
    cancelled = asyncio.ensure_future(offload.run(work("cancelled")))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    resource.gate.set()
    await holding
    await offload.run(work("next"))
    assert resource.done == ["next"]
    assert offload.waiting == 0


async def test_closing_runs_the_queued_jobs_and_refuses_new_ones(tracer: Tracer, stats: Stats) -> None:
    resource = Resource()
    offload = Offload(lambda: resource, name="r", capacity=9, tracer=tracer, stats=stats)
    jobs = [asyncio.ensure_future(offload.run(work("queued"))) for _ in range(5)]
    await asyncio.sleep(0)
    await offload.aclose()
    assert await asyncio.gather(*jobs) == ["queued"] * 5
    assert resource.closed
    with pytest.raises(Draining, match="offload r is closed"):
        await offload.run(work("x"))


async def test_wait_ready_raises_the_error_of_the_factory(tracer: Tracer, stats: Stats) -> None:
    def fail() -> Any:
        raise OSError("no such database")

    offload = Offload(fail, name="r", capacity=1, tracer=tracer, stats=stats)
    with pytest.raises(OSError, match="no such database"):
        await offload.wait_ready()
    await offload.aclose()


async def test_each_job_is_a_span_that_shows_how_long_it_waited_and_ran(
    offload_and_resource: tuple[Offload[Resource], Resource], tracer: Tracer
) -> None:
    offload, _ = offload_and_resource
    await offload.run(work("a"))
    (span,) = tracer.take()
    assert isinstance(span, SpanRecord)
    assert (span.name, span.kind, span.error) == ("offload r", "INTERNAL", "")
    assert span.attributes is not None
    assert float(span.attributes["onelane.offload.wait_ms"]) >= 0
    assert float(span.attributes["onelane.offload.run_ms"]) >= 0


async def test_depth_wait_run_time_and_refusals_are_counted(
    offload_and_resource: tuple[Offload[Resource], Resource], stats: Stats
) -> None:
    offload, resource = offload_and_resource
    waiting = [asyncio.ensure_future(offload.run(hang)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await offload.run(hang)
    before = counted(stats)
    assert (before["onelane.queue.depth"], before["onelane.offload.refused"]) == (3, 1)
    resource.gate.set()
    await asyncio.gather(*waiting)
    after = counted(stats)
    assert after["onelane.queue.depth"] == 0
    for name in ("onelane.offload.wait", "onelane.offload.duration"):
        assert isinstance(after[name], Buckets)
        assert after[name].count == 3


async def test_a_job_that_outlives_its_deadline_is_logged_and_traced_with_the_line_where_it_hangs(
    offload_and_resource: tuple[Offload[Resource], Resource],
    stats: Stats,
    tracer: Tracer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    offload, resource = offload_and_resource
    clock = deadlines_by_hand(offload)
    with deadline(60):
        job = asyncio.ensure_future(offload.run(hang))
    await until(resource.begun.is_set)
    clock.advance(61)
    with pytest.raises(DeadlinePassed, match="offload r was busy"):
        await job
    (record,) = logged(caplog, "hung")
    assert record.levelno == logging.WARNING
    assert HANGS_AT in record.getMessage()
    assert counted(stats)["onelane.offload.hung"] == 1
    (span,) = tracer.take()
    assert span.error == "DeadlinePassed"
    assert span.attributes is not None
    assert HANGS_AT in span.attributes["onelane.offload.hangs_at"]
    resource.gate.set()
    await offload.run(work("next"))
    assert [span.error for span in tracer.take()] == [""]


async def test_a_job_counts_as_hung_though_its_caller_was_cancelled_before_the_deadline(
    offload_and_resource: tuple[Offload[Resource], Resource], stats: Stats
) -> None:
    """A lane cancels a call at its deadline, which may be a moment before the job's own."""
    offload, resource = offload_and_resource
    clock = deadlines_by_hand(offload)
    with deadline(60):
        job = asyncio.ensure_future(offload.run(hang))
    await until(resource.begun.is_set)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    clock.advance(61)
    assert counted(stats)["onelane.offload.hung"] == 1


async def test_a_late_job_logs_the_job_that_it_waited_for(
    offload_and_resource: tuple[Offload[Resource], Resource], stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    """The job that hangs may have no deadline of its own."""
    offload, resource = offload_and_resource
    holding = asyncio.ensure_future(offload.run(hang))
    await until(resource.begun.is_set)
    with deadline(0.02), pytest.raises(DeadlinePassed):
        await offload.run(work("late"))
    (record,) = logged(caplog, "late")
    assert HANGS_AT in record.getMessage()
    assert "onelane.offload.hung" not in counted(stats)
    resource.gate.set()
    await holding


async def test_a_hanging_thread_is_logged_once(
    offload_and_resource: tuple[Offload[Resource], Resource], caplog: pytest.LogCaptureFixture
) -> None:
    offload, resource = offload_and_resource
    clock = deadlines_by_hand(offload)
    with deadline(60):
        late = [asyncio.ensure_future(offload.run(hang)) for _ in range(3)]
    await until(resource.begun.is_set)
    clock.advance(61)
    errors = await asyncio.gather(*late, return_exceptions=True)
    assert [type(error) for error in errors] == [DeadlinePassed] * 3
    assert len(logged(caplog, "hung") + logged(caplog, "late")) == 1


async def test_closing_leaves_a_thread_behind_if_no_caller_awaits_its_job(
    resources: Resources, tracer: Tracer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, close_s=0.02)
    await offload.wait_ready()
    hanging = asyncio.ensure_future(offload.run(hang))
    await until(lambda: bool(offload.running))
    queued = asyncio.ensure_future(offload.run(work("queued")))
    await asyncio.sleep(0)
    hanging.cancel()
    async with asyncio.timeout(BOUND_S):
        await offload.aclose()
    with pytest.raises(Draining, match="offload r is closed"):
        await queued
    assert len(logged(caplog, "left_behind")) == 1


async def test_closing_leaves_a_thread_behind_that_hangs_in_closing_its_resource(
    resources: Resources, tracer: Tracer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, close=hang, close_s=0.05)
    assert await offload.run(work("a")) == "a"
    async with asyncio.timeout(BOUND_S):
        await offload.aclose()
    (record,) = logged(caplog, "left_behind")
    assert HANGS_AT in record.getMessage()


async def test_closing_waits_for_a_job_that_a_caller_awaits(resources: Resources, tracer: Tracer, stats: Stats) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, close_s=0.01)
    await offload.wait_ready()
    slow = asyncio.ensure_future(offload.run(hang))
    await until(lambda: bool(offload.running))
    closing = asyncio.ensure_future(offload.aclose())
    done, _ = await asyncio.wait([closing], timeout=0.1)
    assert not done
    resources.all[0].gate.set()
    await closing
    await slow
    assert resources.all[0].closed


async def test_two_offloads_of_a_shard_have_two_names(tracer: Tracer, stats: Stats) -> None:
    app = App(services=("m:S",), listen="127.0.0.1:0")
    shard = Shard(app="a", name="a-0", index=0, settings=app, peers={}, stats=stats, tracer=tracer)
    shard.offload(object, name="db")
    with pytest.raises(BadService, match="two offloads of a-0 are called 'db'"):
        shard.offload(object, name="db")
    with pytest.raises(ValueError, match="seen pool=0"):
        shard.offload(object, pool=0)
    await shard.aclose()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["job", "job", "job", "turn", "wait", "cancel"]), max_size=60),
    pool=st.integers(1, 3),
    capacity=st.integers(1, 8),
)
def test_no_job_is_lost_run_twice_or_out_of_order_and_the_queue_keeps_its_bound(
    steps: list[str], pool: int, capacity: int
) -> None:
    asyncio.run(_stress(steps, pool, capacity))


async def _stress(steps: list[str], pool: int, capacity: int) -> None:
    ran: list[int] = []  # an append is atomic
    accepted: list[tuple[int, asyncio.Future[int]]] = []
    tracer = Tracer(shard="s", clock=SystemClock(), rng=Random(1))
    offload = Offload(lambda: ran, name="r", capacity=capacity, tracer=tracer, stats=Stats(), pool=pool)

    def append(number: int) -> Callable[[list[int]], int]:
        def job(seen: list[int]) -> int:
            seen.append(number)
            return number

        return job

    for number, step in enumerate(steps):
        if step == "job":
            waiting = offload.waiting
            job = asyncio.ensure_future(offload.run(append(number)))
            await asyncio.sleep(0)
            if job.done() and isinstance(job.exception(), Overloaded):
                assert waiting == capacity
            else:
                accepted.append((number, job))
        elif step == "turn":
            await asyncio.sleep(0)
        elif accepted and step == "wait":
            await asyncio.wait([accepted[-1][1]])
        elif accepted:
            accepted[-1][1].cancel()
        assert offload.waiting <= capacity
    await offload.aclose()
    results = await asyncio.gather(*(job for _, job in accepted), return_exceptions=True)
    assert len(set(ran)) == len(ran)
    assert pool > 1 or ran == sorted(ran)
    for (number, _), result in zip(accepted, results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            continue
        assert result == number
        assert number in ran
    assert offload.waiting == 0
