"""Calls, errors and durations of every method in the last minutes, by second: for the page and `onelane top`."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import Attributes

HISTORY_STEPS = 300
"""Steps of one second each that are kept."""
SLOW_WINDOW = 60
"""Steps over which the quantile of slow calls is computed."""
SERVER_DURATION = "rpc.server.call.duration"


@dataclass(frozen=True, slots=True)
class Step:
    """One second of one method."""

    at_s: float
    """Since the Unix epoch."""
    calls: int
    errors: int
    durations: Buckets


@dataclass
class MethodHistory:
    """One method of one app."""

    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=HISTORY_STEPS))
    _totals: Buckets = field(default_factory=lambda: Buckets({}, 0.0))
    _errors: int = 0

    def step(self, at_s: float, seconds: float, totals: Buckets, errors: int) -> None:
        """Append a step from cumulative totals. seconds: since the last step; the counts are scaled to one second."""
        durations = totals.minus(self._totals)
        failed = errors - self._errors
        self._totals, self._errors = totals, errors
        scale = max(seconds, 0.001)
        self.steps.append(Step(at_s, round(durations.count / scale), round(failed / scale), durations))

    def merged(self, steps: int) -> Buckets:
        """The durations of all calls in the last `steps` steps."""
        durations = Buckets({}, 0.0)
        for step in list(self.steps)[-steps:]:
            durations = durations.plus(step.durations) if step.calls else durations
        return durations


class History:
    """The history of every method of every app. Owned by the supervisor."""

    def __init__(self) -> None:
        self.methods: dict[tuple[str, str], MethodHistory] = {}
        """(app, method) → its history."""
        self._stepped_at: float | None = None

    def step(self, series: Iterable[tuple[Attributes, Buckets]], at_s: float, now: float) -> None:
        """Append a step to every method. series: all cumulative series of `SERVER_DURATION`.

        at_s: since the Unix epoch. now: of a monotonic clock.
        """
        seconds = 1.0 if self._stepped_at is None else now - self._stepped_at
        self._stepped_at = now
        sums: dict[tuple[str, str], tuple[Buckets, int]] = {}
        for attributes, durations in series:
            values = dict(attributes)
            key = (values.get("onelane.app", ""), values.get("rpc.method", ""))
            total, errors = sums.get(key, (Buckets({}, 0.0), 0))
            # A call that its client has cancelled is no error.
            failed = values.get("rpc.response.status_code", "OK") not in ("OK", "CANCELLED")
            sums[key] = (total.plus(durations), errors + durations.count * failed)
        for key, (durations, errors) in sums.items():
            self.methods.setdefault(key, MethodHistory()).step(at_s, seconds, durations, errors)

    def slow(self, app: str, share: float) -> dict[str, float]:
        """Method → duration in seconds that only `share` of its calls in the last minute exceeded."""
        by_method = {name: method.merged(SLOW_WINDOW) for (owner, name), method in self.methods.items() if owner == app}
        # Fewer calls than 1 / share have no such quantile.
        return {
            name: durations.quantile(1.0 - share)
            for name, durations in by_method.items()
            if durations.count * share >= 1
        }
