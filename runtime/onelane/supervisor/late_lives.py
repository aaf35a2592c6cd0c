"""Which lives of this machine hold a change of placement up. Pure: time is passed in.

A change waits for lives, in a cluster for those of all machines, and those that wait for one that hangs have not made
their steps either. So what counts is a life's own word (`HandoffProgress.waits_for`): it is late where it says, again
and again, that a step of its own is missing, and gets no further; or where it says nothing. Whoever waits for another
life, or for its store, is not late, however long that takes: its memory is kept.
"""

from collections.abc import Iterable

from onelane.v1 import control_pb2

BETWEEN_LOOKS_S = 0.5


class LateLives:
    """See the module. Of one app."""

    def __init__(self, limit_s: float) -> None:
        """limit_s: how long a life may take, from the last key that has moved, or word that it waits for others."""
        self.limit_s = limit_s
        self._epoch = 0
        self._progress: dict[int, control_pb2.HandoffProgress] = {}
        self._heard: set[int] = set()
        """Since the last tick."""
        self._late_s: dict[int, float] = {}

    @property
    def reason(self) -> str:
        """Why a life is ended that is late."""
        return f"it hung for {self.limit_s:g} s, and waited for no other life, nor for its store"

    def progressed(self, life: int, progress: control_pb2.HandoffProgress) -> None:
        """A life has told how far it is."""
        self._follow(progress.epoch)
        if progress.epoch < self._epoch:
            return
        last = self._progress.get(life)
        self._progress[life] = progress
        self._heard.add(life)
        if last is not None and (progress.leaving, progress.departed) != (last.leaving, last.departed):
            self._late_s[life] = 0.0

    def tick(self, epoch: int, lives: Iterable[int]) -> list[int]:
        """`BETWEEN_LOOKS_S` have passed; returns the lives that are to be ended. epoch: to which the change under way
        leads. lives: those of this machine that have a part in it and have been ready.

        However late the tick comes, it is one: a supervisor that was stopped has heard nobody meanwhile.
        """
        self._follow(epoch)
        late = []
        for life in lives:
            self._late_s[life] = self._late_s.get(life, 0.0) + BETWEEN_LOOKS_S if self._is_missing(life) else 0.0
            if self._late_s[life] > self.limit_s:
                del self._late_s[life]
                late.append(life)
        self._heard.clear()
        return late

    def _is_missing(self, life: int) -> bool:
        """Whether a step of this life is missing, as far as its supervisor knows."""
        progress = self._progress.get(life)
        if progress is None:
            return True
        if not progress.waits_for and not progress.waits_for_store:
            # Its last word, unless a life is followed by another one, which waits for it.
            return life not in self._heard and any(life in self._progress[other].waits_for for other in self._heard)
        return life not in self._heard or life in progress.waits_for

    def _follow(self, epoch: int) -> None:
        if epoch > self._epoch:
            self._epoch = epoch
            for of_last_change in (self._progress, self._heard, self._late_s):
                of_last_change.clear()
