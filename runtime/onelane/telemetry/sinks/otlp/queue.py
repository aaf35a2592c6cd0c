"""The export queue of one signal: bounded, sent in batches, retried with back-off; dropped items are counted.

Pure: the caller passes the time and does the sending. Not thread-safe: the caller holds a lock.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from onelane.core.backoff import backoff_s

QUEUE_FULL, REFUSED, CLOSED = "queue_full", "refused", "closed"
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.25, 5.0
"""The pause before a batch is retried: doubles from the base to the cap, with jitter."""
MAX_CHUNK_BYTES, MAX_BATCH_BYTES = 1 << 20, 2 << 20
"""Packed bytes. gRPC servers accept messages of 4 MiB, and OTLP is larger than the packed form."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Packed spans or log records of one shard."""

    source: tuple[str, str]
    """App and shard."""
    packed: bytes
    count: int


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of one export queue."""

    max_items: int
    """Items in the queue; beyond it, the oldest are dropped."""
    batch_items: int
    """Items of one batch."""
    delay_s: float
    """How long an item waits for a batch to fill."""


def chunks(
    source: tuple[str, str], items: Sequence[T], pack: Callable[[Sequence[T]], bytes], max_items: int
) -> Iterator[Chunk]:
    """`items` in chunks of at most `max_items` and `MAX_CHUNK_BYTES`; a single larger item is a chunk of its own."""
    if len(items) > max_items:
        # Cut by number first, so that each item is packed once.
        for start in range(0, len(items), max_items):
            yield from chunks(source, items[start : start + max_items], pack, max_items)
        return
    packed = pack(items)
    if len(items) <= 1 or len(packed) <= MAX_CHUNK_BYTES:
        yield Chunk(source, packed, len(items))
        return
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        yield from chunks(source, half, pack, max_items)


class ExportQueue:
    """The queue of one signal. At most one batch is in flight."""

    def __init__(self, limits: QueueLimits, rng: Random) -> None:
        self._limits = limits
        self._rng = rng
        self._chunks: deque[Chunk] = deque()
        self._in_flight: list[Chunk] = []
        self._attempts = 0
        self._not_before = 0.0
        self._waiting_since: float | None = None
        self._bytes = 0
        """Of the chunks that are not in flight."""
        self.waiting = 0
        """Queued items, those in flight included."""
        self.dropped: Counter[str] = Counter()
        """Reason → items that were dropped."""

    def put(self, chunk: Chunk, now: float) -> None:
        """Append a chunk; the oldest are dropped where the queue is full."""
        self._chunks.append(chunk)
        self._bytes += len(chunk.packed)
        self.waiting += chunk.count
        if self._waiting_since is None:
            self._waiting_since = now
        while self.waiting > self._limits.max_items and self._chunks:
            self._drop_oldest()

    def due_at(self) -> float | None:
        """When the next batch is to be sent; None while no chunk waits."""
        if not self._chunks:
            return None
        assert self._waiting_since is not None
        full = self.waiting >= self._limits.batch_items or self._bytes >= MAX_BATCH_BYTES
        return max(self._not_before, self._waiting_since if full else self._waiting_since + self._limits.delay_s)

    def begin_batch(self) -> list[Chunk]:
        """Remove the next batch. `acknowledge`, `retry_batch` or `drop_batch` must follow before the next one."""
        assert not self._in_flight
        count = size = 0
        while self._chunks:
            chunk = self._chunks[0]
            count, size = count + chunk.count, size + len(chunk.packed)
            if self._in_flight and (count > self._limits.batch_items or size > MAX_BATCH_BYTES):
                break
            self._in_flight.append(self._chunks.popleft())
            self._bytes -= len(chunk.packed)
        return self._in_flight

    def acknowledge(self, now: float, rejected: int = 0) -> None:
        """The collector took the batch in flight, but for `rejected` of its items."""
        if rejected:
            self.dropped[REFUSED] += rejected
        self._end(now)
        self._attempts, self._not_before = 0, 0.0

    def drop_batch(self, now: float) -> None:
        """Drop the batch in flight: the collector will never take it."""
        for chunk in self._in_flight:
            self.dropped[REFUSED] += chunk.count
        self._end(now)

    def retry_batch(self, now: float) -> None:
        """Put the batch in flight back to the front of the queue, and pause for a growing time."""
        self._chunks.extendleft(reversed(self._in_flight))
        self._bytes += sum(len(chunk.packed) for chunk in self._in_flight)
        self._in_flight = []
        self._waiting_since = now
        self._not_before = now + backoff_s(self._attempts, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_CAP_S, rng=self._rng)
        self._attempts += 1
        while self.waiting > self._limits.max_items and len(self._chunks) > 1:
            self._drop_oldest()

    def close(self) -> int:
        """Drop all queued items; how many they were."""
        remaining = self.waiting
        if remaining:
            self.dropped[CLOSED] += remaining
        self._chunks.clear()
        self.waiting = self._bytes = 0
        return remaining

    def _end(self, now: float) -> None:
        self.waiting -= sum(chunk.count for chunk in self._in_flight)
        self._in_flight = []
        self._waiting_since = now if self._chunks else None

    def _drop_oldest(self) -> None:
        chunk = self._chunks.popleft()
        self._bytes -= len(chunk.packed)
        self.waiting -= chunk.count
        self.dropped[QUEUE_FULL] += chunk.count


def queue_limits_of(environment: Mapping[str, str], prefix: str, *, max_items: int, delay_s: float) -> QueueLimits:
    """The limits in the variables `OTEL_BSP_*` (spans) or `OTEL_BLRP_*` (logs); the arguments are the defaults."""

    def number(name: str, default: float) -> float:
        try:
            return max(1.0, float(environment[f"{prefix}_{name}"]))
        except (KeyError, ValueError):
            return default

    queue = int(number("MAX_QUEUE_SIZE", max_items))
    batch = min(queue, int(number("MAX_EXPORT_BATCH_SIZE", 2048)))
    return QueueLimits(queue, batch, number("SCHEDULE_DELAY", delay_s * 1000) / 1000)
