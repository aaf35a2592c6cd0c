"""A report counts once, and lost reports and missing final reports are known."""

from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.collector.sequence import ReportSequence
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.stats import Point, Stats

Step = tuple[str, int]


steps = st.lists(
    st.tuples(st.sampled_from(["count", "tick", "tick again", "tick lost", "die", "end"]), st.integers(1, 9)),
    max_size=40,
)


@given(steps)
def test_every_count_is_exported_or_waits_or_belongs_to_a_known_gap(script: list[Step]) -> None:
    """A connection that loses and repeats reports, and shards that die: no count is added twice, each loss is known."""
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
                # Reports lost right before a process ends are part of its gap.
                reports_lost = known_lost
    assert totals.sum_of("calls") + waiting + lost == counted
    assert totals.buckets_of("took").sum + waiting + lost == counted
    assert known_lost <= reports_lost or gaps
    if lost:
        assert known_lost or gaps or reports_lost
