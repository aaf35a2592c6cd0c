"""A blocking library gets one helper thread and a bounded queue: one producer, the lane; one consumer, the thread.

Promises: the resource is made, used and closed on its thread alone; jobs run in the order they came; a full queue
refuses at once; a caller that stops waiting (deadline, cancellation) frees its place, and a job not begun never runs.
Leaves out: stopping a job that has begun. Python cannot; its result is dropped.
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar

from onelane.errors import DeadlinePassed, Draining, Overloaded
from onelane.scope import current
from onelane.telemetry import Span, Tracer

log = logging.getLogger("onelane.offload")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True)
class _Job:
    work: Callable[[Any], Any]
    future: asyncio.Future[Any]
    span: Span
    result: Any = None
    error: BaseException | None = None
    abandoned: bool = False
    queued_at: float = field(default_factory=monotonic)
    began_at: float = 0.0


class Offload(Generic[R]):
    """One blocking resource on its helper thread. Owned by the lane that made it."""

    def __init__(
        self,
        factory: Callable[[], R],
        *,
        name: str,
        capacity: int,
        tracer: Tracer,
        close: Callable[[R], None] | None = None,
    ) -> None:
        self.name = name
        self.waiting = 0
        """Jobs queued or running. At most `capacity`."""
        self._capacity = capacity
        self._tracer = tracer
        self._close = close
        self._closing = False
        # SimpleQueue is C, without a Python-level lock: one side puts, one side gets.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: deque[_Job] = deque()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, args=(factory,), name=f"offload-{name}", daemon=True)
        self._thread.start()

    async def wait_ready(self) -> None:
        """Wait until the resource is made; raises what its factory raised."""
        await asyncio.shield(self._ready)

    async def run(self, work: Callable[[R], T]) -> T:
        """Run `work(resource)` on the helper thread and return its result.

        Raises:
            Overloaded: `capacity` jobs are waiting already.
            DeadlinePassed: the call's deadline came first; the job is skipped if it has not begun.
            Draining: the helper is closed.
        """
        if self._closing:
            raise Draining(f"offload {self.name} is closed")
        if self.waiting >= self._capacity:
            raise Overloaded(f"offload {self.name}", waiting=self.waiting)
        scope = current.get()
        span = self._tracer.start(f"offload {self.name}", "INTERNAL", scope.trace if scope else None)
        job = _Job(work, self._loop.create_future(), span)
        self.waiting += 1
        self._jobs.put(job)
        try:
            async with asyncio.timeout_at(scope.deadline_at if scope else None) as limit:
                result: T = await job.future
                return result
        except TimeoutError as error:
            if limit.expired():
                raise DeadlinePassed(f"the deadline passed while offload {self.name} was busy") from error
            raise
        finally:
            job.abandoned = not job.future.done() or job.future.cancelled()

    async def aclose(self) -> None:
        """Run what is queued, close the resource, end the thread. Takes no new job from now on."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)

    # On the helper thread.

    def _work(self, factory: Callable[[], R]) -> None:
        try:
            resource = factory()
        except BaseException as error:
            self._tell(_settle, self._ready, error)
            self._tell(_settle, self._ended, None)
            return
        self._tell(_settle, self._ready, None)
        while (job := self._jobs.get()) is not None:
            self._run(job, resource)
        self._end(resource)
        self._tell(_settle, self._ended, None)

    def _run(self, job: _Job, resource: R) -> None:
        if not job.abandoned:
            job.began_at = monotonic()
            try:
                job.result = job.work(resource)
            except BaseException as error:
                job.error = error
        self._done.append(job)
        # One wake-up for all that is done by the time the lane turns.
        if len(self._done) == 1:
            self._tell(self._deliver)

    def _end(self, resource: R) -> None:
        close = self._close or getattr(type(resource), "close", None)
        try:
            if close is not None:
                close(resource)
        except Exception:
            log.exception("offload.close_failed name=%s", self.name)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            log.debug("offload.lane_gone name=%s", self.name)

    # On the lane.

    def _deliver(self) -> None:
        while self._done:
            job = self._done.popleft()
            self.waiting -= 1
            error = "" if job.error is None else type(job.error).__qualname__
            wait_ms = f"{((job.began_at or job.queued_at) - job.queued_at) * 1000:.3f}"
            attributes = {"onelane.offload": self.name, "onelane.offload.wait_ms": wait_ms}
            self._tracer.end(job.span, error=error, attributes=attributes)
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
