"""A worker thread with its resource, and the queue between it and its lane.

Nothing here takes a lock. Lane and threads share deques and a dict, whose single operations are atomic. Whichever takes
a worker out of `idle` wakes it; whichever takes a job out of `running` finishes it. A sleeping thread, or the lane, is
woken by one byte in a pipe; while it is awake no more bytes are written, however many jobs arrive.
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
    """Wakes the one thread that reads from it.

    A pipe and not a lock: the write releases the GIL, so the woken thread need not wait for it.
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        self.wake: Callable[[], int] = partial(os.write, self._write_fd, b"!")
        self.wait: Callable[[], bytes] = partial(os.read, self.fd, 64)
        """Block until `wake` has been called, once or more often."""

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


class Job:
    """One piece of work. Owned by the lane, except while it is in `JobQueue.running`."""

    __slots__ = (
        *("_on_deadline", "began_at", "context", "ended_at", "error", "future", "queued_at", "result", "slot"),
        *("span", "work"),
    )

    def __init__(
        self,
        work: Callable[[Any], Any],
        future: "asyncio.Future[Any]",
        queued_at: float,
        on_deadline: "Callable[[Job], None]",
    ) -> None:
        """on_deadline: called on the lane when the deadline passes first."""
        self.work = work
        self.future = future
        """Done already if the caller was cancelled or its deadline has passed; a job not begun by then never runs."""
        self.queued_at = queued_at
        self.context: Context = copy_context()
        """A copy of the caller's context, as with `asyncio.to_thread`."""
        self.began_at = 0.0
        self.ended_at = 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.span: SpanRecord | None = None
        """The job's span, if it is recorded, until the job has ended."""
        self.slot: int | None = None
        """Where `Deadlines` keeps it; None without a deadline."""
        self._on_deadline = on_deadline

    def expire(self) -> None:
        """See `onelane.core.deadlines.Expiring`."""
        self._on_deadline(self)

    def run(self, resource: Any) -> None:
        """Run `work`, on the worker thread."""
        try:
            self.result = self.work(resource)
        except StopIteration as error:
            # A future cannot hold a StopIteration; asyncio turns one that a coroutine raises into a RuntimeError too.
            self.error = RuntimeError("the job raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error
        self.ended_at = monotonic()


class PoolCallbacks(Protocol):
    """The callbacks of a worker thread, which it calls from its own thread."""

    def started(self, worker: "WorkerThread[Any]", error: BaseException | None) -> None:
        """The factory has made the resource; or it has raised `error`, and the thread has ended."""

    def ended(self, worker: "WorkerThread[Any]") -> None:
        """The thread has closed its resource and ended."""


class JobQueue:
    """The queue between one lane and its worker threads: the lane adds jobs to it and takes finished jobs from it."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.idle: deque[WorkerThread[Any]] = deque()
        """Threads that sleep, or are about to sleep."""
        self.running: dict[Job, WorkerThread[Any]] = {}
        self.done: deque[Job] = deque()
        self.wakeup = WakeupPipe()
        """Wakes the lane."""
        self.is_woken = False
        """The lane has been woken and has not yet taken the jobs from `done`."""
        self.is_closing = False

    def put(self, job: Job) -> None:
        """Queue a job, and wake an idle thread for it. Called by the lane alone."""
        self.jobs.append(job)
        if self.idle:
            self.wake_idle()

    def wake_idle(self) -> None:
        try:
            worker = self.idle.pop()
        except IndexError:
            # The thread woke up by itself and has taken the job.
            return
        worker.wakeup.wake()

    def close(self) -> None:
        """Let each thread end once no job is queued."""
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
        # A daemon thread: one that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, args=(factory,), name=f"offload-{name}", daemon=True)
        self._thread.start()

    def stack(self) -> str:
        """The lines that the job is executing, innermost first: `file:line:function < file:line:function`.

        Empty between jobs.
        """
        frame = sys._current_frames().get(self._thread.ident or 0)
        frames: list[tuple[CodeType, int]] = []
        while frame is not None and frame.f_code not in _RUNTIME_CODE:
            frames.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return " < ".join(f"{code.co_filename}:{line}:{code.co_qualname}" for code, line in frames[:MAX_FRAMES])

    def _main(self, factory: Callable[[], R]) -> None:
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
        self._close_resource(resource)
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
            # A reference would keep the job alive while this thread sleeps.
            del job

    def _sleep(self) -> None:
        queue = self._queue
        queue.idle.append(self)
        if queue.jobs or queue.is_closing:
            try:
                queue.idle.remove(self)
            except ValueError:
                # The lane has taken this thread from `idle` first, and is waking it.
                pass
            else:
                return
        self.wakeup.wait()

    def _run(self, job: Job, resource: R) -> bool:
        """Run one job; False if the lane has left this thread behind meanwhile and finished the job itself."""
        queue = self._queue
        if not job.future.done():
            job.began_at = monotonic()
            queue.running[job] = self
            if job.span is not None:
                job.context.run(_enter_span, self.name, job.span)
            job.context.run(job.run, resource)
            if queue.running.pop(job, None) is None:
                log.warning(
                    "offload.ended_after_replacement name=%s ran_s=%.3f", self.name, job.ended_at - job.began_at
                )
                return False
        queue.finish(job)
        return True

    def _close_resource(self, resource: R) -> None:
        close = self._close or getattr(type(resource), "close", None)
        try:
            if close is not None:
                close(resource)
        except BaseException:
            log.exception("offload.close_failed name=%s", self.name)


def _enter_span(name: str, span: SpanRecord) -> None:
    """Make the job's span the current one, for the log records and spans of the job."""
    current_call_var.set(TaskContext(f"/offload {name}", trace=span.context, baggage=current_baggage()))
    if (attached := attached_context()) is not None:
        # The caller has attached a context by OpenTelemetry's API: keep its other values.
        attached_context_var.set(tracing.with_current_span(attached, span))


_RUNTIME_CODE = {
    function.__code__
    for function in (
        Job.run,
        WorkerThread._main,
        WorkerThread._work,
        WorkerThread._sleep,
        WorkerThread._run,
        WorkerThread._close_resource,
        JobQueue.finish,
    )
}
"""Functions of this file that run on the thread; `stack` shows only the frames of a factory, job or `close` that they
called."""
