"""A shard measures the lag of its ticks, its processor time and its most requested keys."""

import pytest
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.hot_keys import HotKeys
from onelane.telemetry.load import DECAY_TICKS, MAX_KEY_CHARS, MEASURE_TICKS, REPORTED_KEYS, LoadMonitor
from onelane.telemetry.stats import Stats
from onelane.testing.clock import ManualClock


@pytest.mark.parametrize(("shows", "prefix"), [(True, "x" * MAX_KEY_CHARS + "…"), (False, "#")])
def test_a_hot_key_is_truncated_or_hashed(shows: bool, prefix: str) -> None:
    clock, keys = ManualClock(), HotKeys()
    load = LoadMonitor(Stats(), clock, keys, tick_s=0.1, salt=None if shows else b"salt")
    keys.seen.append("x" * 100_000)
    for _ in range(MEASURE_TICKS):
        clock.advance(0.1)
        load.tick()
    (hot_key,) = load.hottest_keys()
    assert hot_key.key.startswith(prefix)
    assert len(hot_key.key) <= MAX_KEY_CHARS + 1


def test_a_hash_is_the_same_with_the_same_salt_alone() -> None:
    def reported(salt: bytes) -> str:
        keys = HotKeys()
        load = LoadMonitor(Stats(), ManualClock(), keys, tick_s=0.1, salt=salt)
        keys.seen.append("alice@example.org")
        for _ in range(MEASURE_TICKS):
            load.tick()
        (hot_key,) = load.hottest_keys()
        return hot_key.key

    assert reported(b"one start") == reported(b"one start") != reported(b"another start")


def measured(stats: Stats) -> dict[str, float | Buckets]:
    return {point.instrument.name: point.value for point in stats.take()}


def test_the_lag_is_the_latest_tick_of_a_second_and_begins_again_at_zero() -> None:
    clock, stats = ManualClock(), Stats()
    load = LoadMonitor(stats, clock, HotKeys(), tick_s=0.1, salt=None)
    for step_s in (0.1, 0.35, 0.15, *[0.1] * (MEASURE_TICKS - 4)):
        clock.advance(step_s)
        load.tick()
        assert "onelane.lane.lag" not in measured(stats)
    clock.advance(0.1)
    load.tick()
    assert measured(stats)["onelane.lane.lag"] == 0.25
    for _ in range(MEASURE_TICKS):
        clock.advance(0.1)
        load.tick()
    assert measured(stats)["onelane.lane.lag"] == 0.0


def test_hot_keys_are_reported_once_a_second_and_only_after_new_calls() -> None:
    clock, keys = ManualClock(), HotKeys()
    load = LoadMonitor(Stats(), clock, keys, tick_s=0.1, salt=None)
    reported = []
    for tick in range(3 * MEASURE_TICKS):
        if tick < MEASURE_TICKS:
            keys.seen.append("room")
        load.tick()
        reported.append([(hot.key, hot.calls) for hot in load.hottest_keys()])
    assert [number for number, hot in enumerate(reported) if hot] == [MEASURE_TICKS - 1]
    assert reported[MEASURE_TICKS - 1] == [("room", MEASURE_TICKS)]


def test_no_more_hot_keys_are_reported_than_the_limit_and_old_calls_decay() -> None:
    keys = HotKeys()
    load = LoadMonitor(Stats(), ManualClock(), keys, tick_s=0.1, salt=None)
    for number in range(REPORTED_KEYS + 5):
        keys.seen += [f"room-{number}"] * 8
    for _ in range(MEASURE_TICKS):
        load.tick()
    assert [hot.calls for hot in load.hottest_keys()] == [8] * REPORTED_KEYS
    for _ in range(DECAY_TICKS - MEASURE_TICKS):
        load.tick()
    keys.seen.append("new")
    for _ in range(MEASURE_TICKS):
        load.tick()
    assert [hot.calls for hot in load.hottest_keys()] == [4] * REPORTED_KEYS
