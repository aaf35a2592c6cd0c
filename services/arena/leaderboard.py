"""The best players of a board, in a database of its own: SQL on a worker thread of each lane (`shard.offload`).

The example for foreign databases: rows that other programs read too, queries by more than a key, and tables that were
there before the service. State that is the service's alone needs none of it (see `profile`).

All shards use one file. A report writes its own row and reads no state of this process, so it is right in any process,
also while shards come and go.
"""

import os
import sqlite3
import time
from typing import Any

import onelane

from services.arena.v1 import leaderboard_pb2, leaderboard_pb2_grpc

DATABASE = "ARENA_DB"
"""Environment variable that names the database file; by default arena.db in the working directory."""
BUSY_S = 5.0
"""How long a statement waits while another shard writes."""
DEFAULT_LIMIT = 10
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS line"
    " (board TEXT NOT NULL, player TEXT NOT NULL, rating REAL NOT NULL, PRIMARY KEY (board, player))"
)
INDEX = "CREATE INDEX IF NOT EXISTS best ON line (board, rating DESC)"


def open_database() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ.get(DATABASE, "arena.db"), timeout=BUSY_S)
    try:
        use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        with connection:
            connection.execute(SCHEMA)
            connection.execute(INDEX)
    except BaseException:
        connection.close()
        raise
    return connection


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


def report(connection: sqlite3.Connection, board: str, player: str, rating: float) -> int:
    """Write a player's line. Their place on the board, from 1."""
    with connection:
        connection.execute("INSERT OR REPLACE INTO line VALUES (?, ?, ?)", (board, player, rating))
    better = "SELECT count(*) FROM line WHERE board = ? AND rating > ?"
    place: int = 1 + connection.execute(better, (board, rating)).fetchone()[0]
    return place


def top(connection: sqlite3.Connection, board: str, limit: int) -> list[tuple[str, float]]:
    best = "SELECT player, rating FROM line WHERE board = ? ORDER BY rating DESC LIMIT ?"
    return connection.execute(best, (board, limit)).fetchall()


class Leaderboard(leaderboard_pb2_grpc.LeaderboardServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.db = shard.offload(open_database, name="boards")

    async def Report(self, request: leaderboard_pb2.ReportRequest, context: Any) -> leaderboard_pb2.ReportReply:
        place = await self.db.run(lambda c: report(c, request.board, request.player, request.rating))
        return leaderboard_pb2.ReportReply(place=place)

    async def Top(self, request: leaderboard_pb2.TopRequest, context: Any) -> leaderboard_pb2.TopReply:
        best = await self.db.run(lambda c: top(c, request.board, request.limit or DEFAULT_LIMIT))
        lines = [leaderboard_pb2.TopReply.Line(player=player, rating=rating) for player, rating in best]
        return leaderboard_pb2.TopReply(lines=lines)
