"""What a shard counts, in plain attributes, and how it is moved out and added up.

Promises: what was counted is in exactly one place, the shard's cells or one taken point; `take` leaves zero.
Cardinality is bounded: past `MAX_SERIES` attribute sets an instrument counts into one overflow series.
Leaves out: threads. A `Stats` belongs to one lane.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Attributes = tuple[tuple[str, str], ...]
"""Sorted by name."""

DURATION_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""OpenTelemetry's buckets for RPC durations."""
MAX_SERIES = 2000
OVERFLOW: Attributes = (("otel.metric.overflow", "true"),)


@dataclass(frozen=True, slots=True)
class Instrument:
    """What is counted."""

    name: str
    unit: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram's counts: one more than its bounds, the last for all above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def plus(self, other: "Buckets") -> "Buckets":
        """Both added up; the bounds are the same."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Buckets(self.bounds, counts, self.sum + other.sum)


@dataclass(frozen=True, slots=True)
class Point:
    """One series as it was moved out: a count since the last take, a gauge as it stands, or buckets."""

    instrument: Instrument
    kind: str
    """`count`, `gauge` or `histogram`."""
    attributes: Attributes
    value: float | Buckets


def attributes_of(attributes: Mapping[str, str] | None) -> Attributes:
    return tuple(sorted(attributes.items())) if attributes else ()


class Count:
    """One counter series. `cell.value += 1` is all that a hot path does."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def take(self) -> float | None:
        value, self.value = self.value, 0
        return value or None


class Level:
    """One gauge series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float | None = None

    def take(self) -> float | None:
        return self.value


class Spread:
    """One histogram series."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def record(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def take(self) -> Buckets | None:
        if not any(self.counts):
            return None
        taken = Buckets(self.bounds, tuple(self.counts), self.sum)
        self.counts, self.sum = [0] * (len(self.bounds) + 1), 0.0
        return taken


C = TypeVar("C", Count, Level, Spread)


class _Series(Generic[C]):
    kind = ""

    def __init__(self, instrument: Instrument, make: Callable[[], C]) -> None:
        self.instrument = instrument
        self._make: Callable[[], C] = make
        self._cells: dict[Attributes, C] = {}

    def at(self, attributes: Mapping[str, str] | None = None) -> C:
        """The cell of one attribute set, to be kept by hot paths."""
        key = attributes_of(attributes)
        cell = self._cells.get(key)
        if cell is None:
            if len(self._cells) >= MAX_SERIES:
                key = OVERFLOW
            cell = self._cells.setdefault(key, self._make())
        return cell

    def take(self) -> list[Point]:
        taken = ((key, cell.take()) for key, cell in self._cells.items())
        return [Point(self.instrument, self.kind, key, value) for key, value in taken if value is not None]


class Counter(_Series[Count]):
    """A sum that only grows."""

    kind = "count"

    def add(self, amount: float = 1, attributes: Mapping[str, str] | None = None) -> None:
        self.at(attributes).value += amount


class Gauge(_Series[Level]):
    """A value as it stands: set, or asked for at each take."""

    kind = "gauge"

    def __init__(self, instrument: Instrument) -> None:
        super().__init__(instrument, Level)
        self._observed: dict[Attributes, Callable[[], float]] = {}

    def set(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        self.at(attributes).value = value

    def observe(self, ask: Callable[[], float], attributes: Mapping[str, str] | None = None) -> None:
        """Ask for the value of one attribute set at each take."""
        self._observed[attributes_of(attributes)] = ask

    def take(self) -> list[Point]:
        for attributes, ask in self._observed.items():
            self.at(dict(attributes)).value = ask()
        return super().take()


class Histogram(_Series[Spread]):
    """How values spread over buckets."""

    kind = "histogram"

    def record(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        self.at(attributes).record(value)


Kind = TypeVar("Kind", Counter, Gauge, Histogram)


class Stats:
    """What one shard has counted since its last take. Owned by that shard's lane."""

    def __init__(self) -> None:
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, *, unit: str = "", description: str = "") -> Counter:
        return self._keep(Counter(Instrument(name, unit, description), Count))

    def gauge(self, name: str, *, unit: str = "", description: str = "") -> Gauge:
        return self._keep(Gauge(Instrument(name, unit, description)))

    def histogram(
        self, name: str, *, unit: str = "", description: str = "", bounds: tuple[float, ...] = DURATION_BOUNDS_S
    ) -> Histogram:
        return self._keep(Histogram(Instrument(name, unit, description), lambda: Spread(bounds)))

    def take(self) -> list[Point]:
        """Move all counts out and begin again at zero."""
        return [point for instrument in self._instruments.values() for point in instrument.take()]

    def _keep(self, made: Kind) -> Kind:
        there = self._instruments.setdefault(made.instrument.name, made)
        if not isinstance(there, type(made)):
            raise ValueError(f"{made.instrument.name} is a {there.kind} already, not a {made.kind}")
        return there


class Totals:
    """What all shards together have counted. Owned by the supervisor."""

    def __init__(self) -> None:
        self._values: dict[tuple[Instrument, str, Attributes], float | Buckets] = {}

    def add(self, points: Iterable[Point], *, extra: Attributes = ()) -> None:
        """Add what was taken; `extra` attributes (app, shard) tell the sources apart."""
        for point in points:
            key = (point.instrument, point.kind, tuple(sorted((*point.attributes, *extra))))
            before = self._values.get(key)
            self._values[key] = point.value if point.kind == "gauge" or before is None else _plus(before, point.value)

    def drop_gauges(self, extra: Attributes) -> None:
        """Forget the gauges of a source that is gone."""
        gone = [key for key in self._values if key[1] == "gauge" and set(extra) <= set(key[2])]
        for key in gone:
            del self._values[key]

    def points(self) -> list[Point]:
        """All series as they stand, cumulative."""
        return [Point(instrument, kind, attrs, v) for (instrument, kind, attrs), v in self._values.items()]

    def sum_of(self, name: str, extra: Attributes = ()) -> float:
        """The sum of a counter over all series that have the attributes `extra`."""
        return sum(
            value
            for (instrument, _, attributes), value in self._values.items()
            if instrument.name == name and isinstance(value, int | float) and set(extra) <= set(attributes)
        )


def _plus(a: float | Buckets, b: float | Buckets) -> float | Buckets:
    if isinstance(a, Buckets):
        assert isinstance(b, Buckets)
        return a.plus(b)
    assert not isinstance(b, Buckets)
    return a + b
