"""Prometheus text at `/metrics`, in the names of OpenTelemetry's Prometheus rules; OpenMetrics has exemplars too."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Exemplar

from onelane.buckets import Buckets
from onelane.logs import LogRecord
from onelane.spans import SpanRecord
from onelane.stats import Instrument, Point

_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "up_down_counter": GaugeMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": "ratio"}
SECONDS = tuple(2.0**n for n in range(-14, 7))
"""Bounds of what is in seconds, 61 µs to 64 s. Powers of two, because there the counts are exact."""
OTHERS = tuple(2.0**n for n in range(31))
"""Bounds of everything else, 1 to 2^30."""


class PrometheusSink:
    """See `onelane.sinks.Sink`. Holds the newest points; `render` writes them out."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._points: Sequence[Point] = ()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        """Prometheus has no spans."""

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        """Nor logs."""

    def points(self, points: Sequence[Point]) -> None:
        self._points = points

    def losses(self) -> Mapping[tuple[str, str], int]:
        return {}

    def close(self, timeout_s: float) -> None:
        """Nothing waits: Prometheus asks."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The newest points in the format that `accept`, an Accept header, asks for, and its content type.

        OpenMetrics has exemplars, Prometheus's own text has none.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

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
    bounds = SECONDS if instrument.unit == "s" else OTHERS
    for point in points:
        there = dict(point.attributes)
        values = [there.get(name, "") for name in names]
        if isinstance(point.value, Buckets):
            family.add_metric(values, buckets=_cumulative(point.value, bounds), sum_value=point.value.sum)
        else:
            family.add_metric(values, point.value)
    made: Metric = family
    return made


def _cumulative(spread: Buckets, bounds: Sequence[float]) -> list[tuple[str, float, Exemplar | None]]:
    counts = [*spread.at_or_below(bounds), spread.count]
    ends = [*bounds, float("inf")]
    rows: list[tuple[str, float, Exemplar | None]] = []
    below = -1.0
    for end, count in zip(ends, counts, strict=True):
        rows.append(("+Inf" if end == ends[-1] else repr(end), count, _exemplar(spread, below, end)))
        below = end
    return rows


def _exemplar(spread: Buckets, above: float, to: float) -> Exemplar | None:
    for one in reversed(spread.exemplars):
        if above < one.value <= to:
            return Exemplar({"trace_id": one.trace_id, "span_id": one.span_id}, one.value, one.at_ns / 1e9)
    return None
