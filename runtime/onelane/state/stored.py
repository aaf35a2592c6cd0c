"""All that an app has stored, in however many files or in a database: for the commands of `onelane state`.

Promises: to read changes nothing, and is possible while the app runs. Of a key that is in several files, as it is while
it moves and after a crash in the middle of that, the copy that was written last counts.
"""

import heapq
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import groupby
from operator import attrgetter

from onelane.core.state_settings import MEMORY, SQLITE, StateSettings
from onelane.errors import NotThere
from onelane.plugins import make_plugin
from onelane.state.sqlite_store import shards_in
from onelane.state.store import KeyState, Row, Stamp, Store, StoreOptions, scan


class StoredState:
    """See the module."""

    def __init__(self, stores: dict[str, Store]) -> None:
        """stores: open, by the shards whose they are."""
        self.stores = stores

    def states(self, key: str | None = None) -> Iterator[KeyState]:
        """Each key, or this one, as it was written last; in order."""
        stores = self.stores.values()
        copies = [scan(store) if key is None else iter(store.read([key]).values()) for store in stores]
        for _, group in groupby(heapq.merge(*copies, key=attrgetter("key")), attrgetter("key")):
            yield max(group, key=attrgetter("written"))

    def rows(self, dict_name: str | None = None, key: str | None = None) -> Iterator[tuple[str, Row]]:
        """Each entry, or those of one dict, with its key. key: only of this one."""
        for state in self.states(key):
            for row in state.rows:
                if dict_name in (None, row.dict_name):
                    yield state.key, row

    def newest(self) -> Stamp:
        """The highest stamp of all claims and writes."""
        return max(store.newest() for store in self.stores.values())


@contextmanager
def stored_state(settings: StateSettings, app: str, *, life: int = 0, creates: bool = False) -> Iterator[StoredState]:
    """What is stored of an app, open until the end of the block.

    life: for what is written meanwhile. creates: a file where there is none.

    Raises:
        NotThere: nothing is stored.
        StoreUnavailable, StoreRefused: see `Store`.
    """
    with ExitStack() as stack:
        stores: dict[str, Store] = {}
        for shard in _shards(settings, app, creates=creates):
            options = StoreOptions(app, shard, life, settings.folder, settings.dsn.text, settings.patience_s)
            stores[shard] = stack.enter_context(closing(make_plugin("onelane.stores", settings.store, options)))
            stores[shard].open()
        yield StoredState(stores)


def _shards(settings: StateSettings, app: str, *, creates: bool) -> list[str]:
    """The shards that have a store of their own; where all share one, any name."""
    if settings.store == MEMORY:
        raise NotThere(f"apps.{app}.state: the store {MEMORY!r} ends with its process: nothing of it is stored")
    if settings.store != SQLITE:
        return [app]
    if shards := shards_in(settings.folder, app):
        return sorted(shards)
    if creates:
        return [f"{app}-0"]
    raise NotThere(f"no state of {app} is stored in {settings.folder / app}")
