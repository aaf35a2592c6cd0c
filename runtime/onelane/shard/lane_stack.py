"""Reads the stack of a lane's thread: the line of user code that runs, its call or timer, its shard.

**The contract with the lane.** A call does not register that it is in progress, because that would cost every call; its
stack is the only trace. So while user code runs, the frames of this package below it must hold, in a local variable
(of any name; a variable of a closure counts). None of these functions is compiled: compiled code has no frames.

| object                                | below                             | today in the frames of                  |
|---------------------------------------|-----------------------------------|-----------------------------------------|
| the `Call`, or its `PlainContext`     | a handler                         | `running.run`, `running.run_now`        |
|                                       | a plain `def` handler of a stream | `sync_handler.stream`, `handler`        |
| the `Lane`, whose name is the shard's | a handler                         | `running.run`, `running.run_now`        |
| the `Timer`                           | a function given to a timer       | `Timers._run_every`, `._run_in_turn`    |

tests/shard/test_watchdog_contract.py runs every kind of handler and timer, and names the function and the object where
a frame no longer holds it.

Leaves out: the shard of a timer, and of a plain `def` handler of a stream: it runs in a greenlet, whose stack ends at
the function that the greenlet was given.
"""

import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

from onelane.lane.lane import Lane
from onelane.server.call import Call
from onelane.server.plain_context import PlainContext, call_of
from onelane.server.user_code import LIBRARIES, PACKAGE
from onelane.shard.timers import Timer
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stalls import UNMEASURED, Stall
from onelane.telemetry.tracer import context_of

MAX_THREADS = 3
"""Other threads that are listed."""


@dataclass(frozen=True, slots=True)
class WorkInProgress:
    """The objects of the contract, innermost first; each is empty where no frame holds it."""

    shard: str = ""
    call: Call | None = None
    timer: Timer | None = None


@dataclass(frozen=True, slots=True)
class LaneStack:
    """The stack of a lane's thread at one moment, as far as a stall needs it."""

    shard: str
    """The name of the lane's shard, for a loop that several shards share; "" where no frame holds the lane."""
    stall: Stall
    """The place, call and trace of a stall; its kind and times are not known from a stack."""
    span: SpanRecord | None
    """Of the call in progress, where it is recorded."""


def read(frame: FrameType | None, packages: frozenset[str], *, except_threads: set[int]) -> LaneStack:
    """Describe a stack.

    frame: the lane's innermost; None where the lane waits for something to do. packages: the services' top-level ones.
    except_threads: idents of threads that are not listed among the busy ones.
    """
    work = work_in_progress(frame)
    innermost = _user_frame(frame, packages)
    span = work.call.span if work.call is not None else None
    trace = context_of(span)
    stall = Stall(
        UNMEASURED,
        seconds=0.0,
        at_ns=0,
        where=place(innermost),
        function=innermost.f_code.co_qualname if innermost is not None else "",
        innermost=_line(frame),
        method=_name(work),
        trace_id=trace.trace_id if trace is not None else "",
        others=_busy_threads(except_threads, packages),
    )
    return LaneStack(work.shard, stall, span if isinstance(span, SpanRecord) else None)


def work_in_progress(frame: FrameType | None) -> WorkInProgress:
    """The innermost call, timer and lane that the frames of this package hold. See the contract above."""
    shard, call, timer = "", None, None
    for package_frame in _outward(frame):
        if not package_frame.f_code.co_filename.startswith(PACKAGE):
            continue
        for value in package_frame.f_locals.values():
            # Not isinstance: it asks an object for its `__class__`, which may run code of the user.
            kind = type(value)
            if call is None and issubclass(kind, Call):
                call = value
            elif call is None and kind is PlainContext:
                call = call_of(value)
            elif timer is None and kind is Timer:
                timer = value
            elif not shard and kind is Lane:
                shard = value.name
    return WorkInProgress(shard, call, timer)


def _name(work: WorkInProgress) -> str:
    if work.call is not None:
        return work.call.method.removeprefix("/")
    return f"timer {work.timer.name}" if work.timer is not None else ""


def _user_frame(frame: FrameType | None, packages: frozenset[str]) -> FrameType | None:
    return user_frame(_outward(frame), packages) or frame


def user_frame(frames: Iterable[FrameType], packages: frozenset[str]) -> FrameType | None:
    """The first frame of the services' own code; else of an installed library; else none. frames: innermost first."""
    library_frame = None
    for outer in frames:
        file, root = outer.f_code.co_filename, str(outer.f_globals.get("__name__", "")).partition(".")[0]
        if file.startswith((PACKAGE, "<")):
            continue
        if root in packages or not file.startswith(LIBRARIES):
            return outer
        if library_frame is None and "-packages" in file:
            library_frame = outer
    return library_frame


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def place(frame: FrameType | None) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def _line(frame: FrameType | None) -> str:
    return f"{place(frame)} {frame.f_code.co_qualname}" if frame is not None else ""


def _busy_threads(except_threads: set[int], packages: frozenset[str]) -> tuple[str, ...]:
    """Name and place of other threads that run user code, and do not only wait in this package or the standard
    library."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        innermost = None if ident in except_threads else _user_frame(frame, packages)
        if innermost is not None and not innermost.f_code.co_filename.startswith((PACKAGE, *LIBRARIES)):
            lines.append(f"{names.get(ident, ident)} at {_line(innermost)}")
    return tuple(lines[:MAX_THREADS])
