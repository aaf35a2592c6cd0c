"""Whether a lane ticks, as its supervisor sees it: a process can live while its lane does nothing. Pure.

The supervisor looks at every lane at regular intervals. Any message of a shard shows that its lane ticks; one that has
been silent for two looks is asked for a report. A lane that stays silent for `unresponsive_s` is unresponsive, until
its next message; its process is not ended for that: it may only be stopped, by SIGSTOP or a debugger, and its state is
in memory. After twice `replace_stalled_s` it is hung: C code keeps the interpreter, so that not even the watchdog of
the shard can end it. Times in which the process is stopped, or starved, do not count there.
Promises: no false alarm where the supervisor itself did not run (a suspended machine, a stopped process group, no CPU):
then its look is late, and silence is counted anew from there.
"""

from dataclasses import dataclass
from enum import Enum, auto
from math import ceil

LOOKS = 5
"""Looks in the shorter of the two times."""
LATE = 2.0
"""A look is late that comes this many intervals after the one before."""
ASKED = 2
"""Silent looks after which a lane is asked for a report: an idle one sends none."""


class Finding(Enum):
    """What the supervisor does after a look."""

    NOTHING = auto()
    ASK = auto()
    """Ask the lane for a report."""
    LOST = auto()
    """The lane is unresponsive from now on."""
    HUNG = auto()
    """End the process."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How often the supervisor looks at the lanes of an app, and how many silent looks mean what."""

    interval_s: float
    """0: never."""
    until_lost: int | None
    until_hung: int | None


def looks_of(unresponsive_s: float, replace_stalled_s: float | None) -> Looks:
    """The looks that these settings of an app ask for."""
    hung_s = 2 * (replace_stalled_s or 0.0)
    interval_s = min((limit_s for limit_s in (unresponsive_s, hung_s) if limit_s), default=0.0) / LOOKS
    return Looks(
        interval_s,
        until_lost=ceil(unresponsive_s / interval_s) + 1 if unresponsive_s else None,
        until_hung=ceil(hung_s / interval_s) + ASKED if hung_s else None,
    )


class Liveness:
    """Of one lane."""

    def __init__(self) -> None:
        self.is_responsive = True
        self._silent = 0
        """Silent looks in a row."""
        self._running = 0
        """Of these, the last ones in a row at which the lane had a CPU, or waited by its own doing."""

    def heard(self) -> None:
        """The shard has sent a message, or its process has just begun."""
        self.is_responsive = True
        self._silent = self._running = 0

    @property
    def is_silent(self) -> bool:
        """It has not even answered."""
        return self._silent >= ASKED

    def look(self, looks: Looks, *, is_late: bool = False, lacks_cpu: bool = False) -> Finding:
        """The supervisor looks once more.

        is_late: it has not looked for longer than it should. lacks_cpu: the machine has not let the lane run.
        """
        self._silent = 1 if is_late else self._silent + 1
        self._running = 0 if lacks_cpu else 1 if is_late else self._running + 1
        if looks.until_hung is not None and self._running >= looks.until_hung:
            return Finding.HUNG
        if self.is_responsive and looks.until_lost is not None and self._silent >= looks.until_lost:
            self.is_responsive = False
            return Finding.LOST
        return Finding.ASK if self._silent == ASKED else Finding.NOTHING
