"""A worker thread with its resource, and the queue between it and its lane.

Nothing here takes a lock. Both sides share deques and a dict, each step on them is atomic, and in each race one side
wins: the side that takes a worker out of `idle` wakes it, the side that takes a job out of `running` ends it.
A sleeping side is woken by one byte in a pipe, and only if it sleeps; one byte serves every job that came meanwhile.
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
MAX_FRAMES = 4


class WakeupPipe:
    """Wakes one thread that reads from it.

    A pipe and not a lock: the write releases the GIL, so the thread that wakes up need not wait for it.
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        self.wake: Callable[[], int] = partial(os.write, self._write_fd, b"!")
        self.wait: Callable[[], bytes] = partial(os.read, self.fd, 64)
        """Block until `wake` was called; all calls so far count as one."""

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


class Job:
    """One piece of work. Owned by the lane, except while it is in `JobQueue.running`."""

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
        """Done before the job has begun if its caller was cancelled or is late; then the job never begins."""
        self.queued_at = queued_at
        self.context: Context = copy_context()
        """A copy of the caller's, as with `asyncio.to_thread`."""
        self.began_at = 0.0
        self.ended_at = 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.span: SpanRecord | None = None
        """Its span, if that is recorded, until the job has ended."""
        self.slot: int | None = None
        """Its slot in `Deadlines`."""
        self._late = late

    def expire(self) -> None:
        """See `onelane.core.deadlines.Expiring`."""
        self._late(self)

    def run(self, resource: Any) -> None:
        """Run it, on the worker thread."""
        try:
            self.result = self.work(resource)
        except StopIteration as error:
            # A future cannot hold a StopIteration; a coroutine that raises it becomes a RuntimeError too.
            self.error = RuntimeError("the job raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error
        self.ended_at = monotonic()


class PoolCallbacks(Protocol):
    """The callbacks of a worker thread, which it calls from its own thread."""

    def started(self, worker: "WorkerThread[Any]", error: BaseException | None) -> None:
        """The resource is made; or the factory has raised `error`, and the thread has ended."""

    def ended(self, worker: "WorkerThread[Any]") -> None:
        """The resource is closed, and the thread has ended."""


class JobQueue:
    """The queue between one lane and its worker threads. The lane puts jobs and takes finished ones."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.idle: deque[WorkerThread[Any]] = deque()
        """Threads that sleep, or are about to."""
        self.running: dict[Job, WorkerThread[Any]] = {}
        self.done: deque[Job] = deque()
        self.wakeup = WakeupPipe()
        """Wakes the lane."""
        self.is_woken = False
        """The lane has been woken and will read `done`."""
        self.is_closing = False

    def put(self, job: Job) -> None:
        """Hand a job to the next idle thread. Called by the lane alone."""
        self.jobs.append(job)
        if self.idle:
            self.wake_idle()

    def wake_idle(self) -> None:
        try:
            worker = self.idle.pop()
        except IndexError:
            # It has found the job by itself.
            return
        worker.wakeup.wake()

    def close(self) -> None:
        """Let each thread end once no job waits."""
        self.is_closing = True
        while self.idle:
            self.wake_idle()

    def finish(self, job: Job) -> None:
        """Give a finished job back to the lane. Called by worker threads."""
        self.done.append(job)
        if not self.is_woken:
            self.is_woken = True
            self.wakeup.wake()


class WorkerThread(Generic[R]):
    """One thread that makes, uses and closes one resource."""

    def __init__(
        self,
        name: str,
        queue: JobQueue,
        pool: PoolCallbacks,
        factory: Callable[[], R],
        close: Callable[[R], None] | None,
    ) -> None:
        self.name = name
        self.wakeup = WakeupPipe()
        self._queue = queue
        self._pool = pool
        self._close = close
        self._shard = bound_shard()
        # A daemon: a thread that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, args=(factory,), name=f"offload-{name}", daemon=True)
        self._thread.start()

    def where(self) -> str:
        """The lines that its job is at, innermost first: `file:line:function < file:line:function`.

        Empty between jobs.
        """
        frame = sys._current_frames().get(self._thread.ident or 0)
        frames: list[tuple[CodeType, int]] = []
        while frame is not None and frame.f_code not in _OURS:
            frames.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return " < ".join(f"{code.co_filename}:{line}:{code.co_qualname}" for code, line in frames[:MAX_FRAMES])

    def _live(self, factory: Callable[[], R]) -> None:
        if self._shard is not None:
            bind_shard(self._shard, whole_process=False)
        try:
            resource = factory()
        except BaseException as error:
            self.wakeup.close()
            self._pool.started(self, error)
            return
        self._pool.started(self, None)
        self._work(resource)
        self._end(resource)
        self.wakeup.close()
        self._pool.ended(self)

    def _work(self, resource: R) -> None:
        queue = self._queue
        while True:
            try:
                job = queue.jobs.popleft()
            except IndexError:
                if queue.is_closing:
                    return
                self._sleep()
                continue
            if not self._run(job, resource):
                return
            # Do not keep the job alive while this thread sleeps.
            del job

    def _sleep(self) -> None:
        queue = self._queue
        queue.idle.append(self)
        if queue.jobs or queue.is_closing:
            try:
                queue.idle.remove(self)
            except ValueError:
                # The lane was faster, and wakes this thread.
                pass
            else:
                return
        self.wakeup.wait()

    def _run(self, job: Job, resource: R) -> bool:
        """False where the lane has left this thread behind meanwhile: the job is no longer its own."""
        queue = self._queue
        if not job.future.done():
            job.began_at = monotonic()
            queue.running[job] = self
            if job.span is not None:
                job.context.run(_enter, self.name, job.span)
            job.context.run(job.run, resource)
            if queue.running.pop(job, None) is None:
                log.warning("offload.came_back name=%s ran_s=%.3f", self.name, job.ended_at - job.began_at)
                return False
        queue.finish(job)
        return True

    def _end(self, resource: R) -> None:
        close = self._close or getattr(type(resource), "close", None)
        try:
            if close is not None:
                close(resource)
        except BaseException:
            log.exception("offload.close_failed name=%s", self.name)


def _enter(name: str, span: SpanRecord) -> None:
    """Log records and spans that the job makes belong to its span."""
    current_call_var.set(TaskContext(f"/offload {name}", trace=span.context, baggage=current_baggage()))
    if (attached := attached_context()) is not None:
        # The caller has used OpenTelemetry's API: keep the other values of its context.
        attached_context_var.set(tracing.with_current_span(attached, span))


_OURS = {
    function.__code__
    for function in (
        Job.run,
        WorkerThread._live,
        WorkerThread._work,
        WorkerThread._sleep,
        WorkerThread._run,
        WorkerThread._end,
        JobQueue.finish,
    )
}
"""The code of this file that runs on the thread; frames above it belong to the factory, a job or `close`."""
