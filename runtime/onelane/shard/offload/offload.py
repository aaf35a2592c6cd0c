"""A blocking library gets helper threads of its own behind one bounded queue: the lane puts, the threads take.

Promises: a resource is made, used and closed on its thread alone; with one helper, jobs run one at a time in the order
they came; a full queue refuses at once; a deadline or a cancellation frees the caller at once, and a job not begun then
never runs. A job that outlives its deadline is counted, and told with the line where it hangs.
Leaves out: stopping a job that has begun. Python cannot. With `replace_after_s` its helper is left behind, and another
with a new resource takes the queue over; what the old one returns is dropped, but what it does it may still do.
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
from onelane.shard.offload.pool import Crew
from onelane.shard.offload.thread import Desk, Job
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

log = logging.getLogger("onelane.offload")
R = TypeVar("R")
T = TypeVar("T")

CLOSE_S = 5.0
"""How long `aclose` waits for helpers that make no progress for anybody."""
TOLD_EVERY_S = 10.0
"""The log tells of no more than one job that hangs in this time."""


class _Cells:
    """What is counted of one offload."""

    def __init__(self, stats: Stats, name: str) -> None:
        of = {"onelane.offload": name}
        wait = stats.histogram("onelane.offload.wait", unit="s", description="How long jobs waited for a helper")
        duration = stats.histogram("onelane.offload.duration", unit="s", description="How long jobs ran")
        hung = stats.counter("onelane.offload.hung", unit="{job}", description="Jobs that outlived their deadline")
        replaced = stats.counter("onelane.offload.replaced", unit="{thread}", description="Helpers that were replaced")
        refused = stats.counter("onelane.offload.refused", unit="{job}", description="Jobs that found the queue full")
        self.wait, self.duration = wait.at(of), duration.at(of)
        self.hung, self.replaced, self.refused = hung.at(of), replaced.at(of), refused.at(of)


class Offload(Generic[R]):
    """A blocking resource on its helper thread, or `pool` of them. Owned by the lane that made it."""

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
        self._cells = _Cells(stats, name)
        depth = stats.gauge("onelane.queue.depth", unit="{job}", description="Jobs queued or running")
        depth.observe(lambda: self.waiting, {"onelane.offload": name})
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(monotonic, self._loop.call_later)
        self._desk = Desk()
        self._loop.add_reader(self._desk.bell.fd, self._deliver)
        self._crew = Crew(name, self._desk, factory, close, size=pool)
        self._watch: asyncio.TimerHandle | None = None
        self._settled = 0
        self._is_shut = False
        self._told: Job | None = None
        self._told_at = -TOLD_EVERY_S

    @property
    def running(self) -> int:
        """Jobs that have begun. At most `pool`."""
        return len(self._desk.running)

    @property
    def left_behind(self) -> int:
        """Helpers that were replaced and still hang."""
        return self._crew.left_behind

    async def wait_ready(self) -> None:
        """Wait until every helper has made its resource; raises what the factory raised."""
        await asyncio.shield(self._crew.ready)

    async def run(self, work: Callable[[R], T]) -> T:
        """Run `work(resource)` on a helper thread and return its result.

        Raises:
            Overloaded: `capacity` jobs are waiting already.
            DeadlinePassed: the call's deadline came first, or the job ran longer than `replace_after_s`.
            Draining: the offload is closed.
        """
        if self._desk.is_closing:
            raise Draining(f"offload {self.name} is closed")
        if self.waiting >= self._capacity:
            self._cells.refused.add()
            raise Overloaded(f"offload {self.name}", waiting=self.waiting)
        now = monotonic()
        scope = current_call()
        deadline_at = scope.deadline_at if scope else None
        if deadline_at is not None and deadline_at <= now:
            raise DeadlinePassed(f"the deadline passed before offload {self.name} was asked")
        job = Job(work, self._loop.create_future(), now, self._late)
        if deadline_at is not None:
            job.slot = self._deadlines.add(deadline_at, job)
        if not self._tracer.idle:
            span = self._tracer.start(f"offload {self.name}", "INTERNAL", current_trace())
            job.span = span if isinstance(span, SpanRecord) else None
        self.waiting += 1
        self._desk.put(job)
        if self._replace_after_s is not None and self._watch is None:
            self._look_in(self._replace_after_s)
        result: T = await job.future
        return result

    async def aclose(self) -> None:
        """Run what is queued, close the resources, end the threads. Takes no new job from now on.

        A helper that hangs, in a job for which nobody waits any more or in making or closing its resource, is waited
        for `close_s` and then left behind.
        """
        self._crew.close()
        while not self._crew.gone.done():
            before = self._settled
            await asyncio.wait([self._crew.gone], timeout=self._close_s)
            is_awaited = any(not job.future.done() for job in list(self._desk.running))
            if not self._crew.gone.done() and self._settled == before and not is_awaited:
                for job in self._crew.leave_all():
                    self._settle(job, Draining(f"offload {self.name} is closed"))
        if not self._is_shut:
            self._is_shut = True
            self._shut()

    def _shut(self) -> None:
        self._collect()
        # Where no helper was left to run them.
        while self._desk.jobs:
            self._settle(self._desk.jobs.popleft(), Draining(f"offload {self.name} is closed"))
        if self._watch is not None:
            self._watch.cancel()
        self._loop.remove_reader(self._desk.bell.fd)
        if not self._crew.left_behind:
            # Else one of them may be about to ring.
            self._desk.bell.close()

    # Jobs that come back.

    def _deliver(self) -> None:
        self._desk.bell.wait()
        self._collect()

    def _collect(self) -> None:
        desk = self._desk
        desk.is_rung = False
        while desk.done:
            job = desk.done.popleft()
            self._settle(job, job.error)

    def _settle(self, job: Job, error: BaseException | None, where: str = "") -> None:
        self.waiting -= 1
        self._settled += 1
        if job.slot is not None:
            self._deadlines.remove(job.slot, job)
        if job.began_at:
            self._cells.wait.record(job.began_at - job.queued_at)
            self._cells.duration.record((job.ended_at or monotonic()) - job.began_at)
        if job.span is not None:
            self._end_span(job.span, job, error, where)
        # An error knows the frames that know the job.
        result, job.result, job.error = job.result, None, None
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    # Jobs that do not.

    def _late(self, job: Job) -> None:
        """A job's deadline has passed, and it has not come back."""
        job.slot = None
        error = DeadlinePassed(f"the deadline passed while offload {self.name} was busy")
        if not job.future.done():
            job.future.set_exception(error)
        helper = self._desk.running.get(job)
        if helper is not None:
            self._cells.hung.add()
            self._say("offload.hung", job)
        else:
            oldest = min(list(self._desk.running), key=lambda one: one.began_at, default=None)
            self._say("offload.late", oldest)
        if job.span is not None:
            self._end_span(job.span, job, error, helper.where() if helper else "")

    def _look(self) -> None:
        """Replace the helpers whose jobs have run too long; look again while there are jobs."""
        limit = self._replace_after_s
        assert limit is not None
        now = monotonic()
        for job in [job for job in list(self._desk.running) if now - job.began_at >= limit]:
            self._give_up(job, now - job.began_at)
        self._watch = None
        if self.waiting:
            oldest = min((job.began_at for job in list(self._desk.running)), default=now)
            self._look_in(max(oldest + limit - now, limit / 10))

    def _look_in(self, seconds: float) -> None:
        # An empty context: else the timer would keep the call alive whose job set it.
        self._watch = self._loop.call_later(seconds, self._look, context=Context())

    def _give_up(self, job: Job, ran_s: float) -> None:
        where = self._crew.replace(job)
        if where is None:
            self._say("offload.not_replaced", job)
            return
        self._cells.replaced.add()
        self._settle(job, DeadlinePassed(f"offload {self.name} gave the job up after {ran_s:.1f} s"), where)

    def _say(self, event: str, job: Job | None) -> None:
        """Log where a job hangs, or what others wait for; seldom, and of each job once."""
        now = monotonic()
        helper = self._desk.running.get(job) if job is not None else None
        if job is None or helper is None or job is self._told or now - self._told_at < TOLD_EVERY_S:
            return
        self._told, self._told_at = job, now
        ran_s = now - job.began_at
        log.warning("%s name=%s ran_s=%.3f waiting=%d at=%s", event, self.name, ran_s, self.waiting, helper.where())

    def _end_span(self, span: SpanRecord, job: Job, error: BaseException | None, where: str) -> None:
        job.span = None
        now = monotonic()
        began_at = job.began_at or now
        attributes = {
            "onelane.offload": self.name,
            "onelane.offload.wait_ms": f"{(began_at - job.queued_at) * 1e3:.3f}",
        }
        if job.began_at:
            attributes["onelane.offload.run_ms"] = f"{((job.ended_at or now) - began_at) * 1e3:.3f}"
        if where:
            attributes["onelane.offload.hangs_at"] = where
        self._tracer.end(span, error="" if error is None else type(error).__qualname__, attributes=attributes)
