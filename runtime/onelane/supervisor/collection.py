"""Collections: every shard reports now. Scrapes, and requests for the status, that come while a collection is under way
share the next one.

Promises: one collection at a time; no more than `PER_S` a second once `BURST` have been made; the counts of a request
are no older than the request.
"""

import time
from collections.abc import Awaitable, Callable

import anyio

PER_S = 10.0
"""One for each tick of a shard: within a tick a shard has little to add."""
BURST = 20


class Collections:
    """See the module. Owned by the supervisor."""

    def __init__(self, collect: Callable[[], Awaitable[None]], *, now: Callable[[], float] = time.monotonic) -> None:
        """collect: makes one collection; its time is bounded."""
        self.number = 0
        """Of the last collection that has ended; 0 before the first."""
        self._collect = collect
        self._begun = 0
        self._lock = anyio.Lock()
        self._spare = float(BURST)
        """Collections that may be made at once."""
        self._now = now
        self._refilled_at = now()

    async def wait_fresh(self) -> None:
        """Wait for a collection that has begun after this call."""
        wanted = self._begun + 1
        async with self._lock:
            if self.number >= wanted:
                # A request that waited in front of this one has made it.
                return
            await self._wait_allowed()
            self._begun += 1
            await self._collect()
            self.number = self._begun

    async def _wait_allowed(self) -> None:
        now = self._now()
        self._spare = min(BURST, self._spare + (now - self._refilled_at) * PER_S)
        self._refilled_at = now
        self._spare -= 1.0
        if self._spare < 0.0:
            await anyio.sleep(-self._spare / PER_S)
