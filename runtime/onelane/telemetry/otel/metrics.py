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
from onelane.telemetry.stats import MAX_SERIES, Attributes, Gauge, Stats, attributes_of, number_of

log = logging.getLogger("onelane.metering")
MAX_WAITING = 10_000
"""Counts of other threads that wait for the tick; with more, the oldest are lost."""
EVERY_S = 1.0
"""How often the callbacks of observable instruments are asked."""
OPTIONS = CallbackOptions()
Callback = Callable[[CallbackOptions], Iterable[Observation]]


@dataclass(slots=True)
class _Observed:
    """One callback of an observable instrument."""

    key: Any
    callback: Callback
    seen: dict[Attributes, float] = field(default_factory=dict)
    """What it has said last; at most `MAX_SERIES`."""
    is_well: bool = True


class Bridge:
    """What the API has counted into one lane's statistics. One for each `Stats`."""

    def __init__(self, stats: Stats, now: Callable[[], float]) -> None:
        self._stats = stats
        self._now = now
        self._lane = threading.get_ident()
        self._others: deque[tuple[Any, float, Mapping[str, Any] | None]] = deque(maxlen=MAX_WAITING)
        self._made: dict[Any, Any] = {}
        self._observed: list[_Observed] = []
        self._refused: set[Any] = set()
        self._asked_at = float("-inf")
        stats.before_take(self._before_take)

    def count(self, key: Any, amount: float, attributes: Mapping[str, Any] | None) -> None:
        """key: kind, name, unit and description of the instrument. Raises nothing: a library has no use for it."""
        if threading.get_ident() != self._lane:
            self._others.append((key, amount, dict(attributes) if attributes else None))
            return
        try:
            self._count(key, amount, attributes)
        except Exception as error:
            self._refuse(key, error)

    def _count(self, key: Any, amount: float, attributes: Mapping[str, Any] | None) -> None:
        number = number_of(amount)
        if number is None:
            raise ValueError(f"{key[1]} cannot count {amount!r}, expected a finite number")
        found = self._instrument(key)
        if found is None:
            return
        cell = found.at(_said(attributes))
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
        self._observed += [_Observed(key, callback) for callback in callbacks]

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
        # Those that are there now: others may go on counting meanwhile.
        for _ in range(len(self._others)):
            self.count(*self._others.popleft())
        if self._observed and self._now() - self._asked_at >= EVERY_S:
            self._asked_at = self._now()
            for one in self._observed:
                self._ask(one)

    def _ask(self, one: _Observed) -> None:
        try:
            found = {attributes_of(_said(said.attributes)): said.value for said in one.callback(OPTIONS)}
        except Exception:
            if one.is_well:
                log.exception("metering.callback_failed instrument=%s it is asked again", one.key[1])
            one.is_well = False
            return
        one.is_well = True
        for attributes, value in found.items():
            self._heard(one, attributes, value)
        if one.key[0] != "counter":
            for attributes in one.seen.keys() - found.keys():
                self._gone(one, attributes)

    def _heard(self, one: _Observed, attributes: Attributes, value: Any) -> None:
        """The callback says how it stands; the statistics take what was added."""
        number = number_of(value)
        if number is None or (attributes not in one.seen and len(one.seen) >= MAX_SERIES):
            which = f"more than {MAX_SERIES} series" if number is not None else f"{value!r}, expected a finite number"
            self._refuse(one.key, ValueError(f"{one.key[1]} cannot count {which}"))
            return
        before, one.seen[attributes] = one.seen.get(attributes, 0.0), number
        has_begun_anew = one.key[0] == "gauge" or (one.key[0] == "counter" and number < before)
        self.count(one.key, number if has_begun_anew else number - before, dict(attributes))

    def _gone(self, one: _Observed, attributes: Attributes) -> None:
        """The callback has nothing to say of these attributes any more."""
        before = one.seen.pop(attributes)
        instrument = self._instrument(one.key)
        if isinstance(instrument, Gauge):
            instrument.forget(dict(attributes))
        elif instrument is not None:
            self.count(one.key, -before, dict(attributes))


def _said(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): _text(value) for name, value in attributes.items()} if attributes else {}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Instrument:
    """One instrument of the API, whichever lanes use it."""

    kind = ""

    def __init__(self, name: str, unit: str = "", description: str = "") -> None:
        self._key = (self.kind, name, unit, description)

    def _count(self, amount: float, attributes: Mapping[str, Any] | None) -> None:
        if (home := bound_shard()) is not None:
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


_installed = False


def install() -> None:
    """Make OpenTelemetry's metrics API speak of this process's lanes; once is enough."""
    global _installed
    if not _installed:
        _installed = True
        metrics.set_meter_provider(LaneMeterProvider())
