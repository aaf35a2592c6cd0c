"""The most requested keys of a lane, in bounded memory.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams" (2005),
the Space-Saving algorithm. A key with more than `1 / size` of all calls is always in the sketch.
"""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush, nlargest

MAX_SAMPLED = 256
"""Calls of one tick that are counted, the last ones; so a busy lane pays no more than a quiet one."""


@dataclass(frozen=True, slots=True)
class HotKey:
    """One key and its estimated number of calls."""

    key: str
    calls: int
    """Overestimated by at most `error`."""
    error: int


class HotKeys:
    """A sketch of one lane's keys. Owned by the lane."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._counts: dict[str, tuple[float, float]] = {}
        self._smallest: list[tuple[float, str]] = []
        """A heap of counts. A stale count is too small, and `_drop_least` corrects it."""
        self.seen: list[str] = []
        """The key of each call since the last `fold`: all that a call costs is one append to this list."""

    def fold(self) -> None:
        """Count the keys in `seen` by a sample: the last `MAX_SAMPLED`, weighted to stand for all."""
        if not self.seen:
            return
        sample = self.seen[-MAX_SAMPLED:]
        weight = len(self.seen) / len(sample)
        for key in sample:
            self._add(key, weight)
        # Cleared in place: the lane holds a reference to this list.
        self.seen.clear()

    def _add(self, key: str, weight: float) -> None:
        counted = self._counts.get(key)
        if counted is not None:
            self._counts[key] = (counted[0] + weight, counted[1])
        elif len(self._counts) < self._size:
            self._put(key, weight, 0.0)
        else:
            least = self._drop_least()
            self._put(key, least + weight, least)

    def _put(self, key: str, count: float, error: float) -> None:
        self._counts[key] = (count, error)
        heappush(self._smallest, (count, key))

    def _drop_least(self) -> float:
        while True:
            count, key = heappop(self._smallest)
            current = self._counts[key][0]
            if current <= count:
                del self._counts[key]
                return current
            heappush(self._smallest, (current, key))

    def top(self, number: int) -> list[HotKey]:
        """The most requested keys, in descending order."""
        largest = nlargest(number, self._counts.items(), key=lambda counted: counted[1][0])
        return [HotKey(key, round(count), round(error)) for key, (count, error) in largest]

    def decay(self) -> None:
        """Halve all counts, so that recent calls outweigh old ones; keys below one call are forgotten."""
        halves = {key: (count / 2, error / 2) for key, (count, error) in self._counts.items()}
        self._counts = {key: counted for key, counted in halves.items() if counted[0] >= 1}
        self._smallest = [(count, key) for key, (count, _) in self._counts.items()]
        heapify(self._smallest)
