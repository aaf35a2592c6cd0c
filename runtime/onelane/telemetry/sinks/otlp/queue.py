"""What waits to be exported: bounded, sent in batches, tried again, and counted where it had to go.

Decides and keeps; whoever sends holds the clock and the socket. Not for two threads without a lock.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from onelane.core.backoff import backoff_s

QUEUE_FULL, REFUSED, CLOSED = "queue_full", "refused", "closed"
FIRST_S, MOST_S = 0.25, 5.0
"""The pause after a batch that could not be sent, which doubles."""
MAX_PARCEL, MAX_BATCH = 1 << 20, 2 << 20
"""Bytes. gRPC servers take messages of 4 MiB, and what is exported is larger than what is packed."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parcel:
    """Items of one source that came together."""

    source: tuple[str, str]
    """App and shard."""
    packed: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much waits, and for how long."""

    most: int
    """Items that may wait; with more, the oldest are dropped."""
    batch: int
    """Items that are sent at once."""
    delay_s: float
    """How long an item waits for others."""


def parcels(
    source: tuple[str, str], items: Sequence[T], pack: Callable[[Sequence[T]], bytes], most: int
) -> Iterator[Parcel]:
    """Items of one source as parcels of no more than `most`, and of no more than `MAX_PARCEL` bytes but for one that is
    larger by itself."""
    packed = pack(items)
    if len(items) <= 1 or (len(items) <= most and len(packed) <= MAX_PARCEL):
        yield Parcel(source, packed, len(items))
        return
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        yield from parcels(source, half, pack, most)


class Outbox:
    """One signal's queue."""

    def __init__(self, bounds: Bounds, rng: Random) -> None:
        self._bounds = bounds
        self._rng = rng
        self._parcels: deque[Parcel] = deque()
        self._under_way: list[Parcel] = []
        self._failures = 0
        self._not_before = 0.0
        self._since: float | None = None
        self._bytes = 0
        """Of the parcels that wait and are not under way."""
        self.waiting = 0
        """Items, those under way included."""
        self.lost: Counter[str] = Counter()
        """Reason → items that were dropped."""

    def put(self, parcel: Parcel, now: float) -> None:
        """Take a parcel; the oldest go where there is no room."""
        self._parcels.append(parcel)
        self._bytes += len(parcel.packed)
        self.waiting += parcel.count
        if self._since is None:
            self._since = now
        while self.waiting > self._bounds.most and self._parcels:
            self._drop_oldest()

    def due_at(self) -> float | None:
        """When the next batch is to be sent; None where nothing waits."""
        if not self._parcels:
            return None
        assert self._since is not None
        full = self.waiting >= self._bounds.batch or self._bytes >= MAX_BATCH
        return max(self._not_before, self._since if full else self._since + self._bounds.delay_s)

    def begin(self) -> list[Parcel]:
        """Take the next batch out; one is under way at a time, and must be ended by `sent`, `again` or `refused`."""
        assert not self._under_way
        count = size = 0
        while self._parcels:
            parcel = self._parcels[0]
            count, size = count + parcel.count, size + len(parcel.packed)
            if self._under_way and (count > self._bounds.batch or size > MAX_BATCH):
                break
            self._under_way.append(self._parcels.popleft())
            self._bytes -= len(parcel.packed)
        return self._under_way

    def sent(self, now: float, rejected: int = 0) -> None:
        """The batch has arrived. rejected: items of it that were not taken, and will never be."""
        if rejected:
            self.lost[REFUSED] += rejected
        self._end(now)
        self._failures, self._not_before = 0, 0.0

    def refused(self, now: float) -> None:
        """It will never be taken."""
        for parcel in self._under_way:
            self.lost[REFUSED] += parcel.count
        self._end(now)

    def again(self, now: float) -> None:
        """Nobody has taken it: it waits before all others, for a while that grows."""
        self._parcels.extendleft(reversed(self._under_way))
        self._bytes += sum(len(parcel.packed) for parcel in self._under_way)
        self._under_way = []
        self._since = now
        self._not_before = now + backoff_s(self._failures, base_s=FIRST_S, cap_s=MOST_S, rng=self._rng)
        self._failures += 1
        while self.waiting > self._bounds.most and len(self._parcels) > 1:
            self._drop_oldest()

    def close(self) -> int:
        """Drop what is left; how much it was."""
        left = self.waiting
        if left:
            self.lost[CLOSED] += left
        self._parcels.clear()
        self.waiting = self._bytes = 0
        return left

    def _end(self, now: float) -> None:
        self.waiting -= sum(parcel.count for parcel in self._under_way)
        self._under_way = []
        self._since = now if self._parcels else None

    def _drop_oldest(self) -> None:
        parcel = self._parcels.popleft()
        self._bytes -= len(parcel.packed)
        self.waiting -= parcel.count
        self.lost[QUEUE_FULL] += parcel.count


def bounds_of(environment: Mapping[str, str], prefix: str, *, most: int, delay_s: float) -> Bounds:
    """The bounds that `OTEL_BSP_*` (spans) or `OTEL_BLRP_*` (logs) name, else these."""

    def number(name: str, usual: float) -> float:
        try:
            return max(1.0, float(environment[f"{prefix}_{name}"]))
        except (KeyError, ValueError):
            return usual

    queue = int(number("MAX_QUEUE_SIZE", most))
    batch = min(queue, int(number("MAX_EXPORT_BATCH_SIZE", 2048)))
    return Bounds(queue, batch, number("SCHEDULE_DELAY", delay_s * 1000) / 1000)
