"""Calls that a shard refuses: each is counted by its reason, and one a second of each reason is logged."""

import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from onelane.server.call import Call
from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.call")
REFUSAL_LOG_S = 1.0


class Refusals:
    """See the module. Owned by one lane."""

    def __init__(self, shard: str, stats: Stats, *, now: Callable[[], float] = monotonic) -> None:
        self._shard = shard
        self._counter = stats.counter("onelane.refusals", unit="{call}", description="Calls refused before they began")
        self._now = now
        self._logged_at: dict[str, float] = {}
        """Reason → when it was logged last."""
        self._unlogged: dict[str, int] = {}
        """Reason → refusals since then."""

    def count(self, reason: str) -> None:
        """A call was refused, and is logged elsewhere."""
        self._counter.add(1, {"onelane.reason": reason})

    def add(self, call: Call, reason: str) -> None:
        """A call was refused. reason: the value of `onelane.reason`, one of a few."""
        self.add_ended(call.method, reason, peer=call.peer())

    def add_ended(self, method: str, reason: str, *, peer: str) -> None:
        """See `add`: also of a call that has been answered, and is no more."""
        self.count(reason)
        now = self._now()
        if now - self._logged_at.get(reason, now - REFUSAL_LOG_S) < REFUSAL_LOG_S:
            self._unlogged[reason] = self._unlogged.get(reason, 0) + 1
            return
        self._logged_at[reason] = now
        # Whatever a handler of `logging` does, the call must end.
        with suppress(Exception):
            log.warning(
                "call.refused method=%s shard=%s reason=%s peer=%s more=%d",
                *(method[1:], self._shard, reason, peer, self._unlogged.pop(reason, 0)),
            )
