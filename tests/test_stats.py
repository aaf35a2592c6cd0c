"""Counts are moved, never copied: what was counted is in exactly one place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.stats import MAX_SERIES, OVERFLOW, Buckets, Point, Stats, Totals

counted = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=30)


@given(st.lists(counted, max_size=6))
def test_what_was_counted_is_what_was_added_up(ticks: list[list[tuple[str, int]]]) -> None:
    stats, totals = Stats(), Totals()
    for tick in ticks:
        for method, amount in tick:
            stats.counter("calls").add(amount, {"method": method})
        totals.add(stats.take())
    assert totals.sum_of("calls") == sum(amount for tick in ticks for _, amount in tick)


def test_take_leaves_zero() -> None:
    stats = Stats()
    stats.counter("calls").add(3)
    stats.histogram("took").record(0.2)
    assert len(stats.take()) == 2
    assert stats.take() == []


def test_a_histogram_falls_into_the_bucket_whose_bound_it_does_not_pass() -> None:
    stats = Stats()
    took = stats.histogram("took", bounds=(1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        took.record(value)
    (point,) = stats.take()
    assert point.value == Buckets((1.0, 2.0), (2, 1, 1), 12.0)


def test_a_gauge_stays_as_it_stands() -> None:
    stats, totals = Stats(), Totals()
    depth = stats.gauge("depth")
    depth.set(5)
    totals.add(stats.take())
    depth.set(2)
    totals.add(stats.take())
    assert [point.value for point in totals.points()] == [2]


def test_a_gauge_can_be_asked_for_at_each_take() -> None:
    stats = Stats()
    depths = iter([3, 4])
    stats.gauge("depth").observe(lambda: next(depths), {"queue": "a"})
    taken = [stats.take()[0] for _ in range(2)]
    assert [(point.attributes, point.value) for point in taken] == [((("queue", "a"),), 3), ((("queue", "a"),), 4)]


def test_the_gauges_of_a_shard_that_died_are_forgotten_and_its_counts_are_kept() -> None:
    stats, totals = Stats(), Totals()
    stats.gauge("depth").set(5)
    stats.counter("calls").add(7)
    source = (("onelane.shard", "a"),)
    totals.add(stats.take(), extra=source)
    totals.drop_gauges(source)
    assert [(p.instrument.name, p.value) for p in totals.points()] == [("calls", 7)]


def test_attribute_sets_are_bounded_and_nothing_is_lost() -> None:
    stats, totals = Stats(), Totals()
    for n in range(MAX_SERIES + 50):
        stats.counter("calls").add(1, {"user": str(n)})
    points = stats.take()
    totals.add(points)
    assert len(points) == MAX_SERIES + 1
    assert totals.sum_of("calls") == MAX_SERIES + 50
    assert Point(points[0].instrument, "count", OVERFLOW, 50) in points


def test_one_name_is_one_kind_of_instrument() -> None:
    stats = Stats()
    assert stats.counter("x") is stats.counter("x")
    with pytest.raises(ValueError, match="x is a count already, not a gauge"):
        stats.gauge("x")
