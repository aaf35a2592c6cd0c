"""Tail keeping: what is exported of traces that were not sampled."""

from onelane.telemetry.collector.tail_sampling import HOLD_S, SETTLE_S, ShardSpan, TailRule, TailSampler
from onelane.telemetry.spans import SpanRecord


def span(trace: str, name: str = "a/B", *, seconds: float = 0.01, error: str = "", kind: str = "SERVER") -> SpanRecord:
    made = SpanRecord(trace, "1" * 16, "2" * 16, name, kind, 1_000, sampled=False, remote_parent=kind == "SERVER")
    made.end_ns = 1_000 + int(seconds * 1e9)
    made.error = error
    return made


def owned(*spans: SpanRecord, app: str = "x") -> list[ShardSpan]:
    return [ShardSpan(app, f"{app}-0", one) for one in spans]


def kept(found: list[ShardSpan]) -> list[str]:
    return [f"{one.span.trace_id} {one.span.kind}" for one in found]


def test_a_sampled_span_is_never_held() -> None:
    tail = TailSampler({"x": TailRule()})
    one = span("t")
    one.sampled = True
    assert tail.filter(owned(one), 0.0) == owned(one)
    assert tail.held == 0


def test_an_error_brings_what_was_held_of_its_trace_and_what_comes_later() -> None:
    tail = TailSampler({"x": TailRule()})
    assert tail.filter(owned(span("t", kind="CLIENT"), span("other")), 0.0) == []
    assert kept(tail.filter(owned(span("t", error="INTERNAL")), 0.1)) == ["t CLIENT", "t SERVER"]
    assert kept(tail.filter(owned(span("t", kind="INTERNAL")), 0.2)) == ["t INTERNAL"]
    assert tail.held == 1


def test_children_in_another_app_of_the_machine_are_kept_with_it() -> None:
    tail = TailSampler({"x": TailRule(), "y": TailRule()})
    tail.filter(owned(span("t"), app="y"), 0.0)
    found = tail.filter(owned(span("t", error="INTERNAL")), 0.1)
    assert [one.app for one in found] == ["y", "x"]


def test_what_took_as_long_as_the_rule_says_is_kept() -> None:
    tail = TailSampler({"x": TailRule(errors=False, slower_s=0.5)})
    assert kept(tail.filter(owned(span("fast", seconds=0.49), span("slow", seconds=0.5)), 0.0)) == ["slow SERVER"]
    assert tail.filter(owned(span("fast", error="INTERNAL")), 0.0) == []


def test_the_slowest_of_a_method_are_kept_by_what_is_slow_for_it() -> None:
    tail = TailSampler({"x": TailRule(errors=False)})
    tail.slow["x"] = {"a/B": 0.1}
    found = tail.filter(owned(span("t", seconds=0.11), span("u", seconds=0.1), span("v", "a/C", seconds=9)), 0.0)
    assert kept(found) == ["t SERVER"]


def test_a_trace_that_came_back_well_is_let_go_after_a_while() -> None:
    tail = TailSampler({"x": TailRule()})
    tail.filter(owned(span("done"), span("open", kind="CLIENT")), 0.0)
    tail.expire(SETTLE_S)
    assert tail.held == 1
    tail.expire(HOLD_S)
    assert tail.held == 0
    assert kept(tail.filter(owned(span("open", error="INTERNAL")), HOLD_S)) == ["open SERVER"]


def test_what_was_called_inside_of_an_open_call_is_held_until_that_has_ended() -> None:
    tail = TailSampler({"x": TailRule()})
    early = span("t", "early", kind="CLIENT")
    early.span_id, early.parent_id = "a" * 16, "1" * 16
    tail.filter(owned(early), 0.0)
    tail.expire(SETTLE_S + 20)
    assert kept(tail.filter(owned(span("t", error="INTERNAL")), SETTLE_S + 20)) == ["t CLIENT", "t SERVER"]


def test_a_trace_of_which_nothing_is_open_any_more_is_let_go_soon() -> None:
    tail = TailSampler({"x": TailRule()})
    early = span("t", "early", kind="CLIENT")
    early.span_id, early.parent_id = "a" * 16, "1" * 16
    tail.filter(owned(early), 0.0)
    tail.filter(owned(span("t")), 10.0)
    tail.expire(10.0 + SETTLE_S)
    assert tail.held == 0


def test_what_is_held_is_bounded_and_the_oldest_trace_goes_first() -> None:
    tail = TailSampler({"x": TailRule()}, max_held=3)
    for trace in ("a", "b", "c", "d"):
        tail.filter(owned(span(trace)), 0.0)
    assert tail.held == 3
    assert kept(tail.filter(owned(span("a", error="E")), 0.0)) == ["a SERVER"]
    assert kept(tail.filter(owned(span("d", error="E")), 0.0)) == ["d SERVER", "d SERVER"]
