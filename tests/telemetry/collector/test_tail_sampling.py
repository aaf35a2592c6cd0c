"""Tail sampling: which unsampled traces are exported."""

from onelane.telemetry.collector.tail_sampling import HOLD_S, SETTLE_S, ShardSpan, TailRule, TailSampler
from onelane.telemetry.spans import SpanRecord


def span(trace: str, name: str = "a/B", *, seconds: float = 0.01, error: str = "", kind: str = "SERVER") -> SpanRecord:
    record = SpanRecord(trace, "1" * 16, "2" * 16, name, kind, 1_000, sampled=False, remote_parent=kind == "SERVER")
    record.end_ns = 1_000 + int(seconds * 1e9)
    record.error = error
    return record


def shard_spans(*spans: SpanRecord, app: str = "x") -> list[ShardSpan]:
    return [ShardSpan(app, f"{app}-0", record) for record in spans]


def names(exported: list[ShardSpan]) -> list[str]:
    return [f"{shard_span.span.trace_id} {shard_span.span.kind}" for shard_span in exported]


def test_a_sampled_span_is_never_held() -> None:
    tail = TailSampler({"x": TailRule()})
    sampled = span("t")
    sampled.sampled = True
    assert tail.filter(shard_spans(sampled), 0.0) == shard_spans(sampled)
    assert tail.held == 0


def test_an_error_exports_the_held_and_the_later_spans_of_its_trace() -> None:
    tail = TailSampler({"x": TailRule()})
    assert tail.filter(shard_spans(span("t", kind="CLIENT"), span("other")), 0.0) == []
    assert names(tail.filter(shard_spans(span("t", error="INTERNAL")), 0.1)) == ["t CLIENT", "t SERVER"]
    assert names(tail.filter(shard_spans(span("t", kind="INTERNAL")), 0.2)) == ["t INTERNAL"]
    assert tail.held == 1


def test_children_in_another_app_of_the_machine_are_kept_with_it() -> None:
    tail = TailSampler({"x": TailRule(), "y": TailRule()})
    tail.filter(shard_spans(span("t"), app="y"), 0.0)
    exported = tail.filter(shard_spans(span("t", error="INTERNAL")), 0.1)
    assert [shard_span.app for shard_span in exported] == ["y", "x"]


def test_a_span_as_slow_as_the_rule_names_is_kept() -> None:
    tail = TailSampler({"x": TailRule(errors=False, slower_s=0.5)})
    assert names(tail.filter(shard_spans(span("fast", seconds=0.49), span("slow", seconds=0.5)), 0.0)) == [
        "slow SERVER"
    ]
    assert tail.filter(shard_spans(span("fast", error="INTERNAL")), 0.0) == []


def test_slow_calls_are_kept_by_the_threshold_of_their_method() -> None:
    tail = TailSampler({"x": TailRule(errors=False)})
    tail.slow["x"] = {"a/B": 0.1}
    exported = tail.filter(
        shard_spans(span("t", seconds=0.11), span("u", seconds=0.1), span("v", "a/C", seconds=9)), 0.0
    )
    assert names(exported) == ["t SERVER"]


def test_a_trace_without_errors_is_dropped_after_a_while() -> None:
    tail = TailSampler({"x": TailRule()})
    tail.filter(shard_spans(span("done"), span("open", kind="CLIENT")), 0.0)
    tail.expire(SETTLE_S)
    assert tail.held == 1
    tail.expire(HOLD_S)
    assert tail.held == 0
    assert names(tail.filter(shard_spans(span("open", error="INTERNAL")), HOLD_S)) == ["open SERVER"]


def test_children_of_an_open_call_are_held_until_it_ends() -> None:
    tail = TailSampler({"x": TailRule()})
    early = span("t", "early", kind="CLIENT")
    early.span_id, early.parent_id = "a" * 16, "1" * 16
    tail.filter(shard_spans(early), 0.0)
    tail.expire(SETTLE_S + 20)
    assert names(tail.filter(shard_spans(span("t", error="INTERNAL")), SETTLE_S + 20)) == ["t CLIENT", "t SERVER"]


def test_a_trace_without_open_parents_is_dropped_soon() -> None:
    tail = TailSampler({"x": TailRule()})
    early = span("t", "early", kind="CLIENT")
    early.span_id, early.parent_id = "a" * 16, "1" * 16
    tail.filter(shard_spans(early), 0.0)
    tail.filter(shard_spans(span("t")), 10.0)
    tail.expire(10.0 + SETTLE_S)
    assert tail.held == 0


def test_held_spans_are_bounded_and_the_oldest_trace_is_dropped_first() -> None:
    tail = TailSampler({"x": TailRule()}, max_held=3)
    for trace in ("a", "b", "c", "d"):
        tail.filter(shard_spans(span(trace)), 0.0)
    assert tail.held == 3
    assert names(tail.filter(shard_spans(span("a", error="E")), 0.0)) == ["a SERVER"]
    assert names(tail.filter(shard_spans(span("d", error="E")), 0.0)) == ["d SERVER", "d SERVER"]
