"""What a shard counts, in plain attributes, and how it is moved out; `totals` adds it up.

Promises: what was counted is in exactly one place, the shard's cells or one taken point; `take` leaves zero, and costs
what has changed since the last. Cardinality is bounded: past `MAX_SERIES` attribute sets an instrument counts into one
overflow series. Leaves out: threads. A `Stats` belongs to one lane.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any, Generic, Protocol, TypeVar

from onelane.telemetry.histogram import Buckets, Exemplar

log = logging.getLogger("onelane.stats")
Attributes = tuple[tuple[str, str], ...]
"""Sorted by name."""

MAX_SERIES = 2000
"""Of one instrument in one shard, over all lives of that shard."""
OVERFLOW: Attributes = (("otel.metric.overflow", "true"),)
FOLDED = 4096
"""Values that a histogram series holds before it makes buckets of them; a take does so as well."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """What is counted."""

    name: str
    unit: str = ""
    description: str = ""


DROPPED = Instrument("onelane.telemetry.dropped", "{item}", "Spans and log records that were not exported")
"""Counted by shards, and by their supervisor."""


@dataclass(frozen=True, slots=True)
class Point:
    """One series as it was moved out: what was added since the last take, a gauge as it stands, or buckets."""

    instrument: Instrument
    kind: str
    """`counter`, `up_down_counter`, `gauge` or `histogram`."""
    attributes: Attributes
    value: float | Buckets
    """Of a gauge NaN where there is none any more."""


def attributes_of(attributes: Mapping[str, str] | None) -> Attributes:
    return tuple(sorted(attributes.items())) if attributes else ()


def _written(attributes: Attributes) -> Attributes:
    """The same as text that any exporter can write: whatever a service has put there."""
    return tuple((_text(name), _text(value)) for name, value in attributes)


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def number_of(value: Any) -> float | None:
    """`value` as a finite float; None where it is no number, or none that is finite."""
    try:
        made = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return made if made is not None and isfinite(made) else None


class Cell(Protocol):
    """One series between two takes."""

    attributes: Attributes

    def take(self) -> float | Buckets | None:
        """What it holds, or None for nothing; it is empty then."""


class Count:
    """One series of a counter, which grows, or of an up-down counter."""

    __slots__ = ("_changed", "attributes", "value")

    def __init__(self, attributes: Attributes, changed: list[Any]) -> None:
        self.attributes = attributes
        self.value: float = 0
        self._changed = changed

    def add(self, amount: float = 1) -> None:
        """Count. Costs some 0.1 µs."""
        if not self.value:
            self._changed.append(self)
        self.value += amount

    def take(self) -> float | None:
        value, self.value = self.value, 0
        # What has become infinite, or no number, would spoil the sum for good.
        return number_of(value) or None


class Level:
    """One gauge series."""

    __slots__ = ("_changed", "_is_changed", "_told", "attributes", "value")

    def __init__(self, attributes: Attributes, changed: list[Any]) -> None:
        self.attributes = attributes
        self.value: float | None = None
        self._told: float | None = None
        self._is_changed = False
        self._changed = changed

    def set(self, value: float) -> None:
        """Say how it stands; NaN: that there is nothing to say any more.

        Raises:
            TypeError, ValueError: `value` is no number.
        """
        self.value = float(value)
        if not self._is_changed:
            self._is_changed = True
            self._changed.append(self)

    def take(self) -> float | None:
        self._is_changed = False
        told, value = self._told, self.value
        if value is None or value == told or (told is None and isnan(value)):
            return None
        self._told = None if isnan(value) else value
        return value


class Traced(Protocol):
    """A sampled span that has ended."""

    trace_id: str
    span_id: str
    end_ns: int


class Spread:
    """One histogram series. Values are kept as they come, and made buckets of at a take."""

    __slots__ = ("_changed", "_earlier", "_example", "_values", "attributes")

    def __init__(self, attributes: Attributes, changed: list[Any]) -> None:
        self.attributes = attributes
        self._changed = changed
        self._values: list[float] = []
        self._earlier: Buckets | None = None
        self._example: tuple[float, Traced] | None = None

    def record(self, value: float) -> None:
        """Record a value of 0 or more; others are left out. Costs some 0.1 µs, and as much again at the take."""
        values = self._values
        if not values:
            self._changed.append(self)
        values.append(value)
        if len(values) >= FOLDED:
            self._fold()

    def exemplify(self, value: float, span: Traced) -> None:
        """Tie a value that was recorded to its span; the largest since the last take is kept."""
        if self._example is None or value > self._example[0]:
            self._example = (value, span)

    def take(self) -> Buckets | None:
        if self._values:
            self._fold()
        taken, self._earlier = self._earlier, None
        return taken if taken is not None and taken.count else None

    def _fold(self) -> None:
        made = Buckets.of(self._values, tuple(self._exemplars()))
        self._values, self._example = [], None
        self._earlier = made if self._earlier is None else self._earlier.plus(made)

    def _exemplars(self) -> Iterable[Exemplar]:
        if self._example is not None:
            value, span = self._example
            yield Exemplar(value, span.trace_id, span.span_id, span.end_ns)


C = TypeVar("C", Count, Level, Spread)


class _Series(Generic[C]):
    kind = ""
    _make: Callable[[Attributes, list[Any]], C]

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self._cells: dict[Attributes, C] = {}
        self._changed: list[C] = []

    def at(self, attributes: Mapping[str, str] | None = None) -> C:
        """The cell of one attribute set, to be kept by hot paths.

        Raises:
            TypeError: an attribute is no text.
        """
        key = attributes_of(attributes)
        cell = self._cells.get(key)
        if cell is None:
            if len(self._cells) >= MAX_SERIES:
                key = OVERFLOW
            cell = self._cells.get(key) or self._cells.setdefault(key, type(self)._make(_written(key), self._changed))
        return cell

    def take(self) -> list[Point]:
        if not self._changed:
            return []
        # Emptied in place: the cells append to this very list.
        changed = list(self._changed)
        self._changed.clear()
        taken = ((cell.attributes, cell.take()) for cell in changed)
        return [Point(self.instrument, self.kind, key, value) for key, value in taken if value is not None]


class Counter(_Series[Count]):
    """A sum that only grows."""

    kind = "counter"
    _make = Count

    def add(self, amount: float = 1, attributes: Mapping[str, str] | None = None) -> None:
        """Count.

        Raises:
            ValueError: `amount` is below zero.
        """
        if amount < 0:
            raise ValueError(f"{self.instrument.name} only grows, so it cannot add {amount}; up_down_counter can")
        self.at(attributes).add(amount)


class UpDownCounter(_Series[Count]):
    """A sum that grows and shrinks: how many there are of something."""

    kind = "up_down_counter"
    _make = Count

    def add(self, amount: float, attributes: Mapping[str, str] | None = None) -> None:
        self.at(attributes).add(amount)


class Gauge(_Series[Level]):
    """A value as it stands: set, or asked for at each take."""

    kind = "gauge"
    _make = Level

    def __init__(self, instrument: Instrument) -> None:
        super().__init__(instrument)
        self._observed: dict[Attributes, Callable[[], float]] = {}
        self._failing: set[Attributes] = set()

    def set(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        self.at(attributes).set(value)

    def observe(self, ask: Callable[[], float], attributes: Mapping[str, str] | None = None) -> None:
        """Ask for the value of one attribute set at each take."""
        self._observed[attributes_of(attributes)] = ask

    def forget(self, attributes: Mapping[str, str] | None = None) -> None:
        """There is no value of this attribute set any more."""
        cell = self._cells.pop(attributes_of(attributes), None)
        if cell is not None:
            cell.set(nan)

    def take(self) -> list[Point]:
        for attributes, ask in self._observed.items():
            try:
                self.at(dict(attributes)).set(ask())
            except Exception:
                if attributes not in self._failing:
                    log.exception("stats.gauge_failed %s is asked again", self.instrument.name)
                self._failing.add(attributes)
            else:
                self._failing.discard(attributes)
        return super().take()


class Histogram(_Series[Spread]):
    """How values of 0 or more spread over buckets."""

    kind = "histogram"
    _make = Spread

    def record(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        self.at(attributes).record(value)


Kind = TypeVar("Kind", Counter, UpDownCounter, Gauge, Histogram)


class Stats:
    """What one shard has counted since its last take. Owned by that shard's lane."""

    def __init__(self) -> None:
        self._instruments: dict[str, Counter | UpDownCounter | Gauge | Histogram] = {}
        self._before_take: list[Callable[[], None]] = []
        self._failing: set[Callable[[], None]] = set()

    def counter(self, name: str, *, unit: str = "", description: str = "") -> Counter:
        return self._keep(Counter(_instrument(name, unit, description)))

    def up_down_counter(self, name: str, *, unit: str = "", description: str = "") -> UpDownCounter:
        return self._keep(UpDownCounter(_instrument(name, unit, description)))

    def gauge(self, name: str, *, unit: str = "", description: str = "") -> Gauge:
        return self._keep(Gauge(_instrument(name, unit, description)))

    def histogram(self, name: str, *, unit: str = "", description: str = "") -> Histogram:
        return self._keep(Histogram(_instrument(name, unit, description)))

    def before_take(self, ask: Callable[[], None]) -> None:
        """Call `ask` before each take, so that it may count what it knows."""
        self._before_take.append(ask)

    def take(self) -> list[Point]:
        """Move all counts out and begin again at zero."""
        for ask in self._before_take:
            try:
                ask()
            except Exception:
                # What is counted goes out all the same, and the lane's tick goes on.
                if ask not in self._failing:
                    log.exception("stats.ask_failed it is asked again")
                self._failing.add(ask)
        return [point for instrument in self._instruments.values() for point in instrument.take()]

    def _keep(self, made: Kind) -> Kind:
        there = self._instruments.setdefault(made.instrument.name, made)
        if not isinstance(there, type(made)):
            raise ValueError(f"{made.instrument.name} is a {there.kind} already, not a {made.kind}")
        return there


def _instrument(name: str, unit: str, description: str) -> Instrument:
    """As text that any exporter can write."""
    return Instrument(_text(name), _text(unit or ""), _text(description or ""))
