"""The deadlines of many calls on few timers.

A timer of the loop's own costs about as much as a third of a call; nearly all are cancelled. Here calls that end in the
same `GRAIN_S` share one. A deadline is never early, and at most `GRAIN_S` late.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Protocol

GRAIN_S = 0.004


class Expiring(Protocol):
    """A call or a job with a deadline."""

    def expire(self) -> None:
        """Its deadline has passed."""


class TimerHandle(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> object: ...


class Deadlines:
    """Owned by one event loop. `add` and `remove` cost well under a microsecond each."""

    def __init__(
        self, now: Callable[[], float], call_later: Callable[[float, Callable[[], object]], TimerHandle]
    ) -> None:
        """now: monotonic seconds. call_later: the loop's."""
        self._now = now
        self._call_later = call_later
        self._due: dict[int, set[Any]] = {}
        self._order: list[int] = []
        self._timer: TimerHandle | None = None
        self._timer_at = 0

    def add(self, at: float, expiring: Expiring) -> int:
        """Call `expiring.expire` at `at` (monotonic seconds); the slot to remove it from."""
        slot = int(at / GRAIN_S) + 1
        due = self._due.get(slot)
        if due is None:
            due = self._due[slot] = set()
            heappush(self._order, slot)
            if self._timer is None or slot < self._timer_at:
                self._set(slot)
        due.add(expiring)
        return slot

    def remove(self, slot: int, expiring: Expiring) -> None:
        """Forget `expiring`; nothing happens if it has expired already."""
        due = self._due.get(slot)
        if due is not None:
            due.discard(expiring)

    def _set(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = slot
        self._timer = self._call_later(max(0.0, slot * GRAIN_S - self._now()), self._fire)

    def _fire(self) -> None:
        now = int(self._now() / GRAIN_S)
        self._timer = None
        while self._order and (self._order[0] <= now or not self._due[self._order[0]]):
            for expiring in self._due.pop(heappop(self._order)):
                expiring.expire()
        if self._order and self._timer is None:
            self._set(self._order[0])
