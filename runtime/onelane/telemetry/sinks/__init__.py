"""Export: a sink for each destination of what the supervisor collects, `prometheus` and `otlp/`.

A sink is a plugin of the group `onelane.sinks`, created with the environment, a mapping. Imports: the records of
`telemetry` (`spans`, `logs`, `stats`), and `collector/totals`. Main types: `Sink`, the seam, and
`prometheus.PrometheusSink`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from onelane.telemetry.logs import LogRecord
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Point


class Sink(Protocol):
    """One destination of telemetry. Promised: it never blocks the supervisor's loop, and its queues are bounded."""

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        """Export ended spans; each is passed once."""

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        """Export log records of a shard; each is passed once."""

    def points(self, points: Sequence[Point]) -> None:
        """Export all series, cumulative; the attributes `onelane.app` and `onelane.shard` name their shard."""

    def losses(self) -> Mapping[tuple[str, str], int]:
        """Items dropped so far, by signal (spans, logs) and reason (`queue_full`, `refused`, `closed`)."""

    def close(self, timeout_s: float) -> None:
        """Flush the queues, for at most `timeout_s` seconds. Blocks: call it from a thread."""
