"""When a shard refuses calls: too many in flight, a lane that runs late, or a key with too high a rate.

Promises: pure; while no limit is passed, a call costs a comparison; memory is bounded.
Source of the rule for lateness: CoDel (RFC 8289). Lateness that comes and goes is a lane at work; lateness that lasts
for an `INTERVAL_S` is a queue that only grows. That queue is in the sockets, so it is measured by the length of the
lane's rounds: a round runs the calls that have arrived, and calls that arrive meanwhile wait for the next one. On the
`grpcio` listener the queue is in gRPC's core, which hands over one call at a time; there `max_in_flight` alone bounds.
"""

from collections import OrderedDict
from math import inf

from onelane.errors import Draining, Overloaded, RunsLate, TooManyWatches, TooOften

INTERVAL_S = 0.1
SHORT_S = 0.001
"""A round that took less, and has left no call behind, ends without a look at the sockets."""
BURST_S = 0.5
"""How long a round may take after a time without lateness: a burst is no overload."""
MANY = 8
"""Calls in one round that make a queue; fewer are a few slow handlers."""
MOST_KEYS = 65_536
"""Keys whose rate is remembered; the key that was idle longest is forgotten, and begins with a full bucket."""
RESERVE = 256
"""Calls beyond `max_in_flight`, and calls of one late round, for the services of siblings and for the runtime's own
services. A forwarded call has no part in it: it is its client's call."""
MAX_WATCHES = 4096


class Admission:
    """Whether a lane takes a call now. Owned by it."""

    def __init__(
        self,
        shard: str,
        *,
        max_in_flight: int,
        max_late_s: float,
        max_watches: int = MAX_WATCHES,
        rates: "Rates | None" = None,
    ) -> None:
        """max_watches: of each method that is a watch."""
        self.max_in_flight = max_in_flight
        self.max_watches = max_watches
        self.lateness = Lateness(max_late_s)
        self.rates = rates
        self._shard = shard

    def check(self, now: float, *, in_flight: int, received: int, has_reserve: bool, is_draining: bool) -> None:
        """Refuse a call that cannot be taken now. Asked only where one of the limits may be passed.

        has_reserve: a service of a sibling makes it, or it is for a service of the runtime's own.

        Raises:
            Draining, Overloaded, RunsLate: why.
        """
        if is_draining:
            raise Draining(f"shard {self._shard} is draining")
        if in_flight > self.max_in_flight + (RESERVE if has_reserve else 0):
            raise Overloaded(f"shard {self._shard}", waiting=self.max_in_flight)
        lateness = self.lateness
        if now <= lateness.refuse_from or (has_reserve and lateness.takes_reserve()):
            return
        if lateness.refuses(now, received):
            raise RunsLate(self._shard, late_s=now - lateness.began_at)

    def check_watch(self, watches: int) -> None:
        """Refuse a watch where the shard serves enough of its kind. watches: those that it serves.

        Raises:
            TooManyWatches: why.
        """
        if watches >= self.max_watches:
            raise TooManyWatches(self._shard, limit=self.max_watches)

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

    A round begins with the first call that arrives in a turn of the loop, and ends when every callback that was ready
    has run once. A call that arrives in it after `refuse_from` would only make the queue longer.
    """

    __slots__ = ("_calls_before", "_ended_at", "_late_since", "_reserve", "_target_s", "began_at", "refuse_from")

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self.began_at = 0.0
        """When this round began; 0 between two rounds."""
        self.refuse_from = inf
        self._calls_before = 0
        self._ended_at = 0.0
        self._late_since: float | None = None
        self._reserve = RESERVE

    def begin(self, now: float, calls: int) -> None:
        """A round begins. A lane that was idle before it is not late. calls: arrived so far, in all."""
        self._calls_before = calls
        self._reserve = RESERVE
        if now - self._ended_at > self._target_s:
            self._late_since = None
        self.began_at = now
        is_lasting = self._late_since is not None and now - self._late_since >= INTERVAL_S
        self.refuse_from = now + (self._target_s if is_lasting else max(self._target_s, BURST_S))

    def refuses(self, now: float, calls: int) -> bool:
        """Whether a call that arrived after `refuse_from` is refused. calls: as in `begin`."""
        if calls - self._calls_before >= MANY:
            return True
        # A few slow handlers have blocked the lane, and have ended: there is no queue yet.
        self.refuse_from = now + self._target_s
        return False

    def takes_reserve(self) -> bool:
        """Whether a call goes first that may: so many of one round do, or a flood of them would starve the others."""
        self._reserve -= 1
        return self._reserve >= 0

    def is_short(self, now: float) -> bool:
        """Whether this round has taken so little that the next one is no later for it."""
        return now - self.began_at < SHORT_S

    def end(self, now: float) -> None:
        """The round has ended."""
        if now - self.began_at <= self._target_s:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = self.began_at
        self.began_at, self._ended_at = 0.0, now


class Rates:
    """A limit on the calls of each key: a token bucket of `burst` calls for each, which fills by `per_s` a second."""

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Key → its tokens, and when they were counted."""

    def wait_s(self, key: str, now: float) -> float:
        """Take a token for one call of `key`: 0, or the seconds until there is one, and none is taken."""
        left, at = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self.per_s)
        allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self.per_s
