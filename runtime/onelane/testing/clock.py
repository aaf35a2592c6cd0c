"""Time that stands still until it is told otherwise."""


class ManualClock:
    """See `onelane.clock.Clock`."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def wall_ns(self) -> int:
        return int(self._now * 1e9)

    def advance(self, seconds: float) -> None:
        self._now += seconds
