"""Recent traces: bounded, and those with errors stay longest."""

import json

from onelane.telemetry.collector.recent_traces import (
    MAX_FAILED_TRACES,
    MAX_RECENT_TRACES,
    MAX_TRACE_SPANS,
    NEW_PER_S,
    RecentTraces,
)
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans


def span(trace: str, number: int = 1, parent: int = 0, *, error: str = "", start_ns: int = 1_000) -> SpanRecord:
    record = SpanRecord(trace, f"{number:016x}", f"{parent:016x}" if parent else "", f"a/{number}", "SERVER", start_ns)
    record.end_ns, record.error, record.status = start_ns + 500, error, "OK"
    return record


def test_a_trace_is_a_tree_of_the_spans_of_all_apps_in_any_order_of_arrival() -> None:
    recent = RecentTraces()
    recent.add("y", "y-0", PackedSpans(pack_spans([span("t", 3, 2, start_ns=1_200)])), 0.0)
    recent.add("x", "x-0", [span("t", 2, 1, start_ns=1_100), span("t", 1), span("t", 4, 99, start_ns=1_050)], 0.0)
    rows = recent.trace("t")
    assert rows is not None
    assert [(row["name"], row["depth"], row["shard"]) for row in rows] == [
        ("a/1", 0, "x-0"),
        ("a/2", 1, "x-0"),
        ("a/3", 2, "y-0"),
        ("a/4", 0, "x-0"),
    ]


def test_numbers_that_json_does_not_know_are_shown_as_text() -> None:
    recent, odd = RecentTraces(), span("t")
    odd.set_attribute("share", [float("nan"), 0.5])
    odd.add_event("at", {"most": float("inf")}, 5)
    recent.add("x", "x-0", [odd], 0.0)
    (row,) = json.loads(json.dumps(recent.trace("t"), allow_nan=False))
    assert (row["attributes"]["share"], row["events"][0]["attributes"]) == (["nan", 0.5], {"most": "inf"})


def test_new_traces_per_second_are_limited_but_not_those_with_errors_and_the_supervisors_own() -> None:
    recent = RecentTraces()
    recent.add("x", "x-0", PackedSpans(pack_spans([span(f"t{n}") for n in range(NEW_PER_S + 10)])), 0.0)
    assert len(recent.summaries()) == NEW_PER_S
    recent.add("x", "x-0", PackedSpans(pack_spans([span("odd", error="INTERNAL")])), 0.5)
    assert len(recent.summaries()) == NEW_PER_S + 1
    recent.add("x", "", [span("move")], 0.5)
    assert len(recent.summaries()) == NEW_PER_S + 2
    recent.add("x", "x-0", [span("next")], 1.0)
    assert len(recent.summaries()) == NEW_PER_S + 3


def test_the_oldest_go_first_and_errors_stay() -> None:
    recent = RecentTraces()
    recent.add("x", "x-0", [span("odd", error="INTERNAL")], 0.0)
    for second in range(MAX_RECENT_TRACES + 5):
        recent.add("x", "x-0", [span(f"t{second}")], float(second))
    trace_ids = {row["trace_id"] for row in recent.summaries()}
    assert len(trace_ids) == MAX_RECENT_TRACES
    assert "odd" in trace_ids
    assert "t0" not in trace_ids
    for second in range(MAX_FAILED_TRACES + MAX_RECENT_TRACES):
        recent.add("x", "x-0", [span(f"odd{second}", error="INTERNAL")], float(second))
    assert len(recent.summaries()) == MAX_RECENT_TRACES


def test_a_large_trace_keeps_its_first_spans_and_counts_all() -> None:
    recent = RecentTraces()
    recent.add("x", "x-0", [span("t", n) for n in range(1, MAX_TRACE_SPANS + 8)], 0.0)
    (row,) = recent.summaries()
    assert row["spans"] == MAX_TRACE_SPANS + 7
    assert len(recent.trace("t") or ()) == MAX_TRACE_SPANS


def test_a_trace_is_found_by_an_unambiguous_prefix_of_its_id() -> None:
    recent = RecentTraces()
    recent.add("x", "x-0", [span("abc1"), span("abd2")], 0.0)
    assert recent.trace("abc") is not None
    assert recent.trace("ab") is None
    assert recent.trace("") is None


def test_spans_with_cyclic_parents_do_not_hang_the_page() -> None:
    recent = RecentTraces()
    recent.add("x", "x-0", [span("t", 1, 2), span("t", 2, 1), span("t", 3, 3)], 0.0)
    assert recent.trace("t") is not None
