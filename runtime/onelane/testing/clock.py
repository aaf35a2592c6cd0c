"""Time that stands still until it is told otherwise."""

import itertools
from collections.abc import Callable
from heapq import heappop, heappush


class ManualAlarm:
    """What `ManualClock.call_at` returns."""

    def __init__(self, ring: Callable[[], object]) -> None:
        self.ring = ring
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """See `onelane.core.clock.Clock` and `onelane.shard.timers.Alarms`."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._alarms: list[tuple[float, int, ManualAlarm]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._now

    def wall_ns(self) -> int:
        return int(self._now * 1e9)

    def call_at(self, at: float, ring: Callable[[], object]) -> ManualAlarm:
        """Call `ring` once `advance` has come to `at`."""
        alarm = ManualAlarm(ring)
        heappush(self._alarms, (at, next(self._numbers), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move time on, and ring in order what is due; while one rings, it is the time that it was set to."""
        self.advance_to(self._now + seconds)

    def advance_to(self, until: float) -> None:
        """See `advance`: to this very moment, so that many steps add up without an error."""
        while self._alarms and self._alarms[0][0] <= until:
            at, _, alarm = heappop(self._alarms)
            if not alarm.is_cancelled:
                self._now = max(self._now, at)
                alarm.ring()
        self._now = max(self._now, until)

    def jump(self, seconds: float) -> None:
        """Move time on at once, as a lane sees it that did not turn meanwhile: what is due rings late."""
        self._now += seconds
        self.advance(0.0)
