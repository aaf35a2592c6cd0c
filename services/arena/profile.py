"""What is known of each player, in SQLite, on a helper thread of each lane.

Both shards use one file: SQLite keeps their transactions apart, and each player has one owner.
"""

import os
import sqlite3
from typing import Any

import onelane

from services.arena.elo import START, rated
from services.arena.v1 import profile_pb2, profile_pb2_grpc

DATABASE = "ARENA_DB"
"""Environment variable that names the database file; by default arena.db in the working directory."""
SCHEMA = "CREATE TABLE IF NOT EXISTS profile (player TEXT PRIMARY KEY, rating REAL NOT NULL, games INTEGER NOT NULL)"


def open_database() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ.get(DATABASE, "arena.db"), timeout=5.0)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    with connection:
        connection.execute(SCHEMA)
    return connection


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
