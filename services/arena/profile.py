"""Each player's rating and games, in SQLite, on a worker thread of each lane.

Both shards use one file: SQLite keeps their transactions apart, and each player has one owner.
"""

import os
import sqlite3
import time
from typing import Any

import onelane

from services.arena.elo import START, rated
from services.arena.v1 import profile_pb2, profile_pb2_grpc

DATABASE = "ARENA_DB"
"""Environment variable that names the database file; by default arena.db in the working directory."""
BUSY_S = 5.0
"""How long a statement waits while another shard writes."""
SCHEMA = "CREATE TABLE IF NOT EXISTS profile (player TEXT PRIMARY KEY, rating REAL NOT NULL, games INTEGER NOT NULL)"


def open_database() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ.get(DATABASE, "arena.db"), timeout=BUSY_S)
    try:
        use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        with connection:
            connection.execute(SCHEMA)
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


def read(connection: sqlite3.Connection, player: str) -> tuple[float, int]:
    row = connection.execute("SELECT rating, games FROM profile WHERE player = ?", (player,)).fetchone()
    return (row[0], row[1]) if row else (START, 0)


def add_result(connection: sqlite3.Connection, player: str, opponents_rating: float, score: float) -> tuple[float, int]:
    with connection:
        rating, games = read(connection, player)
        after = (rated(rating, opponents_rating, score), games + 1)
        connection.execute("INSERT OR REPLACE INTO profile VALUES (?, ?, ?)", (player, *after))
    return after


class Profile(profile_pb2_grpc.ProfileServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.db = shard.offload(open_database, name="profiles")

    async def Get(self, request: profile_pb2.GetRequest, context: Any) -> profile_pb2.GetReply:
        rating, games = await self.db.run(lambda c: read(c, request.player))
        return profile_pb2.GetReply(rating=rating, games=games)

    async def AddResult(self, request: profile_pb2.AddResultRequest, context: Any) -> profile_pb2.AddResultReply:
        rating, games = await self.db.run(
            lambda c: add_result(c, request.player, request.opponents_rating, request.score)
        )
        return profile_pb2.AddResultReply(rating=rating, games=games)
