"""Clocks: the machine's, behind a protocol that a test's clock meets too."""

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Source of time for everything but the event loop. `SystemClock` in processes, `testing.ManualClock` in tests."""

    def now(self) -> float:
        """Monotonic seconds. Only differences have a meaning."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, for the times of spans."""


class SystemClock:
    """See `Clock`: this machine's."""

    now = staticmethod(time.monotonic)
    wall_ns = staticmethod(time.time_ns)


def boottime_s() -> float:
    """Seconds by CLOCK_BOOTTIME: as monotonic time, the same in all processes of a machine, and it goes on while the
    machine sleeps. Leases count by it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boottime_clock() -> Callable[[], float]:
    """`boottime_s` for who asks it twice in each call: it has no frame of Python."""
    return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
