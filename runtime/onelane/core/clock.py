"""Where time comes from."""

import time
from typing import Protocol


class Clock(Protocol):
    """The one door to time. SystemClock in processes, testing.ManualClock in tests."""

    def now(self) -> float:
        """Seconds on a scale that never goes back. Only differences mean anything."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, for spans."""


class SystemClock:
    """This machine's clocks."""

    now = staticmethod(time.monotonic)
    wall_ns = staticmethod(time.time_ns)
