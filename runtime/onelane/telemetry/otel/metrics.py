"""OpenTelemetry's metrics API on a lane: what libraries count by it goes into the lane's own statistics.

An instrument may be made anywhere, also when its module is imported; it counts for the lane that uses it. From another
thread a count waits in a queue for the lane's tick. Attributes' values become text; a name that another kind of
instrument has already is refused once, in the log, and counts nothing; so is a value that is no finite number.
Leaves out: advice on buckets (all histograms are exponential), and counts outside of any lane.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from onelane.core.context import bound_shard
from onelane.telemetry.stats import MAX_SERIES, Attributes, Gauge, Stats, attributes_of, finite_float

log = logging.getLogger("onelane.metering")
MAX_QUEUED_COUNTS = 10_000
"""Counts of other threads that wait for the tick; with more, the oldest are lost."""
OBSERVE_INTERVAL_S = 1.0
"""How often the callbacks of observable instruments are asked."""
OPTIONS = CallbackOptions()
Callback = Callable[[CallbackOptions], Iterable[Observation]]


@dataclass(slots=True)
class _ObservedCallback:
    """One callback of an observable instrument."""

    key: Any
    callback: Callback
    last_values: dict[Attributes, float] = field(default_factory=dict)
    """What it has said last; at most `MAX_SERIES`."""
    is_healthy: bool = True


class Bridge:
    """What the API has counted into one lane's statistics. One for each `Stats`."""

    def __init__(self, stats: Stats, now: Callable[[], float]) -> None:
        self._stats = stats
        self._now = now
        self._lane_thread = threading.get_ident()
        self._queued_counts: deque[tuple[Any, float, Mapping[str, Any] | None]] = deque(maxlen=MAX_QUEUED_COUNTS)
        self._instruments: dict[Any, Any] = {}
        self._callbacks: list[_ObservedCallback] = []
        self._refused: set[Any] = set()
        self._observed_at = float("-inf")
        stats.before_take(self._before_take)

    def count(self, key: Any, amount: float, attributes: Mapping[str, Any] | None) -> None:
        """key: kind, name, unit and description of the instrument. Raises nothing: a library has no use for it."""
        if threading.get_ident() != self._lane_thread:
            self._queued_counts.append((key, amount, dict(attributes) if attributes else None))
            return
        try:
            self._count(key, amount, attributes)
        except Exception as error:
            self._refuse(key, error)

    def _count(self, key: Any, amount: float, attributes: Mapping[str, Any] | None) -> None:
        number = finite_float(amount)
        if number is None:
            raise ValueError(f"{key[1]} cannot count {amount!r}, expected a finite number")
        found = self._instrument(key)
        if found is None:
            return
        cell = found.at(_text_attributes(attributes))
        if key[0] == "histogram":
            cell.record(number)
        elif key[0] == "gauge":
            cell.set(number)
        elif number >= 0 or key[0] == "up_down_counter":
            cell.add(number)

    def _refuse(self, key: Any, error: Exception) -> None:
        if key not in self._refused:
            self._refused.add(key)
            log.warning("metering.refused %s", error)

    def observe(self, key: Any, callbacks: Sequence[Any]) -> None:
        self._callbacks += [_ObservedCallback(key, callback) for callback in callbacks]

    def _instrument(self, key: Any) -> Any:
        if key not in self._instruments:
            kind, name, unit, description = key
            try:
                self._instruments[key] = getattr(self._stats, kind)(name, unit=unit, description=description)
            except ValueError as error:
                log.warning("metering.refused %s", error)
                self._instruments[key] = None
        return self._instruments[key]

    def _before_take(self) -> None:
        # Those that are there now: others may go on counting meanwhile.
        for _ in range(len(self._queued_counts)):
            self.count(*self._queued_counts.popleft())
        if self._callbacks and self._now() - self._observed_at >= OBSERVE_INTERVAL_S:
            self._observed_at = self._now()
            for one in self._callbacks:
                self._run_callback(one)

    def _run_callback(self, one: _ObservedCallback) -> None:
        try:
            found = {attributes_of(_text_attributes(said.attributes)): said.value for said in one.callback(OPTIONS)}
        except Exception:
            if one.is_healthy:
                log.exception("metering.callback_failed instrument=%s it is asked again", one.key[1])
            one.is_healthy = False
            return
        one.is_healthy = True
        for attributes, value in found.items():
            self._add_observation(one, attributes, value)
        if one.key[0] != "counter":
            for attributes in one.last_values.keys() - found.keys():
                self._forget_series(one, attributes)

    def _add_observation(self, one: _ObservedCallback, attributes: Attributes, value: Any) -> None:
        """The callback says how it stands; the statistics take what was added."""
        number = finite_float(value)
        if number is None or (attributes not in one.last_values and len(one.last_values) >= MAX_SERIES):
            which = f"more than {MAX_SERIES} series" if number is not None else f"{value!r}, expected a finite number"
            self._refuse(one.key, ValueError(f"{one.key[1]} cannot count {which}"))
            return
        before, one.last_values[attributes] = one.last_values.get(attributes, 0.0), number
        has_begun_anew = one.key[0] == "gauge" or (one.key[0] == "counter" and number < before)
        self.count(one.key, number if has_begun_anew else number - before, dict(attributes))

    def _forget_series(self, one: _ObservedCallback, attributes: Attributes) -> None:
        """The callback has nothing to say of these attributes any more."""
        before = one.last_values.pop(attributes)
        instrument = self._instrument(one.key)
        if isinstance(instrument, Gauge):
            instrument.forget(dict(attributes))
        elif instrument is not None:
            self.count(one.key, -before, dict(attributes))


def _text_attributes(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): _value_text(value) for name, value in attributes.items()} if attributes else {}


def _value_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _LaneInstrument:
    """One instrument of the API, whichever lanes use it."""

    kind = ""

    def __init__(self, name: str, unit: str = "", description: str = "") -> None:
        self._key = (self.kind, name, unit, description)

    def _count(self, amount: float, attributes: Mapping[str, Any] | None) -> None:
        if (home := bound_shard()) is not None:
            home.bridge.count(self._key, amount, attributes)


class LaneCounter(_LaneInstrument, metrics.Counter):
    kind = "counter"

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class LaneUpDownCounter(_LaneInstrument, metrics.UpDownCounter):
    kind = "up_down_counter"

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class LaneHistogram(_LaneInstrument, metrics.Histogram):
    kind = "histogram"

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class LaneGauge(_LaneInstrument, metrics._Gauge):
    kind = "gauge"

    def set(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self._count(amount, attributes)


class _Observable(_LaneInstrument):
    """Asked by the lane in which it was made; made outside of one, by none."""

    def __init__(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> None:
        super().__init__(name, unit, description)
        if (home := bound_shard()) is not None and callbacks:
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


_is_meter_provider_set = False


def install() -> None:
    """Make OpenTelemetry's metrics API speak of this process's lanes; once is enough."""
    global _is_meter_provider_set
    if not _is_meter_provider_set:
        _is_meter_provider_set = True
        metrics.set_meter_provider(LaneMeterProvider())
