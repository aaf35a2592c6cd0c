"""Parts of offload tests: a resource whose jobs hang until its gate opens, a deadline, counts and log records."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from onelane.core.context import TaskContext, current_call_var
from onelane.core.deadlines import Deadlines
from onelane.shard.offload.offload import Offload
from onelane.shard.offload.thread import Job
from onelane.telemetry.stats import Stats
from onelane.testing.clock import ManualClock

from tests.bounds import BOUND_S


class Resource:
    """Records its jobs, and the threads that made, used and closed it."""

    def __init__(self) -> None:
        self.threads = {threading.current_thread()}
        self.begun = threading.Event()
        """Set by a job that hangs, once a worker thread runs it."""
        self.gate = threading.Event()
        self.done: list[str] = []
        self.closed = False

    def work(self, name: str) -> str:
        self.threads.add(threading.current_thread())
        self.done.append(name)
        return name

    def close(self) -> None:
        self.threads.add(threading.current_thread())
        self.closed = True


class Resources:
    """A factory that remembers the resources it has made."""

    def __init__(self) -> None:
        self.all: list[Resource] = []
        self.offload: Offload[Resource] | None = None
        """If set, only its first worker thread is replaced, however slowly the machine runs the second one."""

    def __call__(self) -> Resource:
        if self.all and self.offload is not None:
            self.offload._replace_after_s = 3600.0
        self.all.append(Resource())
        return self.all[-1]


def hang(resource: Resource) -> None:
    resource.begun.set() or resource.gate.wait(30)  # type: ignore[func-returns-value] # one line, where it hangs


HANGS_AT = f"{__file__}:{hang.__code__.co_firstlineno + 1}:hang"
"""The line where `hang` hangs, as it is logged."""


def work(name: str) -> Callable[[Resource], str]:
    """A job that records `name`."""
    return lambda resource: resource.work(name)


def job_of(work: Callable[[Resource], object]) -> Job:
    """A job for a queue, without deadline."""
    return Job(work, asyncio.get_running_loop().create_future(), 0.0, lambda _: None)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - threads set no asyncio event
            await asyncio.sleep(0.001)


def deadlines_by_hand(offload: Offload[Resource]) -> ManualClock:
    """The clock that the deadlines of its jobs follow from now on."""
    clock = ManualClock(time.monotonic())
    offload._deadlines = Deadlines(clock.now, lambda seconds, fire: clock.call_at(clock.now() + seconds, fire))
    return clock


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    """The log records of one event of offload `r`; threads that another test left behind may log at any time."""
    return [record for record in caplog.records if record.getMessage().startswith(f"offload.{event} name=r ")]


def counted(stats: Stats) -> dict[str, Any]:
    """The points counted since the last call, by the name of their instrument."""
    return {point.instrument.name: point.value for point in stats.take()}


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Run the block as part of a call that has so many seconds left."""
    token = current_call_var.set(TaskContext("m", time.monotonic() + seconds))
    try:
        yield
    finally:
        current_call_var.reset(token)
