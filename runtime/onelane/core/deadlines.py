"""The deadlines of many calls on one timer of the event loop.

A timer per call would cost about a third of the call, and nearly all are cancelled. So time is cut into slots of
`GRAIN_S`, deadlines of the same slot expire together, and only the next slot has a timer.
Promises: `expire` is never called early, and at most `GRAIN_S` late (or as late as the loop runs its timers).
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final, Protocol

GRAIN_S: Final = 0.004
"""Length of a slot in seconds."""


class Expiring(Protocol):
    """A call or a job with a deadline."""

    def expire(self) -> None:
        """Its deadline has passed."""


class TimerHandle(Protocol):
    """The timer that `call_later` returns."""

    def cancel(self) -> object:
        """Let the timer not fire."""


class Deadlines:
    """Owned by one event loop. `add` and `remove` take well under a microsecond each."""

    def __init__(
        self, now: Callable[[], float], call_later: Callable[[float, Callable[[], object]], TimerHandle]
    ) -> None:
        """now: reads the clock of the loop, in monotonic seconds. call_later: the loop's method."""
        self._now = now
        self._call_later = call_later
        self._due: dict[int, set[Any]] = {}
        """Slot → what expires at its end."""
        self._order: list[int] = []
        """A heap of the slots in `_due`."""
        self._timer: TimerHandle | None = None
        self._timer_slot = 0

    def add(self, deadline_at: float, expiring: Expiring) -> int:
        """Have `expiring.expire` called at `deadline_at` (monotonic seconds); returns the slot, for `remove`."""
        slot = int(deadline_at / GRAIN_S) + 1
        due = self._due.get(slot)
        if due is None:
            due = self._due[slot] = set()
            heappush(self._order, slot)
            if self._timer is None or slot < self._timer_slot:
                self._set_timer(slot)
        due.add(expiring)
        return slot

    def remove(self, slot: int, expiring: Expiring) -> None:
        """Have `expiring` not expire; does nothing if it has expired already."""
        due = self._due.get(slot)
        if due is not None:
            due.discard(expiring)

    def _set_timer(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_slot = slot
        self._timer = self._call_later(max(0.0, slot * GRAIN_S - self._now()), self._fire)

    def _forget_timer(self) -> None:
        # Not written out in `_fire`, where a type checker, and so compiled code, would take it to stay None.
        self._timer = None

    def _fire(self) -> None:
        now = self._now()
        self._forget_timer()
        try:
            while self._order and (self._order[0] * GRAIN_S <= now or not self._due[self._order[0]]):
                due = self._due[self._order[0]]
                while due:
                    due.pop().expire()
                del self._due[heappop(self._order)]
        finally:
            # Also where one has raised: the others must not wait for ever. And an expiry may have added a later
            # deadline, and set the timer for that.
            if self._order and (self._timer is None or self._order[0] < self._timer_slot):
                self._set_timer(self._order[0])
