"""Timers of a shard: `every` so many seconds, and `later`, once, as a turn of a key.

Promises: due times are start + n · period, so nothing drifts; what comes late runs once, and says how often it was
skipped; a timer never runs twice at once; one that raises is logged and goes on. A timer of a key runs in the key's
turn, and is gone with its key. How many there may be is bounded.
Leaves out: timers that outlive their shard, and stopping a function that has begun, but at the shard's end.
"""

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import Context
from typing import Any, Protocol

from onelane.core import keys
from onelane.core.context import TaskContext, current_call_var
from onelane.errors import NotHome, Overloaded
from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.timers")
Key = str | bytes | int
TimerFunction = Callable[[], Awaitable[object] | object]
AGAIN_S = 1.0
"""A timer whose key has too many waiters already asks for its turn again after this long."""
TELL_S = 60.0
"""A timer that is late says so at most this often."""


class Alarm(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """It shall not come."""


class Alarms(Protocol):
    """A clock that can ring. `LoopAlarms` in shards, `testing.ManualClock` in tests."""

    def now(self) -> float:
        """Seconds on a scale that never goes back."""

    def call_at(self, at: float, ring: Callable[[], None]) -> Alarm:
        """Call `ring` at `at`; it may come a little early, and later than it should."""


class LoopAlarms:
    """See `Alarms`: the running loop's."""

    now = staticmethod(time.monotonic)

    def call_at(self, at: float, ring: Callable[[], None]) -> Alarm:
        # An empty context: else the timer would keep the call alive that set it.
        return asyncio.get_running_loop().call_later(max(0.0, at - self.now()), ring, context=Context())


class Timer:
    """One timer. Owned by its shard's lane."""

    __slots__ = (
        "_alarm",
        "_task",
        "_timers",
        "_told_at",
        "_untold",
        "_user_key",
        "beat",
        "began",
        "due_at",
        "fn",
        "is_on",
        "key",
        "name",
        "seconds",
        "skipped",
    )

    def __init__(self, timers: "Timers", fn: TimerFunction, seconds: float, key: Key | None, now: float) -> None:
        self.fn = fn
        self.name: str = getattr(getattr(fn, "func", fn), "__qualname__", type(fn).__qualname__)
        self.key = None if key is None else keys.canonical(key)
        """Canonical text; None for one of `every`."""
        self.seconds = seconds
        self.began = now
        self.beat = 1
        """The next run is the beat-th; it is due at began + beat · seconds."""
        self.due_at = now + seconds
        """Monotonic seconds."""
        self.skipped = 0
        """Runs of `every` that were left out because the lane, or the run before, took too long."""
        self.is_on = True
        """It will run, or run again."""
        self._user_key = key
        self._timers = timers
        self._alarm: Alarm | None = None
        self._task: asyncio.Task[None] | None = None
        self._untold = 0
        self._told_at = -math.inf

    def cancel(self) -> bool:
        """Have it not run any more; False where it is over already. What has begun goes on to its end."""
        return self._timers.drop(self)

    def __repr__(self) -> str:
        what = f"every {self.seconds:g} s" if self.key is None else f"later key={self.key}"
        return f"<Timer {self.name} {what}{'' if self.is_on else ', off'}>"


class Timers:
    """All timers of one shard. Owned by its lane."""

    def __init__(
        self,
        shard: str,
        *,
        limit: int,
        stats: Stats,
        turn: Callable[[Any], AbstractAsyncContextManager[object]],
        alarms: Alarms | None = None,
    ) -> None:
        """limit: how many there may be at once. turn: the turn of a key, see `Shard.turn`."""
        self._shard = shard
        self._limit = limit
        self._turn = turn
        self._alarms: Alarms = alarms or LoopAlarms()
        self._on: set[Timer] = set()
        self._of_key: dict[str, dict[Timer, None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._skips = stats.counter(
            "onelane.timer.skips", unit="{run}", description="Runs that were left out, being late"
        )
        self._errors = stats.counter("onelane.timer.errors", unit="{error}", description="Runs that raised")
        stats.gauge("onelane.timers", unit="{timer}", description="Timers that are set").observe(lambda: len(self._on))

    def every(self, seconds: float, fn: TimerFunction) -> Timer:
        """See `Shard.every`."""
        if not 0 < seconds < math.inf:
            raise ValueError(f"every({seconds}): expected seconds above 0")
        return self._set(Timer(self, fn, seconds, None, self._alarms.now()))

    def later(self, key: Key, seconds: float, fn: TimerFunction) -> Timer:
        """See `Shard.later`."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"later(…, {seconds}): expected seconds, 0 or more")
        timer = self._set(Timer(self, fn, seconds, key, self._alarms.now()))
        assert timer.key is not None
        self._of_key.setdefault(timer.key, {})[timer] = None
        return timer

    def of(self, key: Key) -> tuple[Timer, ...]:
        """The timers of `key` that have not begun, in the order in which they were set."""
        return tuple(self._of_key.get(keys.canonical(key), ()))

    def forget(self, key: str) -> int:
        """Drop all timers of `key` (canonical text), which is gone from here; how many there were."""
        timers = tuple(self._of_key.get(key, ()))
        for timer in timers:
            self.drop(timer)
        return len(timers)

    def drop(self, timer: Timer) -> bool:
        """See `Timer.cancel`."""
        if not self._off(timer):
            return False
        if timer._alarm is not None:
            timer._alarm.cancel()
        if timer.key is not None and timer._task is not None:
            # It waits for its turn: give its place to the next.
            timer._task.cancel()
        return True

    async def aclose(self) -> None:
        """Drop all; stop what runs, and wait for it. Nothing can be set any more."""
        self._closed = True
        for timer in tuple(self._on):
            self.drop(timer)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Setting and ringing. The watchdog finds `timer` in the frame of every function that runs user code (lane_stack).

    def _set(self, timer: Timer) -> Timer:
        if self._closed or len(self._on) >= self._limit:
            raise Overloaded(f"shard {self._shard}, timers", waiting=len(self._on))
        self._on.add(timer)
        self._arm(timer, timer.due_at)
        return timer

    def _off(self, timer: Timer) -> bool:
        """It is neither listed nor counted from now on; False where that was so before."""
        if not timer.is_on:
            return False
        timer.is_on = False
        self._on.discard(timer)
        if timer.key is not None:
            same_key = self._of_key[timer.key]
            del same_key[timer]
            if not same_key:
                del self._of_key[timer.key]
        return True

    def _arm(self, timer: Timer, at: float) -> None:
        timer.due_at = at
        timer._alarm = self._alarms.call_at(at, lambda: self._ring(timer))

    def _ring(self, timer: Timer) -> None:
        timer._alarm = None
        if not timer.is_on:
            return
        if self._alarms.now() < timer.due_at:
            # The loop counts in whole milliseconds.
            self._arm(timer, timer.due_at)
        elif timer.key is not None:
            self._start(timer, self._run_in_turn(timer))
        else:
            self._run_beat(timer)

    def _start(self, timer: Timer, work: Coroutine[Any, Any, None]) -> None:
        task = timer._task = asyncio.get_running_loop().create_task(work, context=_context_of(timer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Every

    def _run_beat(self, timer: Timer) -> None:
        try:
            result = _context_of(timer).run(timer.fn)
        except (Exception, asyncio.CancelledError):
            self._failed(timer)
        else:
            if inspect.isawaitable(result):
                self._start(timer, self._finish_beat(timer, result))
                return
        self._set_next(timer)

    async def _finish_beat(self, timer: Timer, result: Awaitable[object]) -> None:
        await self._guard(timer, result)
        self._set_next(timer)

    def _set_next(self, timer: Timer) -> None:
        """The next due time that has not passed yet."""
        if not timer.is_on:
            return
        now = self._alarms.now()
        following = max(timer.beat + 1, math.ceil((now - timer.began) / timer.seconds))
        if skipped := following - timer.beat - 1:
            self._say_skipped(timer, skipped, now)
        timer.beat = following
        self._arm(timer, timer.began + following * timer.seconds)

    def _say_skipped(self, timer: Timer, skipped: int, now: float) -> None:
        timer.skipped += skipped
        timer._untold += skipped
        self._skips.add(skipped, {"onelane.timer": timer.name})
        if now - timer._told_at >= TELL_S:
            log.warning(
                "timer.late shard=%s timer=%s every_s=%g skipped=%d in_all=%d",
                *(self._shard, timer.name, timer.seconds, timer._untold, timer.skipped),
            )
            timer._untold, timer._told_at = 0, now

    # Later

    async def _run_in_turn(self, timer: Timer) -> None:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._turn(timer._user_key))
            except Overloaded:
                timer._task = None
                self._arm(timer, self._alarms.now() + AGAIN_S)
                return
            except NotHome:
                log.warning("timer.not_home shard=%s timer=%s: its key lives elsewhere", self._shard, timer.name)
                self._off(timer)
                return
            if self._off(timer):
                try:
                    result = timer.fn()
                except (Exception, asyncio.CancelledError):
                    self._failed(timer)
                else:
                    if inspect.isawaitable(result):
                        await self._guard(timer, result)

    # Both

    async def _guard(self, timer: Timer, result: Awaitable[object]) -> None:
        try:
            await result
        except asyncio.CancelledError:
            if self._closed:
                raise
            self._failed(timer)
        except Exception:
            self._failed(timer)

    def _failed(self, timer: Timer) -> None:
        self._errors.add(1, {"onelane.timer": timer.name})
        log.exception("timer.failed shard=%s timer=%s", self._shard, timer.name)


def _context_of(timer: Timer) -> Context:
    """What runs is no part of the call that set it, and has not its deadline, trace or turn."""
    context = Context()
    context.run(current_call_var.set, TaskContext(f"/timer {timer.name}"))
    return context
