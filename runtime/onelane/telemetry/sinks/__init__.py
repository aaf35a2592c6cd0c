"""Where telemetry goes: what the shards moved out, added up, one sink for each way out. See prometheus.py, otlp.py.

Plugs of the group `onelane.sinks`; each is made with the environment, a mapping.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from onelane.telemetry.logs import LogRecord
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Point


class Sink(Protocol):
    """One way out. Promised: it never blocks the supervisor's loop, and what it holds is bounded."""

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        """Take spans that have ended; each is handed over once."""

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        """Take what a shard has logged; each record is handed over once."""

    def points(self, points: Sequence[Point]) -> None:
        """Take all series as they stand, cumulative; attributes `onelane.app` and `onelane.shard` tell them apart."""

    def losses(self) -> Mapping[tuple[str, str], int]:
        """How many it had to drop until now, by signal (spans, logs) and reason (`queue_full`, `refused`, `closed`)."""

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most `timeout_s` seconds. Blocks: call it from a thread."""
