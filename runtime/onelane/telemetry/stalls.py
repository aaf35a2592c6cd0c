"""Stalls: how long a lane's event loop did not iterate, where, and whether its own code or the machine is the cause.

Promises: the same measurements give the same kind; at most `MAX_LOGGED` stalls a minute are logged, and then how many
were suppressed.
Leaves out: measuring. `onelane.shard.watchdog` does that.
"""

import signal
from collections import deque
from dataclasses import dataclass
from math import inf

EXIT_STALLED = 70
"""Exit code of a shard's process that has ended itself because its lane was stalled for too long."""
END_HUNG = signal.SIGVTALRM
"""Ends a shard's process whose lane keeps the interpreter, once C code has written the stacks of all its threads.
Hardly any program uses this signal, and its default leaves no core file."""
MAX_LOGGED = 5
LOG_PERIOD_S = 60.0
MAIN_CAUSE = 0.5
"""An activity that filled at least this part of a stall is its cause."""

COMPUTING = "computing"
"""The lane's thread used its CPU: one piece of code takes long."""
BLOCKED = "blocked"
"""The lane's thread waited without an await: in a sleep, I/O or a lock."""
CROWDED = "crowded"
"""The lane computed, but no single call was long: it took many calls one after the other."""
INTERPRETER = "interpreter"
"""Another thread of this process held the interpreter (the GIL)."""
STARVED = "starved"
"""The lane was ready to run, and the machine gave it no CPU; or the process was stopped. No code is to blame."""
UNMEASURED = "unknown"
"""This operating system does not provide the measurements."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The operating system's counters of the lane's thread at one moment, in seconds since an arbitrary start."""

    at: float
    cpu_s: float
    """CPU time of the lane's thread."""
    delay_s: float
    """How long the thread was ready to run and had no CPU."""
    others_s: float
    """CPU time of the process's other threads, without the watchdog's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is measured of one stall."""

    before: Sample
    after: Sample
    state: str
    """Of the lane's thread, as Linux names it: R runs or is ready to, S and D wait."""
    late_s: float = 0.0
    """How much later than intended the watchdog's own thread came to run."""
    stopped_s: float = 0.0
    """The part of `late_s` in which that thread waited neither for a CPU nor for the interpreter: the process was
    stopped (SIGSTOP, a debugger, a frozen cgroup), or the machine was."""
    wakes: int = 0
    """How often the waiting thread woke up while it was observed; a thread that waits for the interpreter asks again
    every 5 ms."""
    has_cpu: bool = True
    """Whether the thread that is ready to run (R) had a CPU while it was observed. Where not, it waits for one: the
    kernel adds a wait to `delay_s` only once it is over."""
    is_idle: bool = False
    """The lane's innermost frame is where the loop waits for something to do."""
    calls: int = 0
    """How many calls the lane received during the stall."""


def kind_of(evidence: Evidence) -> str:
    """The cause of a stall: one of the kinds above."""
    wall_s = max(evidence.after.at - evidence.before.at, 1e-9)
    own = (evidence.after.cpu_s - evidence.before.cpu_s) / wall_s
    delay = (evidence.after.delay_s - evidence.before.delay_s) / wall_s
    others = (evidence.after.others_s - evidence.before.others_s) / wall_s
    if own >= MAIN_CAUSE:
        return CROWDED if evidence.calls > 1 else COMPUTING
    # A process that was stopped may get no CPU as it goes on either.
    if delay + evidence.stopped_s / wall_s >= MAIN_CAUSE:
        return STARVED
    if evidence.late_s / wall_s >= MAIN_CAUSE:
        # The watchdog could not run either: a thread held the interpreter, or the process got no CPU at all.
        if others >= MAIN_CAUSE:
            return INTERPRETER
        if evidence.is_idle:
            return STARVED
    if evidence.state == "R":
        return COMPUTING if own >= delay and evidence.has_cpu else STARVED
    if others >= MAIN_CAUSE and evidence.wakes > 1:
        return INTERPRETER
    return BLOCKED


@dataclass(frozen=True, slots=True)
class Stall:
    """One period in which a lane's event loop did not iterate."""

    kind: str
    seconds: float
    """How long, up to now or in all. The loop's last iteration was before that: at most half a `stall_s` earlier."""
    at_ns: int
    """When the stall began, nanoseconds since the Unix epoch."""
    where: str = ""
    """`file:line` of the innermost frame of the services' own code, or of the code nearest to it; "" where the lane ran
    nothing."""
    function: str = ""
    innermost: str = ""
    """`file:line function` of the innermost frame of all."""
    method: str = ""
    """`pkg.Service/Method` of the call in progress, or `timer name`; "" where it was neither."""
    trace_id: str = ""
    others: tuple[str, ...] = ()
    """Names and places of other busy threads, if one of them held the interpreter."""


class LogLimit:
    """At most `most` log entries in any `per_s` seconds; counts those suppressed. Owned by one watchdog."""

    def __init__(self, most: int = MAX_LOGGED, per_s: float = LOG_PERIOD_S) -> None:
        self._most = most
        self._per_s = per_s
        self._logged_at: deque[float] = deque()
        self._suppressed = 0

    def allow(self, now: float) -> bool:
        """Whether one more stall may be logged; counts it as logged or as suppressed."""
        if self.is_reached(now):
            self._suppressed += 1
            return False
        self._logged_at.append(now)
        return True

    def take_suppressed(self, now: float) -> int:
        """How many were suppressed, once the limit allows logging again, and begin again at 0; 0 before that."""
        if not self._suppressed or self.is_reached(now):
            return 0
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed

    def is_reached(self, now: float) -> bool:
        """Whether the next one would be suppressed."""
        while self._logged_at and now - self._logged_at[0] >= self._per_s:
            self._logged_at.popleft()
        return len(self._logged_at) >= self._most


class StarvedLimit:
    """Which times without a CPU are logged: the first in `LOG_PERIOD_S`, and each that is twice as long as the last one
    logged, so that a long one does not hide behind a short one. Owned by one watchdog."""

    def __init__(self) -> None:
        self._logged_at = -inf
        self._logged_s = 0.0
        self._suppressed = 0

    def allow(self, now: float, seconds: float) -> int | None:
        """How many were suppressed before this one, which may be logged; None where it is suppressed as well."""
        if now - self._logged_at < LOG_PERIOD_S and seconds < 2 * self._logged_s:
            self._suppressed += 1
            return None
        self._logged_at, self._logged_s = now, seconds
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
