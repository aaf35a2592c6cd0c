"""What is counted of changes of placement in one shard. Nothing of it is touched by a call that is not held."""

from collections.abc import Callable

from onelane.telemetry.stats import Stats


class HandoffMetrics:
    """Owned by one lane."""

    def __init__(self, stats: Stats, *, held: Callable[[], int]) -> None:
        """held: the calls, and code of the shard, that are held now."""
        self._keys = stats.counter(
            "onelane.handoff.keys", unit="{key}", description="Keys with state that have moved to another shard"
        )
        self._bytes = stats.counter(
            "onelane.handoff.size", unit="By", description="State of keys that was sent to other shards"
        )
        self._pause_s = stats.histogram(
            "onelane.handoff.pause", unit="s", description="Time that the first held call of a key was held"
        )
        held_now = stats.gauge(
            "onelane.handoff.held", unit="{call}", description="Calls held for state or a placement on its way"
        )
        held_now.observe(lambda: float(held()))

    def sent(self, size: int) -> None:
        """A batch was packed; one that is sent again is counted once."""
        self._bytes.add(size)

    def acknowledged(self, keys: int) -> None:
        self._keys.add(keys)

    def paused(self, seconds: float) -> None:
        self._pause_s.record(seconds)
