"""Changes of what an app has stored, by a command, while the app does not run.

Promises: nothing is changed where the app runs. What is written has a stamp above all others, so it counts, and below
those of the next start, which looks for the newest first: a shard that starts meanwhile keeps what it claims.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from onelane.core.state_settings import SQLITE, StateSettings
from onelane.errors import StillRunning
from onelane.state.sqlite_file import as_store_errors, error_code
from onelane.state.sqlite_store import path_of, shards_in
from onelane.state.store import NEVER_WRITTEN, KeyWrite, Row, Stamp
from onelane.state.stored import StoredState, stored_state


class StoredChanges:
    """See the module."""

    def __init__(self, stored: StoredState, epoch: int) -> None:
        self.stored = stored
        self._epoch = epoch

    def put(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Write entries by their keys; other entries of these keys stay."""
        self._commit([KeyWrite(key, self._epoch, rows=tuple(written)) for key, written in rows.items()])

    def drop(self, dict_name: str, keys: Sequence[str]) -> None:
        """Remove the entries of one dict."""
        self._commit([KeyWrite(key, self._epoch, dropped_rows=(dict_name,)) for key in keys])

    def _commit(self, writes: Sequence[KeyWrite]) -> None:
        """Each key where it was written last; a new one anywhere: its owner looks for it when it loads it."""
        by_store: defaultdict[str, list[KeyWrite]] = defaultdict(list)
        holders = self._holders([write.key for write in writes])
        for write in writes:
            by_store[holders[write.key]].append(write)
        for shard, its_writes in by_store.items():
            self.stored.stores[shard].commit(its_writes, at=time.time())

    def _holders(self, keys: Sequence[str]) -> dict[str, str]:
        """The shard in whose store each key was written last."""
        first = next(iter(self.stored.stores))
        newest: dict[str, tuple[Stamp, str]] = dict.fromkeys(keys, (NEVER_WRITTEN, first))
        for shard, store in self.stored.stores.items():
            for key, state in store.read(keys).items():
                newest[key] = max(newest[key], (state.written, shard))
        return {key: shard for key, (_, shard) in newest.items()}


@contextmanager
def changing(settings: StateSettings, app: str, *, creates: bool = False) -> Iterator[StoredChanges]:
    """What is stored of an app, to be changed until the end of the block. creates: a file where there is none.

    Raises:
        StillRunning: a process has the files.
        NotThere, StoreUnavailable, StoreRefused: see `stored_state`.
    """
    check_stopped(settings, app)
    with stored_state(settings, app, creates=creates) as stored:
        newest = stored.newest()
    with stored_state(settings, app, life=newest.life + 1, creates=creates) as stored:
        yield StoredChanges(stored, newest.epoch)


def check_stopped(settings: StateSettings, app: str) -> None:
    """Check that no process has a file of the app. Of a database nothing can be said.

    Raises:
        StillRunning: one has.
    """
    if settings.store != SQLITE:
        return
    for shard in sorted(shards_in(settings.folder, app)):
        path = path_of(settings.folder, app, shard)
        # Every process that has a file with a write-ahead log open shares a lock of it, also while it is idle.
        with as_store_errors(path), closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database:
            try:
                database.execute("PRAGMA locking_mode=EXCLUSIVE")
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                if error_code(error) == sqlite3.SQLITE_BUSY:
                    raise StillRunning(app, f"a process has {path} open") from None
                raise
