"""The load of a shard, measured at its ticks: lag of the lane, processor time, and the most requested keys."""

import time
from hashlib import blake2b
from math import isfinite

from onelane.core.clock import Clock
from onelane.telemetry.hot_keys import HotKey, HotKeys
from onelane.telemetry.open_files import DESCRIPTORS, descriptors_left
from onelane.telemetry.stats import Stats

MEASURE_TICKS = 10
"""Ticks from one measurement to the next: a second."""
DECAY_TICKS = 100
"""Ticks after which the counts of keys are halved."""
REPORTED_KEYS = 10
"""Hot keys of a shard that a report lists."""
MAX_KEY_CHARS = 100
"""Characters of a key that are shown; a longer key ends in an ellipsis."""


class LoadMonitor:
    """Measures the load of one shard. Owned by its lane, which calls `tick` every `tick_s` seconds."""

    def __init__(self, stats: Stats, clock: Clock, keys: HotKeys, *, tick_s: float, salt: bytes | None) -> None:
        """salt: a secret of all shards, with which the reported keys are hashed; None to report their texts."""
        self._clock = clock
        self._keys = keys
        self._tick_s = tick_s
        self._salt = salt
        self._ticks = 0
        self._ticked_at = clock.now()
        self._worst_lag_s = 0.0
        self._measured_at = (time.monotonic(), time.process_time())
        self._has_new_keys = False
        self._lag = stats.gauge(
            "onelane.lane.lag", unit="s", description="Lag of the lane's tick, the maximum of a second"
        ).at()
        self._busy = stats.gauge(
            "onelane.lane.utilization",
            unit="1",
            description="Processor time of the shard's process, as a share of one core",
        ).at()

        self._descriptors = stats.gauge(
            DESCRIPTORS.name, unit=DESCRIPTORS.unit, description=DESCRIPTORS.description
        ).at()
        self._measure_descriptors()

    def tick(self) -> None:
        """Measure the lag of this tick, and once a second set the gauges."""
        now = self._clock.now()
        self._worst_lag_s = max(self._worst_lag_s, now - self._ticked_at - self._tick_s)
        self._ticked_at = now
        self._ticks += 1
        self._has_new_keys = self._has_new_keys or bool(self._keys.seen)
        self._keys.fold()
        if not self._ticks % DECAY_TICKS:
            self._keys.decay()
            # Not each second: before Linux 6.2 it takes milliseconds where thousands are open.
            self._measure_descriptors()
        if not self._ticks % MEASURE_TICKS:
            self._measure()

    def _measure(self) -> None:
        # Rounded, so that the gauges of a quiet shard do not change and need no report.
        self._lag.set(round(self._worst_lag_s, 3))
        self._worst_lag_s = 0.0
        earlier, self._measured_at = self._measured_at, (time.monotonic(), time.process_time())
        wall, cpu = (new - old for new, old in zip(self._measured_at, earlier, strict=True))
        self._busy.set(round(cpu / max(wall, 0.001), 2))

    def _measure_descriptors(self) -> None:
        if isfinite(left := descriptors_left()):
            self._descriptors.set(left)

    def hottest_keys(self) -> list[HotKey]:
        """The most requested keys; empty but once a second, and while there are no keyed calls."""
        if self._ticks % MEASURE_TICKS or not self._has_new_keys:
            return []
        self._has_new_keys = False
        return [HotKey(self.shown(hot.key), hot.calls, hot.error) for hot in self._keys.top(REPORTED_KEYS)]

    def shown(self, key: str) -> str:
        """A key as it is shown to people: cut, or hashed."""
        return _truncated(key) if self._salt is None else _hashed(key, self._salt)


def _truncated(key: str) -> str:
    return key if len(key) <= MAX_KEY_CHARS else f"{key[:MAX_KEY_CHARS]}…"


def _hashed(key: str, salt: bytes) -> str:
    # Without a secret, whoever sees the hash could find the key by hashing all names or numbers that it may be.
    return f"#{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8, key=salt, person=b'hot keys').hexdigest()}"
