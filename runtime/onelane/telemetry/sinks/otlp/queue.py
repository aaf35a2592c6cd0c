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
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.25, 5.0
"""The pause after a batch that could not be sent, which doubles."""
MAX_CHUNK_BYTES, MAX_BATCH_BYTES = 1 << 20, 2 << 20
"""Bytes. gRPC servers take messages of 4 MiB, and what is exported is larger than what is packed."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items of one source that came together."""

    source: tuple[str, str]
    """App and shard."""
    packed: bytes
    count: int


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much waits, and for how long."""

    most: int
    """Items that may wait; with more, the oldest are dropped."""
    batch: int
    """Items that are sent at once."""
    delay_s: float
    """How long an item waits for others."""


def chunks(
    source: tuple[str, str], items: Sequence[T], pack: Callable[[Sequence[T]], bytes], most: int
) -> Iterator[Chunk]:
    """Items of one source as parcels of no more than `most`, and of no more than `MAX_PARCEL` bytes but for one that is
    larger by itself."""
    packed = pack(items)
    if len(items) <= 1 or (len(items) <= most and len(packed) <= MAX_CHUNK_BYTES):
        yield Chunk(source, packed, len(items))
        return
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        yield from chunks(source, half, pack, most)


class ExportQueue:
    """One signal's queue."""

    def __init__(self, bounds: QueueLimits, rng: Random) -> None:
        self._limits = bounds
        self._rng = rng
        self._chunks: deque[Chunk] = deque()
        self._in_flight: list[Chunk] = []
        self._attempts = 0
        self._not_before = 0.0
        self._oldest_at: float | None = None
        self._bytes = 0
        """Of the parcels that wait and are not under way."""
        self.waiting = 0
        """Items, those under way included."""
        self.dropped: Counter[str] = Counter()
        """Reason → items that were dropped."""

    def put(self, chunk: Chunk, now: float) -> None:
        """Take a parcel; the oldest go where there is no room."""
        self._chunks.append(chunk)
        self._bytes += len(chunk.packed)
        self.waiting += chunk.count
        if self._oldest_at is None:
            self._oldest_at = now
        while self.waiting > self._limits.most and self._chunks:
            self._drop_oldest()

    def due_at(self) -> float | None:
        """When the next batch is to be sent; None where nothing waits."""
        if not self._chunks:
            return None
        assert self._oldest_at is not None
        full = self.waiting >= self._limits.batch or self._bytes >= MAX_BATCH_BYTES
        return max(self._not_before, self._oldest_at if full else self._oldest_at + self._limits.delay_s)

    def begin_batch(self) -> list[Chunk]:
        """Take the next batch out; one is under way at a time, and must be ended by `sent`, `again` or `refused`."""
        assert not self._in_flight
        count = size = 0
        while self._chunks:
            chunk = self._chunks[0]
            count, size = count + chunk.count, size + len(chunk.packed)
            if self._in_flight and (count > self._limits.batch or size > MAX_BATCH_BYTES):
                break
            self._in_flight.append(self._chunks.popleft())
            self._bytes -= len(chunk.packed)
        return self._in_flight

    def acknowledge(self, now: float, rejected: int = 0) -> None:
        """The batch has arrived. rejected: items of it that were not taken, and will never be."""
        if rejected:
            self.dropped[REFUSED] += rejected
        self._end(now)
        self._attempts, self._not_before = 0, 0.0

    def drop_batch(self, now: float) -> None:
        """It will never be taken."""
        for chunk in self._in_flight:
            self.dropped[REFUSED] += chunk.count
        self._end(now)

    def retry_batch(self, now: float) -> None:
        """Nobody has taken it: it waits before all others, for a while that grows."""
        self._chunks.extendleft(reversed(self._in_flight))
        self._bytes += sum(len(chunk.packed) for chunk in self._in_flight)
        self._in_flight = []
        self._oldest_at = now
        self._not_before = now + backoff_s(self._attempts, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_CAP_S, rng=self._rng)
        self._attempts += 1
        while self.waiting > self._limits.most and len(self._chunks) > 1:
            self._drop_oldest()

    def close(self) -> int:
        """Drop what is left; how much it was."""
        left = self.waiting
        if left:
            self.dropped[CLOSED] += left
        self._chunks.clear()
        self.waiting = self._bytes = 0
        return left

    def _end(self, now: float) -> None:
        self.waiting -= sum(chunk.count for chunk in self._in_flight)
        self._in_flight = []
        self._oldest_at = now if self._chunks else None

    def _drop_oldest(self) -> None:
        chunk = self._chunks.popleft()
        self._bytes -= len(chunk.packed)
        self.waiting -= chunk.count
        self.dropped[QUEUE_FULL] += chunk.count


def queue_limits_of(environment: Mapping[str, str], prefix: str, *, most: int, delay_s: float) -> QueueLimits:
    """The bounds that `OTEL_BSP_*` (spans) or `OTEL_BLRP_*` (logs) name, else these."""

    def number(name: str, usual: float) -> float:
        try:
            return max(1.0, float(environment[f"{prefix}_{name}"]))
        except (KeyError, ValueError):
            return usual

    queue = int(number("MAX_QUEUE_SIZE", most))
    batch = min(queue, int(number("MAX_EXPORT_BATCH_SIZE", 2048)))
    return QueueLimits(queue, batch, number("SCHEDULE_DELAY", delay_s * 1000) / 1000)
