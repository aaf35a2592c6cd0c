"""The files of the other shards of an app, as the store of one shard looks into them.

A key that has come from another shard has its state in the file of that shard, which has ended its commits of the key
before it handed it over, or is dead. SQLite itself recovers the file of a process that has died.

Promises: one query for each file and batch of keys; a file that appears later is seen; one that was there and is gone
is an error, since its keys would seem to have no state.
"""

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onelane.errors import Fenced, StoreRefused, StoreUnavailable
from onelane.state import sqlite_file
from onelane.state.sqlite_file import FILE_SUFFIX, as_store_errors, transaction
from onelane.state.sqlite_read import AMONG, among, read_reminders, read_stamps, read_states
from onelane.state.store import DueReminder, KeyState, Stamp

_DROP_OLDER = "DELETE FROM keys WHERE key = ? AND (epoch, life) < (?, ?)"


@dataclass(slots=True)
class _File:
    path: Path
    database: sqlite3.Connection
    inode: int


class SiblingFiles:
    """See the module. Used by one thread, as the store is."""

    def __init__(self, own: Path, app: str, *, patience_s: float) -> None:
        """own: the file that is none of them."""
        self._own = own
        self._app = app
        self._patience_s = patience_s
        self._files: dict[str, _File] = {}
        self._known: set[str] = set()

    def introduce(self, database: sqlite3.Connection) -> None:
        """Have this shard's file, whose connection `database` is, and the others know of each other, so that each of
        them can tell when one is lost. A file that fails now is left out.

        Raises:
            StoreRefused: this one is empty, and another file knows of it: it was lost, and has been made anew.
        """
        own = self._own.stem
        if own not in _members(database):
            self.check_new()
            # Before the others know of it: it is not lost if this process ends in between.
            _add_members(database, {own})
        for file in self._each(readable_only=True):
            with contextlib.suppress(StoreUnavailable, StoreRefused), as_store_errors(file.path):
                _add_members(file.database, {own})
                # One that does not know itself yet introduces itself, unless it was lost.
                _add_members(database, {file.path.stem} & _members(file.database))
        self._known = _members(database) - {own}

    def check_new(self) -> None:
        """Raises StoreRefused where another file knows of this one, which is empty or does not exist."""
        if self._own.stem in self.lost(readable_only=True):
            raise StoreRefused(str(self._own), seen="no state", expected="the file of the last start")

    def lost(self, *, readable_only: bool = False) -> set[str]:
        """The shards whose files are missing, or were made anew, by what the other files know."""
        known: set[str] = set()
        sound: set[str] = set()
        for file in self._each(readable_only=readable_only):
            with as_store_errors(file.path):
                members = _members(file.database)
            known |= members
            sound |= {file.path.stem} & members
        return known - sound

    def accept(self, lost: set[str]) -> None:
        """Go on without the files of these shards."""
        for file in self._each():
            with as_store_errors(file.path), transaction(file.database):
                file.database.executemany("DELETE FROM members WHERE name = ?", [(name,) for name in lost])

    def newer(self, written: Mapping[str, Stamp], loader: Stamp) -> list[KeyState]:
        """Of each key that was written elsewhere after `written` the newest state.

        Raises:
            Fenced: some of the keys are claimed elsewhere with a stamp above the loader's.
        """
        if not written:
            return []
        newest: dict[str, tuple[Stamp, _File]] = {}
        fenced: set[str] = set()
        for file in self._each():
            with as_store_errors(file.path):
                stamps = read_stamps(file.database, written)
            for key, (claim, last_write) in stamps.items():
                if claim > loader:
                    fenced.add(key)
                if last_write > (newest[key][0] if key in newest else written[key]):
                    newest[key] = (last_write, file)
        if fenced:
            raise Fenced(key for key in written if key in fenced)
        return [state for file in self._files.values() for state in _states_in(file, newest)]

    def reminders(self, *, before: float, after: tuple[float, str, str], limit: int) -> list[tuple[DueReminder, Stamp]]:
        """The reminders in these files, at most `limit` of each, with the last write of their key there."""
        pages: list[tuple[DueReminder, Stamp]] = []
        for file in self._each():
            with as_store_errors(file.path):
                pages += read_reminders(file.database, before=before, after=after, limit=limit)
        return pages

    def written(self, keys: Collection[str]) -> dict[str, Stamp]:
        """The last write of each key that these files know."""
        newest: dict[str, Stamp] = {}
        for file in self._each():
            with as_store_errors(file.path):
                for key, stamps in read_stamps(file.database, keys).items():
                    newest[key] = max(stamps.written, newest.get(key, stamps.written))
        return newest

    def drop_older(self, claims: Mapping[str, Stamp]) -> None:
        """Remove copies of keys that are claimed with a lower stamp than here."""
        for file in self._each():
            with as_store_errors(file.path):
                if stamps := read_stamps(file.database, claims):
                    _drop_older(file.database, {key: claims[key] for key in stamps})

    def close(self) -> None:
        for file in self._files.values():
            file.database.close()
        self._files.clear()

    def _each(self, *, readable_only: bool = False) -> Iterator[_File]:
        """All files that have a schema by now, opened where they are not.

        Raises:
            StoreUnavailable: a file that was there is gone. readable_only: not then, and without files that fail.
        """
        paths = {path.stem: path for path in self._own.parent.glob(f"*{FILE_SUFFIX}") if path != self._own}
        if (lost := self._known - paths.keys()) and not readable_only:
            raise StoreUnavailable(str(self._own.parent), f"has no file of {', '.join(sorted(lost))} any more")
        for name in self._files.keys() - paths.keys():
            self._files.pop(name).database.close()
        for name, path in sorted(paths.items()):
            try:
                file = self._opened(name, path)
            except (StoreUnavailable, StoreRefused):
                if readable_only:
                    continue
                raise
            if file is not None:
                self._known.add(name)
                yield file

    def _opened(self, name: str, path: Path) -> _File | None:
        with as_store_errors(path):
            inode = os.stat(path).st_ino
            file = self._files.get(name)
            if file is not None and file.inode == inode:
                return file
            if file is not None:
                self._files.pop(name).database.close()
            database = sqlite_file.connect_existing(path, self._app, patience_s=self._patience_s)
        if database is None:
            return None
        file = self._files[name] = _File(path, database, inode)
        return file


def _states_in(file: _File, newest: Mapping[str, tuple[Stamp, _File]]) -> Iterable[KeyState]:
    keys = [key for key, (_, source) in newest.items() if source is file]
    if not keys:
        return ()
    with as_store_errors(file.path), sqlite_file.snapshot(file.database):
        return read_states(file.database, keys).values()


def _drop_older(database: sqlite3.Connection, claims: Mapping[str, Stamp]) -> None:
    with transaction(database):
        dropped = [key for key, claim in claims.items() if database.execute(_DROP_OLDER, (key, *claim)).rowcount]
        for table in ("rows", "answers", "reminders"):
            database.execute(f"DELETE FROM {table} WHERE {AMONG}", among(dropped))


def _members(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM members")}


def _add_members(database: sqlite3.Connection, names: set[str]) -> None:
    if missing := names - _members(database):
        with transaction(database):
            database.executemany("INSERT OR IGNORE INTO members VALUES (?)", [(name,) for name in missing])
