"""The durable state of one shard: its journal, and the store on its thread. Made with the first durable dict."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from onelane.core.state_settings import StateSettings
from onelane.lane.lane import Lane
from onelane.plugins import make_plugin
from onelane.shard.idle_keys import IdleKeys
from onelane.shard.store_health import StoreHealth
from onelane.state.durable_entries import DurableEntries
from onelane.state.journal import Journal
from onelane.state.journal_metrics import JournalMetrics
from onelane.state.keyed import KeyedDicts
from onelane.state.store import Store, StoreOptions
from onelane.state.store_thread import StoreThread
from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.state")
MakeStore = Callable[[StoreOptions], Store]


class DurableState:
    """See the module. Owned by the lane."""

    def __init__(
        self,
        dicts: KeyedDicts,
        lane: Lane,
        stats: Stats,
        settings: StateSettings,
        *,
        app: str,
        life: int,
        make_store: MakeStore | None = None,
    ) -> None:
        """make_store: in place of the store that the settings name."""
        options = StoreOptions(
            app=app,
            shard=lane.name,
            life=life,
            folder=settings.folder,
            dsn=settings.dsn.text,
            patience_s=settings.patience_s,
        )
        self._patience_s = settings.patience_s
        make = make_store or partial(make_plugin, "onelane.stores", settings.store)
        self._thread = StoreThread(partial(make, options), lane.name)
        entries = DurableEntries(dicts)
        self.journal = Journal(
            entries,
            self._thread,
            JournalMetrics(lane.name, stats),
            epoch=lane.router.epoch_of,
            in_turn=lane.queue.turns.held.__contains__,
            answers_s=settings.answers_s,
            max_answers=settings.max_answers_per_key,
        )
        self.health = StoreHealth(self.journal, self._thread, epoch=lane.router.epoch_of)
        self.kept = lane.keep_turns(self.journal, app=app)
        self.idle_keys = IdleKeys(entries, self._thread, self.kept, lane.queue, answers_s=settings.answers_s)

    def bound(self, name: str, *, idle_s: float | None, max_resident: int | None) -> None:
        """Take what a service says of one durable dict; see `Shard.keyed`."""
        if idle_s is not None:
            self.idle_keys.idle_s[name] = idle_s
        if max_resident is not None:
            self.journal.max_resident = min(max_resident, self.journal.max_resident)

    @property
    def store(self) -> StoreThread:
        """Its store, on its thread."""
        return self._thread

    async def start(self) -> None:
        """Open the store; raises what that raises."""
        await self._thread.start()

    async def aclose(self) -> None:
        """Write what is to be written, and close the store."""
        self.health.cancel()
        if not self._thread.is_running:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self._patience_s):
                await self.journal.wait_idle()
        await self._thread.aclose(self._patience_s)
