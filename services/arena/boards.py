"""Where the leaderboard keeps its lines: a file of SQLite, which the shards of one machine share, or PostgreSQL, which
several machines share.

Blocking: on a worker thread (`shard.offload`).
"""

import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import psycopg

DATABASE = "ARENA_DB"
"""Environment variable that names the database: the path of a file, by default arena.db in the working directory, or
`postgresql://…`."""
BUSY_S = 5.0
"""How long a statement waits while another shard writes."""
TABLE = (
    "CREATE TABLE IF NOT EXISTS line"
    " (board TEXT NOT NULL, player TEXT NOT NULL, rating DOUBLE PRECISION NOT NULL, PRIMARY KEY (board, player))"
)
INDEX = "CREATE INDEX IF NOT EXISTS best ON line (board, rating DESC)"
WRITE = "INSERT INTO line VALUES (%s, %s, %s) ON CONFLICT (board, player) DO UPDATE SET rating = excluded.rating"
BETTER = "SELECT count(*) FROM line WHERE board = %s AND rating > %s"
BEST = "SELECT player, rating FROM line WHERE board = %s ORDER BY rating DESC LIMIT %s"
CREATION_LOCK = 0x6172_656E
"""Advisory lock of PostgreSQL: CREATE … IF NOT EXISTS fails where two shards do so at once."""
Line = tuple[str, float]
"""A player and their rating."""


class Boards(Protocol):
    """See the module."""

    def report(self, board: str, player: str, rating: float) -> int:
        """Write a player's line. Their place on the board, from 1."""

    def top(self, board: str, limit: int) -> list[Line]:
        """The best lines."""

    def close(self) -> None: ...


def open_boards() -> Boards:
    """The boards of the database that the environment names."""
    name = os.environ.get(DATABASE, "arena.db")
    return PostgresBoards(name) if name.startswith(("postgresql:", "postgres:")) else SqliteBoards(name)


class SqliteBoards:
    """In a file."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_S)
        try:
            use_write_ahead_log(self._connection)
            self._connection.execute("PRAGMA synchronous=NORMAL")
            with self._connection as connection:
                connection.execute(TABLE)
                connection.execute(INDEX)
        except BaseException:
            self.close()
            raise

    def report(self, board: str, player: str, rating: float) -> int:
        with self._connection as connection:
            connection.execute(_sqlite(WRITE), (board, player, rating))
        place: int = 1 + self._connection.execute(_sqlite(BETTER), (board, rating)).fetchone()[0]
        return place

    def top(self, board: str, limit: int) -> list[Line]:
        return self._connection.execute(_sqlite(BEST), (board, limit)).fetchall()

    def close(self) -> None:
        self._connection.close()


def _sqlite(statement: str) -> str:
    return statement.replace("%s", "?")


def use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let readers read while another shard writes.

    Where two shards open a new file at once, SQLite refuses one of them with "database is locked" immediately: its
    busy timeout does not cover this one statement. So it is tried again here.
    """
    give_up_at = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # The low byte is the primary result code; the rest of an extended code says which kind of busy it is.
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= give_up_at:
                raise
            time.sleep(0.005)


class PostgresBoards:
    """On a server. A connection that broke is opened anew by the next use; the one that saw it break fails."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection = self._connect()
        with self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (CREATION_LOCK,))
            self._connection.execute(TABLE)
            self._connection.execute(INDEX)

    def report(self, board: str, player: str, rating: float) -> int:
        connection = self._open_connection()
        connection.execute(WRITE, (board, player, rating))
        row: Any = connection.execute(BETTER, (board, rating)).fetchone()
        return 1 + int(row[0])

    def top(self, board: str, limit: int) -> list[Line]:
        return self._open_connection().execute(BEST, (board, limit)).fetchall()

    def close(self) -> None:
        self._connection.close()

    def _open_connection(self) -> "psycopg.Connection[Any]":
        if self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> "psycopg.Connection[Any]":
        # Only where it is asked for: the arena on one machine needs no server, and no package for it.
        import psycopg

        return psycopg.connect(self._dsn, autocommit=True, connect_timeout=int(BUSY_S))
