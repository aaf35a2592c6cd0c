"""A copy of all files of an app is of one moment, whatever its shards write and move meanwhile."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from onelane.errors import StoreUnavailable
from onelane.state import sqlite_backup
from onelane.state.sqlite_store import SqliteStore, path_of
from onelane.state.store import StoreOptions, scan

from tests.state.places import AT, write

SHARDS = ("lobby-0", "lobby-1", "lobby-2")


def opened(folder: Path, shard: str) -> SqliteStore:
    store = SqliteStore(StoreOptions("lobby", shard, 1, folder, patience_s=0.05))
    store.open()
    return store


def move(key: str, source: SqliteStore, target: SqliteStore) -> None:
    """First into the new file, then out of the old one, as far as these may be written."""
    with suppress(StoreUnavailable):
        states = list(source.read([key]).values())
        target.adopt(states, source.claims([key]), at=AT)
        source.drop(states)


def test_a_key_that_moves_between_the_reads_of_two_files_is_in_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {shard: opened(tmp_path, shard) for shard in SHARDS}
    stores["lobby-2"].commit([write("k", b"x")], at=AT)

    class MovingMeanwhile(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *arguments)
            if sql.startswith("SELECT count(*) FROM meta"):
                move("k", stores["lobby-2"], stores["lobby-0"])
            return cursor

    monkeypatch.setattr(
        sqlite_backup, "_connect", lambda path, *_: sqlite3.connect(path, isolation_level=None, factory=MovingMeanwhile)
    )
    sqlite_backup.back_up(tmp_path, "lobby", tmp_path / "copy", patience_s=5.0)
    for store in stores.values():
        store.close()
    # As a folder of an app, which is what `restore` makes of it.
    (tmp_path / "restored").mkdir()
    (tmp_path / "copy").rename(tmp_path / "restored" / "lobby")
    keys = set()
    for shard in SHARDS:
        with closing(opened(tmp_path / "restored", shard)) as copy:
            keys |= {state.key for state in scan(copy)}
    assert keys == {"k"}


def test_a_file_that_is_locked_for_long_fails_the_copy_and_leaves_nothing_that_looks_like_one(tmp_path: Path) -> None:
    with closing(opened(tmp_path, SHARDS[0])), closing(sqlite3.connect(path_of(tmp_path, "lobby", SHARDS[0]))) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="is locked by another process"):
            sqlite_backup.back_up(tmp_path, "lobby", tmp_path / "copy", patience_s=0.05)
    assert not (tmp_path / "copy").exists()
