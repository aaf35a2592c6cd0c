"""What is counted and logged of a journal, and whether its store works."""

import logging
from collections.abc import Callable
from time import monotonic

from onelane.errors import Fenced
from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.state")
LOGGED_EVERY_S = 1.0


def _none() -> int:
    return 0


class JournalMetrics:
    """Owned by one lane."""

    def __init__(self, shard: str, stats: Stats) -> None:
        self._shard = shard
        self.residents: Callable[[], int] = _none
        """The number of keys whose state is in memory."""
        self.is_failing = False
        """The last operation of the store has failed."""
        self.on_change: Callable[[bool], object] = lambda works: None
        """Called with whether the store works, each time that changes."""
        self._logged_at = -LOGGED_EVERY_S
        self._failing_since = 0.0
        self._commit_s = stats.histogram("onelane.state.commit.duration", unit="s", description="Duration of a commit")
        self._turns = stats.counter("onelane.state.turns", unit="{turn}", description="Turns that were kept")
        self._commits = stats.counter("onelane.state.commits", unit="{commit}", description="Commits of durable state")
        self._keys = stats.counter("onelane.state.keys.written", unit="{key}", description="Keys that commits wrote")
        self._loads = stats.counter("onelane.state.keys.loaded", unit="{key}", description="Keys loaded from the store")
        self._failures = stats.counter(
            "onelane.state.failures", unit="{failure}", description="Operations of the store that failed"
        )
        self.repeats = stats.counter(
            "onelane.state.repeats", unit="{call}", description="Repeated calls that got the remembered answer"
        )
        failing = stats.gauge("onelane.state.failing", unit="1", description="Whether the store fails now")
        failing.observe(lambda: float(self.is_failing))
        residents = stats.gauge("onelane.state.residents", unit="{key}", description="Keys whose state is in memory")
        residents.observe(lambda: float(self.residents()))

    def committed(self, seconds: float, *, keys: int, turns: int) -> None:
        self._commits.add()
        self._commit_s.record(seconds)
        self._keys.add(keys)
        self._turns.add(turns)
        self.works()

    def loaded(self, keys: int) -> None:
        self._loads.add(keys)
        self.works()

    def failed(self, operation: str, error: BaseException) -> None:
        """operation: `load` or `commit`."""
        reason = "fenced" if isinstance(error, Fenced) else "store"
        self._failures.add(1, {"onelane.operation": operation, "onelane.reason": reason})
        now = monotonic()
        if reason == "store" and not self.is_failing:
            self.is_failing, self._failing_since = True, now
            self.on_change(False)
        if now - self._logged_at >= LOGGED_EVERY_S:
            self._logged_at = now
            log.error("state.%s_failed shard=%s error=%s", operation, self._shard, error)

    def works(self) -> None:
        """An operation of the store has succeeded."""
        if self.is_failing:
            self.is_failing = False
            self.on_change(True)
            log.warning("state.store_back shard=%s after_s=%.1f", self._shard, monotonic() - self._failing_since)
