"""OpenTelemetry's metrics API on a lane: what libraries count by it goes into the lane's own statistics.

An instrument may be made anywhere, also when its module is imported; it counts for the lane that uses it. From another
thread a count waits in a queue for the lane's tick. Attributes' values become text; a name that another kind of
instrument has already is refused once, in the log, and counts nothing.
Leaves out: advice on buckets (all histograms are exponential), and counts outside of any lane.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from onelane.scope import home_now
from onelane.stats import Attributes, Stats, attributes_of

log = logging.getLogger("onelane.metering")
MAX_WAITING = 10_000
"""Counts of other threads that wait for the tick; with more, the oldest are lost."""
EVERY_S = 1.0
"""How often the callbacks of observable instruments are asked."""
OPTIONS = CallbackOptions()


class Bridge:
    """What the API has counted into one lane's statistics. One for each `Stats`."""

    def __init__(self, stats: Stats, now: Callable[[], float]) -> None:
        self._stats = stats
        self._now = now
        self._lane = threading.get_ident()
        self._others: deque[tuple[Any, float, Mapping[str, Any] | None]] = deque(maxlen=MAX_WAITING)
        self._made: dict[Any, Any] = {}
        self._observed: list[tuple[Any, Sequence[Callable[[CallbackOptions], Iterable[Observation]]]]] = []
        self._seen: dict[tuple[Any, Attributes], float] = {}
        self._asked_at = float("-inf")
        stats.before_take(self._before_take)

    def count(self, key: Any, amount: float, attributes: Mapping[str, Any] | None) -> None:
        """key: kind, name, unit and description of the instrument."""
        if threading.get_ident() != self._lane:
            self._others.append((key, amount, attributes))
            return
        found = self._instrument(key)
        if found is None:
            return
        cell = found.at({name: _text(value) for name, value in attributes.items()} if attributes else None)
        if key[0] == "histogram":
            cell.record(amount)
        elif key[0] == "gauge":
            cell.set(amount)
        elif amount >= 0 or key[0] == "up_down_counter":
            cell.add(amount)

    def observe(self, key: Any, callbacks: Sequence[Any]) -> None:
        self._observed.append((key, callbacks))

    def _instrument(self, key: Any) -> Any:
        if key not in self._made:
            kind, name, unit, description = key
            try:
                self._made[key] = getattr(self._stats, kind)(name, unit=unit, description=description)
            except ValueError as error:
                log.warning("metering.refused %s", error)
                self._made[key] = None
        return self._made[key]

    def _before_take(self) -> None:
        while self._others:
            self.count(*self._others.popleft())
        if self._observed and self._now() - self._asked_at >= EVERY_S:
            self._asked_at = self._now()
            for key, callbacks in self._observed:
                for callback in callbacks:
                    self._ask(key, callback)

    def _ask(self, key: Any, callback: Callable[[CallbackOptions], Iterable[Observation]]) -> None:
        try:
            found = list(callback(OPTIONS))
        except Exception:
            log.exception("metering.callback_failed instrument=%s", key[1])
            return
        for one in found:
            if key[0] == "gauge":
                self.count(key, one.value, one.attributes)
                continue
            # The callback says sums; the statistics take what was added.
            series = (key, attributes_of({name: _text(value) for name, value in (one.attributes or {}).items()}))
            before, self._seen[series] = self._seen.get(series, 0), one.value
            has_begun_anew = key[0] == "counter" and one.value < before
            self.count(key, one.value if has_begun_anew else one.value - before, one.attributes)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Instrument:
    """One instrument of the API, whichever lanes use it."""

    kind = ""

    def __init__(self, name: str, unit: str = "", description: str = "") -> None:
        self._key = (self.kind, name, unit, description)

    def _count(self, amount: float, attributes: Mapping[str, Any] | None) -> None:
        if (home := home_now()) is not None:
            home.bridge.count(self._key, amount, attributes)


class LaneCounter(_Instrument, metrics.Counter):
    kind = "counter"

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class LaneUpDownCounter(_Instrument, metrics.UpDownCounter):
    kind = "up_down_counter"

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class LaneHistogram(_Instrument, metrics.Histogram):
    kind = "histogram"

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class LaneGauge(_Instrument, metrics._Gauge):
    kind = "gauge"

    def set(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class _Observable(_Instrument):
    """Asked by the lane in which it was made; made outside of one, by none."""

    def __init__(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> None:
        super().__init__(name, unit, description)
        if (home := home_now()) is not None and callbacks:
            home.bridge.observe(self._key, list(callbacks))


class LaneObservableCounter(_Observable, metrics.ObservableCounter):
    kind = "counter"


class LaneObservableUpDownCounter(_Observable, metrics.ObservableUpDownCounter):
    kind = "up_down_counter"


class LaneObservableGauge(_Observable, metrics.ObservableGauge):
    kind = "gauge"


class LaneMeter(metrics.Meter):
    """See the module."""

    def create_counter(self, name: str, unit: str = "", description: str = "") -> LaneCounter:
        return LaneCounter(name, unit, description)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> LaneUpDownCounter:
        return LaneUpDownCounter(name, unit, description)

    def create_histogram(
        self, name: str, unit: str = "", description: str = "", *, explicit_bucket_boundaries_advisory: Any = None
    ) -> LaneHistogram:
        return LaneHistogram(name, unit, description)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> LaneGauge:
        return LaneGauge(name, unit, description)

    def create_observable_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> LaneObservableCounter:
        return LaneObservableCounter(name, callbacks, unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> LaneObservableUpDownCounter:
        return LaneObservableUpDownCounter(name, callbacks, unit, description)

    def create_observable_gauge(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> LaneObservableGauge:
        return LaneObservableGauge(name, callbacks, unit, description)


class LaneMeterProvider(metrics.MeterProvider):
    """OpenTelemetry's provider in a shard's process."""

    def get_meter(self, name: str, *_: Any, **__: Any) -> LaneMeter:
        return LaneMeter(name)


_installed = False


def install() -> None:
    """Make OpenTelemetry's metrics API speak of this process's lanes; once is enough."""
    global _installed
    if not _installed:
        _installed = True
        metrics.set_meter_provider(LaneMeterProvider())
