"""Base-2 exponential histograms: how values spread, in buckets that merge without loss.

Source: OpenTelemetry's data model, "ExponentialHistogram". At scale s the bucket i holds what is above 2^(i/2^s) and
not above 2^((i+1)/2^s). Every shard counts at one scale, so merging is adding; a reader that wants fewer
buckets takes a coarser scale, which is exact too.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log2
from typing import Any

SCALE = 5
"""32 buckets for each doubling: a quantile is right within 1.1 %."""
_FINE = float(2**SCALE)
MAX_EXPORTED = 160
"""Buckets of one exported point, as OpenTelemetry's SDKs have it."""
MAX_EXEMPLARS = 16
"""Of one series, the newest, each from another bucket."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One value, and the sampled span that it was recorded in."""

    value: float
    trace_id: str
    span_id: str
    at_ns: int
    """Nanoseconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram's counts at `scale`, by bucket index. Values are 0 or more."""

    counts: Mapping[int, int]
    sum: float
    zeros: int = 0
    scale: int = SCALE
    exemplars: tuple[Exemplar, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, values: Sequence[float], exemplars: tuple[Exemplar, ...] = ()) -> "Buckets":
        """Of these values; those that are no number of 0 or more are left out."""
        try:
            total = float(sum(values))
            if values and total < inf and min(values) > 0.0:
                return cls(_indices(values), total, 0, SCALE, exemplars)
        except (TypeError, ValueError, OverflowError):
            pass
        numbers = [number for value in values if (number := _number(value)) is not None]
        usual = [number for number in numbers if number > 0]
        return cls(_indices(usual), sum(usual), len(numbers) - len(usual), SCALE, exemplars)

    @property
    def count(self) -> int:
        return self.zeros + sum(self.counts.values())

    def plus(self, other: "Buckets") -> "Buckets":
        """Both added up, at the coarser scale of the two."""
        scale = min(self.scale, other.scale)
        counts = dict(self.at(scale).counts)
        for index, count in other.at(scale).counts.items():
            counts[index] = counts.get(index, 0) + count
        exemplars = newest((*self.exemplars, *other.exemplars))
        return Buckets(counts, self.sum + other.sum, self.zeros + other.zeros, scale, exemplars)

    def minus(self, other: "Buckets") -> "Buckets":
        """What has come since `other`, an earlier state of the same series."""
        mine, theirs = self.at(other.scale), other.at(self.scale)
        counts = {index: count - theirs.counts.get(index, 0) for index, count in mine.counts.items()}
        left = {index: count for index, count in counts.items() if count}
        return Buckets(left, self.sum - other.sum, self.zeros - other.zeros, mine.scale)

    def at(self, scale: int) -> "Buckets":
        """The same at a coarser scale; at a finer one it stays as it is."""
        shift = self.scale - scale
        if shift <= 0:
            return self
        counts: dict[int, int] = {}
        for index, count in self.counts.items():
            counts[index >> shift] = counts.get(index >> shift, 0) + count
        return Buckets(counts, self.sum, self.zeros, scale, self.exemplars)

    def at_most(self, size: int) -> "Buckets":
        """The same at the finest scale whose buckets, from the first to the last, are `size` or fewer."""
        made = self
        while made.counts and max(made.counts) - min(made.counts) >= size:
            made = made.at(made.scale - 1)
        return made

    def upper(self, index: int) -> float:
        """The upper bound of a bucket, which belongs to it."""
        exponent = (index + 1) / 2**self.scale
        # The last bucket ends where floats do.
        bound: float = 2.0**exponent if exponent < 1024 else inf
        return bound

    def at_or_below(self, bounds: Iterable[float]) -> Iterator[int]:
        """How many values were not above each of `bounds`, ascending; exact for powers of two."""
        rows = iter(sorted(self.counts.items()))
        row = next(rows, None)
        total = self.zeros
        for bound in bounds:
            while row is not None and self.upper(row[0]) <= bound:
                total += row[1]
                row = next(rows, None)
            yield total

    def quantile(self, share: float) -> float:
        """The value that `share` (0 to 1) of all are not above, in the middle of its bucket; 0 for none."""
        left = share * self.count - self.zeros
        if left <= 0 or not self.counts:
            return 0.0
        found = max(self.counts)
        for index, count in sorted(self.counts.items()):
            left -= count
            if left <= 0:
                found = index
                break
        middle: float = 2.0 ** ((found + 0.5) / 2**self.scale)
        return middle


def _number(value: Any) -> float | None:
    """What a histogram takes; None for all else."""
    try:
        made = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return made if 0.0 <= made < inf else None


def _indices(values: Sequence[float]) -> dict[int, int]:
    """How many values fall into each bucket. This runs for every value that is recorded."""
    # glibc's log2 is exact for powers of two, which are upper bounds.
    return Counter([ceil(log2(value) * _FINE) - 1 for value in values])


def newest(exemplars: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
    """The newest of each doubling, so that the rare slow ones are not crowded out."""
    by_size = {ceil(log2(one.value)) if one.value > 0 else None: one for one in exemplars}
    return tuple(by_size.values())[-MAX_EXEMPLARS:]
