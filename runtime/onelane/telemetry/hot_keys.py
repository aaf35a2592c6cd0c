"""The keys that are asked most, in bounded memory.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams" (2005),
the Space-Saving algorithm. A key that is asked more than `1 / size` of all is always among those kept.
"""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush, nlargest

SAMPLED = 256
"""Keys of one tick that are looked at, the last; so a busy lane pays no more than a quiet one."""


@dataclass(frozen=True, slots=True)
class HotKey:
    """One key."""

    key: str
    calls: int
    """At most `error` too many."""
    error: int


class HotKeys:
    """A sketch of one lane's keys."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._counts: dict[str, tuple[float, float]] = {}
        self._smallest: list[tuple[float, str]] = []
        """A heap of counts that may be out of date, and then are too small."""
        self.seen: list[str] = []
        """The keys of the calls since the last `fold`; a lane appends to it, and nothing else, for each."""

    def fold(self) -> None:
        """Count what was seen: the last `SAMPLED` stand for all."""
        if not self.seen:
            return
        last = self.seen[-SAMPLED:]
        weight = len(self.seen) / len(last)
        for key in last:
            self._add(key, weight)
        # In place: the lane appends to this very list.
        self.seen.clear()

    def _add(self, key: str, weight: float) -> None:
        found = self._counts.get(key)
        if found is not None:
            self._counts[key] = (found[0] + weight, found[1])
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
            now = self._counts[key][0]
            if now <= count:
                del self._counts[key]
                return now
            heappush(self._smallest, (now, key))

    def top(self, number: int) -> list[HotKey]:
        """The most asked, the first the most."""
        most = nlargest(number, self._counts.items(), key=lambda item: item[1][0])
        return [HotKey(key, round(count), round(error)) for key, (count, error) in most]

    def fade(self) -> None:
        """Halve all counts, so that what is hot now outweighs what was; keys that fade to nothing are forgotten."""
        halves = {key: (count / 2, error / 2) for key, (count, error) in self._counts.items()}
        self._counts = {key: value for key, value in halves.items() if value[0] >= 1}
        self._smallest = [(count, key) for key, (count, _) in self._counts.items()]
        heapify(self._smallest)
