"""The supervisor's collector: each report once into totals and sinks, gaps and losses counted, traces sifted."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from onelane.config import Config
from onelane.core.validation import checked
from onelane.telemetry.codec import point_to_proto
from onelane.telemetry.collector.collector import GAPS, LOST, Collector, hottest_keys, tail_rule_of
from onelane.telemetry.collector.sequence import ReportSequence
from onelane.telemetry.collector.tail_sampling import TailRule
from onelane.telemetry.hot_keys import HotKey
from onelane.telemetry.logs import LogRecord, pack_logs
from onelane.telemetry.spans import SpanRecord, pack_spans
from onelane.telemetry.stats import Instrument, Point, attributes_of
from onelane.v1 import control_pb2

CALLS, DEPTH = Instrument("onelane.calls", "{call}"), Instrument("depth", "{job}")
RECORD = LogRecord(5_000, 13, "WARNING", "services.lobby", "full", "", "", {})


class ListSink:
    """Keeps what it is passed, and reports losses that the test sets."""

    def __init__(self) -> None:
        self.span_names: list[tuple[str, str, str]] = []
        self.records: list[tuple[str, str, str]] = []
        self.newest: Sequence[Point] = ()
        self.dropped: dict[tuple[str, str], int] = {}

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        self.span_names += [(app, shard, span.name) for span in spans]

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        self.records += [(app, shard, record.text) for record in records]

    def points(self, points: Sequence[Point]) -> None:
        self.newest = points

    def losses(self) -> Mapping[tuple[str, str], int]:
        return self.dropped

    def close(self, timeout_s: float) -> None: ...


def config(**settings: Any) -> Config:
    app = {"services": ["tests.echo.service:Echo"], "listen": "127.0.0.1:0"}
    tail = settings.pop("tail", None)
    return checked(Config, {"apps": {"lobby": app | ({} if tail is None else {"tail": tail})}} | settings)


def source(shard: str) -> tuple[tuple[str, str], ...]:
    return attributes_of({"onelane.app": "lobby", "onelane.shard": shard})


def report(seq: int, *points: Point, spans: Sequence[SpanRecord] = (), **fields: Any) -> control_pb2.Report:
    return control_pb2.Report(
        seq=seq, points=map(point_to_proto, points), spans=[pack_spans(spans)] if spans else [], **fields
    )


def calls(amount: float) -> Point:
    return Point(CALLS, "counter", (), amount)


def span(name: str, trace: str, *, sampled: bool = True, error: str = "") -> SpanRecord:
    record = SpanRecord(trace, "1" * 16, "", name, "SERVER", 1_000, sampled)
    record.end_ns, record.error = 2_000, error
    return record


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


def test_a_report_counts_once_and_lost_ones_are_counted(sink: ListSink) -> None:
    collector, sequence = Collector(config(), [sink]), ReportSequence()
    for seq, is_new in ((1, True), (1, False), (4, True), (3, False)):
        message = report(seq, calls(1), spans=[span(f"s{seq}", "t")], logs=pack_logs([RECORD]))
        assert collector.receive(source("lobby-0"), sequence, message) is is_new
    assert collector.totals.sum_of(CALLS.name) == 2
    assert collector.totals.sum_of(LOST.name) == 2
    assert sink.span_names == [("lobby", "lobby-0", "s1"), ("lobby", "lobby-0", "s4")]
    assert sink.records == [("lobby", "lobby-0", "full")] * 2
    assert {row["trace_id"]: row["spans"] for row in collector.recent_traces.summaries()} == {"t": 2}


@pytest.mark.parametrize(("seqs", "final", "gaps"), [([], False, 0), ([1], False, 1), ([1, 2], True, 0)])
def test_a_process_that_reported_and_ended_without_its_final_report_is_a_gap(
    seqs: list[int], final: bool, gaps: int
) -> None:
    collector, sequence = Collector(config(), []), ReportSequence()
    for seq in seqs:
        points = [calls(3), Point(DEPTH, "gauge", (), 5.0)]
        hot_keys = [control_pb2.HotKey(key="r", calls=2)]
        message = report(seq, *points, hot_keys=hot_keys, final=final and seq == seqs[-1])
        collector.receive(source("lobby-0"), sequence, message)
    collector.end_incarnation(source("lobby-0"), sequence)
    assert collector.totals.sum_of(GAPS.name) == gaps
    assert collector.totals.sum_of(CALLS.name) == 3 * len(seqs)
    assert collector.totals.sum_of(DEPTH.name) == 0
    assert not collector.hot_keys("lobby")


def test_the_end_of_a_life_leaves_the_hot_keys_and_gauges_of_the_life_that_replaces_it() -> None:
    collector, old, new = Collector(config(), []), ReportSequence(1), ReportSequence(2)
    for sequence, key in ((new, "new"), (old, "old")):
        message = report(1, Point(DEPTH, "gauge", (), 5.0), hot_keys=[control_pb2.HotKey(key=key, calls=2)], final=True)
        collector.receive(source("lobby-0"), sequence, message)
    assert [hot.key for hot in collector.hot_keys("lobby")["lobby-0"]] == ["new"]
    collector.end_incarnation(source("lobby-0"), old)
    assert [hot.key for hot in collector.hot_keys("lobby")["lobby-0"]] == ["new"]
    assert collector.totals.sum_of(DEPTH.name) == 5


@pytest.mark.parametrize(("per_shard", "sums", "series"), [(True, False, 2), (True, True, 1), (False, False, 1)])
def test_series_are_exported_by_shard_or_by_app(per_shard: bool, sums: bool, series: int) -> None:
    collector = Collector(config(per_shard_series=per_shard), [])
    for shard in ("lobby-0", "lobby-1"):
        collector.receive(source(shard), ReportSequence(), report(1, calls(2)))
    values = [point.value for point in collector.points(sums=sums)]
    assert values == [4 / series] * series


def test_losses_of_sinks_are_counted_by_their_increase() -> None:
    first, second = ListSink(), ListSink()
    collector = Collector(config(), [first, second])
    for in_first, in_second in ((2, 0), (2, 3), (7, 3)):
        first.dropped[("spans", "refused")] = in_first
        second.dropped[("spans", "refused")] = in_second
        second.dropped[("logs", "closed")] = 1
        collector.export()
    dropped = {point.attributes: point.value for point in first.newest}
    assert dropped == {
        (("onelane.reason", "refused"), ("onelane.signal", "spans")): 10,
        (("onelane.reason", "closed"), ("onelane.signal", "logs")): 1,
    }
    assert second.newest == first.newest


def test_with_tail_sampling_unsampled_spans_are_exported_by_the_shard_that_recorded_them(sink: ListSink) -> None:
    collector = Collector(config(tail={}), [sink])
    held = [span("ok", "a", sampled=False), span("held", "b", sampled=False)]
    collector.receive(source("lobby-0"), ReportSequence(), report(1, spans=held))
    assert sink.span_names == []
    failed = [span("failed", "b", sampled=False, error="INTERNAL"), span("sampled", "c")]
    collector.receive(source("lobby-1"), ReportSequence(), report(1, spans=failed))
    assert sink.span_names == [
        ("lobby", "lobby-0", "held"),
        ("lobby", "lobby-1", "failed"),
        ("lobby", "lobby-1", "sampled"),
    ]


def test_the_rule_of_an_app_is_that_of_its_tail_setting() -> None:
    assert tail_rule_of(config().apps["lobby"]) is None
    app = config(tail={"errors": False, "slower_s": 0.5}).apps["lobby"]
    assert tail_rule_of(app) == TailRule(errors=False, slower_s=0.5)


def test_hot_keys_of_all_shards_are_ordered_by_calls() -> None:
    by_shard = {"lobby-0": [HotKey("a", 5, 1), HotKey("b", 2, 0)], "lobby-1": [HotKey("c", 9, 0)]}
    assert hottest_keys(by_shard, 2) == [
        {"key": "c", "calls": 9, "error": 0, "shard": "lobby-1"},
        {"key": "a", "calls": 5, "error": 1, "shard": "lobby-0"},
    ]


@pytest.fixture
def handlers() -> Iterator[None]:
    """The root logger's handlers are afterwards as before."""
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("logs_too", [True, False])
def test_log_records_of_the_supervisor_are_exported_once_if_configured(sink: ListSink, logs_too: bool) -> None:
    collector = Collector(config(), [sink], logs_too=logs_too)
    logging.getLogger("tests.collector").warning("restarted")
    collector.export()
    collector.export()
    assert sink.records == ([("onelane", "", "restarted")] if logs_too else [])
