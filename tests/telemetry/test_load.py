"""A shard measures the lag of its ticks, its processor time and its most requested keys."""

import pytest
from onelane.telemetry.hot_keys import HotKeys
from onelane.telemetry.load import MAX_KEY_CHARS, MEASURE_TICKS, LoadMonitor
from onelane.telemetry.stats import Stats
from onelane.testing.clock import ManualClock


@pytest.mark.parametrize(("shows", "prefix"), [(True, "x" * MAX_KEY_CHARS + "…"), (False, "#")])
def test_a_hot_key_is_truncated_or_hashed(shows: bool, prefix: str) -> None:
    clock, keys = ManualClock(), HotKeys()
    load = LoadMonitor(Stats(), clock, keys, tick_s=0.1, show_keys=shows)
    keys.seen.append("x" * 100_000)
    for _ in range(MEASURE_TICKS):
        clock.advance(0.1)
        load.tick()
    (hot_key,) = load.hottest_keys()
    assert hot_key.key.startswith(prefix)
    assert len(hot_key.key) <= MAX_KEY_CHARS + 1
