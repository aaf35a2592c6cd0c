"""A sink whose failures are its own: a plugin may raise anything, in the very task that supervises a shard."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onelane.telemetry.logs import LogRecord
from onelane.telemetry.sinks import Sink
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Point

log = logging.getLogger("onelane.telemetry")
FAILURES_TOLD_EVERY_S = 60.0


class GuardedSink:
    """See `Sink`. What a failing sink was given is lost to it; the failure is logged, at most once a minute."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._failures = 0
        self._told_at: float | None = None

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        self._guard(self.sink.spans, app, shard, spans)

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        self._guard(self.sink.logs, app, shard, records)

    def points(self, points: Sequence[Point]) -> None:
        self._guard(self.sink.points, points)

    def losses(self) -> Mapping[tuple[str, str], int]:
        return self._guard(self.sink.losses) or {}

    def close(self, timeout_s: float) -> None:
        self._guard(self.sink.close, timeout_s)

    def _guard(self, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception:
            self._failures += 1
            now = time.monotonic()
            # Told again and again, its own record would reach it as a log record that it fails to take.
            if self._told_at is None or now - self._told_at >= FAILURES_TOLD_EVERY_S:
                self._told_at = now
                log.exception("sink.failed sink=%s failures=%d", type(self.sink).__qualname__, self._failures)
            return None
