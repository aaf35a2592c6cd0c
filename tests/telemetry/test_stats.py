"""Counts are moved, never copied: what was counted is in exactly one place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.codec import point_from_proto, point_to_proto
from onelane.telemetry.collector.sequence import ReportSequence
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import MAX_SERIES, MAX_UNFOLDED, OVERFLOW, Point, Stats

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


def test_a_gauge_stays_as_it_stands() -> None:
    stats, totals = Stats(), Totals()
    depth = stats.gauge("depth")
    depth.set(5)
    totals.add(stats.take())
    depth.set(2)
    totals.add(stats.take())
    assert [point.value for point in totals.points()] == [2]


def test_a_gauge_is_moved_out_only_where_it_has_changed() -> None:
    stats = Stats()
    depth = stats.gauge("depth")
    depth.set(5)
    assert len(stats.take()) == 1
    depth.set(5)
    assert stats.take() == []
    depth.set(0)
    assert [point.value for point in stats.take()] == [0]


def test_a_take_looks_at_nothing_that_has_not_changed() -> None:
    stats = Stats()
    calls = stats.counter("calls")
    cells = [calls.at({"method": str(n)}) for n in range(1000)]
    for cell in cells:
        cell.add()
    assert len(stats.take()) == 1000
    asked: list[str] = []

    class Watched(type(cells[0])):  # type: ignore[misc]
        __slots__ = ()

        def take(self) -> float | None:
            asked.append(self.attributes[0][1])
            found: float | None = super().take()
            return found

    for cell in cells:
        cell.__class__ = Watched
    cells[7].add(2)
    assert [point.value for point in stats.take()] == [2]
    assert asked == ["7"]


def test_an_up_down_counter_that_comes_back_to_zero_adds_nothing() -> None:
    stats, totals = Stats(), Totals()
    there = stats.up_down_counter("there").at()
    for change in (1, -1, 1, 1):
        there.add(change)
    totals.add(stats.take())
    there.add(-2)
    there.add(0)
    totals.add(stats.take())
    assert totals.sum_of("there") == 0


def test_a_histogram_keeps_every_value_however_many_come_between_two_ticks() -> None:
    stats, totals = Stats(), Totals()
    took = stats.histogram("took").at()
    for _ in range(2):
        for _ in range(MAX_UNFOLDED + 10):
            took.record(0.25)
        totals.add(stats.take())
    spread = totals.buckets_of("took")
    assert (spread.count, spread.sum) == (2 * (MAX_UNFOLDED + 10), 0.25 * 2 * (MAX_UNFOLDED + 10))


def test_series_that_differ_in_the_shard_alone_are_added_up_where_that_is_asked() -> None:
    totals = Totals()
    for shard, calls in (("a", 3), ("b", 4)):
        stats = Stats()
        stats.counter("calls").add(calls, {"method": "m"})
        stats.gauge("depth").set(calls)
        stats.histogram("took").record(calls)
        totals.add(stats.take(), extra=(("onelane.app", "x"), ("onelane.shard", shard)))
    found = {point.instrument.name: point for point in totals.points(without="onelane.shard")}
    assert found["calls"].attributes == (("method", "m"), ("onelane.app", "x"))
    assert (found["calls"].value, found["depth"].value) == (7, 7)
    assert totals.buckets_of("took").count == 2
    assert len(totals.points()) == 6


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["count", "tick", "tick again", "tick lost", "die", "end"]), st.integers(1, 9)),
    max_size=40,
)


@given(steps)
def test_what_was_counted_is_exported_or_waits_or_is_known_as_a_gap(script: list[Step]) -> None:
    """A line that loses and repeats reports, and shards that die: nothing counts twice, and every loss is known."""
    stats, received, totals = Stats(), ReportSequence(), Totals()
    numbers, counted, waiting, lost, known_lost, gaps = iter(range(1, 1000)), 0, 0, 0, 0, 0

    def deliver(number: int, points: list[Point], *, final: bool = False) -> int:
        missing = received.take(number, final=final)
        if missing is None:
            return 0
        totals.add(points)
        return missing

    reports_lost = 0
    for what, amount in script:
        match what:
            case "count":
                stats.counter("calls").add(amount)
                stats.histogram("took").record(amount)
                counted += amount
                waiting += amount
            case "tick" | "tick again":
                number, points = next(numbers), stats.take()
                known_lost += deliver(number, points)
                known_lost += deliver(number, points) if what == "tick again" else 0
                waiting = 0
            case "tick lost":
                next(numbers)
                stats.take()
                reports_lost += 1
                lost, waiting = lost + waiting, 0
            case "die" | "end":
                if what == "end":
                    known_lost += deliver(next(numbers), stats.take(), final=True)
                    waiting = 0
                gaps += not received.is_final
                lost += waiting
                stats, received, numbers, waiting = Stats(), ReportSequence(), iter(range(1, 1000)), 0
                # What was lost at the very end of a life is part of its gap.
                reports_lost = known_lost
    assert totals.sum_of("calls") + waiting + lost == counted
    assert totals.buckets_of("took").sum + waiting + lost == counted
    assert known_lost <= reports_lost or gaps
    if lost:
        assert known_lost or gaps or reports_lost


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
    totals.drop_instantaneous(source)
    assert [(p.instrument.name, p.value) for p in totals.points()] == [("calls", 7)]


def test_attribute_sets_are_bounded_and_nothing_is_lost() -> None:
    stats, totals = Stats(), Totals()
    for n in range(MAX_SERIES + 50):
        stats.counter("calls").add(1, {"user": str(n)})
    points = stats.take()
    totals.add(points)
    assert len(points) == MAX_SERIES + 1
    assert totals.sum_of("calls") == MAX_SERIES + 50
    assert Point(points[0].instrument, "counter", OVERFLOW, 50) in points


def test_series_over_all_lives_of_a_shard_are_bounded_and_nothing_is_lost() -> None:
    totals, shard = Totals(), (("onelane.shard", "a-0"),)
    for life in range(3):
        stats = Stats()
        for n in range(MAX_SERIES - 1):
            stats.counter("calls").add(1, {"peer": f"{life}-{n}"})
        totals.add(stats.take(), extra=shard)
    assert len(totals.points()) == MAX_SERIES + 1
    assert totals.sum_of("calls") == 3 * (MAX_SERIES - 1)
    assert totals.sum_of("calls", OVERFLOW) == 2 * MAX_SERIES - 3


def test_what_is_no_finite_number_spoils_no_tick() -> None:
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


def test_what_is_asked_and_raises_is_told_once_and_the_rest_goes_out(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_description_that_changes_makes_no_other_series() -> None:
    totals = Totals()
    for words in ("Calls", "All calls"):
        stats = Stats()
        stats.counter("calls", description=words).add(2)
        totals.add(stats.take())
    assert [(point.instrument.description, point.value) for point in totals.points()] == [("All calls", 4)]


def test_of_gauges_of_time_or_share_the_largest_stands_for_all_shards() -> None:
    totals = Totals()
    for shard, lag in (("a-0", 0.2), ("a-1", 0.5)):
        stats = Stats()
        stats.gauge("lag", unit="s").set(lag)
        stats.gauge("depth", unit="{job}").set(2)
        totals.add(stats.take(), extra=(("onelane.shard", shard),))
    found = {point.instrument.name: point.value for point in totals.points(without="onelane.shard")}
    assert found == {"lag": 0.5, "depth": 4}


def test_a_gauge_that_is_forgotten_is_gone_until_it_is_set_again() -> None:
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


def test_whatever_a_service_puts_into_attributes_can_be_written() -> None:
    stats = Stats()
    odd: Any = {"n": 5, "none": None, "half": "\ud800"}
    stats.counter("calls").add(1, odd)
    (point,) = stats.take()
    assert dict(point.attributes) == {"n": "5", "none": "None", "half": "?"}
    assert point_from_proto(point_to_proto(point)) == point


def test_one_name_is_one_kind_of_instrument() -> None:
    stats = Stats()
    assert stats.counter("x") is stats.counter("x")
    with pytest.raises(ValueError, match="x is a counter already, not a gauge"):
        stats.gauge("x")
