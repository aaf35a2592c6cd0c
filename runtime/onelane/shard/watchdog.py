"""The stall detector: a thread that looks at the lane from outside, and says where it stands when it does not turn.

Promises: a stall is noticed between a half and one `stall_s` after it began, whatever holds the lane, unless that also
holds the interpreter (C code): then once it lets go. It costs a call nothing. It looks every half `stall_s`; where the
lane waits for something to do, one look at its innermost frame tells that, and the loop is left alone. Only a lane that
is at work is asked to turn (`call_soon_threadsafe`). Measured on an idle shard: IDLE_COST.
Leaves out: stopping what stalls; Python cannot. Past `replace_stalled_s` the process ends itself, and is started anew.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from onelane.server.call import Call
from onelane.server.sync_handler import PlainContext
from onelane.shard.timers import Timer
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stalls import (
    EXIT_STALLED,
    INTERPRETER,
    STARVED,
    UNKNOWN,
    Allowance,
    Evidence,
    Sample,
    Stall,
    kind_of,
)
from onelane.telemetry.tracer import context_of

log = logging.getLogger("onelane.watchdog")
HERE = str(Path(__file__).parent.parent) + os.sep
LIBRARIES = tuple(
    {str(Path(sysconfig.get_path(name))) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
END_S = 1.0
WAKES_S = 0.012
"""How long a waiting thread is looked at, to see whether it wakes to ask for the interpreter."""
MOST_THREADS = 3


@dataclass
class Watched:
    """One shard, as its watchdog knows it."""

    shard: str
    stall_s: float
    replace_s: float | None
    """Where set, a lane that stands still for so long has its process end itself."""
    packages: frozenset[str]
    """Top-level packages of the services: their frames are the user's own, wherever they are installed."""
    calls: Callable[[], int]
    """How many calls the lane has taken so far; asked from the watchdog's thread."""
    took: Callable[[Stall, bool], None]
    """Takes a stall that is over, and whether it has been told; called on the lane."""
    allowance: Allowance = field(default_factory=Allowance)


@dataclass(slots=True)
class _Asked:
    """The lane was asked to turn."""

    number: int
    at: float
    """Monotonic; the stall, if it is one, began then or up to one look earlier."""
    at_ns: int
    sample: Sample
    calls: dict[str, int]
    late_s: float = 0.0
    """How much too late the watchdog itself has come to look since, in all."""
    stall: Stall | None = None
    watched: Watched | None = None
    is_told: bool = False


class Watchdog:
    """Watches one loop, for all shards whose lane it is. Its state belongs to its thread, once that runs."""

    def __init__(self, *, may_exit: bool) -> None:
        """may_exit: this process is one shard's alone, so it may be replaced."""
        self.may_exit = may_exit
        self._all: dict[str, Watched] = {}
        self._thread: _Looker | None = None

    def attend(self, watched: Watched) -> None:
        """Watch the running loop on behalf of a shard from now on. Call on the lane."""
        self._all = self._all | {watched.shard: watched}
        if self._thread is None:
            self._thread = _Looker(lambda: self._all, may_exit=self.may_exit)
            self._thread.start()

    def leave(self, shard: str) -> None:
        """Watch no more on behalf of a shard; the thread ends with the last."""
        self._all = {name: watched for name, watched in self._all.items() if name != shard}
        if not self._all and self._thread is not None:
            self._thread.end()
            self._thread.join(END_S)
            self._thread = None


class _Looker(threading.Thread):
    def __init__(self, watched: Callable[[], dict[str, Watched]], *, may_exit: bool) -> None:
        super().__init__(name="onelane-watchdog", daemon=True)
        self._watched = watched
        self._may_exit = may_exit
        self._loop = asyncio.get_running_loop()
        self._lane = _Lane()
        # A lock, and not an Event: to wait for it is one call into C.
        self._ended = threading.Lock()
        self._ended.acquire()
        self._number = 0
        self._asked: _Asked | None = None
        self._answered = (0, 0.0)
        """Written by the lane: the number that it was asked by last, and when it turned."""
        self._host: FrameType | None = None
        """Written by the lane: the frame that runs the loop, in which the lane is while it has nothing to do."""
        self._loop.call_soon(self._turned, 0)
        self._armed_at = 0.0
        self._is_armed = False
        # Not only at the first look: until then a call may take the interpreter and keep it.
        self._arm(time.monotonic())

    @property
    def _every_s(self) -> float:
        return min((one.stall_s for one in self._watched().values()), default=1.0) / 2

    def end(self) -> None:
        self._ended.release()

    def run(self) -> None:
        try:
            self._look_often()
        except Exception:
            if not self._loop.is_closed():
                log.exception("watchdog.failed: nobody watches the lane any more")
        finally:
            self._lane.close()
            if self._is_armed:
                faulthandler.cancel_dump_traceback_later()

    # On its own thread

    def _look_often(self) -> None:
        sample = self._lane.sample()
        while not self._ended.acquire(timeout=self._every_s):
            before, sample = sample, self._lane.sample()
            self._look(before, sample, late_s=sample.at - before.at - self._every_s)

    def _look(self, before: Sample, now: Sample, *, late_s: float) -> None:
        asked = self._asked
        waits = asked is not None and self._answered[0] < asked.number
        # We could not look for so long that the lane may not have turned either, or has kept us from it.
        is_late = late_s > 2 * self._every_s
        # First of all: whatever follows may let the lane go on.
        found = self._find() if waits or is_late else None
        if asked is not None and not waits:
            self._close(asked)
            asked = None
        if asked is None:
            self._arm(now.at)
            asked = self._ask(before) if is_late else self._ask_if_at_work(now)
        if asked is not None and found is not None:
            asked.late_s += max(0.0, late_s)
            self._notice(asked, found)
            self._consider_replacing(asked, found)
        self._tell_untold(now.at)

    def _ask_if_at_work(self, now: Sample) -> _Asked | None:
        if self._frame() is None:
            return None
        return self._ask(replace(now, delay_s=self._lane.delay_s()))

    def _ask(self, since: Sample) -> _Asked:
        self._number += 1
        at_ns = time.time_ns() - int((time.monotonic() - since.at) * 1e9)
        calls = {one.shard: one.calls() for one in self._watched().values()}
        self._asked = _Asked(self._number, since.at, at_ns, since, calls)
        self._loop.call_soon_threadsafe(self._turned, self._number)
        return self._asked

    def _frame(self) -> FrameType | None:
        """The lane's innermost; None where it waits for something to do."""
        frame = sys._current_frames().get(self._lane.ident)
        is_idle = frame is None or frame is self._host or frame.f_code.co_filename.endswith("selectors.py")
        return None if is_idle else frame

    def _find(self) -> "_Found":
        return _Found.of(self._frame(), self._watched(), but={self._lane.ident, threading.get_ident()})

    def _notice(self, asked: _Asked, found: "_Found") -> None:
        """The lane has not turned: say so, once, with where it stands."""
        if asked.stall is not None or found.watched is None:
            return
        asked.is_told = found.watched.allowance.take(time.monotonic())
        if asked.is_told and found.span is not None:
            # Before the lane can go on, and the span be moved out.
            at = f"{found.stall.where} {found.stall.function}"
            found.span.add_event("onelane.stall", {"onelane.stall.at": at}, time.time_ns())
        asked.stall, asked.watched = self._judged(asked, found), found.watched
        if asked.is_told:
            log.warning(*_begun(found.watched.shard, asked.stall))

    def _judged(self, asked: _Asked, found: "_Found") -> Stall:
        evidence = self._evidence(asked, found.watched, is_idle=not found.stall.where)
        kind = kind_of(evidence) if self._lane.tells else UNKNOWN
        others = found.stall.others if kind == INTERPRETER else ()
        seconds = evidence.after.at - asked.at
        return replace(found.stall, kind=kind, seconds=seconds, at_ns=asked.at_ns, others=others)

    def _evidence(self, asked: _Asked, watched: Watched | None, *, is_idle: bool) -> Evidence:
        after, state, wakes = self._lane.sample(), self._lane.state(), 0
        if asked.sample.delay_s >= 0:
            after = replace(after, delay_s=self._lane.delay_s())
        if state == "S" and after.others_s - asked.sample.others_s > (after.at - asked.at) / 2:
            wakes = self._lane.wakes(WAKES_S)
        calls = watched.calls() - asked.calls.get(watched.shard, 0) if watched else 0
        return Evidence(asked.sample, after, state, asked.late_s, wakes, is_idle, calls)

    def _close(self, asked: _Asked) -> None:
        """The lane has turned again."""
        self._asked = None
        if asked.stall is None or asked.watched is None:
            return
        stall = replace(asked.stall, seconds=self._answered[1] - asked.at)
        if asked.is_told:
            log.warning(
                "lane.turns_again shard=%s kind=%s after_ms=%d at=%s",
                *(asked.watched.shard, stall.kind, stall.seconds * 1000, stall.where),
            )
        self._loop.call_soon_threadsafe(asked.watched.took, stall, asked.is_told)

    def _tell_untold(self, now: float) -> None:
        for watched in self._watched().values():
            if untold := watched.allowance.take_over(now):
                log.warning("lane.stalls_untold shard=%s in_the_last_minute=%d", watched.shard, untold)

    # Replacing

    def _consider_replacing(self, asked: _Asked, found: "_Found") -> None:
        watched = asked.watched
        if watched is None or watched.replace_s is None or not self._may_exit:
            return
        if time.monotonic() - asked.at < watched.replace_s:
            return
        stall = self._judged(asked, found)
        if stall.kind == STARVED:
            # A new process would get no more CPU than this one.
            return
        log.error("lane.replaced shard=%s after_s=%.1f at=%s", watched.shard, stall.seconds, stall.where)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_STALLED)

    def _arm(self, now: float) -> None:
        """Where even this thread cannot run, C code does it after twice the time; it cannot tell why."""
        limits = [one.replace_s for one in self._watched().values() if one.replace_s is not None]
        if self._may_exit and limits and now - self._armed_at > min(limits) / 2:
            self._armed_at, self._is_armed = now, True
            faulthandler.dump_traceback_later(2 * min(limits), exit=True)

    # On the lane

    def _turned(self, number: int) -> None:
        self._host = sys._getframe(1)
        self._answered = (number, time.monotonic())


class _Lane:
    """The lane's thread, as the operating system knows it. Made on that thread."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.tells = sys.platform.startswith("linux")
        """This system says what is asked here."""
        self._files: dict[str, int | None] = {}
        if self.tells:
            self._clock = time.pthread_getcpuclockid(self.ident)
            # Open from the beginning: each system call lets go of the interpreter, and a busy lane gives it back late.
            folder = f"/proc/self/task/{threading.get_native_id()}"
            self._files = {name: _opened(f"{folder}/{name}") for name in ("schedstat", "stat", "status")}

    def sample(self) -> Sample:
        """Cheap, and without letting go of the interpreter: so its `delay_s` is not known, and below 0."""
        if not self.tells:
            return Sample(time.monotonic(), 0.0, -1.0, 0.0)
        cpu_s = time.clock_gettime(self._clock)
        return Sample(time.monotonic(), cpu_s, -1.0, time.process_time() - cpu_s - time.thread_time())

    def delay_s(self) -> float:
        """How long it was ready to run and had no CPU, in all."""
        fields = self._read("schedstat").split()
        return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0

    def state(self) -> str:
        """One letter; see `Evidence.state`."""
        return self._read("stat").rpartition(b")")[2].strip()[:1].decode()

    def wakes(self, seconds: float) -> int:
        """How often it gave up its CPU by itself in the next `seconds`."""
        before = self._switches()
        time.sleep(seconds)
        return self._switches() - before

    def close(self) -> None:
        for file in self._files.values():
            if file is not None:
                os.close(file)

    def _switches(self) -> int:
        lines = self._read("status").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(b"voluntary_ctxt_switches")), 0)

    def _read(self, name: str) -> bytes:
        file = self._files.get(name)
        return b"" if file is None else os.pread(file, 8192, 0)


def _opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


# Where a thread stands


@dataclass(frozen=True, slots=True)
class _Found:
    """What the frames of a lane that stands tell."""

    watched: Watched | None
    stall: Stall
    span: SpanRecord | None

    @classmethod
    def of(cls, frame: FrameType | None, all_watched: dict[str, Watched], *, but: set[int]) -> "_Found":
        """frame: the lane's. but: threads that are not to blame."""
        packages = frozenset().union(*(one.packages for one in all_watched.values()))
        shard, call, method = _in_progress(frame)
        own = _nearest(frame, packages)
        trace = context_of(call.span) if call is not None else None
        stall = Stall(
            UNKNOWN,
            *(0.0, 0),
            where=_place(own),
            function=own.f_code.co_qualname if own is not None else "",
            innermost=_line(frame),
            method=call.method[1:] if call is not None else method,
            trace_id=trace.trace_id if trace is not None else "",
            others=_at_work(but, packages),
        )
        watched = all_watched.get(shard) or next(iter(all_watched.values()), None)
        return cls(watched, stall, call.span if call and isinstance(call.span, SpanRecord) else None)


def _in_progress(frame: FrameType | None) -> tuple[str, Call | None, str]:
    """What a lane is at: its shard's name, the call, or else the name of the timer; each where it can be seen.

    A call leaves no trace outside of its own frames, which costs it nothing: those of this package have it as `call` or
    `context`.
    """
    shard, found, timer = "", None, ""
    for one in _outward(frame):
        if not one.f_code.co_filename.startswith(HERE):
            continue
        there: dict[str, Any] = one.f_locals
        call = there.get("call") or there.get("context")
        if isinstance(call, PlainContext):
            call = call._call
        if found is None and isinstance(call, Call):
            found = call
        if isinstance(there.get("timer"), Timer):
            timer = timer or f"timer {there['timer'].name}"
        if one.f_code.co_filename.endswith(f"{os.sep}lane.py"):
            shard = shard or str(getattr(there.get("self"), "name", ""))
    return shard, found, timer


def _nearest(frame: FrameType | None, packages: frozenset[str]) -> FrameType | None:
    """The innermost frame that is the services' own; else of a library; else of all."""
    library = None
    for one in _outward(frame):
        file, root = one.f_code.co_filename, str(one.f_globals.get("__name__", "")).partition(".")[0]
        if file.startswith((HERE, "<")):
            continue
        if root in packages or not file.startswith(LIBRARIES):
            return one
        if library is None and "-packages" in file:
            library = one
    return library or frame


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType | None) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def _line(frame: FrameType | None) -> str:
    return f"{_place(frame)} {frame.f_code.co_qualname}" if frame is not None else ""


def _at_work(but: set[int], packages: frozenset[str]) -> tuple[str, ...]:
    """Where other threads stand that run somebody's code, and not only wait in ours or the standard library's."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = [(ident, frame) for ident, frame in sys._current_frames().items() if ident not in but]
    told = [
        f"{names.get(ident, ident)} at {_line(own)}"
        for ident, frame in frames
        if (own := _nearest(frame, packages)) is not None and not own.f_code.co_filename.startswith((HERE, *LIBRARIES))
    ]
    return tuple(told[:MOST_THREADS])


# Saying it


def _begun(shard: str, stall: Stall) -> tuple[Any, ...]:
    what = "lane.starved" if stall.kind == STARVED else "lane.stalled"
    text = what + " shard=%s kind=%s for_ms=%d at=%s in=%s method=%s trace=%s innermost=%s"
    at = (stall.where or "-", stall.function or "-", stall.method or "-", stall.trace_id or "-", stall.innermost or "-")
    if stall.others:
        return text + " others=%s", shard, stall.kind, stall.seconds * 1000, *at, "; ".join(stall.others)
    return text, shard, stall.kind, stall.seconds * 1000, *at
