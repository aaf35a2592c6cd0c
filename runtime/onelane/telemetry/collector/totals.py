"""What all shards have counted, added up.

Promises: series are told apart by name, kind and attributes; there are at most `stats.MAX_SERIES` of one instrument of
one source, over all of its lives, and what is over that is counted in one. Leaves out: where reports come from, and
whether they are new; see `reports`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import MAX_SERIES, OVERFLOW, Attributes, Instrument, Point

STANDING = ("gauge", "up_down_counter")
"""Kinds that say how it is now: they go with the shard that said so."""
WORST = ("s", "ms", "1")
"""Units of gauges of which the sum over shards says nothing, and the largest does: how late, how full."""
Series = tuple[str, str, Attributes]
"""Name and kind of an instrument, and attributes."""


@dataclass
class Totals:
    """What all shards together have counted. Owned by the supervisor."""

    _values: dict[Series, float | Buckets] = field(default_factory=dict)
    _instruments: dict[tuple[str, str], Instrument] = field(default_factory=dict)
    """As they were described last: a description may change with a release, and is no other series then."""
    _sizes: Counter[tuple[str, str, Attributes]] = field(default_factory=Counter)
    """Series of one instrument of one source."""

    def add(self, points: Iterable[Point], *, extra: Attributes = ()) -> None:
        """Add what was taken; `extra` attributes (app, shard) tell the sources apart."""
        for point in points:
            self._add(point, extra)

    def _add(self, point: Point, extra: Attributes) -> None:
        name, kind = point.instrument.name, point.kind
        key = (name, kind, _sorted(point.attributes, extra))
        before = self._values.get(key)
        if kind == "gauge" and isnan(point.value):  # type: ignore[arg-type]
            if self._values.pop(key, None) is not None:
                self._sizes[name, kind, extra] -= 1
            return
        self._instruments[name, kind] = point.instrument
        if before is None:
            if self._sizes[name, kind, extra] >= MAX_SERIES:
                key = (name, kind, _sorted(OVERFLOW, extra))
                before = self._values.get(key)
            else:
                self._sizes[name, kind, extra] += 1
        self._values[key] = point.value if before is None or kind == "gauge" else added(before, point.value)

    def drop_standing(self, extra: Attributes) -> None:
        """Forget the gauges and up-down counters of a source that is gone."""
        gone = [key for key in self._values if key[1] in STANDING and set(extra) <= set(key[2])]
        for key in gone:
            del self._values[key]
        for size in [size for size in self._sizes if size[1] in STANDING and size[2] == extra]:
            del self._sizes[size]

    def points(self, *, without: str = "") -> list[Point]:
        """All series as they stand, cumulative.

        without: the name of an attribute; series that differ in nothing else are added up, of gauges whose sum says
            nothing (see `WORST`) the largest counts.
        """
        values = self._without(without) if without else self._values
        return [
            Point(self._instruments[name, kind], kind, attributes, value)
            for (name, kind, attributes), value in values.items()
        ]

    def _without(self, attribute: str) -> dict[Series, float | Buckets]:
        made: dict[Series, float | Buckets] = {}
        for (name, kind, attributes), value in self._values.items():
            key = (name, kind, tuple(pair for pair in attributes if pair[0] != attribute))
            is_worst = kind == "gauge" and self._instruments[name, kind].unit in WORST
            before = made.get(key)
            if before is None:
                made[key] = value
            else:
                made[key] = max(before, value) if is_worst else added(before, value)  # type: ignore[type-var]
        return made

    def sum_of(self, name: str, extra: Attributes = ()) -> float:
        """The sum over all series of one name, no histogram, that have the attributes `extra`."""
        return sum(value for value in self._of(name, extra) if not isinstance(value, Buckets))

    def spread_of(self, name: str, extra: Attributes = ()) -> Buckets:
        """The buckets of a histogram, over all its series that have the attributes `extra`."""
        made = Buckets({}, 0.0)
        for value in self._of(name, extra):
            made = made.plus(value) if isinstance(value, Buckets) else made
        return made

    def by(self, name: str, attribute: str, extra: Attributes = ()) -> dict[str, list[tuple[Attributes, Any]]]:
        """The series of one name that have `extra`, by the value of one attribute."""
        found: dict[str, list[tuple[Attributes, Any]]] = defaultdict(list)
        for (of, _, attributes), value in self._values.items():
            if of == name and set(extra) <= set(attributes):
                found[dict(attributes).get(attribute, "")].append((attributes, value))
        return found

    def _of(self, name: str, extra: Attributes) -> Iterable[float | Buckets]:
        wanted = set(extra)
        for (of, _, attributes), value in self._values.items():
            if of == name and wanted <= set(attributes):
                yield value


def _sorted(attributes: Attributes, extra: Attributes) -> Attributes:
    return tuple(sorted((*attributes, *extra)))


def added(a: float | Buckets, b: float | Buckets) -> float | Buckets:
    if isinstance(a, Buckets):
        assert isinstance(b, Buckets)
        return a.plus(b)
    assert not isinstance(b, Buckets)
    return a + b
