"""Base-2 exponential histograms, whose buckets merge without loss.

Source: OpenTelemetry's data model, "ExponentialHistogram". At scale s the bucket i holds values above 2^(i/2^s) and
not above 2^((i+1)/2^s). Every shard records at one scale, so merging is adding counts; a reader that wants fewer
buckets uses a coarser scale, which is exact too.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log2
from typing import Any

SCALE = 5
"""32 buckets per doubling: the error of a quantile is at most 1.1 %."""
_BUCKETS_PER_DOUBLING = float(2**SCALE)
MAX_EXPORTED = 160
"""Buckets of one exported point, the limit of OpenTelemetry's SDKs."""
MAX_EXEMPLARS = 16
"""Exemplars of one series: the newest of each doubling."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One recorded value and the sampled span around it."""

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
        """The histogram of `values`; whatever is not a finite number of 0 or more is left out."""
        try:
            total = float(sum(values))
            if values and total < inf and min(values) > 0.0:
                return cls(_indices(values), total, 0, SCALE, exemplars)
        except (TypeError, ValueError, OverflowError):
            pass
        numbers = [number for value in values if (number := _recordable(value)) is not None]
        positive = [number for number in numbers if number > 0]
        return cls(_indices(positive), sum(positive), len(numbers) - len(positive), SCALE, exemplars)

    @property
    def count(self) -> int:
        return self.zeros + sum(self.counts.values())

    def plus(self, other: "Buckets") -> "Buckets":
        """The sum of both, at the coarser scale of the two."""
        scale = min(self.scale, other.scale)
        counts = dict(self.at_scale(scale).counts)
        for index, count in other.at_scale(scale).counts.items():
            counts[index] = counts.get(index, 0) + count
        exemplars = newest_exemplars((*self.exemplars, *other.exemplars))
        return Buckets(counts, self.sum + other.sum, self.zeros + other.zeros, scale, exemplars)

    def minus(self, other: "Buckets") -> "Buckets":
        """The values recorded since `other`, an earlier state of the same series."""
        newer, older = self.at_scale(other.scale), other.at_scale(self.scale)
        counts = {index: count - older.counts.get(index, 0) for index, count in newer.counts.items()}
        recorded = {index: count for index, count in counts.items() if count}
        return Buckets(recorded, self.sum - other.sum, self.zeros - other.zeros, newer.scale)

    def at_scale(self, scale: int) -> "Buckets":
        """The histogram at a coarser scale; unchanged where `scale` is finer than its own."""
        shift = self.scale - scale
        if shift <= 0:
            return self
        counts: dict[int, int] = {}
        for index, count in self.counts.items():
            counts[index >> shift] = counts.get(index >> shift, 0) + count
        return Buckets(counts, self.sum, self.zeros, scale, self.exemplars)

    def fitted_to(self, size: int) -> "Buckets":
        """The histogram at the finest scale at which it spans at most `size` buckets."""
        buckets = self
        while buckets.counts and max(buckets.counts) - min(buckets.counts) >= size:
            buckets = buckets.at_scale(buckets.scale - 1)
        return buckets

    def upper_bound(self, index: int) -> float:
        """The inclusive upper bound of a bucket."""
        exponent = (index + 1) / 2**self.scale
        # 2.0**1024 overflows: the bucket of the largest floats has no finite bound.
        bound: float = 2.0**exponent if exponent < 1024 else inf
        return bound

    def cumulative_counts(self, bounds: Iterable[float]) -> Iterator[int]:
        """The number of values at or below each of `bounds`, which ascend; exact for powers of two."""
        rows = iter(sorted(self.counts.items()))
        row = next(rows, None)
        total = self.zeros
        for bound in bounds:
            while row is not None and self.upper_bound(row[0]) <= bound:
                total += row[1]
                row = next(rows, None)
            yield total

    def quantile(self, share: float) -> float:
        """The `share` quantile (0 to 1), as the middle of its bucket; 0 for an empty histogram."""
        rank = share * self.count - self.zeros
        if rank <= 0 or not self.counts:
            return 0.0
        bucket = max(self.counts)
        for index, count in sorted(self.counts.items()):
            rank -= count
            if rank <= 0:
                bucket = index
                break
        middle: float = 2.0 ** ((bucket + 0.5) / 2**self.scale)
        return middle


def _recordable(value: Any) -> float | None:
    """`value` as a float; None unless a histogram can record it."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0.0 <= number < inf else None


def _indices(values: Sequence[float]) -> dict[int, int]:
    """The number of values in each bucket. Runs for every recorded value."""
    # glibc's log2 is exact for powers of two, so these fall into the bucket that they bound.
    return Counter([ceil(log2(value) * _BUCKETS_PER_DOUBLING) - 1 for value in values])


def newest_exemplars(exemplars: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
    """The newest exemplar of each doubling, so that many fast calls do not displace a rare slow one."""
    by_doubling = {ceil(log2(exemplar.value)) if exemplar.value > 0 else None: exemplar for exemplar in exemplars}
    return tuple(by_doubling.values())[-MAX_EXEMPLARS:]
