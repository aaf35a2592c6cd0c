"""A worker thread makes, uses and closes one resource, and wakes its lane only while the lane sleeps."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from onelane.shard.offload.offload import Offload
from onelane.shard.offload.thread import Job, JobQueue, WakeupPipe, WorkerThread
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

from tests.shard.offload.parts import HANGS_AT, Resource, Resources, hang, job_of, until, work

VALUE: ContextVar[str] = ContextVar("value", default="default")


class Callbacks:
    """See `PoolCallbacks`: remembers how each thread started and that it ended."""

    def __init__(self) -> None:
        self.started_with: list[BaseException | None] = []
        self.ended_threads = 0

    def started(self, worker: WorkerThread[Any], error: BaseException | None) -> None:
        self.started_with.append(error)

    def ended(self, worker: WorkerThread[Any]) -> None:
        self.ended_threads += 1


def test_a_pipe_that_was_written_several_times_wakes_its_reader_once() -> None:
    pipe = WakeupPipe()
    for _ in range(3):
        pipe.wake()
    assert pipe.wait() == b"!!!"
    pipe.close()


async def test_a_thread_reports_its_start_and_its_end(resources: Resources) -> None:
    queue, callbacks = JobQueue(), Callbacks()
    WorkerThread("r", queue, callbacks, resources, None)
    await until(lambda: callbacks.started_with == [None])
    assert callbacks.ended_threads == 0
    queue.close()
    await until(lambda: callbacks.ended_threads == 1)
    assert resources.all[0].closed


async def test_a_thread_whose_factory_fails_reports_the_error_and_ends() -> None:
    error, queue, callbacks = OSError("no such database"), JobQueue(), Callbacks()

    def fail() -> Resource:
        raise error

    WorkerThread("r", queue, callbacks, fail, None)
    await until(lambda: callbacks.started_with == [error])
    assert callbacks.ended_threads == 0


async def test_a_job_whose_caller_was_cancelled_is_handed_back_without_having_run(resources: Resources) -> None:
    queue, callbacks = JobQueue(), Callbacks()
    job = job_of(work("never"))
    job.future.cancel()
    queue.put(job)
    WorkerThread("r", queue, callbacks, resources, None)
    await until(lambda: job in queue.done)
    assert (job.began_at, resources.all[0].done) == (0.0, [])
    queue.close()


async def test_a_thread_shows_the_line_that_its_job_is_at_and_none_between_jobs(resources: Resources) -> None:
    queue = JobQueue()
    thread = WorkerThread("r", queue, Callbacks(), resources, None)
    job = job_of(hang)
    queue.put(job)
    await until(lambda: HANGS_AT in thread.stack())
    resources.all[0].gate.set()
    await until(lambda: job in queue.done and bool(queue.idle))
    assert thread.stack() == ""
    queue.close()


async def test_a_thread_that_was_left_behind_ends_after_its_job_and_keeps_the_result(resources: Resources) -> None:
    queue, callbacks = JobQueue(), Callbacks()
    WorkerThread("r", queue, callbacks, resources, None)
    job = job_of(hang)
    queue.put(job)
    await until(lambda: job in queue.running)
    del queue.running[job]
    resources.all[0].gate.set()
    await until(lambda: callbacks.ended_threads == 1)
    assert list(queue.done) == []
    assert resources.all[0].closed


async def test_a_close_that_raises_is_logged_and_the_thread_ends(
    resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    queue, callbacks = JobQueue(), Callbacks()

    def fail(resource: Resource) -> None:
        raise OSError("cannot close")

    WorkerThread("r", queue, callbacks, resources, fail)
    queue.close()
    await until(lambda: callbacks.ended_threads == 1)
    assert "offload.close_failed name=r" in caplog.text


async def test_jobs_run_in_order_on_one_thread_that_made_the_resource(
    offload_and_resource: tuple[Offload[Resource], Resource],
) -> None:
    offload, resource = offload_and_resource
    for start in range(0, 12, 3):
        jobs: list[Callable[[Resource], str]] = [lambda r, n=n: r.work(str(n)) for n in range(start, start + 3)]  # type: ignore[misc]
        await asyncio.gather(*(offload.run(job) for job in jobs))
    await offload.aclose()
    assert resource.done == [str(n) for n in range(12)]
    assert resource.closed
    assert len(resource.threads) == 1
    assert threading.current_thread() not in resource.threads


async def test_a_thread_bound_driver_works(tracer: Tracer, stats: Stats) -> None:
    """A sqlite3 connection raises if a thread other than its maker uses or closes it."""

    def insert(n: int) -> Callable[[sqlite3.Connection], int]:
        return lambda c: c.execute("insert into t values (?)", (n,)).rowcount

    offload = Offload(lambda: sqlite3.connect(":memory:"), name="db", capacity=99, tracer=tracer, stats=stats)
    await offload.run(lambda c: c.execute("create table t (n integer)"))
    await asyncio.gather(*(offload.run(insert(n)) for n in range(50)))
    assert await offload.run(lambda c: c.execute("select n from t order by rowid").fetchall()) == [
        (n,) for n in range(50)
    ]
    await offload.aclose()


async def test_a_job_runs_in_a_copy_of_the_context_of_its_caller(
    offload_and_resource: tuple[Offload[Resource], Resource],
) -> None:
    offload, _ = offload_and_resource

    def look(_: Resource) -> str:
        seen = VALUE.get()
        VALUE.set("set by a job")
        return seen

    token = VALUE.set("set by the caller")
    assert [await offload.run(look) for _ in range(2)] == ["set by the caller"] * 2
    assert VALUE.get() == "set by the caller"
    VALUE.reset(token)
    assert await offload.run(look) == "default"


async def test_a_job_that_raises_stop_iteration_fails_with_a_runtime_error(
    offload_and_resource: tuple[Offload[Resource], Resource],
) -> None:
    offload, _ = offload_and_resource
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await offload.run(lambda r: next(iter(())))
    assert await offload.run(work("next")) == "next"


async def test_a_lane_that_is_awake_is_not_woken_again() -> None:
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
