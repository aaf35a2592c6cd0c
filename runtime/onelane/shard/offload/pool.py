"""The worker threads of one offload: start them, retry a failed factory, replace a thread that hangs, end them.

A thread is left behind by taking its job out of `JobQueue.running`. From then on it never touches the queue again; once
its job ends, it closes its resource and ends.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any, Generic, TypeVar

from onelane.shard.offload.thread import Job, JobQueue, WorkerThread

log = logging.getLogger("onelane.offload")
R = TypeVar("R")

MAX_LEFT_BEHIND = 8
"""If so many replaced threads of one offload still hang, no further thread is replaced."""
RETRY_S = 1.0
"""Seconds after which a factory that failed is called again."""


class ThreadPool(Generic[R]):
    """Owned by the lane; only `started` and `ended` are called by the worker threads."""

    def __init__(
        self, name: str, queue: JobQueue, factory: Callable[[], R], close: Callable[[R], None] | None, *, size: int
    ) -> None:
        self.name = name
        self.left_behind = 0
        """Threads that were replaced and still hang."""
        self._queue = queue
        self._factory = factory
        self._close = close
        self._size = size
        self._ready_count = 0
        self._workers: set[WorkerThread[R]] = set()
        self._retries: set[asyncio.TimerHandle] = set()
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done once every resource is made, or with the first exception of the factory."""
        self.all_ended: asyncio.Future[None] = self._loop.create_future()
        """Done once every thread has ended or was left behind."""
        for _ in range(size):
            self._start()

    def replace(self, job: Job) -> str | None:
        """Leave behind the thread that runs `job`, and start another; returns the lines where it hangs.

        None if it was not replaced: the job has just ended, or MAX_LEFT_BEHIND threads hang already.
        """
        worker = self._queue.running.get(job)
        if worker is None or self.left_behind >= MAX_LEFT_BEHIND:
            return None
        hangs_at = worker.stack()
        if not self._leave(job):
            return None
        log.error("offload.replaced name=%s ran_s=%.3f hangs_at=%s", self.name, monotonic() - job.began_at, hangs_at)
        self._start()
        return hangs_at

    def close(self) -> None:
        """Let each thread end once no job is queued."""
        self._queue.close()
        for retry in self._retries:
            retry.cancel()
        self._retries.clear()
        self._check_all_ended()

    def leave_all(self) -> list[Job]:
        """Leave every remaining thread behind; returns the jobs that they were running."""
        for worker in self._workers:
            log.warning("offload.left_behind name=%s hangs_at=%s", self.name, worker.stack())
        jobs = [job for job in list(self._queue.running) if self._leave(job)]
        self.left_behind += len(self._workers)
        self._workers.clear()
        self._check_all_ended()
        return jobs

    def started(self, worker: WorkerThread[Any], error: BaseException | None) -> None:
        """See `onelane.shard.offload.thread.PoolCallbacks`."""
        self._call_on_lane(self._on_started, worker, error)

    def ended(self, worker: WorkerThread[Any]) -> None:
        """See `onelane.shard.offload.thread.PoolCallbacks`."""
        self._call_on_lane(self._on_ended, worker)

    def _start(self) -> None:
        self._workers.add(WorkerThread(self.name, self._queue, self, self._factory, self._close))

    def _leave(self, job: Job) -> bool:
        worker = self._queue.running.pop(job, None)
        if worker is None:
            return False
        self._workers.discard(worker)
        self.left_behind += 1
        return True

    def _call_on_lane(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            log.debug("offload.loop_closed name=%s", self.name)

    def _on_started(self, worker: WorkerThread[R], error: BaseException | None) -> None:
        if error is None:
            self._ready_count += 1
            if self._ready_count >= self._size and not self.ready.done():
                self.ready.set_result(None)
            return
        if not self.ready.done():
            self.ready.set_exception(error)
            # Mark it as retrieved: it is logged below, whether or not anybody awaits it.
            self.ready.exception()
        if not self._queue.is_closing:
            log.warning("offload.factory_failed name=%s retry_in_s=%g", self.name, RETRY_S, exc_info=error)
            self._start_later()
        self._on_ended(worker)

    def _start_later(self) -> None:
        def start() -> None:
            self._retries.discard(timer)
            self._start()

        timer = self._loop.call_later(RETRY_S, start, context=Context())
        self._retries.add(timer)

    def _on_ended(self, worker: WorkerThread[R]) -> None:
        if worker in self._workers:
            self._workers.discard(worker)
            self._check_all_ended()
        else:
            self.left_behind -= 1

    def _check_all_ended(self) -> None:
        if self._queue.is_closing and not self._workers and not self.all_ended.done():
            self.all_ended.set_result(None)
