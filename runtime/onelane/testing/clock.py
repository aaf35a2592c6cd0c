"""A clock that stands still until a test moves it."""

import itertools
from collections.abc import Callable
from heapq import heappop, heappush


class ManualAlarm:
    """A callback that `ManualClock.call_at` has scheduled."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
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

    def call_at(self, at: float, callback: Callable[[], object]) -> ManualAlarm:
        """Call `callback` once the clock has reached `at`."""
        alarm = ManualAlarm(callback)
        heappush(self._alarms, (at, next(self._numbers), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move the clock on, and call the callbacks that become due, in order, each at the time that it was set for."""
        self.advance_to(self._now + seconds)

    def advance_to(self, until: float) -> None:
        """See `advance`, but to an absolute time: many steps then add up without a rounding error."""
        while self._alarms and self._alarms[0][0] <= until:
            due_at, _, alarm = heappop(self._alarms)
            if not alarm.is_cancelled:
                self._now = max(self._now, due_at)
                alarm.callback()
        self._now = max(self._now, until)

    def jump(self, seconds: float) -> None:
        """Move the clock on at once, as an event loop sees it that was blocked meanwhile: due callbacks are late."""
        self._now += seconds
        self.advance(0.0)
