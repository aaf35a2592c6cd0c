"""Timers of a shard: `every` runs a function periodically, `later` runs one once, in the turn of a key.

Promises: due times are start + n · period, so a timer does not drift; missed runs are made up for by one run, and
counted; runs of one timer never overlap; a function that raises is logged, and its timer goes on. A timer of a key runs
in a turn of the key, and is dropped when its shard loses the key. The number of timers is bounded.
Leaves out: timers that outlive their shard. A run that has begun is stopped only by the end of the shard.
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
from onelane.core.keys import RoutingKey
from onelane.errors import ForeignKey, NoLease, NotKept, Overloaded
from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.timers")
Key = RoutingKey
TimerFunction = Callable[[], Awaitable[object] | object]
RETRY_TURN_S = 1.0
"""Seconds after which a timer asks for its turn again if the queue of its key was full."""
LOG_LATE_S = 60.0
"""Seconds in which the missed runs of one timer are logged at most once."""


class Alarm(Protocol):
    """A callback that is scheduled."""

    def cancel(self) -> None:
        """Do not call it."""


class Alarms(Protocol):
    """A clock that schedules callbacks. `LoopAlarms` in shards, `testing.ManualClock` in tests."""

    def now(self) -> float:
        """Monotonic seconds."""

    def call_at(self, at: float, callback: Callable[[], None]) -> Alarm:
        """Call `callback` at about `at`: a little early, or late."""


class LoopAlarms:
    """See `Alarms`: the running loop's."""

    now = staticmethod(time.monotonic)

    def call_at(self, at: float, callback: Callable[[], None]) -> Alarm:
        # In an empty context: with a copy of this one, the timer would keep the call that set it alive.
        return asyncio.get_running_loop().call_later(max(0.0, at - self.now()), callback, context=Context())


class Timer:
    """One timer. Owned by its shard's lane."""

    __slots__ = (
        "_alarm",
        "_logged_at",
        "_task",
        "_timers",
        "_unlogged",
        "_user_key",
        "due_at",
        "fn",
        "is_on",
        "key",
        "name",
        "next_run",
        "seconds",
        "set_at",
        "skipped",
    )

    def __init__(self, timers: "Timers", fn: TimerFunction, seconds: float, key: Key | None, now: float) -> None:
        self.fn = fn
        self.name: str = getattr(getattr(fn, "func", fn), "__qualname__", type(fn).__qualname__)
        self.key = None if key is None else keys.canonical(key)
        """Its key in canonical text; None for a timer of `every`."""
        self.seconds = seconds
        self.set_at = now
        self.next_run = 1
        """The number of the next run, from 1; it is due at `set_at` + `next_run` · `seconds`."""
        self.due_at = now + seconds
        """Monotonic seconds."""
        self.skipped = 0
        """Runs of `every` that were missed because the event loop, or the previous run, was busy."""
        self.is_on = True
        """Whether it will run, or run again."""
        self._user_key = key
        self._timers = timers
        self._alarm: Alarm | None = None
        self._task: asyncio.Task[None] | None = None
        self._unlogged = 0
        self._logged_at = -math.inf

    def cancel(self) -> bool:
        """Stop the timer; False if it had ended already. A run that has begun goes on to its end."""
        return self._timers.drop(self)

    def __repr__(self) -> str:
        schedule = f"every {self.seconds:g} s" if self.key is None else f"later key={self.key}"
        return f"<Timer {self.name} {schedule}{'' if self.is_on else ', off'}>"


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
        """limit: of timers that are set. turn: the turn of a key, see `Shard.turn`."""
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
        """The timers of `key` that have not begun to run, in the order in which they were set."""
        return tuple(self._of_key.get(keys.canonical(key), ()))

    def drop_foreign(self, owns: Callable[[str], bool]) -> None:
        """Drop all timers of keys that this shard does not own: they would run when their key is back."""
        for key in [key for key in self._of_key if not owns(key)]:
            for timer in tuple(self._of_key[key]):
                self.drop(timer)

    def drop(self, timer: Timer) -> bool:
        """See `Timer.cancel`."""
        if not self._off(timer):
            return False
        if timer._alarm is not None:
            timer._alarm.cancel()
        if timer.key is not None and timer._task is not None:
            # It waits for its turn: leave the queue.
            timer._task.cancel()
        return True

    async def aclose(self) -> None:
        """Drop all timers, cancel the runs in progress and wait for them. No timer can be set from now on."""
        self._closed = True
        for timer in tuple(self._on):
            self.drop(timer)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Setting and firing. The watchdog finds `timer` in the frame of every function that runs user code (lane_stack).

    def _set(self, timer: Timer) -> Timer:
        if self._closed or len(self._on) >= self._limit:
            raise Overloaded(f"shard {self._shard}, timers", waiting=len(self._on))
        self._on.add(timer)
        self._arm(timer, timer.due_at)
        return timer

    def _off(self, timer: Timer) -> bool:
        """Neither list nor count a timer from now on; False if that was so before."""
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
        timer._alarm = self._alarms.call_at(at, lambda: self._fire(timer))

    def _fire(self, timer: Timer) -> None:
        timer._alarm = None
        if not timer.is_on:
            return
        if self._alarms.now() < timer.due_at:
            # The alarm was early: the loop rounds to milliseconds.
            self._arm(timer, timer.due_at)
        elif timer.key is not None:
            self._start(timer, self._run_keyed(timer))
        else:
            self._run_every(timer)

    def _start(self, timer: Timer, run: Coroutine[Any, Any, None]) -> None:
        task = timer._task = asyncio.get_running_loop().create_task(run, context=_context_of(timer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Timers of `every`

    def _run_every(self, timer: Timer) -> None:
        try:
            result = _context_of(timer).run(timer.fn)
        except BaseException:
            self._failed(timer)
        else:
            if inspect.isawaitable(result):
                self._start(timer, self._finish_every(timer, result))
                return
        self._set_next(timer)

    async def _finish_every(self, timer: Timer, result: Awaitable[object]) -> None:
        await self._guard(timer, result)
        self._set_next(timer)

    def _set_next(self, timer: Timer) -> None:
        """Schedule the next run whose due time has not passed."""
        if not timer.is_on:
            return
        now = self._alarms.now()
        following = max(timer.next_run + 1, math.ceil((now - timer.set_at) / timer.seconds))
        if skipped := following - timer.next_run - 1:
            self._count_skipped(timer, skipped, now)
        timer.next_run = following
        self._arm(timer, timer.set_at + following * timer.seconds)

    def _count_skipped(self, timer: Timer, skipped: int, now: float) -> None:
        timer.skipped += skipped
        timer._unlogged += skipped
        self._skips.add(skipped, {"onelane.timer": timer.name})
        if now - timer._logged_at >= LOG_LATE_S:
            log.warning(
                "timer.late shard=%s timer=%s every_s=%g skipped=%d in_all=%d",
                *(self._shard, timer.name, timer.seconds, timer._unlogged, timer.skipped),
            )
            timer._unlogged, timer._logged_at = 0, now

    # Timers of `later`

    async def _run_keyed(self, timer: Timer) -> None:
        try:
            await self._run_in_turn(timer)
        except NotKept:
            # Its changes are dropped.
            self._failed(timer)

    async def _run_in_turn(self, timer: Timer) -> None:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._turn(timer._user_key))
            except (Overloaded, NoLease, NotKept):
                # Too many wait for the turn, or the shard may not serve now, or the state of the key cannot be loaded.
                timer._task = None
                self._arm(timer, self._alarms.now() + RETRY_TURN_S)
                return
            except ForeignKey:
                log.warning("timer.not_home shard=%s timer=%s: another shard owns its key", self._shard, timer.name)
                self._off(timer)
                return
            if self._off(timer):
                try:
                    result = timer.fn()
                except BaseException:
                    self._failed(timer)
                else:
                    if inspect.isawaitable(result):
                        await self._guard(timer, result)

    # Timers of both kinds

    async def _guard(self, timer: Timer, result: Awaitable[object]) -> None:
        try:
            await result
        except asyncio.CancelledError:
            if self._closed:
                raise
            self._failed(timer)
        except BaseException:
            self._failed(timer)

    def _failed(self, timer: Timer) -> None:
        self._errors.add(1, {"onelane.timer": timer.name})
        log.exception("timer.failed shard=%s timer=%s", self._shard, timer.name)


def _context_of(timer: Timer) -> Context:
    """A run is no part of the call that set its timer: it has not the deadline, trace or turn of that call."""
    context = Context()
    context.run(current_call_var.set, TaskContext(f"/timer {timer.name}"))
    return context
