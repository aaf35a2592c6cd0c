"""The last minutes of every method, second by second: what the page and `onelane top` draw."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import Attributes

KEPT = 300
"""Steps, of a second each."""
WINDOW = 60
"""Steps over which the slowest are told from the others."""
DURATION = "rpc.server.call.duration"


@dataclass(frozen=True, slots=True)
class Step:
    """One second of one method."""

    at_s: float
    """Since the Unix epoch."""
    calls: int
    errors: int
    spread: Buckets


@dataclass
class Method:
    """One method of one app."""

    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=KEPT))
    _all: Buckets = field(default_factory=lambda: Buckets({}, 0.0))
    _errors: int = 0

    def step(self, at_s: float, seconds: float, now: Buckets, errors: int) -> None:
        """Take the totals as they stand. seconds: since the last time, to which all is brought."""
        came = now.minus(self._all)
        failed = errors - self._errors
        self._all, self._errors = now, errors
        scale = max(seconds, 0.001)
        self.steps.append(Step(at_s, round(came.count / scale), round(failed / scale), came))

    def over(self, steps: int) -> Buckets:
        """All calls of the last so many steps."""
        made = Buckets({}, 0.0)
        for step in list(self.steps)[-steps:]:
            made = made.plus(step.spread) if step.calls else made
        return made


class History:
    """Every method of every app. Owned by the supervisor."""

    def __init__(self) -> None:
        self.methods: dict[tuple[str, str], Method] = {}
        """(app, method) → its last minutes."""
        self._at: float | None = None

    def step(self, series: Iterable[tuple[Attributes, Buckets]], at_s: float, now: float) -> None:
        """Take all series of the servers' durations as they stand.

        at_s: since the Unix epoch. now: on a clock that nobody sets.
        """
        seconds = 1.0 if self._at is None else now - self._at
        self._at = now
        sums: dict[tuple[str, str], tuple[Buckets, int]] = {}
        for attributes, spread in series:
            there = dict(attributes)
            key = (there.get("onelane.app", ""), there.get("rpc.method", ""))
            before, errors = sums.get(key, (Buckets({}, 0.0), 0))
            failed = there.get("rpc.response.status_code", "OK") != "OK"
            sums[key] = (before.plus(spread), errors + spread.count * failed)
        for key, (spread, errors) in sums.items():
            self.methods.setdefault(key, Method()).step(at_s, seconds, spread, errors)

    def slow(self, app: str, share: float) -> dict[str, float]:
        """Method → seconds that only `share` of its calls in the last minute took longer than."""
        found = {name: method.over(WINDOW) for (of, name), method in self.methods.items() if of == app}
        # Too few say nothing.
        return {name: spread.quantile(1.0 - share) for name, spread in found.items() if spread.count * share >= 1}
