"""Whether a lane ticks, as its supervisor sees it: a process can live while its lane does nothing. Pure.

The supervisor looks at every lane `LOOKS` times in `unresponsive_s`. Any message of a shard shows that its lane ticks;
one that has been silent for two looks is asked for a report. A lane that is silent for more than `LOOKS` looks is
unresponsive, until its next message.
Promises: no false alarm where the supervisor itself did not run (a suspended machine, a stopped process group, no CPU):
then its look is late, and silence is counted anew from there.
Leaves out: ending the process. It may only be stopped, by SIGSTOP or a debugger, and its state is in memory;
`replace_stalled_s` is for lanes that block.
"""

from enum import Enum, auto

LOOKS = 5
"""Looks in `unresponsive_s`."""
LATE = 2.0
"""A look is late that comes this many intervals after the one before."""


class Finding(Enum):
    """What the supervisor does after a look."""

    NOTHING = auto()
    ASK = auto()
    """Ask the lane for a report."""
    LOST = auto()
    """The lane is unresponsive from now on."""


class Liveness:
    """Of one lane."""

    def __init__(self) -> None:
        self.is_responsive = True
        self._silent_looks = 0

    def heard(self) -> None:
        """The shard has sent a message, or its process has just begun."""
        self.is_responsive = True
        self._silent_looks = 0

    def look(self, *, is_late: bool) -> Finding:
        """The supervisor looks once more. is_late: it has not looked for longer than it should."""
        self._silent_looks = 1 if is_late else self._silent_looks + 1
        if self.is_responsive and self._silent_looks > LOOKS:
            self.is_responsive = False
            return Finding.LOST
        return Finding.ASK if self._silent_looks == 2 else Finding.NOTHING
