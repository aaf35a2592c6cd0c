"""A pool starts its threads, calls a failed factory again, replaces threads that hang, and ends when all have ended."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest
from onelane.errors import DeadlinePassed
from onelane.shard.offload import pool
from onelane.shard.offload.offload import Offload
from onelane.shard.offload.pool import ThreadPool
from onelane.shard.offload.thread import JobQueue
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

from tests.bounds import BOUND_S
from tests.shard.offload.parts import (
    HANGS_AT,
    Resource,
    Resources,
    counted,
    deadline,
    hang,
    job_of,
    logged,
    until,
    work,
)


async def test_a_pool_is_ready_once_every_thread_has_made_its_resource(resources: Resources) -> None:
    gates = iter([threading.Event(), threading.Event()])
    waiting: list[threading.Event] = []

    def make() -> Resource:
        gate = next(gates)
        waiting.append(gate)
        gate.wait(10)
        return resources()

    threads = ThreadPool("r", JobQueue(), make, None, size=2)
    await until(lambda: len(waiting) == 2)
    waiting[0].set()
    await until(lambda: threads._ready_count == 1)
    assert not threads.ready.done()
    waiting[1].set()
    await threads.ready
    threads.close()
    await threads.all_ended
    assert [resource.closed for resource in resources.all] == [True, True]


async def test_a_thread_that_is_replaced_says_where_it_hangs_and_is_counted_until_it_ends(resources: Resources) -> None:
    queue = JobQueue()
    threads = ThreadPool("r", queue, resources, None, size=1)
    job = job_of(hang)
    queue.put(job)
    await until(lambda: job in queue.running and HANGS_AT in queue.running[job].stack())
    assert HANGS_AT in (threads.replace(job) or "")
    assert (threads.left_behind, list(queue.running)) == (1, [])
    resources.all[0].gate.set()
    await until(lambda: threads.left_behind == 0)
    assert list(queue.done) == []
    threads.close()
    await threads.all_ended


async def test_a_thread_whose_job_has_just_ended_is_not_replaced(resources: Resources) -> None:
    queue = JobQueue()
    threads = ThreadPool("r", queue, resources, None, size=1)
    job = job_of(work("a"))
    queue.put(job)
    await until(lambda: job in queue.done)
    assert threads.replace(job) is None
    assert threads.left_behind == 0
    threads.close()
    await threads.all_ended


async def test_leaving_all_threads_behind_returns_the_jobs_that_they_were_running(resources: Resources) -> None:
    queue = JobQueue()
    threads = ThreadPool("r", queue, resources, None, size=2)
    await threads.ready
    job = job_of(hang)
    queue.put(job)
    await until(lambda: job in queue.running)
    threads.close()
    await until(lambda: len(threads._workers) == 1)  # the idle thread has ended
    assert threads.leave_all() == [job]
    assert (threads.left_behind, queue.running) == (1, {})
    await threads.all_ended


async def test_a_thread_that_hangs_is_replaced_and_the_new_thread_takes_over_the_queue_in_order(
    resources: Resources, tracer: Tracer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    offload = Offload(resources, name="r", capacity=99, tracer=tracer, stats=stats, replace_after_s=0.05)
    resources.offload = offload
    hanging = asyncio.ensure_future(offload.run(hang))
    jobs = [asyncio.ensure_future(offload.run(work(str(n)))) for n in range(20)]
    with pytest.raises(DeadlinePassed, match="offload r gave up a job that had run for"):
        await hanging
    assert await asyncio.gather(*jobs) == [str(n) for n in range(20)]
    old, new = resources.all
    assert (old.done, new.done) == ([], [str(n) for n in range(20)])
    assert not old.threads & new.threads
    assert counted(stats)["onelane.offload.replaced"] == 1
    assert len(logged(caplog, "replaced")) == 1
    assert (offload.left_behind, offload.waiting) == (1, 0)
    await offload.aclose()
    assert new.closed


async def test_the_result_of_a_replaced_thread_is_dropped_and_its_resource_closed_on_that_thread(
    resources: Resources, tracer: Tracer, stats: Stats
) -> None:
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, replace_after_s=0.02)
    resources.offload = offload
    with pytest.raises(DeadlinePassed):
        await offload.run(hang)
    old = resources.all[0]
    old.gate.set()
    await until(lambda: offload.left_behind == 0)
    assert old.closed
    assert len(old.threads) == 1
    assert offload.waiting == 0
    assert await offload.run(work("next")) == "next"
    assert old.done == []
    await offload.aclose()


async def test_a_bounded_number_of_threads_is_left_behind(
    resources: Resources, tracer: Tracer, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_LEFT_BEHIND", 2)
    offload = Offload(resources, name="r", capacity=9, tracer=tracer, stats=stats, replace_after_s=0.01)
    for _ in range(2):
        with pytest.raises(DeadlinePassed, match="gave up a job"):
            await offload.run(hang)
    with deadline(0.1), pytest.raises(DeadlinePassed, match="was busy"):
        await offload.run(hang)
    assert (offload.left_behind, len(resources.all)) == (2, 3)
    resources.all[0].gate.set()
    await until(lambda: len(resources.all) == 4)
    assert await offload.run(work("next")) == "next"
    for resource in resources.all:
        resource.gate.set()
    await offload.aclose()


async def test_a_factory_that_fails_is_called_again(
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
    after = asyncio.ensure_future(offload.run(work("after")))
    with pytest.raises(DeadlinePassed):
        await hanging
    assert await after == "after"
    assert [resource.done for resource in resources.all] == [[], ["after"]]
    await offload.aclose()


async def test_each_thread_of_a_pool_has_its_own_thread_bound_driver(
    tracer: Tracer, stats: Stats, tmp_path: Path
) -> None:
    file = tmp_path / "pool.db"
    meet = threading.Barrier(3)

    def seen(connection: sqlite3.Connection) -> tuple[int, int]:
        meet.wait(BOUND_S)  # all three run at once
        (count,) = connection.execute("select count(*) from sqlite_master").fetchone()
        return threading.get_ident(), count

    offload = Offload(lambda: sqlite3.connect(file), name="db", capacity=9, tracer=tracer, stats=stats, pool=3)
    await offload.wait_ready()
    results = await asyncio.gather(*(offload.run(seen) for _ in range(3)))
    assert len({thread for thread, _ in results}) == 3
    assert {count for _, count in results} == {0}
    await offload.aclose()
