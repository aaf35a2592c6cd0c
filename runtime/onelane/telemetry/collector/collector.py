"""What all shards have moved out, added up: statistics, traces, logs. Owned by the supervisor.

Promises: a report counts once; what a shard left behind when it died is known as a gap; each span and each record goes
to every sink once.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from onelane.config import App, Config
from onelane.telemetry import logs
from onelane.telemetry.codec import point_from_proto
from onelane.telemetry.collector.history import DURATION, History
from onelane.telemetry.collector.recent_traces import Recent
from onelane.telemetry.collector.sequence import Received
from onelane.telemetry.collector.tail_sampling import Owned, Rule, Tail
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.hot_keys import HotKey
from onelane.telemetry.sinks import Sink
from onelane.telemetry.spans import Packed, SpanRecord
from onelane.telemetry.stats import DROPPED, Attributes, Instrument, Point
from onelane.v1 import control_pb2

RESTARTS = Instrument("onelane.restarts", "{restart}", "Shards started anew after they died")
LOST = Instrument("onelane.reports.lost", "{report}", "Reports of shards that have not come")
GAPS = Instrument("onelane.reports.gaps", "{gap}", "Shards that died with what they had counted since their last tick")
HELD = Instrument("onelane.telemetry.held", "{span}", "Spans that wait until it is known whether they are kept")


class Gathering:
    """See the module."""

    def __init__(self, config: Config, sinks: Sequence[Sink], *, logs_too: bool = False) -> None:
        """logs_too: what the supervisor itself logs goes to the sinks as well."""
        self.totals = Totals()
        self.history = History()
        self.recent = Recent()
        self.hot_keys: dict[str, dict[str, list[HotKey]]] = {}
        """App → shard → its most asked keys."""
        self.sinks = sinks
        self._per_shard = config.per_shard_series
        self._tail = Tail({name: rule for name, app in config.apps.items() if (rule := rule_of(app)) is not None})
        self._slowest = {
            name: app.tail.slowest for name, app in config.apps.items() if app.tail is not None and app.tail.slowest
        }
        self._lost: Counter[tuple[str, str]] = Counter()
        self._own_logs = logs.MovedLogs("") if logs_too else None
        if self._own_logs is not None:
            logging.getLogger().addHandler(self._own_logs)

    # What shards say

    def report(self, source: Attributes, received: Received, report: control_pb2.Report) -> bool:
        """Take one report; False where it has been taken already."""
        lost = received.take(report.seq, final=report.final)
        if lost is None:
            return False
        if lost:
            self.count(LOST, lost, source)
        self.totals.add(map(point_from_proto, report.points), extra=source)
        app, shard = (value for _, value in source)
        if report.spans:
            self._take_spans(app, shard, Packed(report.spans))
        if report.logs:
            records = logs.unpack(report.logs)
            for sink in self.sinks:
                sink.logs(app, shard, records)
        if report.hot_keys:
            self.hot_keys.setdefault(app, {})[shard] = [HotKey(k.key, k.calls, k.error) for k in report.hot_keys]
        return True

    def ended(self, source: Attributes, received: Received) -> None:
        """A shard's life is over."""
        if received.newest and not received.is_final:
            self.count(GAPS, 1, source)
        self.totals.drop_standing(source)
        app, shard = (value for _, value in source)
        self.hot_keys.get(app, {}).pop(shard, None)

    def count(self, instrument: Instrument, amount: float, source: Attributes) -> None:
        """Count something that the supervisor itself has seen."""
        self.totals.add([Point(instrument, "counter", (), amount)], extra=source)

    def _take_spans(self, app: str, shard: str, spans: Packed) -> None:
        now = time.monotonic()
        if app not in self._tail.rules:
            # What is not sampled has not come: the batch goes on as it is.
            self._hand_on(app, shard, spans, now)
            return
        kept = self._tail.sift([Owned(app, shard, span) for span in spans], now)
        for (of, by), several in groupby(kept, lambda one: (one.app, one.shard)):
            self._hand_on(of, by, [one.span for one in several], now)

    def _hand_on(self, app: str, shard: str, spans: Sequence[SpanRecord], now: float) -> None:
        self.recent.add(app, shard, spans, now)
        for sink in self.sinks:
            sink.spans(app, shard, spans)

    # What goes out

    def points(self, *, sums: bool = False) -> list[Point]:
        """All series as they stand. sums: of each app, not of each shard."""
        return self.totals.points(without="" if self._per_shard and not sums else "onelane.shard")

    def feed(self) -> None:
        """Give the sinks all series as they stand, and what the supervisor has logged."""
        self._count_losses()
        if self._own_logs is not None and (records := self._own_logs.take()):
            for sink in self.sinks:
                sink.logs("onelane", "", records)
        points = self.points()
        for sink in self.sinks:
            sink.points(points)

    def step(self) -> None:
        """What is to be done every second."""
        series: list[tuple[Attributes, Buckets]] = [
            row for rows in self.totals.by(DURATION, "rpc.method").values() for row in rows
        ]
        self.history.step(series, time.time(), time.monotonic())
        for app, share in self._slowest.items():
            self._tail.slow[app] = self.history.slow(app, share)
        self._tail.forget(time.monotonic())
        self.feed()

    def _count_losses(self) -> None:
        found: Counter[tuple[str, str]] = Counter()
        for sink in self.sinks:
            found.update(sink.losses())
        for (signal, reason), count in found.items():
            if came := count - self._lost[signal, reason]:
                attributes = (("onelane.reason", reason), ("onelane.signal", signal))
                self.totals.add([Point(DROPPED, "counter", attributes, came)])
        self._lost = found
        if self._tail.slow:
            self.totals.add([Point(HELD, "gauge", (), self._tail.held)])


def rule_of(app: App) -> Rule | None:
    """What an app keeps of what is not sampled."""
    said = app.tail
    return None if said is None else Rule(said.errors, said.slower_s)


def hottest(by_shard: Mapping[str, Sequence[HotKey]], number: int) -> list[dict[str, Any]]:
    """The most asked keys of an app. A key lives in one shard, so there is nothing to add up."""
    rows: list[dict[str, Any]] = [
        {"key": one.key, "calls": one.calls, "error": one.error, "shard": shard}
        for shard, several in by_shard.items()
        for one in several
    ]
    return sorted(rows, key=lambda row: row["calls"], reverse=True)[:number]
