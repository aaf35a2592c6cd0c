"""The supervisor's end of telemetry: takes the reports of all shards, adds up their metrics, and exports to the sinks.

Promises: a report counts once; a shard that dies with unreported counts is counted as a gap; each span and each log
record goes to every sink once.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import Any

from onelane.config import App, Config
from onelane.telemetry import logs
from onelane.telemetry.codec import point_from_proto
from onelane.telemetry.collector.history import SERVER_DURATION, History
from onelane.telemetry.collector.recent_traces import RecentTraces
from onelane.telemetry.collector.sequence import ReportSequence
from onelane.telemetry.collector.tail_sampling import ShardSpan, TailRule, TailSampler
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.hot_keys import HotKey
from onelane.telemetry.open_files import DESCRIPTORS, descriptors_left
from onelane.telemetry.sinks import Sink
from onelane.telemetry.sinks.guarded import GuardedSink
from onelane.telemetry.spans import PackedSpans, SpanRecord
from onelane.telemetry.stats import DROPPED, Attributes, Instrument, Point
from onelane.v1 import control_pb2

RESTARTS = Instrument("onelane.restarts", "{restart}", "Restarts of shards that died")
LOST = Instrument("onelane.reports.lost", "{report}", "Reports of shards that did not arrive")
LATE_REPORTS = Instrument("onelane.reports.late", "{report}", "Reports of shards not waited for")
GAPS = Instrument("onelane.reports.gaps", "{gap}", "Shards that died with unreported counts")
ADMIN_REFUSALS = Instrument(
    "onelane.admin.refusals", "{request}", "Requests and connections that the admin address refused"
)
HELD = Instrument("onelane.telemetry.held", "{span}", "Unsampled spans held until tail sampling decides")


class Collector:
    """See the module. Owned by the supervisor."""

    def __init__(self, config: Config, sinks: Sequence[Sink], *, logs_too: bool = False) -> None:
        """logs_too: export the supervisor's own log records as well."""
        self.totals = Totals()
        self.history = History()
        self.recent_traces = RecentTraces()
        self._hot_keys: dict[str, dict[str, dict[int, list[HotKey]]]] = {}
        """App → shard → life → its most requested keys."""
        self.sinks = [GuardedSink(sink) for sink in sinks]
        self._per_shard = config.per_shard_series
        self._tail_sampler = TailSampler(
            {name: rule for name, app in config.apps.items() if (rule := tail_rule_of(app)) is not None}
        )
        self._slow_shares = {
            name: app.tail.slowest for name, app in config.apps.items() if app.tail is not None and app.tail.slowest
        }
        self._losses: Counter[tuple[str, str]] = Counter()
        self._own_logs = logs.LogBuffer("") if logs_too else None
        if self._own_logs is not None:
            logging.getLogger().addHandler(self._own_logs)

    # Reports of shards

    def receive(self, source: Attributes, sequence: ReportSequence, report: control_pb2.Report) -> bool:
        """Add one report of the shard `source`; False where it was received before."""
        lost = sequence.take(report.seq, final=report.final)
        if lost is None:
            return False
        if lost:
            self.count(LOST, lost, source)
        self.totals.add(map(point_from_proto, report.points), extra=source, life=sequence.life)
        app, shard = (value for _, value in source)
        for packed in report.spans:
            self.add_spans(app, shard, PackedSpans(packed))
        if report.logs:
            records = logs.unpack_logs(report.logs)
            for sink in self.sinks:
                sink.logs(app, shard, records)
        if report.hot_keys:
            hot_keys = [HotKey(k.key, k.calls, k.error) for k in report.hot_keys]
            self._hot_keys.setdefault(app, {}).setdefault(shard, {})[sequence.life] = hot_keys
        return True

    def end_incarnation(self, source: Attributes, sequence: ReportSequence) -> None:
        """Forget the gauges and hot keys of a shard's process that ended; without its final report, count a gap."""
        if sequence.newest and not sequence.is_final:
            self.count(GAPS, 1, source)
        self.totals.drop_instantaneous(source, sequence.life)
        app, shard = (value for _, value in source)
        self._hot_keys.get(app, {}).get(shard, {}).pop(sequence.life, None)

    def hot_keys(self, app: str) -> dict[str, list[HotKey]]:
        """Shard → its most requested keys, of its newest life that has reported some."""
        by_shard = self._hot_keys.get(app, {})
        return {shard: of_lives[max(of_lives)] for shard, of_lives in by_shard.items() if of_lives}

    def count(
        self, instrument: Instrument, amount: float, source: Attributes = (), attributes: Attributes = ()
    ) -> None:
        """Add `amount` to a counter of the supervisor's own."""
        self.totals.add([Point(instrument, "counter", attributes, amount)], extra=source)

    def add_spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        """Export spans, or hold them until their trace is decided on. shard: "" for the supervisor's own."""
        now = time.monotonic()
        if app not in self._tail_sampler.rules:
            # Without tail sampling a shard reports sampled spans alone, so the batch stays packed.
            self._export_spans(app, shard, spans, now)
            return
        exported = self._tail_sampler.filter([ShardSpan(app, shard, span) for span in spans], now)
        for (owner_app, owner_shard), group in groupby(exported, lambda shard_span: (shard_span.app, shard_span.shard)):
            self._export_spans(owner_app, owner_shard, [shard_span.span for shard_span in group], now)

    def _export_spans(self, app: str, shard: str, spans: Sequence[SpanRecord], now: float) -> None:
        self.recent_traces.add(app, shard, spans, now)
        for sink in self.sinks:
            sink.spans(app, shard, spans)

    # Export

    def points(self, *, sums: bool = False) -> list[Point]:
        """All series, cumulative. sums: one series per app instead of one per shard."""
        return self.totals.points(without="" if self._per_shard and not sums else "onelane.shard")

    def export(self) -> None:
        """Export all series, and the supervisor's own log records, to the sinks."""
        self._count_losses()
        if self._own_logs is not None and (records := self._own_logs.take()):
            for sink in self.sinks:
                sink.logs("onelane", "", records)
        points = self.points()
        for sink in self.sinks:
            sink.points(points)

    def step(self) -> None:
        """Advance the history, the tail sampler and the export; called every second."""
        series: list[tuple[Attributes, Buckets]] = [
            row for rows in self.totals.series_by(SERVER_DURATION, "rpc.method").values() for row in rows
        ]
        self.history.step(series, time.time(), time.monotonic())
        for app, share in self._slow_shares.items():
            self._tail_sampler.slow[app] = self.history.slow(app, share)
        self._tail_sampler.expire(time.monotonic())
        if isfinite(left := descriptors_left()):
            self.totals.add([Point(DESCRIPTORS, "gauge", (), left)])
        self.export()

    def _count_losses(self) -> None:
        losses: Counter[tuple[str, str]] = Counter()
        for sink in self.sinks:
            losses.update(sink.losses())
        for (signal, reason), count in losses.items():
            if increase := count - self._losses[signal, reason]:
                attributes = (("onelane.reason", reason), ("onelane.signal", signal))
                self.totals.add([Point(DROPPED, "counter", attributes, increase)])
        self._losses = losses
        if self._tail_sampler.slow:
            self.totals.add([Point(HELD, "gauge", (), self._tail_sampler.held)])


def tail_rule_of(app: App) -> TailRule | None:
    """Which unsampled traces an app exports; None for none of them."""
    tail = app.tail
    return None if tail is None else TailRule(tail.errors, tail.slower_s)


def hottest_keys(by_shard: Mapping[str, Sequence[HotKey]], number: int) -> list[dict[str, Any]]:
    """The most requested keys of an app. A key has one owner, so the counts of shards need no adding up."""
    rows: list[dict[str, Any]] = [
        {"key": hot.key, "calls": hot.calls, "error": hot.error, "shard": shard}
        for shard, hot_keys in by_shard.items()
        for hot in hot_keys
    ]
    return sorted(rows, key=lambda row: row["calls"], reverse=True)[:number]
