"""What a drain waits for, in the log: where it does not end at once, every few seconds, and at its end."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

log = logging.getLogger("onelane.shard")
EVERY_S = 5.0
"""Seconds from one line to the next."""
MAX_METHODS = 5
"""Methods that a line names: those with the most calls in progress."""


class DrainLog:
    """The lines of one drain."""

    def __init__(self, shard: str, methods: Callable[[], Iterable[str]], count: Callable[[], int]) -> None:
        """methods: of each call in progress, where the listener can tell. count: the calls in progress."""
        self._shard = shard
        self._methods = methods
        self._count = count
        self._began = time.monotonic()

    async def tell_regularly(self, grace_s: float) -> None:
        """Log what the drain waits for, until it is cancelled; nothing where it waits for nothing.

        grace_s: the seconds that it may take at most.
        """
        while True:
            if count := self._count():
                log.info(
                    "shard.drain_waits shard=%s for_calls=%d of=%s since_s=%.1f at_most_s=%g",
                    *(self._shard, count, self.described(), time.monotonic() - self._began, grace_s),
                )
            await asyncio.sleep(EVERY_S)

    def ended(self) -> None:
        log.info("shard.drained shard=%s after_s=%.1f", self._shard, time.monotonic() - self._began)

    def described(self) -> str:
        """`pkg.Service/Method=2,…`: the methods of the calls in progress; "-" where they are not known."""
        methods = Counter(method.removeprefix("/") for method in self._methods()).most_common()
        named = [f"{method}={count}" for method, count in methods[:MAX_METHODS]]
        rest = sum(count for _, count in methods[MAX_METHODS:])
        return ",".join(named + ([f"others={rest}"] if rest else [])) or "-"
