"""A counted value is in exactly one place: a series of the shard, or one point."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import strategies as st
from onelane.telemetry.codec import point_from_proto, point_to_proto
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import MAX_SERIES, MAX_UNFOLDED, OVERFLOW, Point, Stats

counted = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=30)


def test_take_leaves_zero() -> None:
    stats = Stats()
    stats.counter("calls").add(3)
    stats.histogram("took").record(0.2)
    assert len(stats.take()) == 2
    assert stats.take() == []


def test_a_gauge_keeps_its_last_value() -> None:
    stats, totals = Stats(), Totals()
    depth = stats.gauge("depth")
    depth.set(5)
    totals.add(stats.take())
    depth.set(2)
    totals.add(stats.take())
    assert [point.value for point in totals.points()] == [2]


def test_a_gauge_is_reported_only_after_a_change() -> None:
    stats = Stats()
    depth = stats.gauge("depth")
    depth.set(5)
    assert len(stats.take()) == 1
    depth.set(5)
    assert stats.take() == []
    depth.set(0)
    assert [point.value for point in stats.take()] == [0]


def test_a_take_visits_only_changed_series() -> None:
    stats = Stats()
    calls = stats.counter("calls")
    all_series = [calls.at({"method": str(n)}) for n in range(1000)]
    for series in all_series:
        series.add()
    assert len(stats.take()) == 1000
    all_series[7].add(2)
    # What a take visits.
    assert calls._changed == [all_series[7]]
    assert [point.value for point in stats.take()] == [2]
    assert calls._changed == []


def test_an_up_down_counter_that_comes_back_to_zero_adds_nothing() -> None:
    stats, totals = Stats(), Totals()
    clients = stats.up_down_counter("there").at()
    for change in (1, -1, 1, 1):
        clients.add(change)
    totals.add(stats.take())
    clients.add(-2)
    clients.add(0)
    totals.add(stats.take())
    assert totals.sum_of("there") == 0


def test_a_histogram_keeps_every_value_of_a_busy_tick() -> None:
    stats, totals = Stats(), Totals()
    took = stats.histogram("took").at()
    for _ in range(2):
        for _ in range(MAX_UNFOLDED + 10):
            took.record(0.25)
        totals.add(stats.take())
    spread = totals.buckets_of("took")
    assert (spread.count, spread.sum) == (2 * (MAX_UNFOLDED + 10), 0.25 * 2 * (MAX_UNFOLDED + 10))


def test_a_gauge_can_be_read_by_a_callback_at_each_take() -> None:
    stats = Stats()
    depths = iter([3, 4])
    stats.gauge("depth").observe(lambda: next(depths), {"queue": "a"})
    taken = [stats.take()[0] for _ in range(2)]
    assert [(point.attributes, point.value) for point in taken] == [((("queue", "a"),), 3), ((("queue", "a"),), 4)]


def test_attribute_sets_are_bounded_and_no_count_is_lost() -> None:
    stats, totals = Stats(), Totals()
    for n in range(MAX_SERIES + 50):
        stats.counter("calls").add(1, {"user": str(n)})
    points = stats.take()
    totals.add(points)
    assert len(points) == MAX_SERIES + 1
    assert totals.sum_of("calls") == MAX_SERIES + 50
    assert Point(points[0].instrument, "counter", OVERFLOW, 50) in points


def test_values_that_are_not_finite_numbers_spoil_no_tick() -> None:
    stats = Stats()
    stats.counter("calls").add(3)
    stats.counter("spoilt").at().add(float("nan"))
    took = stats.histogram("took")
    for value in (0.5, None, "x", float("nan"), float("inf"), -1.0, 0, 10**400):
        took.record(value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="could not convert string to float: 'x'"):
        stats.gauge("depth").set("x")  # type: ignore[arg-type]
    taken = {point.instrument.name: point.value for point in stats.take()}
    assert taken == {"calls": 3, "took": Buckets.of([0.5, 0.0])}


def test_numbers_of_other_classes_than_int_and_float_are_counted() -> None:
    """Such as numpy's: what is compiled is as open as what is interpreted."""
    stats = Stats()
    stats.counter("calls").add(Fraction(3))
    stats.counter("calls").at().add(Fraction(1, 2))
    stats.up_down_counter("open").add(Decimal(2))
    stats.gauge("depth").set(Decimal("0.5"))
    stats.gauge("heat").observe(lambda: Fraction(1, 4))
    stats.histogram("took").record(Decimal("0.5"))
    taken = {point.instrument.name: point.value for point in stats.take()}
    assert taken == {"calls": 3.5, "open": 2, "depth": 0.5, "heat": 0.25, "took": Buckets.of([0.5])}


def test_a_failing_callback_is_logged_once_and_the_other_points_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    calls = stats.counter("calls")
    stats.gauge("bad").observe(lambda: 1 // 0)
    stats.gauge("good").observe(lambda: 7)
    stats.before_take(lambda: [][0])
    stats.before_take(lambda: calls.add(2))
    for _ in range(3):
        assert {point.instrument.name for point in stats.take()} >= {"calls"}
    assert len(caplog.records) == 2
    assert "bad" in caplog.text


def test_a_forgotten_gauge_has_no_series_until_it_is_set_again() -> None:
    stats, totals = Stats(), Totals()
    depth = stats.gauge("depth")
    for value in (2.0, None, None, 2.0):
        if value is None:
            depth.forget()
        else:
            depth.set(value)
        totals.add(stats.take())
        assert [point.value for point in totals.points()] == ([] if value is None else [value])


def test_a_counter_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="calls only grows, so it cannot add -1; up_down_counter can"):
        Stats().counter("calls").add(-1)


def test_numbers_and_booleans_stay_in_attributes_and_other_types_become_text_that_utf8_can_encode() -> None:
    stats = Stats()
    odd: Any = {"n": 5, "x": 0.5, "b": True, "huge": 2**63, "none": None, "half": "\ud800", "nan": float("nan")}
    stats.counter("calls").add(1, odd)
    (point,) = stats.take()
    texts = {"huge": str(2**63), "none": "None", "half": "?", "nan": "nan"}
    assert dict(point.attributes) == {"n": 5, "x": 0.5, "b": True} | texts
    assert [type(value) for name, value in point.attributes if name in "nxb"] == [bool, int, float]
    assert point_from_proto(point_to_proto(point)) == point


def test_one_name_is_one_kind_of_instrument() -> None:
    stats = Stats()
    assert stats.counter("x") is stats.counter("x")
    with pytest.raises(ValueError, match="x is a counter already, not a gauge"):
        stats.gauge("x")
