"""The tick's report: the counts, spans and log records of a shard since the last one, moved out to its supervisor.

Promises: reports are numbered without a gap, each count, span and log record is in exactly one of them, and a shard
with nothing new sends none.
"""

import itertools
from collections.abc import Callable, Mapping

from onelane.cluster.control import Control
from onelane.telemetry.codec import point_to_proto, stall_to_proto
from onelane.telemetry.load import LoadMonitor
from onelane.telemetry.logs import LogBuffer, pack_logs
from onelane.telemetry.stalls import Stall
from onelane.telemetry.stats import DROPPED, Stats
from onelane.telemetry.tracer import Tracer
from onelane.v1 import control_pb2

TICK_S = 0.1
"""From one report to the next."""


class Reporter:
    """Sends the reports of one shard. Owned by its lane."""

    def __init__(
        self,
        control: Control,
        *,
        stats: Stats,
        tracer: Tracer,
        load: LoadMonitor,
        logs: LogBuffer | None,
        keyed_counts: Callable[[], Mapping[str, int]],
    ) -> None:
        """logs: None where no sink asks for log records. keyed_counts: the size of each `shard.keyed` dict."""
        self._control = control
        self._stats = stats
        self._tracer = tracer
        self._load = load
        self._logs = logs
        self._keyed_counts = keyed_counts
        self._numbers = itertools.count(1)
        self._stalls: list[Stall] = []
        """The stalls that the next report lists."""
        self._dropped_items = stats.counter(DROPPED.name, unit=DROPPED.unit, description=DROPPED.description)
        self._stalls_seen = stats.counter(
            "onelane.stalls", unit="{stall}", description="Times that the lane did not turn"
        )

    def add_stall(self, stall: Stall, is_logged: bool) -> None:
        """Count a stall that is over. is_logged: within the watchdog's rate limit, so the next report lists it too."""
        self._stalls_seen.add(1, {"onelane.stall.kind": stall.kind})
        if is_logged:
            self._stalls.append(stall)

    async def report(self, *, collect: int = 0, final: bool = False) -> None:
        """Move out what is new since the last report.

        collect: the number of the request that this report answers. final: the shard sends no further report.
        """
        spans = self._tracer.take_packed()
        records = self._logs.take() if self._logs else []
        self._count_dropped()
        points = self._stats.take()
        hot_keys = self._load.hottest_keys()
        if not (points or spans or records or hot_keys or collect or final):
            return
        stalls, self._stalls = self._stalls, []
        report = control_pb2.Report(
            seq=next(self._numbers),
            points=map(point_to_proto, points),
            spans=spans,
            logs=pack_logs(records) if records else b"",
            keyed=self._keyed_counts(),
            collect=collect,
            stalls=map(stall_to_proto, stalls),
            final=final,
            hot_keys=[control_pb2.HotKey(key=hot.key, calls=hot.calls, error=hot.error) for hot in hot_keys],
        )
        await self._control.send(control_pb2.ToSupervisor(report=report))

    def _count_dropped(self) -> None:
        """Count the spans and log records that did not fit into the lists of one tick, and the calls that have no span
        because too many clients asked for one."""
        for signal, source in (("spans", self._tracer), ("logs", self._logs)):
            if source is not None and source.dropped:
                self._dropped_items.add(source.dropped, {"onelane.signal": signal, "onelane.reason": "tick_full"})
                source.dropped = 0
        if self._tracer.unfollowed:
            self._dropped_items.add(
                self._tracer.unfollowed, {"onelane.signal": "spans", "onelane.reason": "remote_rate"}
            )
            self._tracer.unfollowed = 0
