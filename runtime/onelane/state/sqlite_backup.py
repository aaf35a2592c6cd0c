"""A copy of all SQLite files of an app, of one moment, taken while its shards write; and back.

The files must be of one moment: a key that moves meanwhile would be in none of the copies. So for as long as it takes
to begin one read of each file, no shard writes; the copies are then made of those reads, beside all writes.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from onelane.errors import NotThere, StoreRefused
from onelane.state import sqlite_file
from onelane.state.sqlite_file import as_store_errors
from onelane.state.sqlite_store import path_of, shards_in


def back_up(folder: Path, app: str, target: Path, *, patience_s: float) -> list[str]:
    """Copy the files of an app into a new folder, `target`, which appears once it is whole; the names of its shards.

    Raises:
        NotThere: there are no files.
        StoreRefused: `target` exists, or a file is not this app's.
        StoreUnavailable: the disk is full, or another process holds a file for longer than `patience_s`.
    """
    shards = sorted(shards_in(folder, app))
    if not shards:
        raise NotThere(f"no state of {app} is stored in {folder / app}")
    _check_new(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    paths = [path_of(folder, app, shard) for shard in shards]
    with as_store_errors(target), ExitStack() as stack:
        readers = [stack.enter_context(closing(_connect(path, app, patience_s))) for path in paths]
        with _no_writer([stack.enter_context(closing(_connect(path, app, patience_s))) for path in paths]):
            for reader in readers:
                reader.execute("BEGIN")
                # The read begins with the first look at the file.
                reader.execute("SELECT count(*) FROM meta").fetchone()
        for path, reader in zip(paths, readers, strict=True):
            _copy(reader, partial / path.name)
        _flush(partial)
        partial.rename(target)
        _flush(target.absolute().parent)
    return shards


def restore(folder: Path, app: str, source: Path, *, patience_s: float) -> Path | None:
    """Put the files of a backup in the place of those of an app that does not run; where the former are now.

    Cut off between both steps, the app has no files: restore again.

    Raises:
        StoreRefused: it is no backup of this app, or damaged. Nothing was changed.
        StoreUnavailable: the disk is full.
    """
    files = sorted(source.glob(path_of(folder, app, "*").name))
    if not files:
        raise StoreRefused(
            str(source), seen="no file of a backup", expected="a folder that `onelane state backup` made"
        )
    copies = folder / f".{app}.restoring"
    with as_store_errors(folder):
        shutil.rmtree(copies, ignore_errors=True)
        try:
            for file in files:
                _copy_checked(file, copies / file.name, app, patience_s)
        except BaseException:
            shutil.rmtree(copies, ignore_errors=True)
            raise
        _flush(copies)
        return _swap(folder / app, copies)


def _swap(present: Path, copies: Path) -> Path | None:
    former = None
    if present.exists():
        numbers = (number for number in range(1, 10_000))
        names = (present.with_name(f"{present.name}.before-restore-{number}") for number in numbers)
        former = present.rename(next(name for name in names if not name.exists()))
    copies.rename(present)
    _flush(present.absolute().parent)
    return former


def _check_new(target: Path) -> None:
    if target.exists():
        raise StoreRefused(str(target), seen="something of this name", expected="the name of a new folder")


def _connect(path: Path, app: str, patience_s: float) -> sqlite3.Connection:
    return sqlite_file.connect(path, app, patience_s=patience_s)


@contextmanager
def _no_writer(databases: Sequence[sqlite3.Connection]) -> Iterator[None]:
    """Keep all others from writing; a shard holds one of these locks at a time, so it never waits in a circle."""
    with ExitStack() as stack:
        for database in databases:
            stack.enter_context(sqlite_file.transaction(database))
        yield


def _copy(reader: sqlite3.Connection, path: Path) -> None:
    sqlite_file.create_private(path)
    with closing(sqlite3.connect(path)) as copy:
        reader.backup(copy)


def _copy_checked(file: Path, copy: Path, app: str, patience_s: float) -> None:
    """Copy a file of a backup, with what its log has, and check it."""
    sqlite_file.create_private(copy)
    for suffix in ("", "-wal"):
        if (part := file.with_name(file.name + suffix)).exists():
            shutil.copyfile(part, copy.with_name(copy.name + suffix))
    with closing(_connect(copy, app, patience_s)) as database:
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise StoreRefused(str(file), seen=f"a damaged file ({verdict})", expected="a sound one")
    _flush(copy)


def _flush(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
