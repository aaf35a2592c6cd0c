"""Run a blocking library on worker threads of its own, behind one bounded queue of jobs.

Promises: a resource is made, used and closed on its thread alone; with one thread, jobs run one at a time in the order
of their arrival; a full queue refuses new jobs at once; a deadline or a cancellation frees the caller at once, and a
job that has not begun by then never runs. A job that outlives its deadline is counted and logged with the line where
it hangs.
Leaves out: stopping a job that has begun. Python cannot. With `replace_after_s` its thread is left behind, and another
with a new resource takes over the queue; the result of the old job is dropped, but its side effects may still happen.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Generic, TypeVar

from onelane.core.context import current_call, current_trace
from onelane.core.deadlines import Deadlines
from onelane.errors import DeadlinePassed, Draining, Overloaded
from onelane.shard.offload.pool import ThreadPool
from onelane.shard.offload.thread import Job, JobQueue
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

log = logging.getLogger("onelane.offload")
R = TypeVar("R")
T = TypeVar("T")

CLOSE_S = 5.0
"""Seconds that `aclose` waits for threads that finish no job."""
LOG_EVERY_S = 10.0
"""Seconds in which at most one hanging job is logged."""


class _OffloadMetrics:
    """The metrics of one offload."""

    def __init__(self, stats: Stats, name: str) -> None:
        attributes = {"onelane.offload": name}
        wait = stats.histogram("onelane.offload.wait", unit="s", description="How long jobs waited for a helper")
        duration = stats.histogram("onelane.offload.duration", unit="s", description="How long jobs ran")
        hung = stats.counter("onelane.offload.hung", unit="{job}", description="Jobs that outlived their deadline")
        replaced = stats.counter("onelane.offload.replaced", unit="{thread}", description="Helpers that were replaced")
        refused = stats.counter("onelane.offload.refused", unit="{job}", description="Jobs that found the queue full")
        self.wait, self.duration = wait.at(attributes), duration.at(attributes)
        self.hung, self.replaced, self.refused = hung.at(attributes), replaced.at(attributes), refused.at(attributes)


class Offload(Generic[R]):
    """A blocking resource on its worker thread, or `pool` of them. Owned by the lane that made it."""

    def __init__(
        self,
        factory: Callable[[], R],
        *,
        name: str,
        capacity: int,
        tracer: Tracer,
        stats: Stats,
        close: Callable[[R], None] | None = None,
        pool: int = 1,
        replace_after_s: float | None = None,
        close_s: float = CLOSE_S,
    ) -> None:
        """See `onelane.shard.shard.Shard.offload`.

        Raises:
            ValueError: a number is out of its range.
        """
        if pool < 1 or capacity < 1 or (replace_after_s is not None and replace_after_s <= 0):
            raise ValueError(
                f"offload {name}: expected pool and capacity of 1 or more, and replace_after_s above 0 or None; "
                f"seen pool={pool}, capacity={capacity}, replace_after_s={replace_after_s}"
            )
        self.name = name
        self.waiting = 0
        """Jobs queued or running. At most `capacity`."""
        self._capacity = capacity
        self._replace_after_s = replace_after_s
        self._close_s = close_s
        self._tracer = tracer
        self._metrics = _OffloadMetrics(stats, name)
        depth = stats.gauge("onelane.queue.depth", unit="{job}", description="Jobs queued or running")
        depth.observe(lambda: self.waiting, {"onelane.offload": name})
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(monotonic, self._loop.call_later)
        self._queue = JobQueue()
        self._loop.add_reader(self._queue.wakeup.fd, self._deliver)
        self._threads = ThreadPool(name, self._queue, factory, close, size=pool)
        self._watch: asyncio.TimerHandle | None = None
        self._finished_jobs = 0
        self._is_shut = False
        self._logged: Job | None = None
        self._logged_at = -LOG_EVERY_S

    @property
    def running(self) -> int:
        """Jobs that have begun. At most `pool`."""
        return len(self._queue.running)

    @property
    def left_behind(self) -> int:
        """Worker threads that were replaced and still hang."""
        return self._threads.left_behind

    async def wait_ready(self) -> None:
        """Wait until every worker thread has made its resource; raises what the factory raised."""
        await asyncio.shield(self._threads.ready)

    async def run(self, work: Callable[[R], T]) -> T:
        """Run `work(resource)` on a worker thread and return its result.

        Raises:
            Overloaded: `capacity` jobs are waiting already.
            DeadlinePassed: the call's deadline came first, or the job ran longer than `replace_after_s`.
            Draining: the offload is closed.
        """
        if self._queue.is_closing:
            raise Draining(f"offload {self.name} is closed")
        if self.waiting >= self._capacity:
            self._metrics.refused.add()
            raise Overloaded(f"offload {self.name}", waiting=self.waiting)
        now = monotonic()
        caller = current_call()
        deadline_at = caller.deadline_at if caller else None
        if deadline_at is not None and deadline_at <= now:
            raise DeadlinePassed(f"the deadline passed before offload {self.name} was called")
        job = Job(work, self._loop.create_future(), now, self._on_deadline)
        if deadline_at is not None:
            job.slot = self._deadlines.add(deadline_at, job)
        if not self._tracer.idle:
            span = self._tracer.start(f"offload {self.name}", "INTERNAL", current_trace())
            job.span = span if isinstance(span, SpanRecord) else None
        self.waiting += 1
        self._queue.put(job)
        if self._replace_after_s is not None and self._watch is None:
            self._check_after(self._replace_after_s)
        result: T = await job.future
        return result

    async def aclose(self) -> None:
        """Run the queued jobs, close the resources, end the threads. New jobs are refused from now on.

        A thread that hangs is left behind after `close_s`, unless a caller still awaits its job.
        """
        self._threads.close()
        while not self._threads.all_ended.done():
            finished_before = self._finished_jobs
            await asyncio.wait([self._threads.all_ended], timeout=self._close_s)
            is_awaited = any(not job.future.done() for job in list(self._queue.running))
            if not self._threads.all_ended.done() and self._finished_jobs == finished_before and not is_awaited:
                for job in self._threads.leave_all():
                    self._finish(job, Draining(f"offload {self.name} is closed"))
        if not self._is_shut:
            self._is_shut = True
            self._shut()

    def _shut(self) -> None:
        self._collect()
        # Jobs that are still queued: every thread has been left behind.
        while self._queue.jobs:
            self._finish(self._queue.jobs.popleft(), Draining(f"offload {self.name} is closed"))
        if self._watch is not None:
            self._watch.cancel()
        self._loop.remove_reader(self._queue.wakeup.fd)
        if not self._threads.left_behind:
            # A thread that was left behind may still write to the pipe; only without one can it be closed.
            self._queue.wakeup.close()

    # Finished jobs

    def _deliver(self) -> None:
        self._queue.wakeup.wait()
        self._collect()

    def _collect(self) -> None:
        queue = self._queue
        queue.is_woken = False
        while queue.done:
            job = queue.done.popleft()
            self._finish(job, job.error)

    def _finish(self, job: Job, error: BaseException | None, hangs_at: str = "") -> None:
        self.waiting -= 1
        self._finished_jobs += 1
        if job.slot is not None:
            self._deadlines.remove(job.slot, job)
        if job.began_at:
            self._metrics.wait.record(job.began_at - job.queued_at)
            self._metrics.duration.record((job.ended_at or monotonic()) - job.began_at)
        if job.span is not None:
            self._end_span(job.span, job, error, hangs_at)
        # The traceback of `error` refers to frames that refer to the job: break the reference cycle.
        result, job.result, job.error = job.result, None, None
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    # Jobs that hang

    def _on_deadline(self, job: Job) -> None:
        """The deadline of a job has passed before it finished."""
        job.slot = None
        error = DeadlinePassed(f"the deadline passed while offload {self.name} was busy")
        if not job.future.done():
            job.future.set_exception(error)
        worker = self._queue.running.get(job)
        if worker is not None:
            self._metrics.hung.add()
            self._log("offload.hung", job)
        else:
            oldest = min(list(self._queue.running), key=lambda job: job.began_at, default=None)
            self._log("offload.late", oldest)
        if job.span is not None:
            self._end_span(job.span, job, error, worker.stack() if worker else "")

    def _check(self) -> None:
        """Replace threads whose job has run for `replace_after_s`; check again while jobs are queued or running."""
        limit = self._replace_after_s
        assert limit is not None
        now = monotonic()
        for job in [job for job in list(self._queue.running) if now - job.began_at >= limit]:
            self._replace(job, now - job.began_at)
        self._watch = None
        if self.waiting:
            oldest = min((job.began_at for job in list(self._queue.running)), default=now)
            self._check_after(max(oldest + limit - now, limit / 10))

    def _check_after(self, seconds: float) -> None:
        # In an empty context: with a copy of this one, the timer would keep the call that queued the job alive.
        self._watch = self._loop.call_later(seconds, self._check, context=Context())

    def _replace(self, job: Job, ran_s: float) -> None:
        hangs_at = self._threads.replace(job)
        if hangs_at is None:
            self._log("offload.not_replaced", job)
            return
        self._metrics.replaced.add()
        self._finish(job, DeadlinePassed(f"offload {self.name} gave up a job that had run for {ran_s:.1f} s"), hangs_at)

    def _log(self, event: str, job: Job | None) -> None:
        """Log the line where a job hangs, at most once for each job and once in LOG_EVERY_S."""
        now = monotonic()
        worker = self._queue.running.get(job) if job is not None else None
        if job is None or worker is None or job is self._logged or now - self._logged_at < LOG_EVERY_S:
            return
        self._logged, self._logged_at = job, now
        ran_s = now - job.began_at
        log.warning("%s name=%s ran_s=%.3f waiting=%d at=%s", event, self.name, ran_s, self.waiting, worker.stack())

    def _end_span(self, span: SpanRecord, job: Job, error: BaseException | None, hangs_at: str) -> None:
        job.span = None
        now = monotonic()
        began_at = job.began_at or now
        attributes = {
            "onelane.offload": self.name,
            "onelane.offload.wait_ms": f"{(began_at - job.queued_at) * 1e3:.3f}",
        }
        if job.began_at:
            attributes["onelane.offload.run_ms"] = f"{((job.ended_at or now) - began_at) * 1e3:.3f}"
        if hangs_at:
            attributes["onelane.offload.hangs_at"] = hangs_at
        self._tracer.end(span, error="" if error is None else type(error).__qualname__, attributes=attributes)
