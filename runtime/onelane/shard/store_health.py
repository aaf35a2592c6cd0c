"""Whether the store of a shard works: found again without a call, and told to those who follow it.

While it fails nobody may call any more, because health says so; so the load of a key that it owed is tried once a
second. A load claims, and so writes: that a full disk can still be read proves nothing. A key that has left meanwhile
is its next owner's to claim, so the store is probed by a write of no key. No load of a call is delayed by more than one
such try. A store that works is not asked: the next commit tells.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import time

from onelane.errors import Fenced, OnelaneError
from onelane.state.journal import Journal
from onelane.state.store import Store
from onelane.state.store_thread import StoreThread

TRY_S = 1.0


class StoreHealth:
    """Owned by one lane."""

    def __init__(self, journal: Journal, store: StoreThread, *, epoch: Callable[[str], int]) -> None:
        """epoch: of the placement by which this life owns a key; 0 where another one does."""
        self._journal = journal
        self._store = store
        self._epoch = epoch
        self._trying: asyncio.Task[None] | None = None
        self.on_change: Callable[[bool], object] = lambda works: None
        """Called with whether the store works, each time that changes."""
        journal.metrics.on_change = self._changed

    @property
    def works(self) -> bool:
        """The last operation of the store has succeeded."""
        return not self._journal.metrics.is_failing

    def cancel(self) -> None:
        """Try no more."""
        if self._trying is not None:
            self._trying.cancel()

    def _changed(self, works: bool) -> None:
        self.on_change(works)
        if not works and self._trying is None:
            self._trying = asyncio.get_running_loop().create_task(self._try_regularly())

    async def _try_regularly(self) -> None:
        try:
            while not self.works:
                await asyncio.sleep(TRY_S)
                if not self.works and await self._try():
                    self._journal.metrics.works()
        finally:
            self._trying = None

    async def _try(self) -> bool:
        key = self._journal.failed_key
        epoch = self._epoch(key)
        try:
            if epoch:
                await self._store.run(partial(_claim, key, epoch))
            else:
                # It has moved to another shard.
                await self._store.run(_probe)
        except OnelaneError:
            return False
        return True


def _claim(key: str, epoch: int, store: Store) -> None:
    try:
        store.load([key], epoch=epoch, at=time())
    except Fenced:
        # Its next owner was faster.
        _probe(store)


def _probe(store: Store) -> None:
    # A store of a plugin may be older than its seam.
    getattr(store, "probe", store.newest)()
