"""A blocking resource lives on its own thread, behind a bounded queue."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
from onelane.clock import SystemClock
from onelane.errors import DeadlinePassed, Draining, Overloaded
from onelane.offload import Offload
from onelane.scope import Work, current
from onelane.spans import Sampler, SpanRecord
from onelane.telemetry import Tracer

ALWAYS = Sampler(parent_based=True, ratio=1.0)


class Resource:
    """Knows which threads touched it, and waits where it is told to."""

    def __init__(self) -> None:
        self.threads = {threading.current_thread()}
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


@pytest.fixture
def tracer() -> Tracer:
    return Tracer(shard="s", sampler=ALWAYS, clock=SystemClock(), rng=Random(1))


@pytest.fixture
async def helper(tracer: Tracer) -> AsyncIterator[tuple[Offload[Resource], Resource]]:
    resource: list[Resource] = []

    def make() -> Resource:
        resource.append(Resource())
        return resource[0]

    offload = Offload(make, name="r", capacity=3, tracer=tracer)
    await offload.wait_ready()
    yield offload, resource[0]
    resource[0].gate.set()
    await offload.aclose()


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


async def test_a_thread_bound_driver_works(tracer: Tracer) -> None:
    offload = Offload(lambda: sqlite3.connect(":memory:"), name="db", capacity=9, tracer=tracer)
    assert await offload.run(lambda c: c.execute("select 1").fetchone()) == (1,)
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
    token = current.set(Work("m", time.monotonic() + 0.05))
    with pytest.raises(DeadlinePassed, match="offload r was busy"):
        await offload.run(lambda r: r.work("late"))
    current.reset(token)
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


async def test_closing_runs_what_is_queued_and_takes_nothing_new(tracer: Tracer) -> None:
    resource = Resource()
    offload = Offload(lambda: resource, name="r", capacity=9, tracer=tracer)
    jobs = [asyncio.ensure_future(offload.run(lambda r: r.work("queued"))) for _ in range(5)]
    await asyncio.sleep(0)
    await offload.aclose()
    assert await asyncio.gather(*jobs) == ["queued"] * 5
    assert resource.closed
    with pytest.raises(Draining, match="offload r is closed"):
        await offload.run(lambda r: r.work("x"))


async def test_a_factory_that_fails_is_told_before_any_job(tracer: Tracer) -> None:
    def fail() -> Any:
        raise OSError("no such database")

    offload = Offload(fail, name="r", capacity=1, tracer=tracer)
    with pytest.raises(OSError, match="no such database"):
        await offload.wait_ready()
    await offload.aclose()


async def test_each_job_is_a_span_that_shows_its_wait(
    helper: tuple[Offload[Resource], Resource], tracer: Tracer
) -> None:
    offload, _ = helper
    await offload.run(lambda r: r.work("a"))
    (span,) = tracer.take()
    assert isinstance(span, SpanRecord)
    assert (span.name, span.kind) == ("offload r", "INTERNAL")
    assert float(span.attributes["onelane.offload.wait_ms"]) >= 0
