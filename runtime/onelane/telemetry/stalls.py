"""What a stall is: how long a lane did not turn, where, and whether it was the lane's own doing or the machine's.

Promises: the same measures give the same kind; at most `MOST` stalls a minute are told, and then how many were not.
Leaves out: measuring. `onelane.shard.watchdog` does that.
"""

from collections import deque
from dataclasses import dataclass

EXIT_STALLED = 70
"""How a shard's process ends that replaces itself because its lane has stood still for too long."""
MOST = 5
PER_S = 60.0
HALF = 0.5
"""What has filled this part of a stall is its cause."""

COMPUTING = "computing"
"""The lane's thread used its CPU: something takes long."""
BLOCKED = "blocked"
"""It waited for something that is no await: a sleep, I/O, a lock."""
CROWDED = "crowded"
"""It computed, but no one call did: it took many, one after the other."""
INTERPRETER = "interpreter"
"""Another thread of this process had the interpreter (the GIL)."""
STARVED = "starved"
"""It could have run, and the machine gave it no CPU. Nobody's code is to blame."""
UNKNOWN = "unknown"
"""This system does not tell."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the operating system says of the lane's thread at one moment, in seconds since some past one."""

    at: float
    cpu_s: float
    """CPU time of the lane's thread."""
    delay_s: float
    """How long it was ready to run and had no CPU."""
    others_s: float
    """CPU time of the process's other threads, but the watchdog's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one stall."""

    before: Sample
    after: Sample
    state: str
    """Of the lane's thread, as Linux names it: R runs or could, S and D wait."""
    late_s: float = 0.0
    """How much later than it wanted the watchdog itself came to run."""
    wakes: int = 0
    """How often the waiting thread woke up while it was looked at; who waits for the interpreter asks for it again
    every 5 ms."""
    is_idle: bool = False
    """The lane stands where it waits for something to do."""
    calls: int = 0
    """How many calls the lane took meanwhile."""


def kind_of(seen: Evidence) -> str:
    """Why a lane does not turn."""
    wall_s = max(seen.after.at - seen.before.at, 1e-9)
    own = (seen.after.cpu_s - seen.before.cpu_s) / wall_s
    delay = (seen.after.delay_s - seen.before.delay_s) / wall_s
    others = (seen.after.others_s - seen.before.others_s) / wall_s
    if own >= HALF:
        return CROWDED if seen.calls > 1 else COMPUTING
    if delay >= HALF:
        return STARVED
    if seen.late_s / wall_s >= HALF:
        # The watchdog could not run either: somebody had the interpreter, or nobody had a CPU.
        if others >= HALF:
            return INTERPRETER
        if seen.is_idle:
            return STARVED
    if seen.state == "R":
        return COMPUTING if own >= delay else STARVED
    if others >= HALF and seen.wakes > 1:
        return INTERPRETER
    return BLOCKED


@dataclass(frozen=True, slots=True)
class Stall:
    """One time in which a lane did not turn."""

    kind: str
    seconds: float
    """How long, up to now or in all. The lane was last known to turn before that: at most half a `stall_s` longer."""
    at_ns: int
    """When it began, nanoseconds since the Unix epoch."""
    where: str = ""
    """`file:line` of the innermost frame that is the services' own, or the nearest to it; "" where nothing ran."""
    function: str = ""
    innermost: str = ""
    """`file:line function` of the innermost frame of all."""
    method: str = ""
    """`pkg.Service/Method` of the call in progress, or `timer name`; "" where it was something else."""
    trace_id: str = ""
    others: tuple[str, ...] = ()
    """Where other threads were at work, where one of them had the interpreter."""


class Allowance:
    """At most `most` in any `per_s` seconds; counts what is over that. Owned by one watchdog."""

    def __init__(self, most: int = MOST, per_s: float = PER_S) -> None:
        self._most = most
        self._per_s = per_s
        self._taken: deque[float] = deque()
        self._over = 0

    def take(self, now: float) -> bool:
        """Whether one more may be told."""
        if self._is_full(now):
            self._over += 1
            return False
        self._taken.append(now)
        return True

    def take_over(self, now: float) -> int:
        """How many were not told, once there is room again to say it; 0 where there is nothing to say."""
        if not self._over or self._is_full(now):
            return 0
        over, self._over = self._over, 0
        return over

    def _is_full(self, now: float) -> bool:
        while self._taken and now - self._taken[0] >= self._per_s:
            self._taken.popleft()
        return len(self._taken) >= self._most
