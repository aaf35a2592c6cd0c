"""Prometheus text at `/metrics`, in the names that OpenTelemetry's Prometheus rules give."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from onelane.spans import SpanRecord
from onelane.stats import Buckets, Instrument, Point

_FAMILIES: dict[str, Any] = {
    "count": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": "ratio"}


class PrometheusSink:
    """See `onelane.sinks.Sink`. Holds the newest points; `render` writes them out."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._points: Sequence[Point] = ()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        """Prometheus has no spans."""

    def points(self, points: Sequence[Point]) -> None:
        self._points = points

    def close(self, timeout_s: float) -> None:
        """Nothing waits: Prometheus asks."""

    def render(self) -> bytes:
        """The exposition text of the newest points."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        families: dict[tuple[Instrument, str], list[Point]] = defaultdict(list)
        for point in self._points:
            families[point.instrument, point.kind].append(point)
        for (instrument, kind), points in sorted(families.items(), key=lambda item: item[0][0].name):
            yield _family(instrument, kind, points)


def name_of(instrument: Instrument) -> str:
    """`onelane.calls` → `onelane_calls`; a unit becomes a suffix, one in braces does not."""
    name = re.sub(r"[^a-zA-Z0-9_:]", "_", instrument.name)
    unit = _UNITS.get(instrument.unit, "")
    return f"{name}_{unit}" if unit and not name.endswith(unit) else name


def _family(instrument: Instrument, kind: str, points: Sequence[Point]) -> Metric:
    names = sorted({key for point in points for key, _ in point.attributes})
    labels = [re.sub(r"[^a-zA-Z0-9_]", "_", name) for name in names]
    text = instrument.description or instrument.name
    family: Any = _FAMILIES[kind](name_of(instrument), text, labels=labels)
    for point in points:
        there = dict(point.attributes)
        values = [there.get(name, "") for name in names]
        if isinstance(point.value, Buckets):
            family.add_metric(values, buckets=_cumulative(point.value), sum_value=point.value.sum)
        else:
            family.add_metric(values, point.value)
    made: Metric = family
    return made


def _cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    total = 0
    rows: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, buckets.bounds), "+Inf"), buckets.counts, strict=True):
        total += count
        rows.append((bound, total))
    return rows
