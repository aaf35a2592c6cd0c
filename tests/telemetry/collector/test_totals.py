"""Totals add up the points of all shards without loss, and their series are bounded."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.stats import MAX_SERIES, OVERFLOW, Stats

counted = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=30)


@given(st.lists(counted, max_size=6))
def test_totals_are_the_sum_of_all_counts(ticks: list[list[tuple[str, int]]]) -> None:
    stats, totals = Stats(), Totals()
    for tick in ticks:
        for method, amount in tick:
            stats.counter("calls").add(amount, {"method": method})
        totals.add(stats.take())
    assert totals.sum_of("calls") == sum(amount for tick in ticks for _, amount in tick)


def test_series_that_differ_only_in_the_shard_can_be_added_up() -> None:
    totals = Totals()
    for shard, calls in (("a", 3), ("b", 4)):
        stats = Stats()
        stats.counter("calls").add(calls, {"method": "m"})
        stats.gauge("depth").set(calls)
        stats.histogram("took").record(calls)
        totals.add(stats.take(), extra=(("onelane.app", "x"), ("onelane.shard", shard)))
    points = {point.instrument.name: point for point in totals.points(without="onelane.shard")}
    assert points["calls"].attributes == (("method", "m"), ("onelane.app", "x"))
    assert (points["calls"].value, points["depth"].value) == (7, 7)
    assert totals.buckets_of("took").count == 2
    assert len(totals.points()) == 6


def test_the_gauges_of_a_shard_that_died_are_forgotten_and_its_counts_are_kept() -> None:
    stats, totals = Stats(), Totals()
    stats.gauge("depth").set(5)
    stats.counter("calls").add(7)
    source = (("onelane.shard", "a"),)
    totals.add(stats.take(), extra=source)
    totals.drop_instantaneous(source)
    assert [(p.instrument.name, p.value) for p in totals.points()] == [("calls", 7)]


def test_of_two_lives_of_a_shard_counts_add_up_and_gauges_are_those_of_the_newer_one() -> None:
    totals, shard = Totals(), (("onelane.shard", "a"),)
    lives = {1: Stats(), 2: Stats()}

    def report(life: int, level: float) -> dict[str, Any]:
        lives[life].counter("calls").add(1)
        lives[life].up_down_counter("in_flight").add(1)
        lives[life].gauge("depth").set(level)
        totals.add(lives[life].take(), extra=shard, life=life)
        return {point.instrument.name: point.value for point in totals.points()}

    assert report(1, 5.0) == {"calls": 1, "in_flight": 1, "depth": 5}
    assert report(2, 7.0) == {"calls": 2, "in_flight": 2, "depth": 7}
    assert report(1, 6.0) == {"calls": 3, "in_flight": 3, "depth": 7}
    totals.drop_instantaneous(shard, 1)
    assert report(2, 8.0) == {"calls": 4, "in_flight": 2, "depth": 8}
    totals.drop_instantaneous(shard, 2)
    assert {point.instrument.name: point.value for point in totals.points()} == {"calls": 4}


def test_the_end_of_lives_leaves_room_for_the_gauges_of_the_next_ones() -> None:
    totals, shard = Totals(), (("onelane.shard", "a"),)
    for life in range(3):
        stats = Stats()
        for n in range(MAX_SERIES // 2):
            stats.gauge("depth").set(1, {"queue": f"{life}-{n}"})
        totals.add(stats.take(), extra=shard, life=life)
        totals.drop_instantaneous(shard, life - 1)
    assert (totals.sum_of("depth", OVERFLOW), len(totals.points())) == (0, MAX_SERIES // 2)
    totals.drop_instantaneous(shard, 2)
    assert totals.points() == []


def test_a_shard_that_the_app_has_no_more_has_no_series_and_stays_in_the_sums() -> None:
    totals = Totals()
    for shard, calls in (("a-0", 3), ("a-1", 4)):
        stats = Stats()
        stats.counter("calls").add(calls)
        totals.add(stats.take(), extra=(("onelane.shard", shard),))
    retired = (("onelane.shard", "a-1"),)
    totals.retire(retired)
    assert [point.value for point in totals.points()] == [3]
    assert [point.value for point in totals.points(without="onelane.shard")] == [7]
    totals.bring_back(retired)
    assert [point.value for point in totals.points()] == [3, 4]


def test_series_over_all_restarts_of_a_shard_are_bounded_and_no_count_is_lost() -> None:
    totals, shard = Totals(), (("onelane.shard", "a-0"),)
    for life in range(3):
        stats = Stats()
        for n in range(MAX_SERIES - 1):
            stats.counter("calls").add(1, {"peer": f"{life}-{n}"})
        totals.add(stats.take(), extra=shard)
    assert len(totals.points()) == MAX_SERIES + 1
    assert totals.sum_of("calls") == 3 * (MAX_SERIES - 1)
    assert totals.sum_of("calls", OVERFLOW) == 2 * MAX_SERIES - 3


def test_a_description_that_changes_makes_no_other_series() -> None:
    totals = Totals()
    for words in ("Calls", "All calls"):
        stats = Stats()
        stats.counter("calls", description=words).add(2)
        totals.add(stats.take())
    assert [(point.instrument.description, point.value) for point in totals.points()] == [("All calls", 4)]


def test_gauges_of_lags_and_ratios_are_aggregated_by_maximum() -> None:
    totals = Totals()
    for shard, lag in (("a-0", 0.2), ("a-1", 0.5)):
        stats = Stats()
        stats.gauge("lag", unit="s").set(lag)
        stats.gauge("depth", unit="{job}").set(2)
        totals.add(stats.take(), extra=(("onelane.shard", shard),))
    values = {point.instrument.name: point.value for point in totals.points(without="onelane.shard")}
    assert values == {"lag": 0.5, "depth": 4}
