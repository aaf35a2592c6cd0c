"""The helpers of one offload: started, tried again where no resource can be made, replaced where they hang, ended.

A helper is left behind by taking its job out of `Desk.running`. From then on it never touches the desk again; when its
job ends after all it closes its resource and is gone.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any, Generic, TypeVar

from onelane.shard.offload.thread import Desk, Helper, Job

log = logging.getLogger("onelane.offload")
R = TypeVar("R")

MAX_LEFT_BEHIND = 8
"""Helpers of one offload that hang and have been replaced; past it none is replaced."""
RETRY_S = 1.0
"""After this time a resource that could not be made is tried again."""


class Crew(Generic[R]):
    """Owned by the lane; `made` and `ended` alone are called by helpers, from their threads."""

    def __init__(
        self, name: str, desk: Desk, factory: Callable[[], R], close: Callable[[R], None] | None, *, size: int
    ) -> None:
        self.name = name
        self.left_behind = 0
        """Helpers that still hang somewhere, but are no longer of the crew."""
        self._desk = desk
        self._factory = factory
        self._close = close
        self._size = size
        self._made = 0
        self._helpers: set[Helper[R]] = set()
        self._retries: set[asyncio.TimerHandle] = set()
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """All resources are made; or what the factory raised first."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Every helper has ended or was left behind."""
        for _ in range(size):
            self._start()

    def replace(self, job: Job) -> str | None:
        """Leave the helper behind that runs `job`, and start another; where it hangs.

        None where none was replaced: the job has ended just now, or too many are left behind already.
        """
        helper = self._desk.running.get(job)
        if helper is None or self.left_behind >= MAX_LEFT_BEHIND:
            return None
        where = helper.where()
        if not self._leave(job):
            return None
        log.error("offload.replaced name=%s ran_s=%.3f hangs_at=%s", self.name, monotonic() - job.began_at, where)
        self._start()
        return where

    def close(self) -> None:
        """Let each helper end once no job waits."""
        self._desk.close()
        for retry in self._retries:
            retry.cancel()
        self._retries.clear()
        self._look_whether_gone()

    def leave_all(self) -> list[Job]:
        """At the end, part with the helpers that are still there; the jobs that they do not give back."""
        for helper in self._helpers:
            log.warning("offload.left_behind name=%s hangs_at=%s", self.name, helper.where())
        jobs = [job for job in list(self._desk.running) if self._leave(job)]
        self.left_behind += len(self._helpers)
        self._helpers.clear()
        self._look_whether_gone()
        return jobs

    def made(self, helper: Helper[Any], error: BaseException | None) -> None:
        """See `onelane.shard.offload.thread.Lane`."""
        self._tell(self._on_made, helper, error)

    def ended(self, helper: Helper[Any]) -> None:
        """See `onelane.shard.offload.thread.Lane`."""
        self._tell(self._on_ended, helper)

    def _start(self) -> None:
        self._helpers.add(Helper(self.name, self._desk, self, self._factory, self._close))

    def _leave(self, job: Job) -> bool:
        helper = self._desk.running.pop(job, None)
        if helper is None:
            return False
        self._helpers.discard(helper)
        self.left_behind += 1
        return True

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            log.debug("offload.lane_gone name=%s", self.name)

    def _on_made(self, helper: Helper[R], error: BaseException | None) -> None:
        if error is None:
            self._made += 1
            if self._made >= self._size and not self.ready.done():
                self.ready.set_result(None)
            return
        if not self.ready.done():
            self.ready.set_exception(error)
            # Taken for read: the log has it, whether or not somebody waits.
            self.ready.exception()
        if not self._desk.is_closing:
            log.warning("offload.factory_failed name=%s again_in_s=%g", self.name, RETRY_S, exc_info=error)
            self._start_later()
        self._on_ended(helper)

    def _start_later(self) -> None:
        def start() -> None:
            self._retries.discard(timer)
            self._start()

        timer = self._loop.call_later(RETRY_S, start, context=Context())
        self._retries.add(timer)

    def _on_ended(self, helper: Helper[R]) -> None:
        if helper in self._helpers:
            self._helpers.discard(helper)
            self._look_whether_gone()
        else:
            self.left_behind -= 1

    def _look_whether_gone(self) -> None:
        if self._desk.is_closing and not self._helpers and not self.gone.done():
            self.gone.set_result(None)
