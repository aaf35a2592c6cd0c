"""Time, processors and a network: what is scheduled happens in the order of its time, and the seed decides the rest."""

import heapq
from collections import defaultdict
from collections.abc import Callable
from random import Random

from tests.simulation.costs import JITTER_S, LATENCY_S, LINK_BYTES_PER_S


class SimulatedNetwork:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.calls = 0
        self.bytes = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._busy: dict[int, float] = defaultdict(float)
        """Processor → when it is free."""
        self._link_busy: dict[str, float] = defaultdict(float)
        """Machine → when its link is free."""

    def at(self, time_s: float, work: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time_s, self._number, work))

    def compute(self, processor: int, seconds: float, work: Callable[[], None]) -> None:
        """Have a processor, once it is free, take its time and then do the work."""
        self._busy[processor] = max(self.now, self._busy[processor]) + seconds
        self.at(self._busy[processor], work)

    def send(self, machine: str, to: str, size: int, work: Callable[[], None]) -> None:
        """Have a message of so many bytes received on another machine, or on the same one."""
        self.calls += 1
        if machine == to:
            self.at(self.now + LATENCY_S / 10, work)
            return
        self.bytes += size
        self._link_busy[machine] = max(self.now, self._link_busy[machine]) + size / LINK_BYTES_PER_S
        self.at(self._link_busy[machine] + LATENCY_S + self.random.expovariate(1 / JITTER_S), work)

    def run(self) -> None:
        """Until nothing more happens."""
        while self._events:
            self.now, _, work = heapq.heappop(self._events)
            work()
