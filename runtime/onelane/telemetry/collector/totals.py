"""The metrics of all shards, added up.

Promises: name, kind and attributes identify a series; one instrument of one shard has at most `stats.MAX_SERIES` of
them, restarts included, and further ones share an overflow series. While two lives of a shard report at once, counters
and up-down counters are the sum of both, and gauges are those of the newer life. The sums over shards never fall: the
counts of a shard that the app has no more stay in them, though it has no series of its own.
Leaves out: duplicate reports; see `sequence`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from operator import itemgetter
from typing import Any

from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import MAX_SERIES, OVERFLOW, Attributes, Instrument, Point

INSTANTANEOUS_KINDS = ("gauge", "up_down_counter")
"""Kinds that describe the present state of a shard, and are forgotten when it ends."""
MAX_UNITS = ("s", "ms", "1")
"""Units of gauges that are aggregated over shards by maximum, since their sum means nothing: lags and ratios."""
SeriesKey = tuple[str, str, Attributes]
"""Name and kind of an instrument, and attributes."""


@dataclass
class Totals:
    """The cumulative series of all shards. Owned by the supervisor."""

    _values: dict[SeriesKey, float | Buckets] = field(default_factory=dict)
    _instruments: dict[tuple[str, str], Instrument] = field(default_factory=dict)
    """(name, kind) → its newest description: a changed description makes no new series."""
    _sizes: Counter[tuple[str, str, Attributes]] = field(default_factory=Counter)
    """(name, kind, source) → number of series."""
    _of_lives: dict[SeriesKey, dict[int, float]] = field(default_factory=dict)
    """Series of an instantaneous kind → its value in each life of its shard."""
    _retired: set[Attributes] = field(default_factory=set)
    """The sources whose series are in the sums alone."""

    def add(self, points: Iterable[Point], *, extra: Attributes = (), life: int = 0) -> None:
        """Add points of one shard, whose app and name are the attributes `extra`. life: of the shard's process."""
        for point in points:
            self._add(point, extra, life)

    def _add(self, point: Point, extra: Attributes, life: int) -> None:
        name, kind = point.instrument.name, point.kind
        key = (name, kind, _sorted_attributes(point.attributes, extra))
        if kind == "gauge" and isnan(point.value):  # type: ignore[arg-type]
            self._forget(key, extra, life)
            return
        self._instruments[name, kind] = point.instrument
        if key not in self._values:
            if self._sizes[name, kind, extra] >= MAX_SERIES:
                key = (name, kind, _sorted_attributes(OVERFLOW, extra))
            else:
                self._sizes[name, kind, extra] += 1
        if kind in INSTANTANEOUS_KINDS:
            self._add_instantaneous(key, life, point.value)  # type: ignore[arg-type]
        else:
            total = self._values.get(key)
            self._values[key] = point.value if total is None else merged(total, point.value)

    def _add_instantaneous(self, key: SeriesKey, life: int, value: float) -> None:
        of_lives = self._of_lives.setdefault(key, {})
        of_lives[life] = value if key[1] == "gauge" else of_lives.get(life, 0.0) + value
        self._values[key] = _present(key, of_lives)

    def _forget(self, key: SeriesKey, extra: Attributes, life: int) -> None:
        """Forget one life's value of an instantaneous series, and the series with the last of them."""
        of_lives = self._of_lives.get(key, {})
        if of_lives.pop(life, None) is None:
            return
        if of_lives:
            self._values[key] = _present(key, of_lives)
            return
        del self._of_lives[key], self._values[key]
        if key[2] != _sorted_attributes(OVERFLOW, extra):
            self._sizes[key[0], key[1], extra] -= 1

    def drop_instantaneous(self, extra: Attributes, life: int = 0) -> None:
        """Forget the gauges and up-down counters of a shard's life that ended."""
        for key in [key for key in self._of_lives if set(extra) <= set(key[2])]:
            self._forget(key, extra, life)

    def retire(self, extra: Attributes) -> None:
        """The app has this shard no more: `points` leaves out its series until it is back; sums keep its counts."""
        self._retired.add(extra)

    def bring_back(self, extra: Attributes) -> None:
        """After `retire`: the app has this shard again, whose counters go on where they were."""
        self._retired.discard(extra)

    def points(self, *, without: str = "", with_retired: bool = False) -> list[Point]:
        """All series, cumulative. with_retired: also those of the shards that the app has no more.

        without: an attribute to remove; series that differ in nothing else are added up, or aggregated by maximum (see
            `MAX_UNITS`).
        """
        values = self._merged_without(without) if without else self._values
        retired = [] if with_retired else [set(source) for source in self._retired]
        return [
            Point(self._instruments[name, kind], kind, attributes, value)
            for (name, kind, attributes), value in values.items()
            if not any(source <= set(attributes) for source in retired)
        ]

    def _merged_without(self, attribute: str) -> dict[SeriesKey, float | Buckets]:
        aggregated: dict[SeriesKey, float | Buckets] = {}
        for (name, kind, attributes), value in self._values.items():
            key = (name, kind, tuple(pair for pair in attributes if pair[0] != attribute))
            is_maximum = kind == "gauge" and self._instruments[name, kind].unit in MAX_UNITS
            total = aggregated.get(key)
            if total is None:
                aggregated[key] = value
            else:
                aggregated[key] = max(total, value) if is_maximum else merged(total, value)  # type: ignore[type-var]
        return aggregated

    def sum_of(self, name: str, extra: Attributes = ()) -> float:
        """The sum over all series of `name`, histograms excepted, that have the attributes `extra`."""
        return sum(value for value in self._values_of(name, extra) if not isinstance(value, Buckets))

    def value_of(self, name: str, attributes: Attributes) -> float | None:
        """The value of the gauge series that has just these attributes; None without one."""
        value = self._values.get((name, "gauge", _sorted_attributes(attributes, ())))
        return None if isinstance(value, Buckets) else value

    def counts_by(self, name: str, attribute: str, extra: Attributes = ()) -> dict[str, int]:
        """The sums of the counter `name` by the value of `attribute`; series without it are left out."""
        groups = sorted(self.series_by(name, attribute, extra).items())
        return {value: int(sum(count for _, count in series)) for value, series in groups if value}

    def buckets_of(self, name: str, extra: Attributes = ()) -> Buckets:
        """The merged buckets of all series of the histogram `name` that have the attributes `extra`."""
        buckets = Buckets({}, 0.0)
        for value in self._values_of(name, extra):
            buckets = buckets.plus(value) if isinstance(value, Buckets) else buckets
        return buckets

    def series_by(self, name: str, attribute: str, extra: Attributes = ()) -> dict[str, list[tuple[Attributes, Any]]]:
        """The series of `name` that have the attributes `extra`, grouped by the value of `attribute`."""
        groups: dict[str, list[tuple[Attributes, Any]]] = defaultdict(list)
        for (series_name, _, attributes), value in self._values.items():
            if series_name == name and set(extra) <= set(attributes):
                groups[dict(attributes).get(attribute, "")].append((attributes, value))
        return groups

    def _values_of(self, name: str, extra: Attributes) -> Iterable[float | Buckets]:
        required = set(extra)
        for (series_name, _, attributes), value in self._values.items():
            if series_name == name and required <= set(attributes):
                yield value


def _present(key: SeriesKey, of_lives: dict[int, float]) -> float:
    return of_lives[max(of_lives)] if key[1] == "gauge" else sum(of_lives.values())


def _sorted_attributes(attributes: Attributes, extra: Attributes) -> Attributes:
    return tuple(sorted((*attributes, *extra), key=itemgetter(0)))


def merged(a: float | Buckets, b: float | Buckets) -> float | Buckets:
    """The sum of two values of one kind of series."""
    if isinstance(a, Buckets):
        assert isinstance(b, Buckets)
        return a.plus(b)
    assert not isinstance(b, Buckets)
    return a + b
