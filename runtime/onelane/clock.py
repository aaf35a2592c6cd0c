"""Where time comes from, and deadlines that only shrink."""

import time
from dataclasses import dataclass
from typing import Protocol, Self


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


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The last moment at which an answer is of use. The sooner of two is the smaller."""

    at: float

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> Self:
        return cls(clock.now() + seconds)

    def remaining_s(self, clock: Clock) -> float:
        """Seconds left; 0.0 once passed, never negative. This is what goes on the wire."""
        return max(0.0, self.at - clock.now())
