"""The instruments of one shard: counters, gauges and histograms. Each tick takes their values out as points, which
`collector/totals` adds up.

Promises: a counted value is in exactly one place, a series of the shard or one point; `take` leaves zero, and its cost
grows with the number of series that changed since the last `take`. Cardinality is bounded: attribute sets beyond
`MAX_SERIES` share one overflow series per instrument. Leaves out: thread safety. A `Stats` belongs to one lane.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, isnan, nan
from operator import itemgetter
from typing import Any, Final, Generic, Protocol, SupportsFloat, TypeVar

from onelane.telemetry.histogram import Buckets, Exemplar

log = logging.getLogger("onelane.stats")
AttributeValue = Any
"""A text, a boolean, a 64-bit integer or a finite float. The runtime's own are text."""
Attributes = tuple[tuple[str, AttributeValue], ...]
"""Sorted by name."""
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

MAX_SERIES = 2000
"""Attribute sets of one instrument in one shard, restarts of the shard included."""
OVERFLOW: Attributes = (("otel.metric.overflow", "true"),)
MAX_UNFOLDED: Final = 4096
"""Raw values that a histogram series holds before it folds them into buckets; `take` folds them too."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """Name, unit and description of a metric."""

    name: str
    unit: str = ""
    description: str = ""


DROPPED = Instrument("onelane.telemetry.dropped", "{item}", "Spans and log records dropped before export")
"""Counted by each shard and by the supervisor."""


@dataclass(frozen=True, slots=True)
class Point:
    """The value of one series at a `take`. Of a gauge the present value, of others the change since the last `take`."""

    instrument: Instrument
    kind: str
    """`counter`, `up_down_counter`, `gauge` or `histogram`."""
    attributes: Attributes
    value: float | Buckets
    """NaN where a gauge series ended."""


def attributes_of(attributes: Mapping[str, AttributeValue] | None) -> Attributes:
    return tuple(sorted(attributes.items(), key=itemgetter(0))) if attributes else ()


def _exportable(attributes: Attributes) -> Attributes:
    """`attributes` as they can be exported, whatever types a service passed: numbers and booleans stay, others become
    text that can be encoded as UTF-8."""
    return tuple((_utf8_text(name), _exportable_value(value)) for name, value in attributes)


def _exportable_value(value: Any) -> AttributeValue:
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and isfinite(value):
        return float(value)
    if isinstance(value, int) and _INT64_MIN <= value <= _INT64_MAX:
        return int(value)
    return _utf8_text(value)


def _utf8_text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def finite_float(value: Any) -> float | None:
    """`value` as a float; None unless it is a finite number."""
    try:
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and isfinite(number) else None


class Series(Protocol):
    """One attribute set of an instrument."""

    attributes: Attributes

    def take(self) -> float | Buckets | None:
        """Return the value since the last `take` and reset it; None where nothing changed."""


class CounterSeries:
    """One series of a counter or of an up-down counter."""

    __slots__ = ("_changed", "attributes", "value")

    def __init__(self, attributes: Attributes, changed: list[Any]) -> None:
        self.attributes = attributes
        self.value: Any = 0
        """A count stays an integer, and is exported as one."""
        self._changed = changed

    def add(self, amount: SupportsFloat = 1) -> None:
        """Add `amount`: an int, a float, or a number of another library. Costs some 0.1 µs."""
        if not self.value:
            self._changed.append(self)
        self.value += amount

    def take(self) -> float | None:
        value = self.value
        self.value = 0
        # NaN or infinity would make the cumulative sum useless from then on.
        return finite_float(value) or None


class GaugeSeries:
    """One gauge series."""

    __slots__ = ("_changed", "_is_changed", "_reported", "attributes", "value")

    def __init__(self, attributes: Attributes, changed: list[Any]) -> None:
        self.attributes = attributes
        self.value: float | None = None
        self._reported: float | None = None
        self._is_changed = False
        self._changed = changed

    def set(self, value: SupportsFloat) -> None:
        """Set the present value; NaN ends the series.

        Raises:
            TypeError, ValueError: `value` is no number.
        """
        self.value = float(value)
        if not self._is_changed:
            self._is_changed = True
            self._changed.append(self)

    def take(self) -> float | None:
        self._is_changed = False
        reported, value = self._reported, self.value
        if value is None or value == reported or (reported is None and isnan(value)):
            return None
        self._reported = None if isnan(value) else value
        return value


class EndedSpan(Protocol):
    """A sampled span that has ended."""

    trace_id: str
    span_id: str
    end_ns: int


class HistogramSeries:
    """One histogram series. Raw values are appended to a list and folded into buckets at `take`."""

    __slots__ = ("_changed", "_exemplar", "_folded", "_values", "attributes")

    def __init__(self, attributes: Attributes, changed: list[Any]) -> None:
        self.attributes = attributes
        self._changed = changed
        self._values: list[Any] = []
        self._folded: Buckets | None = None
        self._exemplar: tuple[float, EndedSpan] | None = None

    def record(self, value: SupportsFloat) -> None:
        """Record a value of 0 or more; anything else is ignored. Costs some 0.1 µs, and as much again at `take`."""
        values = self._values
        if not values:
            self._changed.append(self)
        values.append(value)
        if len(values) >= MAX_UNFOLDED:
            self._fold()

    def add_exemplar(self, value: float, span: EndedSpan) -> None:
        """Link a recorded value to its span. The exemplar of the largest value since the last `take` is kept."""
        if self._exemplar is None or value > self._exemplar[0]:
            self._exemplar = (value, span)

    def take(self) -> Buckets | None:
        if self._values:
            self._fold()
        taken, self._folded = self._folded, None
        return taken if taken is not None and taken.count else None

    def _fold(self) -> None:
        buckets = Buckets.of(self._values, tuple(self._exemplars()))
        self._values, self._exemplar = [], None
        self._folded = buckets if self._folded is None else self._folded.plus(buckets)

    def _exemplars(self) -> Iterable[Exemplar]:
        if self._exemplar is not None:
            value, span = self._exemplar
            yield Exemplar(value, span.trace_id, span.span_id, span.end_ns)


SeriesT = TypeVar("SeriesT", CounterSeries, GaugeSeries, HistogramSeries)


class _SeriesByAttributes(Generic[SeriesT]):
    kind = ""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self._series: dict[Attributes, SeriesT] = {}
        self._changed: list[SeriesT] = []

    def at(self, attributes: Mapping[str, AttributeValue] | None = None) -> SeriesT:
        """The series of one attribute set. A hot path looks it up once and keeps it.

        Raises:
            TypeError: the name of an attribute is not a text, or a value has no hash.
        """
        key = attributes_of(attributes)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                key = OVERFLOW
            series = self._series.get(key) or self._series.setdefault(key, self._new_series(_exportable(key)))
        return series

    def _new_series(self, attributes: Attributes) -> SeriesT:
        raise NotImplementedError

    def take(self) -> list[Point]:
        if not self._changed:
            return []
        # Cleared in place: every series holds a reference to this list and appends to it.
        changed = list(self._changed)
        self._changed.clear()
        taken = ((series.attributes, series.take()) for series in changed)
        return [Point(self.instrument, self.kind, key, value) for key, value in taken if value is not None]


class Counter(_SeriesByAttributes[CounterSeries]):
    """A sum that only grows."""

    kind = "counter"

    def _new_series(self, attributes: Attributes) -> CounterSeries:
        return CounterSeries(attributes, self._changed)

    def add(self, amount: SupportsFloat = 1, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Add `amount` to the series of `attributes`.

        Raises:
            ValueError: `amount` is below zero.
        """
        number: Any = amount
        if number < 0:
            raise ValueError(f"{self.instrument.name} only grows, so it cannot add {amount}; up_down_counter can")
        self.at(attributes).add(amount)


class UpDownCounter(_SeriesByAttributes[CounterSeries]):
    """A sum that grows and shrinks, such as a number of open connections."""

    kind = "up_down_counter"

    def _new_series(self, attributes: Attributes) -> CounterSeries:
        return CounterSeries(attributes, self._changed)

    def add(self, amount: SupportsFloat, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        self.at(attributes).add(amount)


class Gauge(_SeriesByAttributes[GaugeSeries]):
    """A present value, which is set, or read by a callback at each `take`."""

    kind = "gauge"

    def _new_series(self, attributes: Attributes) -> GaugeSeries:
        return GaugeSeries(attributes, self._changed)

    def __init__(self, instrument: Instrument) -> None:
        super().__init__(instrument)
        self._callbacks: dict[Attributes, Callable[[], SupportsFloat]] = {}
        self._failing: set[Attributes] = set()

    def set(self, value: SupportsFloat, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        self.at(attributes).set(value)

    def observe(
        self, callback: Callable[[], SupportsFloat], attributes: Mapping[str, AttributeValue] | None = None
    ) -> None:
        """Call `callback` at each `take` for the value of one attribute set."""
        self._callbacks[attributes_of(attributes)] = callback

    def forget(self, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """End the series of one attribute set; `set` begins it anew."""
        series = self._series.pop(attributes_of(attributes), None)
        if series is not None:
            series.set(nan)

    def take(self) -> list[Point]:
        for attributes, callback in self._callbacks.items():
            try:
                self.at(dict(attributes)).set(callback())
            except Exception:
                if attributes not in self._failing:
                    log.exception("stats.gauge_failed %s is read again at the next tick", self.instrument.name)
                self._failing.add(attributes)
            else:
                self._failing.discard(attributes)
        return super().take()


class Histogram(_SeriesByAttributes[HistogramSeries]):
    """The distribution of values of 0 or more."""

    kind = "histogram"

    def _new_series(self, attributes: Attributes) -> HistogramSeries:
        return HistogramSeries(attributes, self._changed)

    def record(self, value: SupportsFloat, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        self.at(attributes).record(value)


InstrumentT = TypeVar("InstrumentT", Counter, UpDownCounter, Gauge, Histogram)


class Stats:
    """All instruments of one shard. Owned by its lane."""

    def __init__(self) -> None:
        self._instruments: dict[str, Counter | UpDownCounter | Gauge | Histogram] = {}
        self._before_take: list[Callable[[], None]] = []
        self._failing: set[Callable[[], None]] = set()

    def counter(self, name: str, *, unit: str = "", description: str = "") -> Counter:
        return self._register(Counter(_instrument(name, unit, description)))

    def up_down_counter(self, name: str, *, unit: str = "", description: str = "") -> UpDownCounter:
        return self._register(UpDownCounter(_instrument(name, unit, description)))

    def gauge(self, name: str, *, unit: str = "", description: str = "") -> Gauge:
        return self._register(Gauge(_instrument(name, unit, description)))

    def histogram(self, name: str, *, unit: str = "", description: str = "") -> Histogram:
        return self._register(Histogram(_instrument(name, unit, description)))

    def before_take(self, callback: Callable[[], None]) -> None:
        """Call `callback` before each `take`, so that it can update instruments."""
        self._before_take.append(callback)

    def take(self) -> list[Point]:
        """Return all changed series as points and reset them to zero."""
        for callback in self._before_take:
            try:
                callback()
            except Exception:
                # A failing callback must neither hold back the points nor end the lane's tick.
                if callback not in self._failing:
                    log.exception("stats.ask_failed the callback is called again at the next tick")
                self._failing.add(callback)
        return [point for instrument in self._instruments.values() for point in instrument.take()]

    def _register(self, new: InstrumentT) -> InstrumentT:
        instrument = self._instruments.setdefault(new.instrument.name, new)
        if not isinstance(instrument, type(new)):
            raise ValueError(f"{new.instrument.name} is a {instrument.kind} already, not a {new.kind}")
        return instrument


def _instrument(name: str, unit: str, description: str) -> Instrument:
    """With texts that can be encoded as UTF-8."""
    return Instrument(_utf8_text(name), _utf8_text(unit or ""), _utf8_text(description or ""))
