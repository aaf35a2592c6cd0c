"""What is counted of the reminders of a shard."""

from collections.abc import Callable

from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import METHOD, STATUS


class ReminderMetrics:
    """Owned by one lane."""

    def __init__(self, stats: Stats) -> None:
        self._runs = stats.counter("onelane.reminder.runs", unit="{run}", description="Runs of reminders")
        self._failures = stats.counter(
            "onelane.reminder.failures", unit="{run}", description="Runs of reminders that failed"
        )
        self._skips = stats.counter(
            "onelane.reminder.skips", unit="{run}", description="Periods of reminders that had no run of their own"
        )
        self._late_s = stats.histogram(
            "onelane.reminder.late", unit="s", description="How late the first run of a reminder began"
        )
        self._waiting = stats.gauge(
            "onelane.reminders.next", unit="{reminder}", description="Reminders in memory that run next"
        )

    def observe_waiting(self, count: Callable[[], float]) -> None:
        self._waiting.observe(count)

    def began(self, late_s: float) -> None:
        """The first run of a due time begins."""
        self._late_s.record(max(0.0, late_s))

    def ran(self, method: str, status: str) -> None:
        self._runs.add(1, {METHOD: method, STATUS: status})

    def failed(self, reason: str) -> None:
        """reason: `status`, `given_up`, `not_kept` or `unreadable`."""
        self._failures.add(1, {"onelane.reason": reason})

    def skipped(self, count: int) -> None:
        if count:
            self._skips.add(count)
