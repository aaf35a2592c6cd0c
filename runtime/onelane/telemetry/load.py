"""What a shard says of itself at its tick: how late it is, how busy, and which keys are asked most."""

import time

import xxhash

from onelane.core.clock import Clock
from onelane.telemetry.hot_keys import HotKey, HotKeys
from onelane.telemetry.stats import Stats

EVERY = 10
"""Ticks from one word about load and keys to the next: a second."""
FADE = 100
"""Ticks after which what was asked counts half."""
HOTTEST = 10
"""Keys that are told of a shard."""
LONGEST = 100
"""Characters of a key that are shown; what is longer ends in a dot dot dot."""


class Pulse:
    """Owned by a shard's life; `beat` is called each tick."""

    def __init__(self, stats: Stats, clock: Clock, keys: HotKeys, *, tick_s: float, show_keys: bool) -> None:
        self._clock = clock
        self._keys = keys
        self._tick_s = tick_s
        self._show_keys = show_keys
        self._beats = 0
        self._at = clock.now()
        self._latest = 0.0
        self._second = (time.monotonic(), time.process_time())
        self._news = False
        self._lag = stats.gauge(
            "onelane.lane.lag", unit="s", description="How late the lane's tick came, the worst of a second"
        ).at()
        self._busy = stats.gauge(
            "onelane.lane.utilization", unit="1", description="Processor time of the shard's process, of one core's"
        ).at()

    def beat(self) -> None:
        """One tick."""
        now = self._clock.now()
        self._latest = max(self._latest, now - self._at - self._tick_s)
        self._at = now
        self._beats += 1
        self._news = self._news or bool(self._keys.seen)
        self._keys.fold()
        if not self._beats % FADE:
            self._keys.fade()
        if not self._beats % EVERY:
            self._measure()

    def _measure(self) -> None:
        # Rounded, so that a quiet shard has nothing to say.
        self._lag.set(round(self._latest, 3))
        self._latest = 0.0
        before, self._second = self._second, (time.monotonic(), time.process_time())
        wall, cpu = (new - old for new, old in zip(self._second, before, strict=True))
        self._busy.set(round(cpu / max(wall, 0.001), 2))

    def hottest(self) -> list[HotKey]:
        """Once a second and where something has come: the keys that are asked most."""
        if self._beats % EVERY or not self._news:
            return []
        self._news = False
        say = _short if self._show_keys else _hidden
        return [HotKey(say(one.key), one.calls, one.error) for one in self._keys.top(HOTTEST)]


def _short(key: str) -> str:
    return key if len(key) <= LONGEST else f"{key[:LONGEST]}…"


def _hidden(key: str) -> str:
    return f"#{xxhash.xxh64_hexdigest(key.encode())}"
