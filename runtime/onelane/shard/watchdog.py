"""The stall detector: a thread that watches a lane's event loop, and logs where the lane is when it stops iterating.

Promises: a stall is noticed between a half and one `stall_s` after it began, or, if the stalling code holds the
interpreter as well (C code), once it releases it. It costs a call nothing. The thread looks every half
`stall_s`. Where the lane waits for something to do, its innermost frame shows that, and the loop is left alone; a loop
that is busy is sent a probe, a callback (`call_soon_threadsafe`) that it runs if it still iterates.
Leaves out: stopping the code that stalls; Python cannot. After `replace_stalled_s` the process ends itself, and the
supervisor starts a new one. Where C code keeps this thread from running too, the supervisor ends it (`liveness`).
Parts: reading the stack (`lane_stack`), measuring the thread (`lane_thread`), finding the cause (`telemetry.stalls`).
"""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from onelane.shard import lane_stack
from onelane.shard.lane_stack import LaneStack
from onelane.shard.lane_thread import LaneThread, OwnThread
from onelane.telemetry.stalls import (
    EXIT_STALLED,
    INTERPRETER,
    MAIN_CAUSE,
    STARVED,
    UNMEASURED,
    Evidence,
    LogLimit,
    Sample,
    Stall,
    StarvedLimit,
    kind_of,
)

log = logging.getLogger("onelane.watchdog")
JOIN_S = 1.0
"""How long the lane waits for the watchdog's thread to end."""
OBSERVE_S = 0.012
"""How long the lane's thread is observed: where it waits, whether it wakes up to ask for the interpreter; where it is
ready to run, whether it has a CPU."""


@dataclass
class WatchedShard:
    """A shard's settings and callbacks for the watchdog."""

    name: str
    stall_s: float
    replace_s: float | None
    """Where set, the process of a lane that is stalled for this long ends itself."""
    packages: frozenset[str]
    """Top-level packages of the services: their frames are the user's own, wherever they are installed."""
    calls_received: Callable[[], int]
    """How many calls the lane has received so far. Called on the watchdog's thread."""
    on_stall: Callable[[Stall, bool], None]
    """Takes a stall that is over, and whether it was logged. Called on the lane."""
    log_limit: LogLimit = field(default_factory=LogLimit)
    starved_limit: StarvedLimit = field(default_factory=StarvedLimit)
    """Of stalls for which the machine alone is to blame."""


@dataclass(slots=True)
class _Probe:
    """A callback that the loop was sent and has not run yet."""

    number: int
    at: float
    """Monotonic; a stall began then, or up to one look earlier."""
    at_ns: int
    sample: Sample
    calls: dict[str, int]
    """Shard → calls received up to then."""
    late_s: float = 0.0
    """The delays of the watchdog's own looks since then, in all."""
    stopped_s: float = 0.0
    """Of these, what the process was stopped for."""
    stall: Stall | None = None
    """Once the probe is overdue."""
    shard: WatchedShard | None = None
    """The shard that the stall is attributed to."""
    is_logged: bool = False


class Watchdog:
    """Watches one loop, for every shard that has its lane on it."""

    def __init__(self, *, may_exit: bool, measure: Callable[[], LaneThread] = LaneThread) -> None:
        """may_exit: this process belongs to one shard alone, so it may end itself to be replaced. measure: called on
        the lane's thread."""
        self.may_exit = may_exit
        self._measure = measure
        self._shards: dict[str, WatchedShard] = {}
        """Replaced, never changed: the watchdog's thread reads it."""
        self._thread: _WatchdogThread | None = None

    def attend(self, shard: WatchedShard) -> None:
        """Watch the running loop for a shard from now on. Call on the lane."""
        self._shards = self._shards | {shard.name: shard}
        if self._thread is None:
            self._thread = _WatchdogThread(lambda: self._shards, self._measure(), may_exit=self.may_exit)
            self._thread.start()

    def leave(self, name: str) -> None:
        """Stop watching for a shard; the thread ends with the last one."""
        self._shards = {other: shard for other, shard in self._shards.items() if other != name}
        if not self._shards and self._thread is not None:
            self._thread.end()
            self._thread.join(JOIN_S)
            self._thread = None


class _WatchdogThread(threading.Thread):
    def __init__(self, shards: Callable[[], dict[str, WatchedShard]], lane: LaneThread, *, may_exit: bool) -> None:
        super().__init__(name="onelane-watchdog", daemon=True)
        self._shards = shards
        self._may_exit = may_exit
        self._loop = asyncio.get_running_loop()
        self._lane = lane
        # A lock, and not an Event: waiting for it is a single call into C.
        self._ended = threading.Lock()
        self._ended.acquire()
        self._probes_sent = 0
        self._probe: _Probe | None = None
        self._observed_s = 0.0
        """How long the last look has slept to observe the lane's thread."""
        self._last_answer = (0, 0.0)
        """Written on the lane: the number of the last probe that the loop ran, and when."""
        self._loop_frame: FrameType | None = None
        """Written on the lane: the frame that runs the loop, which is the innermost while the lane is idle."""
        self._loop.call_soon(self._answer, 0)

    @property
    def _interval_s(self) -> float:
        return min((shard.stall_s for shard in self._shards().values()), default=1.0) / 2

    def end(self) -> None:
        self._ended.release()

    def run(self) -> None:
        try:
            self._watch()
        except Exception:
            if not self._loop.is_closed():
                log.exception("watchdog.failed: stalls of this lane are not detected any more")
        finally:
            self._lane.close()

    # On its own thread

    def _watch(self) -> None:
        own, sample = OwnThread(), self._lane.sample()
        try:
            while not self._ended.acquire(timeout=self._interval_s):
                before, sample = sample, self._lane.sample()
                late_s = max(0.0, sample.at - before.at - self._interval_s - self._observed_s)
                self._observed_s = 0.0
                # Of the same moments, so that a wait counts in the look that it has made late.
                stopped_s = max(0.0, late_s - own.take_waited_s())
                self._look(before, sample, late_s=late_s, stopped_s=stopped_s)
        finally:
            own.close()

    def _look(self, before: Sample, now: Sample, *, late_s: float, stopped_s: float) -> None:
        probe = self._probe
        is_overdue = probe is not None and self._last_answer[0] < probe.number
        # This thread could not look for so long that the lane may have been stalled too, or has held the interpreter.
        is_late = late_s > 2 * self._interval_s
        # Read the stack first: all that follows may release the interpreter, and let the lane go on.
        stack = self._read_stack() if is_overdue or is_late else None
        if probe is not None and not is_overdue:
            self._close(probe)
            probe = None
        if probe is None and (is_late or self._busy_frame() is not None):
            probe = self._send_probe(before if is_late else now)
        if probe is not None and stack is not None:
            probe.late_s += late_s
            probe.stopped_s += stopped_s
            self._note_stall(probe, stack)
            self._consider_exit(probe, stack)
        self._log_suppressed(now.at)

    def _send_probe(self, since: Sample) -> _Probe:
        self._probes_sent += 1
        at_ns = time.time_ns() - int((self._lane.now() - since.at) * 1e9)
        calls = {name: shard.calls_received() for name, shard in self._shards().items()}
        self._probe = _Probe(self._probes_sent, since.at, at_ns, since, calls)
        self._loop.call_soon_threadsafe(self._answer, self._probes_sent)
        return self._probe

    def _busy_frame(self) -> FrameType | None:
        """The lane's innermost frame; None where the lane waits for something to do."""
        frame = sys._current_frames().get(self._lane.ident)
        is_idle = frame is None or frame is self._loop_frame or frame.f_code.co_filename.endswith("selectors.py")
        return None if is_idle else frame

    def _read_stack(self) -> LaneStack:
        packages = frozenset().union(*(shard.packages for shard in self._shards().values()))
        watching = {self._lane.ident, threading.get_ident()}
        return lane_stack.read(self._busy_frame(), packages, except_threads=watching)

    def _note_stall(self, probe: _Probe, stack: LaneStack) -> None:
        """The probe is overdue: log the stall, once, with where the lane is."""
        if probe.stall is None:
            self._begin_stall(probe, stack)
        elif probe.shard is not None and probe.stall.kind == STARVED:
            # What has begun without a CPU, or in a process that was stopped, may go on as a stall by its own code.
            probe.stall = self._judge(probe, stack, probe.shard)
        else:
            return
        # A starved lane's code is not to blame: that is told once it is over, and seldom.
        if probe.stall is None or probe.shard is None or probe.stall.kind == STARVED:
            return
        probe.is_logged = probe.shard.log_limit.allow(self._lane.now())
        if probe.is_logged:
            log.warning(*_stall_message("lane.stalled", probe.shard.name, probe.stall))

    def _begin_stall(self, probe: _Probe, stack: LaneStack) -> None:
        shards = self._shards()
        shard = shards.get(stack.shard) or next(iter(shards.values()), None)
        if shard is None:
            return
        if stack.span is not None and not shard.log_limit.is_reached(self._lane.now()):
            # Before the lane can go on, and the span be moved out.
            at = f"{stack.stall.where} {stack.stall.function}"
            stack.span.add_event("onelane.stall", {"onelane.stall.at": at}, time.time_ns())
        probe.stall, probe.shard = self._judge(probe, stack, shard), shard

    def _judge(self, probe: _Probe, stack: LaneStack, shard: WatchedShard) -> Stall:
        """The stall so far, with its kind."""
        evidence = self._measure(probe, shard, is_idle=not stack.stall.where)
        kind = kind_of(evidence) if self._lane.is_measurable else UNMEASURED
        others = stack.stall.others if kind == INTERPRETER else ()
        seconds = evidence.after.at - probe.at
        return replace(stack.stall, kind=kind, seconds=seconds, at_ns=probe.at_ns, others=others)

    def _measure(self, probe: _Probe, shard: WatchedShard, *, is_idle: bool) -> Evidence:
        after, state, wakes, has_cpu = self._lane.sample(), self._lane.state(), 0, True
        half_s = MAIN_CAUSE * (after.at - probe.at)
        if state == "S" and after.others_s - probe.sample.others_s > half_s:
            self._observed_s += OBSERVE_S
            wakes = self._lane.wakes(OBSERVE_S)
        if state == "R" and after.cpu_s - probe.sample.cpu_s < half_s:
            self._observed_s += OBSERVE_S
            has_cpu = self._lane.has_cpu(OBSERVE_S)
            # The kernel counts a wait for a CPU once it is over, as this one may be by now.
            after = self._lane.sample()
        calls = shard.calls_received() - probe.calls.get(shard.name, 0)
        return Evidence(
            before=probe.sample,
            after=after,
            state=state,
            late_s=probe.late_s,
            stopped_s=probe.stopped_s,
            wakes=wakes,
            has_cpu=has_cpu,
            is_idle=is_idle,
            calls=calls,
        )

    def _close(self, probe: _Probe) -> None:
        """The loop has run the probe; if it was overdue, the stall is over."""
        self._probe = None
        if probe.stall is None or probe.shard is None:
            return
        stall = replace(probe.stall, seconds=self._last_answer[1] - probe.at)
        if stall.kind == STARVED:
            probe.is_logged = tell_starved(probe.shard, stall, self._lane.now())
        elif probe.is_logged:
            log.warning(
                "lane.turns_again shard=%s kind=%s after_ms=%d at=%s",
                *(probe.shard.name, stall.kind, stall.seconds * 1000, stall.where),
            )
        self._loop.call_soon_threadsafe(probe.shard.on_stall, stall, probe.is_logged)

    def _log_suppressed(self, now: float) -> None:
        for shard in self._shards().values():
            if suppressed := shard.log_limit.take_suppressed(now):
                log.warning("lane.stalls_untold shard=%s in_the_last_minute=%d", shard.name, suppressed)

    # Replacing the process

    def _consider_exit(self, probe: _Probe, stack: LaneStack) -> None:
        """End the process once the lane is stalled for `replace_stalled_s`, and by its own doing."""
        shard = probe.shard
        if shard is None or shard.replace_s is None or not self._may_exit:
            return
        # Not the time in which this thread could not look either: then the process was stopped or starved, or code held
        # the interpreter, for which the supervisor ends it.
        if self._lane.now() - probe.at - probe.late_s < shard.replace_s:
            return
        stall = self._judge(probe, stack, shard)
        if stall.kind == STARVED:
            # A new process would get no more CPU than this one.
            return
        log.error("lane.replaced shard=%s after_s=%.1f at=%s", shard.name, stall.seconds, stall.where)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_STALLED)

    # On the lane

    def _answer(self, number: int) -> None:
        self._loop_frame = sys._getframe(1)
        self._last_answer = (number, self._lane.now())


def tell_starved(shard: WatchedShard, stall: Stall, now: float) -> bool:
    """Log that the machine had no CPU for the lane, seldom (`StarvedLimit`); whether it was logged."""
    untold = shard.starved_limit.allow(now, stall.seconds)
    if untold is None:
        return False
    text, *values = _stall_message("lane.starved", shard.name, stall)
    log.info(*((text + " times_untold=%d", *values, untold) if untold else (text, *values)))
    return True


def _stall_message(event: str, shard: str, stall: Stall) -> tuple[Any, ...]:
    """A log record's text and values, without fields that are empty."""
    fields = {
        "shard": shard,
        "kind": stall.kind,
        "for_ms": int(stall.seconds * 1000),
        "at": stall.where,
        "in": stall.function,
        "method": stall.method,
        "trace": stall.trace_id,
        "innermost": stall.innermost,
        "others": "; ".join(stall.others),
    }
    fields = {name: value for name, value in fields.items() if value != ""}
    return (" ".join([event, *(f"{name}=%s" for name in fields)]), *fields.values())
