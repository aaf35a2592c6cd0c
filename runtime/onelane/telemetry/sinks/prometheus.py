"""Prometheus text at `/metrics`, in the names of OpenTelemetry's Prometheus rules; OpenMetrics has exemplars too."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Exemplar

from onelane.telemetry.collector.totals import merged
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.logs import LogRecord
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Instrument, Point

log = logging.getLogger("onelane.prometheus")
_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "up_down_counter": GaugeMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": "ratio"}
SECONDS_BOUNDS = tuple(2.0**n for n in range(-14, 7))
"""Bounds of histograms in seconds, 61 µs to 64 s. Powers of two, because at these the counts are exact."""
OTHER_BOUNDS = tuple(2.0**n for n in range(31))
"""Bounds of all other histograms, 1 to 2^30."""

MAX_TEXTS = 8
"""Formats in which the same points are written; a further one gets Prometheus's plain text."""


class PrometheusSink:
    """See `onelane.telemetry.sinks.Sink`. Holds the newest points; `render` writes them as text."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._points: Sequence[Point] = ()
        self._texts: dict[str, bytes] = {}
        """Content type → the newest points, where they have been written in it: many may scrape at once."""
        self._warned: set[str] = set()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        """Ignored: Prometheus has no spans."""

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        """Ignored: Prometheus has no logs."""

    def points(self, points: Sequence[Point]) -> None:
        self._points = points
        self._texts.clear()

    def losses(self) -> Mapping[tuple[str, str], int]:
        return {}

    def close(self, timeout_s: float) -> None:
        """Nothing is queued: Prometheus scrapes."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The newest points in the format that `accept`, an Accept header, requests, and its content type.

        OpenMetrics has exemplars, Prometheus's own text format has none.
        """
        encode, content_type = choose_encoder(accept)
        if content_type not in self._texts and len(self._texts) >= MAX_TEXTS:
            # The content type repeats a version that the client has chosen: one after another, they would be endless.
            encode, content_type = choose_encoder("")
        if content_type not in self._texts:
            self._texts[content_type] = encode(self._registry)
        return self._texts[content_type], content_type

    def collect(self) -> Iterable[Metric]:
        families: dict[str, _Family] = {}
        for point in self._points:
            name = name_of(point.instrument, point.kind)
            family = families.setdefault(name, _Family(point.instrument, point.kind))
            if family.kind == point.kind:
                family.add(point)
            elif name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "prometheus.left_out the %s %s has the Prometheus name %s, as has the %s %s",
                    *(point.kind, point.instrument.name, name),
                    *(family.kind, family.instrument.name),
                )
        for name, family in sorted(families.items()):
            yield family.metric(name)


@lru_cache(maxsize=4096)
def name_of(instrument: Instrument, kind: str) -> str:
    """`onelane.calls` → `onelane_calls`. Units become suffixes, but for those in braces, and 1 unless of a gauge."""
    name = re.sub(r"[^a-zA-Z0-9_:]", "_", instrument.name)
    name = f"_{name}" if name[:1].isdigit() else name
    unit = _UNITS.get(instrument.unit, "") if instrument.unit != "1" or kind == "gauge" else ""
    return f"{name}_{unit}" if unit and not name.endswith(unit) else name


@lru_cache(maxsize=4096)
def _label_of(attribute: str, kind: str) -> str:
    label = re.sub(r"[^a-zA-Z0-9_]", "_", attribute)
    if label == "le" and kind == "histogram":
        # Reserved for bucket bounds; Prometheus renames a scraped label `le` in this way.
        return "exported_le"
    return f"_{label}" if label[:1].isdigit() else label


def _joined_labels(point: Point) -> tuple[tuple[str, str], ...]:
    """Labels and values; attributes with one label name are joined by `;`, as OpenTelemetry's rules require."""
    labels: dict[str, str] = {}
    for name, value in point.attributes:
        label = _label_of(name, point.kind)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        labels[label] = f"{labels[label]};{text}" if label in labels else text
    return tuple(labels.items())


@dataclass(slots=True)
class _Family:
    """All series of one Prometheus name; `instrument` is the first of that name."""

    instrument: Instrument
    kind: str
    series: dict[tuple[tuple[str, str], ...], float | Buckets] = field(default_factory=dict)

    def add(self, point: Point) -> None:
        labels = _joined_labels(point)
        total = self.series.get(labels)
        self.series[labels] = point.value if total is None else merged(total, point.value)

    def metric(self, name: str) -> Metric:
        labels = sorted({label for row in self.series for label, _ in row})
        text = self.instrument.description or self.instrument.name
        family: Any = _FAMILIES[self.kind](name, text, labels=labels)
        bounds = SECONDS_BOUNDS if self.instrument.unit == "s" else OTHER_BOUNDS
        for row, value in self.series.items():
            label_values = dict(row)
            values = [label_values.get(label, "") for label in labels]
            if isinstance(value, Buckets):
                family.add_metric(values, buckets=_cumulative(value, bounds), sum_value=value.sum)
            else:
                family.add_metric(values, value)
        metric: Metric = family
        return metric


def _cumulative(histogram: Buckets, bounds: Sequence[float]) -> list[tuple[str, float, Exemplar | None]]:
    counts = [*histogram.cumulative_counts(bounds), histogram.count]
    ends = [*bounds, float("inf")]
    rows: list[tuple[str, float, Exemplar | None]] = []
    below = -1.0
    for end, count in zip(ends, counts, strict=True):
        rows.append(("+Inf" if end == ends[-1] else repr(end), count, _exemplar_between(histogram, below, end)))
        below = end
    return rows


def _exemplar_between(histogram: Buckets, above: float, to: float) -> Exemplar | None:
    for exemplar in reversed(histogram.exemplars):
        if above < exemplar.value <= to:
            labels = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}
            return Exemplar(labels, exemplar.value, exemplar.at_ns / 1e9)
    return None
