"""A store of SQLite files: one for each shard of an app, as a lane owns its connection.

The file belongs to the member, not to its life: in a rolling restart the next life opens it beside the old one, and
the claims in it say which of both may write a key. A key that moves to another shard moves to another file as it is
loaded there: its new owner looks into the files of the others (`sqlite_siblings`), and takes the copy that was written
with the highest stamp into its own file, with its own claim. The older copies stay until `settle` or `forget`.

Write-ahead log with synchronous=FULL: a commit returns after its fsync. A claim is not flushed: a power cut would end
its owner as well, since all that use the file are on this machine.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onelane.errors import Fenced, StoreRefused, StoreUnavailable
from onelane.state import sqlite_file
from onelane.state.sqlite_file import FILE_SUFFIX, as_store_errors, snapshot, transaction
from onelane.state.sqlite_read import read_reminders, read_stamps, read_states
from onelane.state.sqlite_siblings import SiblingFiles
from onelane.state.sqlite_write import ADOPT, CLAIM, STAMP, drop, drop_whole, put, write_rows
from onelane.state.store import (
    NEVER_WRITTEN,
    PAGE,
    DueReminder,
    KeyState,
    KeyWrite,
    Stamp,
    StoreCounts,
    StoreOptions,
    check_distinct,
)

_FORGET_ANSWERS = """
DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers WHERE at < ? ORDER BY at LIMIT ?)
"""
_EMPTY_KEYS = """
SELECT key, epoch, life FROM keys WHERE touched < ?
AND NOT EXISTS (SELECT 1 FROM rows WHERE rows.key = keys.key)
AND NOT EXISTS (SELECT 1 FROM answers WHERE answers.key = keys.key)
AND NOT EXISTS (SELECT 1 FROM reminders WHERE reminders.key = keys.key) LIMIT ?
"""


def path_of(folder: Path, app: str, shard: str) -> Path:
    """The file of a member. Several apps may share the folder of the settings."""
    return folder / app / f"{shard}{FILE_SUFFIX}"


def shards_in(folder: Path, app: str) -> set[str]:
    """The members of an app that have a file in a folder."""
    return {path.name.removesuffix(FILE_SUFFIX) for path in (folder / app).glob(f"*{FILE_SUFFIX}")}


class SqliteStore:
    """See `Store`."""

    holds_all = False

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self.path = path_of(options.folder, options.app, options.shard)
        self._siblings = SiblingFiles(self.path, options.app, patience_s=options.patience_s)
        self._database: sqlite3.Connection | None = None
        self._inode = 0

    def open(self) -> None:
        if not self.path.exists():
            self._siblings.check_new()
        self._connect()
        with self._connection() as database:
            self._siblings.introduce(database)

    def load(self, keys: Sequence[str], *, epoch: int, at: float) -> dict[str, KeyState]:
        check_distinct(keys)
        loader = Stamp(epoch, self._options.life)
        moved = self._moved_here(keys, loader)
        with self._connection() as database, _without_flush(database), transaction(database):
            _adopt(database, moved, at)
            claims = [(key, *loader, at) for key in keys]
            if write_rows(database, CLAIM, claims) < len(keys):
                raise Fenced(_later_claims(database, dict.fromkeys(keys, loader)))
            return read_states(database, keys)

    def _moved_here(self, keys: Sequence[str], loader: Stamp) -> list[KeyState]:
        """The states of keys that another shard has written last. A key that was claimed here in this epoch has had no
        other owner since.

        Raises:
            Fenced: another shard has claimed some of the keys with a higher stamp.
        """
        with self._connection() as database:
            here = read_stamps(database, keys)
        written = {key: here[key].written if key in here else NEVER_WRITTEN for key in keys}
        return self._siblings.newer(
            {key: stamp for key, stamp in written.items() if key not in here or here[key].claim.epoch != loader.epoch},
            loader,
        )

    def read(self, keys: Sequence[str]) -> dict[str, KeyState]:
        with self._connection() as database, snapshot(database):
            return read_states(database, keys)

    def commit(self, writes: Sequence[KeyWrite], *, at: float) -> None:
        check_distinct(write.key for write in writes)
        life = self._options.life
        with self._connection() as database, transaction(database):
            stamps = [(write.key, *2 * (write.epoch, life), at) for write in writes]
            if write_rows(database, STAMP, stamps) < len(writes):
                raise Fenced(_later_claims(database, {write.key: Stamp(write.epoch, life) for write in writes}))
            drop(database, writes)
            put(database, writes)

    def newest(self) -> Stamp:
        query = "SELECT epoch, life FROM keys ORDER BY epoch DESC, life DESC LIMIT 1"
        with self._connection() as database:
            return max((Stamp(*values) for values in database.execute(query)), default=NEVER_WRITTEN)

    def probe(self) -> None:
        # One row, written again and again: another value each time, or no page would be written.
        with self._connection() as database, transaction(database):
            database.execute("INSERT OR REPLACE INTO meta VALUES ('probed', ?)", (str(time.time_ns()),))

    def keys(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        return self._column("SELECT key FROM keys WHERE key > ? ORDER BY key LIMIT ?", after, limit)

    def idle_keys(self, dict_name: str, *, before: float, after: str = "", limit: int = PAGE) -> list[str]:
        entry = "EXISTS (SELECT 1 FROM rows WHERE rows.key = keys.key AND dict = ?)"
        query = f"SELECT key FROM keys WHERE key > ? AND touched < ? AND {entry} ORDER BY key LIMIT ?"
        return self._column(query, after, before, dict_name, limit)

    def reminders(
        self, *, before: float, after: tuple[float, str, str] | None = None, limit: int = PAGE
    ) -> list[DueReminder]:
        """See `Store`; those in the files of other shards, too: a key may have come from one, and not be loaded yet.
        Older copies of a key are left out."""
        reminders: list[DueReminder] = []
        place = after or (float("-inf"), "", "")
        while True:
            page = self._page_of_files(before, place, limit)
            reminders += self._newest_copies(page)
            if len(page) < limit or len(reminders) >= limit:
                return reminders[:limit]
            place = page[-1][0].place

    def _page_of_files(
        self, before: float, after: tuple[float, str, str], limit: int
    ) -> list[tuple[DueReminder, Stamp]]:
        with self._connection() as database:
            own = read_reminders(database, before=before, after=after, limit=limit)
        pages = own + self._siblings.reminders(before=before, after=after, limit=limit)
        return sorted(pages, key=lambda pair: pair[0].place)[:limit]

    def _newest_copies(self, page: list[tuple[DueReminder, Stamp]]) -> list[DueReminder]:
        """Without those that another file has a later write of the key of, and each once."""
        keys = {reminder.key for reminder, _ in page}
        newest = self._siblings.written(keys)
        with self._connection() as database:
            for key, stamps in read_stamps(database, keys).items():
                newest[key] = max(stamps.written, newest.get(key, stamps.written))
        live = {reminder.place: reminder for reminder, written in page if written >= newest.get(reminder.key, written)}
        return list(live.values())

    def forget(self, *, answers_before: float, claims_before: float, limit: int = PAGE) -> int:
        with self._connection() as database:
            answers = database.execute(_FORGET_ANSWERS, (answers_before, limit)).rowcount
            empty = database.execute(_EMPTY_KEYS, (claims_before, limit)).fetchall()
        claims = {key: Stamp(*stamp) for key, *stamp in empty}
        if claims:
            # An older copy in another file would come back.
            self._siblings.drop_older(claims)
        with self._connection() as database, transaction(database):
            database.executemany("DELETE FROM keys WHERE key = ? AND touched < ?", [(k, claims_before) for k in claims])
        return answers + len(claims)

    def counts(self) -> StoreCounts:
        with self._connection() as database, snapshot(database):
            rows = dict(database.execute("SELECT dict, count(*) FROM rows GROUP BY dict").fetchall())
            keys, answers, reminders, value_bytes = database.execute(
                "SELECT (SELECT count(*) FROM keys), (SELECT count(*) FROM answers), (SELECT count(*) FROM reminders),"
                " (SELECT coalesce(sum(length(value)), 0) FROM rows)"
            ).fetchone()
            return StoreCounts(keys, rows, answers, reminders, value_bytes)

    def backup(self, path: Path) -> None:
        if path.exists():
            raise StoreRefused(str(path), seen="a file of this name", expected="the name of a new file")
        with self._connection() as database, as_store_errors(path):
            sqlite_file.create_private(path)
            with contextlib.closing(sqlite3.connect(path)) as copy:
                database.backup(copy)

    def claims(self, keys: Sequence[str]) -> dict[str, Stamp]:
        """The claim of each of those keys that the file knows."""
        with self._connection() as database:
            return {key: stamps.claim for key, stamps in read_stamps(database, keys).items()}

    def adopt(self, states: Sequence[KeyState], claims: Mapping[str, Stamp], *, at: float) -> None:
        """Take over keys from another file as they were written there; not where this file has a later write.

        claims: of the keys there; the higher one counts, whichever file has the later write.
        """
        with self._connection() as database, transaction(database):
            _adopt(database, states, at)
            write_rows(database, CLAIM, [(key, *claim, at) for key, claim in claims.items()])

    def drop(self, states: Sequence[KeyState]) -> None:
        """Remove keys that another file has adopted, if they are still as they were read."""
        query = "DELETE FROM keys WHERE (key, written_epoch, written_life) = (?, ?, ?)"
        with self._connection() as database, transaction(database):
            values = [(state.key, *state.written) for state in states]
            drop_whole(database, [key for key, *stamp in values if database.execute(query, (key, *stamp)).rowcount])

    def members(self) -> set[str]:
        """The shards of the last start of the app; empty in a new file."""
        return set(self._column("SELECT name FROM members"))

    def set_members(self, members: Iterable[str]) -> None:
        with self._connection() as database, transaction(database):
            database.execute("DELETE FROM members")
            database.executemany("INSERT INTO members VALUES (?)", [(member,) for member in members])

    def remove(self) -> None:
        """Close and delete the file, of a shard that is no more."""
        self.close()
        for suffix in ("-wal", "-shm", ""):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        self._siblings.close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _connect(self) -> sqlite3.Connection:
        options = self._options
        database = sqlite_file.connect(self.path, options.app, patience_s=options.patience_s)
        self._inode = self.path.stat().st_ino
        self._database = database
        return database

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The connection, or a new one where the last has failed."""
        self._check_file()
        database = self._database or self._connect()
        try:
            with as_store_errors(self.path):
                yield database
        except (StoreUnavailable, StoreRefused) as error:
            cause = error.__cause__
            if isinstance(cause, sqlite3.Error) and not sqlite_file.leaves_connection_whole(cause):
                self._disconnect()
            raise

    def _check_file(self) -> None:
        """SQLite would go on to write to a file that has been removed, where nobody will read it again."""
        try:
            inode = os.stat(self.path).st_ino
        except OSError as error:
            raise StoreUnavailable(str(self.path), f"cannot be read any more: {error.strerror}") from error
        if inode != self._inode:
            self._disconnect()

    def _column(self, query: str, *values: Any) -> list[str]:
        with self._connection() as database:
            return [key for (key,) in database.execute(query, values)]


@contextlib.contextmanager
def _without_flush(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("PRAGMA synchronous=NORMAL")
    try:
        yield
    finally:
        database.execute("PRAGMA synchronous=FULL")


def _later_claims(database: sqlite3.Connection, stamps: dict[str, Stamp]) -> list[str]:
    return [key for key, (claim, _) in read_stamps(database, stamps).items() if claim > stamps[key]]


def _adopt(database: sqlite3.Connection, states: Iterable[KeyState], at: float) -> None:
    """Take over keys from other files, where they were written later than here."""
    stamped = ((state, (state.key, *state.written, *state.written, at)) for state in states)
    newer = [state for state, values in stamped if database.execute(ADOPT, values).rowcount]
    drop_whole(database, [state.key for state in newer])
    put(database, newer)
