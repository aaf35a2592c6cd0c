"""A helper thread with its resource, and what passes between it and its lane.

Nothing here takes a lock. What both sides touch are deques and a dict, each step on them is atomic, and for each pair
of steps that meet one side wins: who takes a helper out of `idle` wakes it, who takes a job out of `running` ends it.
A side that sleeps is woken by one byte in a pipe, and only where it sleeps; one byte serves all that came meanwhile.
"""

import asyncio
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from time import monotonic
from types import CodeType
from typing import Any, Generic, Protocol, TypeVar

from onelane.core.context import (
    TaskContext,
    attached_context,
    attached_context_var,
    bind_shard,
    bound_shard,
    current_baggage,
    current_call_var,
)
from onelane.telemetry.otel import tracing
from onelane.telemetry.spans import SpanRecord

log = logging.getLogger("onelane.offload")
R = TypeVar("R")
FRAMES_TOLD = 4


class Bell:
    """Wakes one thread that waits for it.

    A pipe and not a lock: who rings it lets go of the GIL, and who is woken need not wait for that.
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        self.ring: Callable[[], int] = partial(os.write, self._write_fd, b"!")
        self.wait: Callable[[], bytes] = partial(os.read, self.fd, 64)
        """Block until it rings; all rings so far are one."""

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


class Job:
    """One piece of work. The lane's, but while it stands in `Desk.running`."""

    __slots__ = (
        *("_late", "began_at", "context", "ended_at", "error", "future", "queued_at", "result", "slot", "span"),
        "work",
    )

    def __init__(
        self,
        work: Callable[[Any], Any],
        future: "asyncio.Future[Any]",
        queued_at: float,
        late: "Callable[[Job], None]",
    ) -> None:
        self.work = work
        self.future = future
        """Done before the job has begun where nobody waits for it any more; then it never begins."""
        self.queued_at = queued_at
        self.context: Context = copy_context()
        """Its own, as with asyncio's `to_thread`: it sees what whoever asked has set, and what it sets ends with it."""
        self.began_at = 0.0
        self.ended_at = 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.span: SpanRecord | None = None
        """Where it is recorded, until it has ended."""
        self.slot: int | None = None
        """Its place among the deadlines."""
        self._late = late

    def expire(self) -> None:
        """See `onelane.core.deadlines.Expiring`."""
        self._late(self)

    def run(self, resource: Any) -> None:
        """Do it. On the helper thread."""
        try:
            self.result = self.work(resource)
        except StopIteration as error:
            # A future cannot carry it; a coroutine that raises it does the same.
            self.error = RuntimeError("the job raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error
        self.ended_at = monotonic()


class Lane(Protocol):
    """What a helper tells its lane, from its own thread."""

    def made(self, helper: "Helper[Any]", error: BaseException | None) -> None:
        """The resource is there, or cannot be made, and the thread has ended."""

    def ended(self, helper: "Helper[Any]") -> None:
        """The resource is closed, and the thread has ended."""


class Desk:
    """Between one lane and its helpers. The lane puts jobs on it and takes those that are done."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.idle: deque[Helper[Any]] = deque()
        """Who sleeps, or is about to."""
        self.running: dict[Job, Helper[Any]] = {}
        self.done: deque[Job] = deque()
        self.bell = Bell()
        """The lane's."""
        self.is_rung = False
        """The lane will look at `done`."""
        self.is_closing = False

    def put(self, job: Job) -> None:
        """Hand a job to the next free helper. By the lane alone."""
        self.jobs.append(job)
        if self.idle:
            self.wake_one()

    def wake_one(self) -> None:
        try:
            helper = self.idle.pop()
        except IndexError:
            # It has seen by itself that there is work.
            return
        helper.bell.ring()

    def close(self) -> None:
        """Let each helper end once no job waits."""
        self.is_closing = True
        while self.idle:
            self.wake_one()

    def finish(self, job: Job) -> None:
        """Give a job back to the lane. By helpers."""
        self.done.append(job)
        if not self.is_rung:
            self.is_rung = True
            self.bell.ring()


class Helper(Generic[R]):
    """One thread that makes, uses and closes one resource."""

    def __init__(
        self, name: str, desk: Desk, lane: Lane, factory: Callable[[], R], close: Callable[[R], None] | None
    ) -> None:
        self.name = name
        self.bell = Bell()
        self._desk = desk
        self._lane = lane
        self._close = close
        self._home = bound_shard()
        # A daemon: what hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, args=(factory,), name=f"offload-{name}", daemon=True)
        self._thread.start()

    def where(self) -> str:
        """Where the code stands that it runs for others, innermost first: `file:line:function < file:line:function`.

        Empty between jobs.
        """
        frame = sys._current_frames().get(self._thread.ident or 0)
        found: list[tuple[CodeType, int]] = []
        while frame is not None and frame.f_code not in _OURS:
            found.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return " < ".join(f"{code.co_filename}:{line}:{code.co_qualname}" for code, line in found[:FRAMES_TOLD])

    def _live(self, factory: Callable[[], R]) -> None:
        if self._home is not None:
            bind_shard(self._home, whole_process=False)
        try:
            resource = factory()
        except BaseException as error:
            self.bell.close()
            self._lane.made(self, error)
            return
        self._lane.made(self, None)
        self._work(resource)
        self._end(resource)
        self.bell.close()
        self._lane.ended(self)

    def _work(self, resource: R) -> None:
        desk = self._desk
        while True:
            try:
                job = desk.jobs.popleft()
            except IndexError:
                if desk.is_closing:
                    return
                self._sleep()
                continue
            if not self._run(job, resource):
                return
            # What it held is not ours to keep while we sleep.
            del job

    def _sleep(self) -> None:
        desk = self._desk
        desk.idle.append(self)
        if desk.jobs or desk.is_closing:
            try:
                desk.idle.remove(self)
            except ValueError:
                # The lane was faster, and rings.
                pass
            else:
                return
        self.bell.wait()

    def _run(self, job: Job, resource: R) -> bool:
        """False where the lane has given this helper up meanwhile: the job is no longer ours."""
        desk = self._desk
        if not job.future.done():
            job.began_at = monotonic()
            desk.running[job] = self
            if job.span is not None:
                job.context.run(_enter, self.name, job.span)
            job.context.run(job.run, resource)
            if desk.running.pop(job, None) is None:
                log.warning("offload.came_back name=%s ran_s=%.3f", self.name, job.ended_at - job.began_at)
                return False
        desk.finish(job)
        return True

    def _end(self, resource: R) -> None:
        close = self._close or getattr(type(resource), "close", None)
        try:
            if close is not None:
                close(resource)
        except BaseException:
            log.exception("offload.close_failed name=%s", self.name)


def _enter(name: str, span: SpanRecord) -> None:
    """What is logged from now on, and the spans that are made, are of the job's span."""
    current_call_var.set(TaskContext(f"/offload {name}", trace=span.context, baggage=current_baggage()))
    if (found := attached_context()) is not None:
        # OpenTelemetry's API has been used by whoever asked: what else it carries stays.
        attached_context_var.set(tracing.inside(found, span))


_OURS = {
    function.__code__
    for function in (Job.run, Helper._live, Helper._work, Helper._sleep, Helper._run, Helper._end, Desk.finish)
}
"""What calls the factory, jobs and `close`, and what runs between them."""
