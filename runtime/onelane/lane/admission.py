"""When a shard refuses calls: too many at once, a lane that runs late, or a key that asks too often.

Promises: pure; what a call costs here is a comparison while nothing is wrong, and memory is bounded.
Source of the rule for lateness: CoDel (RFC 8289). Lateness that comes and goes is the lane at work; lateness that
stands for an `INTERVAL_S` is a queue that only grows. The queue is in the sockets, so it is measured by how long the
lane's rounds are: a round takes what has come, and what comes meanwhile waits for the next one. On the `grpcio`
listener it is in gRPC's core, which gives one call at a time, and is not seen: there `max_in_flight` alone bounds.
"""

from collections import OrderedDict
from math import inf

from onelane.errors import Draining, Overloaded, RunsLate, TooOften

INTERVAL_S = 0.1
BURST_S = 0.5
"""How long a round may take while no lateness stands: a burst is no overload."""
MANY = 8
"""Calls in one round that make it a pile; fewer are a few slow ones."""
MOST_KEYS = 65_536
"""Keys whose rate is known at once; the one that was quiet longest is forgotten, and may begin anew."""
RESERVE = 256
"""Calls beyond `max_in_flight` for those that siblings have taken already, and for the runtime's own services."""


class Admission:
    """Whether a lane takes a call now. Owned by it."""

    def __init__(self, shard: str, *, max_in_flight: int, max_late_s: float, rates: "Rates | None" = None) -> None:
        self.max_in_flight = max_in_flight
        self.lateness = Lateness(max_late_s)
        self.rates = rates
        self._shard = shard

    def check(self, now: float, *, in_flight: int, received: int, has_reserve: bool, is_draining: bool) -> None:
        """Refuse a call that cannot be taken now. Asked only where one of the limits may be passed.

        has_reserve: a sibling has taken it already, or it is for a service of the runtime's own.

        Raises:
            Draining, Overloaded, RunsLate: why.
        """
        if is_draining:
            raise Draining(f"shard {self._shard} is draining")
        if in_flight > self.max_in_flight + (RESERVE if has_reserve else 0):
            raise Overloaded(f"shard {self._shard}", waiting=self.max_in_flight)
        lateness = self.lateness
        if not has_reserve and now > lateness.refuse_from and lateness.refuses(now, received):
            raise RunsLate(self._shard, late_s=now - lateness.began_at)

    def check_rate(self, key: str, now: float) -> None:
        """Count a call of `key` against its rate.

        Raises:
            TooOften: the key asks more often than configured.
        """
        assert self.rates is not None
        if wait_s := self.rates.wait_s(key, now):
            raise TooOften(per_s=self.rates.per_s, wait_s=wait_s)


class Lateness:
    """Whether a lane runs late. Owned by it; times are seconds of one clock.

    A round begins with the first call that the lane takes in one go of its loop, and ends when all that was ready has
    run once. A call that comes in it after `refuse_from` would only make longer what stands.
    """

    __slots__ = ("_calls_before", "_ended_at", "_late_since", "_target_s", "began_at", "refuse_from")

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self.began_at = 0.0
        """Of this round; 0 between two."""
        self.refuse_from = inf
        self._calls_before = 0
        self._ended_at = 0.0
        self._late_since: float | None = None

    def begin(self, now: float, calls: int) -> None:
        """A round begins. Where the lane had nothing to do before it, all is well. calls: taken so far, in all."""
        self._calls_before = calls
        if now - self._ended_at > self._target_s:
            self._late_since = None
        self.began_at = now
        stands = self._late_since is not None and now - self._late_since >= INTERVAL_S
        self.refuse_from = now + (self._target_s if stands else max(self._target_s, BURST_S))

    def refuses(self, now: float, calls: int) -> bool:
        """Whether a call that has come after `refuse_from` is refused. calls: as in `begin`."""
        if calls - self._calls_before >= MANY:
            return True
        # A few slow ones have held the lane, and that is over: nothing piles up yet.
        self.refuse_from = now + self._target_s
        return False

    def end(self, now: float) -> None:
        """The round has ended."""
        if now - self.began_at <= self._target_s:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = self.began_at
        self.began_at, self._ended_at = 0.0, now


class Rates:
    """How often each key may ask: a bucket of `burst` calls for each, which fills by `per_s` a second."""

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Key → calls left, and when that was."""

    def wait_s(self, key: str, now: float) -> float:
        """Count one call of `key`: 0 where it may run, else the seconds until the next may, and it is not counted."""
        left, at = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self.per_s)
        allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self.per_s
