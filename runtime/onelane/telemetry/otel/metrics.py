"""OpenTelemetry's metrics API on a lane: measurements of libraries go into the lane's own `Stats`.

An instrument may be created anywhere, at the import of a module too; it records for the lane that uses it. A
measurement of another thread waits in a queue for the lane's tick. Attribute values become text. A name that belongs to
another kind of instrument, and a value that is not a finite number, are logged once and record nothing.
Leaves out: bucket boundary advice (all histograms are exponential), and measurements outside any lane.
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
from onelane.telemetry.stats import MAX_SERIES, Attributes, AttributeValue, Gauge, Stats, attributes_of, finite_float

log = logging.getLogger("onelane.metering")
MAX_QUEUED_COUNTS = 10_000
"""Measurements of other threads that wait for the tick; further ones displace the oldest."""
OBSERVE_INTERVAL_S = 1.0
"""Interval at which the callbacks of observable instruments are called."""
OPTIONS = CallbackOptions()
Callback = Callable[[CallbackOptions], Iterable[Observation]]


@dataclass(slots=True)
class _ObservedCallback:
    """One callback of an observable instrument."""

    key: Any
    callback: Callback
    last_values: dict[Attributes, float] = field(default_factory=dict)
    """The values of its last call; at most `MAX_SERIES`."""
    is_healthy: bool = True
    """Its last call raised nothing."""


class Bridge:
    """Records the API's measurements into the `Stats` of one lane. One bridge per `Stats`."""

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
        """Record a measurement, from any thread. Raises nothing: a library must not fail because of its metrics.

        key: kind, name, unit and description of the instrument.
        """
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
        instrument = self._instrument(key)
        if instrument is None:
            return
        series = instrument.at(_plain_attributes(attributes))
        if key[0] == "histogram":
            series.record(number)
        elif key[0] == "gauge":
            series.set(number)
        elif number >= 0 or key[0] == "up_down_counter":
            series.add(number)

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
        # A fixed number: other threads may append meanwhile.
        for _ in range(len(self._queued_counts)):
            self.count(*self._queued_counts.popleft())
        if self._callbacks and self._now() - self._observed_at >= OBSERVE_INTERVAL_S:
            self._observed_at = self._now()
            for observed in self._callbacks:
                self._run_callback(observed)

    def _run_callback(self, observed: _ObservedCallback) -> None:
        try:
            values = {attributes_of(_plain_attributes(o.attributes)): o.value for o in observed.callback(OPTIONS)}
        except Exception:
            if observed.is_healthy:
                log.exception("metering.callback_failed instrument=%s it is called again later", observed.key[1])
            observed.is_healthy = False
            return
        observed.is_healthy = True
        for attributes, value in values.items():
            self._add_observation(observed, attributes, value)
        if observed.key[0] != "counter":
            for attributes in observed.last_values.keys() - values.keys():
                self._forget_series(observed, attributes)

    def _add_observation(self, observed: _ObservedCallback, attributes: Attributes, value: Any) -> None:
        """Record the change since the last observation: a callback reports sums, a counter is added to."""
        number = finite_float(value)
        if number is None or (attributes not in observed.last_values and len(observed.last_values) >= MAX_SERIES):
            reason = f"more than {MAX_SERIES} series" if number is not None else f"{value!r}, expected a finite number"
            self._refuse(observed.key, ValueError(f"{observed.key[1]} cannot count {reason}"))
            return
        earlier, observed.last_values[attributes] = observed.last_values.get(attributes, 0.0), number
        # A counter that fell was reset, so all of it is new.
        is_absolute = observed.key[0] == "gauge" or (observed.key[0] == "counter" and number < earlier)
        self.count(observed.key, number if is_absolute else number - earlier, dict(attributes))

    def _forget_series(self, observed: _ObservedCallback, attributes: Attributes) -> None:
        """The callback reports these attributes no longer."""
        last_value = observed.last_values.pop(attributes)
        instrument = self._instrument(observed.key)
        if isinstance(instrument, Gauge):
            instrument.forget(dict(attributes))
        elif instrument is not None:
            self.count(observed.key, -last_value, dict(attributes))


def _plain_attributes(attributes: Mapping[str, Any] | None) -> dict[str, AttributeValue]:
    return {str(name): _plain_value(value) for name, value in attributes.items()} if attributes else {}


def _plain_value(value: Any) -> AttributeValue:
    return value if isinstance(value, bool | int | float) else str(value)


class _LaneInstrument:
    """One instrument of the API; it records for the lane whose code uses it."""

    kind = ""

    def __init__(self, name: str, unit: str = "", description: str = "") -> None:
        self._key = (self.kind, name, unit, description)

    def _count(self, amount: float, attributes: Mapping[str, Any] | None) -> None:
        if (binding := bound_shard()) is not None:
            binding.bridge.count(self._key, amount, attributes)


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
    """Its callbacks are called by the lane that created it; created outside any lane, they are never called."""

    def __init__(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> None:
        super().__init__(name, unit, description)
        if (binding := bound_shard()) is not None and callbacks:
            binding.bridge.observe(self._key, list(callbacks))


class LaneObservableCounter(_Observable, metrics.ObservableCounter):
    kind = "counter"


class LaneObservableUpDownCounter(_Observable, metrics.ObservableUpDownCounter):
    kind = "up_down_counter"


class LaneObservableGauge(_Observable, metrics.ObservableGauge):
    kind = "gauge"


class LaneMeter(metrics.Meter):
    """Creates instruments; see the module."""

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
    """OpenTelemetry's meter provider in a process with lanes."""

    def get_meter(self, name: str, *_: Any, **__: Any) -> LaneMeter:
        return LaneMeter(name)


_is_meter_provider_set = False


def install() -> None:
    """Set `LaneMeterProvider` as OpenTelemetry's provider; further calls do nothing."""
    global _is_meter_provider_set
    if not _is_meter_provider_set:
        _is_meter_provider_set = True
        metrics.set_meter_provider(LaneMeterProvider())
