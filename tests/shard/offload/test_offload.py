"""A blocking resource lives on its own thread, behind a bounded queue."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onelane.config import App
from onelane.core.clock import SystemClock
from onelane.core.context import TaskContext, current_call_var
from onelane.core.deadlines import Deadlines
from onelane.errors import BadService, DeadlinePassed, Draining, Overloaded
from onelane.shard.offload import pool
from onelane.shard.offload.offload import Offload
from onelane.shard.offload.thread import Job, JobQueue
from onelane.shard.shard import Shard
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.testing.clock import ManualClock

SAID: ContextVar[str] = ContextVar("said", default="nothing")
ALWAYS = Sampler(parent_based=True, ratio=1.0)


class Resource:
    """Knows which threads touched it, and waits where it is told to."""

    def __init__(self) -> None:
        self.threads = {threading.current_thread()}
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.done: list[str] = []
        self.closed = False

    def work(self, name: str) -> str:
        self.threads.add(threading.current_thread())
        self.done.append(name)
        return name

    def wait(self) -> None:
        self.gate.wait(10)

    def close(self) -> None:
        self.threads.add(threading.current_thread())
        self.closed = True


def counted(stats: Stats) -> dict[str, Any]:
    """What was counted since the last time, by the instrument's name."""
    return {point.instrument.name: point.value for point in stats.take()}


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """The code inside is part of a call that must end by then."""
    token = current_call_var.set(TaskContext("m", time.monotonic() + seconds))
    try:
        yield
    finally:
        current_call_var.reset(token)


@pytest.fixture
def tracer() -> Tracer:
    return Tracer(shard="s", sampler=ALWAYS, clock=SystemClock(), rng=Random(1))


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
async def helper(tracer: Tracer, stats: Stats) -> AsyncIterator[tuple[Offload[Resource], Resource]]:
    resource: list[Resource] = []

    def make() -> Resource:
        resource.append(Resource())
        return resource[0]

    offload = Offload(make, name="r", capacity=3, tracer=tracer, stats=stats)
    await offload.wait_ready()
    yield offload, resource[0]
    resource[0].gate.set()
    await offload.aclose()


async def test_a_job_sees_what_its_asker_has_set_and_what_it_sets_ends_with_it(
    helper: tuple[Offload[Resource], Resource],
) -> None:
    offload, _ = helper

    def look(_: Resource) -> str:
        seen = SAID.get()
        SAID.set("by a job")
        return seen

    token = SAID.set("by the asker")
    assert [await offload.run(look) for _ in range(2)] == ["by the asker"] * 2
    assert SAID.get() == "by the asker"
    SAID.reset(token)
    assert await offload.run(look) == "nothing"


class Resources:
    """Makes resources and remembers them."""

    def __init__(self) -> None:
        self.made: list[Resource] = []
        self.offload: Offload[Resource] | None = None
        """Whose first worker thread alone is to be replaced, however slowly this machine runs the second."""

    def __call__(self) -> Resource:
        if self.made and self.offload is not None:
            self.offload._replace_after_s = 3600.0
        self.made.append(Resource())
        return self.made[-1]


@pytest.fixture
async def resources() -> AsyncIterator[Resources]:
    made = Resources()
    yield made
    for resource in made.made:
        resource.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - threads set no asyncio event
            await asyncio.sleep(0.001)


def hang(resource: Resource) -> None:
    resource.begun.set() or resource.gate.wait(30)  # type: ignore[func-returns-value] # one line, where it hangs


def deadlines_by_hand(offload: Offload[Resource]) -> ManualClock:
    """The clock that deadlines of jobs follow from now on."""
    clock = ManualClock(time.monotonic())
    offload._deadlines = Deadlines(clock.now, lambda seconds, fire: clock.call_at(clock.now() + seconds, fire))
    return clock


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    """What the log has of one kind; a helper that another test left behind may log at any time."""
    return [record for record in caplog.records if record.getMessage().startswith(f"offload.{event} name=r ")]


HANGS_AT = f"{__file__}:{hang.__code__.co_firstlineno + 1}:hang"


def work(name: str) -> Callable[[Resource], str]:
    return lambda resource: resource.work(name)


async def test_results_and_exceptions_come_back_to_the_lane(helper: tuple[Offload[Resource], Resource]) -> None:
    offload, _ = helper
    assert await offload.run(lambda r: r.work("a")) == "a"
    with pytest.raises(ZeroDivisionError):
        await offload.run(lambda r: 1 / 0)


async def test_jobs_run_in_order_on_one_thread_that_made_the_resource(
    helper: tuple[Offload[Resource], Resource],
) -> None:
    offload, resource = helper
    for start in range(0, 12, 3):
        jobs: list[Callable[[Resource], str]] = [lambda r, n=n: r.work(str(n)) for n in range(start, start + 3)]  # type: ignore[misc]
        await asyncio.gather(*(offload.run(job) for job in jobs))
    await offload.aclose()
    assert resource.done == [str(n) for n in range(12)]
    assert resource.closed
    assert len(resource.threads) == 1
    assert threading.current_thread() not in resource.threads


async def test_a_thread_bound_driver_works(tracer: Tracer, stats: Stats) -> None:
    """sqlite3 raises where any thread but its connection's maker uses or closes it."""

    def insert(n: int) -> Callable[[sqlite3.Connection], int]:
        return lambda c: c.execute("insert into t values (?)", (n,)).rowcount

    offload = Offload(lambda: sqlite3.connect(":memory:"), name="db", capacity=99, tracer=tracer, stats=stats)
    await offload.run(lambda c: c.execute("create table t (n integer)"))
    await asyncio.gather(*(offload.run(insert(n)) for n in range(50)))
    assert await offload.run(lambda c: c.execute("select n from t order by rowid").fetchall()) == [
        (n,) for n in range(50)
    ]
    await offload.aclose()


async def test_each_thread_of_a_pool_has_its_own_thread_bound_driver(
    tracer: Tracer, stats: Stats, tmp_path: Path
) -> None:
    file = tmp_path / "pool.db"
    meet = threading.Barrier(3)

    def seen(connection: sqlite3.Connection) -> tuple[int, int]:
        meet.wait(10)  # all three run at once
        (count,) = connection.execute("select count(*) from sqlite_master").fetchone()
        return threading.get_ident(), count

    offload = Offload(lambda: sqlite3.connect(file), name="db", capacity=9, tracer=tracer, stats=stats, pool=3)
    await offload.wait_ready()
    found = await asyncio.gather(*(offload.run(seen) for _ in range(3)))
    assert len({thread for thread, _ in found}) == 3
    assert {count for _, count in found} == {0}
    await offload.aclose()


async def test_a_full_queue_refuses_at_once(helper: tuple[Offload[Resource], Resource]) -> None:
    offload, resource = helper
    waiting = [asyncio.ensure_future(offload.run(lambda r: r.wait())) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="offload r is full: 3 waiting already"):
        await offload.run(lambda r: r.work("x"))
    resource.gate.set()
    await asyncio.gather(*waiting)


async def test_the_deadline_of_the_call_frees_the_waiting_side(helper: tuple[Offload[Resource], Resource]) -> None:
    offload, resource = helper
    holding = asyncio.ensure_future(offload.run(lambda r: r.wait()))
    await asyncio.sleep(0)
    with deadline(0.02), pytest.raises(DeadlinePassed, match="offload r was busy"):
        await offload.run(lambda r: r.work("late"))
    resource.gate.set()
    await holding
    assert await offload.run(lambda r: r.work("next")) == "next"
    assert resource.done == ["next"]


async def test_a_cancelled_job_that_has_not_begun_never_runs(helper: tuple[Offload[Resource], Resource]) -> None:
    offload, resource = helper
    holding = asyncio.ensure_future(offload.run(lambda r: r.wait()))
    gone = asyncio.ensure_future(offload.run(lambda r: r.work("gone")))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    resource.gate.set()
    await holding
    await offload.run(lambda r: r.work("next"))
    assert resource.done == ["next"]
    assert offload.waiting == 0


async def test_closing_runs_what_is_queued_and_takes_nothing_new(tracer: Tracer, stats: Stats) -> None:
    resource = Resource()
    offload = Offload(lambda: resource, name="r", capacity=9, tracer=tracer, stats=stats)
    jobs = [asyncio.ensure_future(offload.run(lambda r: r.work("queued"))) for _ in range(5)]
    await asyncio.sleep(0)
    await offload.aclose()
    assert await asyncio.gather(*jobs) == ["queued"] * 5
    assert resource.closed
    with pytest.raises(Draining, match="offload r is closed"):
        await offload.run(lambda r: r.work("x"))


async def test_a_factory_that_fails_is_told_before_any_job(tracer: Tracer, stats: Stats) -> None:
    def fail() -> Any:
        raise OSError("no such database")

    offload = Offload(fail, name="r", capacity=1, tracer=tracer, stats=stats)
    with pytest.raises(OSError, match="no such database"):
        await offload.wait_ready()
    await offload.aclose()


async def test_each_job_is_a_span_that_shows_how_long_it_waited_and_ran(
    helper: tuple[Offload[Resource], Resource], tracer: Tracer
) -> None:
    offload, _ = helper
    await offload.run(lambda r: r.work("a"))
    (span,) = tracer.take()
    assert isinstance(span, SpanRecord)
    assert (span.name, span.kind, span.error) == ("offload r", "INTERNAL", "")
    assert span.attributes is not None
    assert float(span.attributes["onelane.offload.wait_ms"]) >= 0
    assert float(span.attributes["onelane.offload.run_ms"]) >= 0


async def test_depth_wait_run_time_and_refusals_are_counted(
    helper: tuple[Offload[Resource], Resource], stats: Stats
) -> None:
    offload, resource = helper
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


async def test_a_job_whose_deadline_has_passed_already_is_not_queued(
    helper: tuple[Offload[Resource], Resource],
) -> None:
    offload, resource = helper
    with deadline(-1), pytest.raises(DeadlinePassed, match="before offload r was asked"):
        await offload.run(lambda r: r.work("late"))
    await offload.run(lambda r: r.work("next"))
    assert resource.done == ["next"]


async def test_a_job_that_raises_what_no_future_carries_fails_like_any_other(
    helper: tuple[Offload[Resource], Resource],
) -> None:
    offload, _ = helper
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await offload.run(lambda r: next(iter(())))
    assert await offload.run(lambda r: r.work("next")) == "next"


async def test_a_job_that_outlives_its_deadline_is_told_with_the_line_where_it_hangs(
    helper: tuple[Offload[Resource], Resource],
    stats: Stats,
    tracer: Tracer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    offload, resource = helper
    clock = deadlines_by_hand(offload)
    with deadline(60):
        job = asyncio.ensure_future(offload.run(hang))
    await until(resource.begun.is_set)
    clock.advance(61)
    with pytest.raises(DeadlinePassed, match="offload r was busy"):
        await job
    (record,) = told(caplog, "hung")
    assert record.levelno == logging.WARNING
    assert HANGS_AT in record.getMessage()
    assert counted(stats)["onelane.offload.hung"] == 1
    (span,) = tracer.take()
    assert span.error == "DeadlinePassed"
    assert span.attributes is not None
    assert HANGS_AT in span.attributes["onelane.offload.hangs_at"]
    resource.gate.set()
    await offload.run(lambda r: r.work("next"))
    assert [span.error for span in tracer.take()] == [""]


async def test_a_job_is_told_to_hang_where_its_caller_was_cancelled_before(
    helper: tuple[Offload[Resource], Resource], stats: Stats
) -> None:
    """A lane cancels a call at its deadline, which may be a moment before the job's own."""
    offload, resource = helper
    clock = deadlines_by_hand(offload)
    with deadline(60):
        job = asyncio.ensure_future(offload.run(hang))
    await until(resource.begun.is_set)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    clock.advance(61)
    assert counted(stats)["onelane.offload.hung"] == 1


async def test_what_a_late_job_waited_for_is_told(
    helper: tuple[Offload[Resource], Resource], stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that hangs may have no deadline of its own."""
    offload, resource = helper
    holding = asyncio.ensure_future(offload.run(hang))
    await until(resource.begun.is_set)
    with deadline(0.02), pytest.raises(DeadlinePassed):
        await offload.run(lambda r: r.work("late"))
    (record,) = told(caplog, "late")
    assert HANGS_AT in record.getMessage()
    assert "onelane.offload.hung" not in counted(stats)
    resource.gate.set()
    await holding


async def test_the_log_tells_of_a_hanging_helper_once(
    helper: tuple[Offload[Resource], Resource], caplog: pytest.LogCaptureFixture
) -> None:
    offload, resource = helper
    clock = deadlines_by_hand(offload)
    with deadline(60):
        late = [asyncio.ensure_future(offload.run(hang)) for _ in range(3)]
    await until(resource.begun.is_set)
    clock.advance(61)
    found = await asyncio.gather(*late, return_exceptions=True)
    assert [type(error) for error in found] == [DeadlinePassed] * 3
    assert len(told(caplog, "hung") + told(caplog, "late")) == 1


async def test_a_helper_that_hangs_is_replaced_and_the_new_one_takes_the_queue_over_in_order(
    resources: Resources, tracer: Tracer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    offload = Offload(resources, name="r", capacity=99, tracer=tracer, stats=stats, replace_after_s=0.05)
    resources.offload = offload
    hanging = asyncio.ensure_future(offload.run(hang))
    jobs = [asyncio.ensure_future(offload.run(work(str(n)))) for n in range(20)]
    with pytest.raises(DeadlinePassed, match="offload r gave the job up after"):
        await hanging
    assert await asyncio.gather(*jobs) == [str(n) for n in range(20)]
    old, new = resources.made
    assert (old.done, new.done) == ([], [str(n) for n in range(20)])
    assert not old.threads & new.threads
    assert counted(stats)["onelane.offload.replaced"] == 1
    assert len(told(caplog, "replaced")) == 1
    assert (offload.left_behind, offload.waiting) == (1, 0)
    await offload.aclose()
    assert new.closed


async def test_what_a_replaced_helper_finishes_is_dropped_and_its_resource_closed_on_its_thread(
    resources: Resources, tracer: Tracer, stats: Stats
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, replace_after_s=0.02)
    resources.offload = offload
    with pytest.raises(DeadlinePassed):
        await offload.run(hang)
    old = resources.made[0]
    old.gate.set()
    await until(lambda: offload.left_behind == 0)
    assert old.closed
    assert len(old.threads) == 1
    assert offload.waiting == 0
    assert await offload.run(lambda r: r.work("next")) == "next"
    assert old.done == []
    await offload.aclose()


async def test_a_bounded_number_of_helpers_is_left_behind(
    resources: Resources, tracer: Tracer, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_LEFT_BEHIND", 2)
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, replace_after_s=0.01)
    for _ in range(2):
        with pytest.raises(DeadlinePassed, match="gave the job up"):
            await offload.run(hang)
    with deadline(0.1), pytest.raises(DeadlinePassed, match="was busy"):
        await offload.run(hang)
    assert (offload.left_behind, len(resources.made)) == (2, 3)
    resources.made[0].gate.set()
    await until(lambda: len(resources.made) == 4)
    assert await offload.run(lambda r: r.work("next")) == "next"
    for resource in resources.made:
        resource.gate.set()
    await offload.aclose()


async def test_a_new_resource_that_cannot_be_made_is_tried_again(
    resources: Resources, tracer: Tracer, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RETRY_S", 0.01)
    faults = iter([False, True, True, False])

    def make() -> Resource:
        if next(faults):
            raise OSError("the server is away")
        return resources()

    offload = Offload(make, name="r", capacity=9, tracer=tracer, stats=stats, replace_after_s=0.02)
    resources.offload = offload
    hanging = asyncio.ensure_future(offload.run(hang))
    after = asyncio.ensure_future(offload.run(lambda r: r.work("after")))
    with pytest.raises(DeadlinePassed):
        await hanging
    assert await after == "after"
    assert [resource.done for resource in resources.made] == [[], ["after"]]
    await offload.aclose()


async def test_closing_leaves_a_helper_behind_for_whose_job_nobody_waits(
    resources: Resources, tracer: Tracer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, close_s=0.02)
    await offload.wait_ready()
    hanging = asyncio.ensure_future(offload.run(hang))
    await until(lambda: bool(offload.running))
    behind = asyncio.ensure_future(offload.run(lambda r: r.work("behind")))
    await asyncio.sleep(0)
    hanging.cancel()
    async with asyncio.timeout(10):
        await offload.aclose()
    with pytest.raises(Draining, match="offload r is closed"):
        await behind
    assert len(told(caplog, "left_behind")) == 1


async def test_closing_leaves_a_helper_behind_that_hangs_in_closing_its_resource(
    resources: Resources, tracer: Tracer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, close=hang, close_s=0.05)
    assert await offload.run(work("a")) == "a"
    async with asyncio.timeout(10):
        await offload.aclose()
    (record,) = told(caplog, "left_behind")
    assert HANGS_AT in record.getMessage()


async def test_closing_waits_for_a_job_while_somebody_waits_for_it(
    resources: Resources, tracer: Tracer, stats: Stats
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, close_s=0.01)
    await offload.wait_ready()
    slow = asyncio.ensure_future(offload.run(hang))
    await until(lambda: bool(offload.running))
    closing = asyncio.ensure_future(offload.aclose())
    done, _ = await asyncio.wait([closing], timeout=0.1)
    assert not done
    resources.made[0].gate.set()
    await closing
    await slow
    assert resources.made[0].closed


async def test_a_side_that_is_awake_is_not_woken_again() -> None:
    """However many jobs there are."""
    queue = JobQueue()
    loop = asyncio.get_running_loop()
    jobs = [Job(lambda _: None, loop.create_future(), 0.0, lambda _: None) for _ in range(100)]
    for job in jobs:
        queue.put(job)
        queue.finish(job)
    assert queue.wakeup.wait() == b"!"
    assert len(queue.done) == len(queue.jobs) == 100
    queue.wakeup.close()


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

    def ran_one(number: int) -> Callable[[list[int]], int]:
        def one(seen: list[int]) -> int:
            seen.append(number)
            return number

        return one

    for number, step in enumerate(steps):
        if step == "job":
            had = offload.waiting
            job = asyncio.ensure_future(offload.run(ran_one(number)))
            await asyncio.sleep(0)
            if job.done() and isinstance(job.exception(), Overloaded):
                assert had == capacity
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
