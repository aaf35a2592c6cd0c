"""One SQLite file of a store: made, opened and checked; and SQLite's errors as ours."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from onelane.errors import StoreRefused, StoreUnavailable

APPLICATION_ID = 0x6F6E_6C6E
"""In the header of each of our files: "onln"."""
FILE_SUFFIX = ".sqlite"
SCHEMA_VERSION = 1
_RETRY_S = 0.01

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE members (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE keys (
    key TEXT PRIMARY KEY, epoch INTEGER NOT NULL, life INTEGER NOT NULL,
    written_epoch INTEGER NOT NULL, written_life INTEGER NOT NULL, touched REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE rows (
    key TEXT NOT NULL, dict TEXT NOT NULL, spelled BLOB NOT NULL, value BLOB NOT NULL, codec TEXT NOT NULL,
    version INTEGER NOT NULL, PRIMARY KEY (key, dict)
);
CREATE TABLE answers (
    key TEXT NOT NULL, id TEXT NOT NULL, digest BLOB NOT NULL, answer BLOB NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (key, id)
);
CREATE TABLE reminders (
    key TEXT NOT NULL, id TEXT NOT NULL, due REAL NOT NULL, data BLOB NOT NULL, PRIMARY KEY (key, id)
);
CREATE INDEX answers_by_age ON answers (at);
CREATE INDEX reminders_by_due ON reminders (due, key, id);
"""

_TRANSIENT = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_READONLY: "cannot be written",
    sqlite3.SQLITE_PERM: "cannot be written",
    sqlite3.SQLITE_NOMEM: "SQLite has no memory",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process",
}
_HARMLESS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


def connect(path: Path, app: str, *, patience_s: float) -> sqlite3.Connection:
    """Open a file, which is made an empty one of `app` where it does not exist; transactions begin by BEGIN alone."""
    with as_store_errors(path):
        create_private(path)
        database = sqlite3.connect(path, timeout=patience_s, isolation_level=None, check_same_thread=False)
        try:
            _use_write_ahead_log(database, patience_s)
            database.execute("PRAGMA synchronous=FULL")
            _check_or_create_schema(database, path, app)
        except BaseException:
            database.close()
            raise
        return database


def connect_existing(path: Path, app: str, *, patience_s: float) -> sqlite3.Connection | None:
    """Open a file that another process has created; None where it has no schema yet."""
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=patience_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        database.execute("PRAGMA synchronous=FULL")
        with snapshot(database):
            is_ours = _has_schema(database, path, app)
    except BaseException:
        database.close()
        raise
    if is_ours:
        return database
    database.close()
    return None


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; errors that Python's module itself raises have none: 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def leaves_connection_whole(error: sqlite3.Error) -> bool:
    """Whether the same connection can be used again after this error."""
    return error_code(error) in _HARMLESS


@contextlib.contextmanager
def as_store_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into StoreUnavailable and StoreRefused."""
    try:
        yield
    except sqlite3.Error as error:
        if problem := _TRANSIENT.get(error_code(error)):
            raise StoreUnavailable(str(path), f"{problem} ({error})") from error
        raise StoreRefused(str(path), seen=f"SQLite says: {error}", expected="a sound file of this app") from error
    except OSError as error:
        raise StoreUnavailable(str(path), f"cannot be opened: {error.strerror}") from error


def create_private(path: Path) -> None:
    """SQLite would create a file that every user may read; its further files get this one's mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        # SQLite flushes the file, but not its name, nor those of the folders that were created for it.
        for folder in (path.parent, *path.parent.parents[:2]):
            with contextlib.suppress(PermissionError):  # A folder that existed before, and may only be passed through.
                _flush_names(folder)


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _use_write_ahead_log(database: sqlite3.Connection, patience_s: float) -> None:
    """SQLite's busy timeout does not cover this pragma on a new file, which another process may be opening as well."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_S)


def _check_or_create_schema(database: sqlite3.Connection, path: Path, app: str) -> None:
    with transaction(database):
        if not _has_schema(database, path, app):
            _create_schema(database, app)


def _has_schema(database: sqlite3.Connection, path: Path, app: str) -> bool:
    """Whether it is a file of this app; False where it is an empty one.

    Raises:
        StoreRefused: it is anything else.
    """
    (count,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if count == 0 and application == 0:
        return False
    if application != APPLICATION_ID:
        raise StoreRefused(str(path), seen="a SQLite file of another program", expected="one of onelane's")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        seen = f"schema version {version}" + (" of a newer release" if version > SCHEMA_VERSION else "")
        raise StoreRefused(str(path), seen=seen, expected=f"version {SCHEMA_VERSION}")
    owner = database.execute("SELECT value FROM meta WHERE name = 'app'").fetchone()
    if owner != (app,):
        raise StoreRefused(str(path), seen=f"the state of the app {owner and owner[0]!r}", expected=f"{app!r}")
    return True


def _create_schema(database: sqlite3.Connection, app: str) -> None:
    # Not by `executescript`, which would commit the transaction first.
    for statement in _SCHEMA.strip().split(";\n"):
        database.execute(statement)
    database.execute(f"PRAGMA application_id={APPLICATION_ID}")
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    database.execute("INSERT INTO meta VALUES ('app', ?)", (app,))


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """A write transaction. Waits for other writers at its begin, as far as the connection's timeout allows."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def snapshot(database: sqlite3.Connection) -> Iterator[None]:
    """Several reads of the same moment."""
    database.execute("BEGIN")
    try:
        yield
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")
