"""Forgets what nobody has used for long: entries of durable dicts with `idle_s`, and old answers.

An entry is forgotten in a turn of its key, so nothing uses it meanwhile. Keys that another shard owns are left to it.
"""

import logging
from functools import partial
from time import time

from onelane.core.keys import named
from onelane.errors import ForeignKey, LongKey, OnelaneError
from onelane.lane.kept_turns import KeptTurns
from onelane.lane.turn_queue import TurnQueue
from onelane.state.durable_entries import DurableEntries
from onelane.state.store import PAGE, Store
from onelane.state.store_thread import StoreThread

log = logging.getLogger("onelane.state")
CHECKS_PER_IDLE_TIME = 10
MIN_CHECK_S, MAX_CHECK_S = 1.0, 3600.0
CLAIM_S = 7 * 86_400.0
"""How long a key of which nothing is stored stays known; see `Store.forget`."""


class IdleKeys:
    """See the module. Owned by the lane."""

    def __init__(
        self, entries: DurableEntries, thread: StoreThread, gate: KeptTurns, queue: TurnQueue, *, answers_s: float
    ) -> None:
        self.idle_s: dict[str, float] = {}
        """Name of a dict → seconds after which its entries are forgotten."""
        self._entries = entries
        self._thread = thread
        self._gate = gate
        self._queue = queue
        self._answers_s = answers_s

    @property
    def check_s(self) -> float:
        """Seconds from one check to the next."""
        shortest = min(self.idle_s.values(), default=MAX_CHECK_S)
        return min(max(shortest / CHECKS_PER_IDLE_TIME, MIN_CHECK_S), MAX_CHECK_S)

    async def check(self) -> None:
        """Forget what is idle now. A failure is logged: the next check tries again."""
        now = time()
        try:
            for name, seconds in self.idle_s.items():
                await self._forget_idle(name, now - seconds)
            forget = partial(_forget, now - self._answers_s, now - CLAIM_S)
            while await self._thread.run(forget) >= PAGE:
                pass
        except OnelaneError as error:
            log.warning("state.idle_not_forgotten error=%s", error)

    async def _forget_idle(self, name: str, before: float) -> None:
        after = ""
        while keys := await self._thread.run(partial(_idle_keys, name, before, after, PAGE)):
            for key in keys:
                await self._forget_entry(name, key, before, after)
                after = key

    async def _forget_entry(self, name: str, key: str, before: float, after: str) -> None:
        try:
            turn = await self._queue.hold(named(key), "shard.idle")
        except (ForeignKey, LongKey):
            return
        on_disk = None
        try:
            # Asked again, in its turn: it may have been used since.
            if not self._gate.journal.is_used_since(key, before) and await self._thread.run(
                partial(_idle_keys, name, before, after, 1)
            ) == [key]:
                await self._gate.prepare(turn)
                self._entries.remove(name, key)
                on_disk = self._gate.end_by_hand(turn, is_nested=False)
        finally:
            self._queue.leave(turn)
        if on_disk is not None:
            await on_disk


def _idle_keys(name: str, before: float, after: str, limit: int, store: Store) -> list[str]:
    return store.idle_keys(name, before=before, after=after, limit=limit)


def _forget(answers_before: float, claims_before: float, store: Store) -> int:
    return store.forget(answers_before=answers_before, claims_before=claims_before)
