"""A blocking library (SQLite) on a worker thread of each lane: the lane awaits, and other calls go on meanwhile."""

import os
import sqlite3
from typing import Any

import grpc
import onelane

from services.examples.offload.v1 import offload_pb2, offload_pb2_grpc

BUSY_S = 5.0
"""How long a statement waits while another shard writes."""


def open_database() -> sqlite3.Connection:
    """Runs on the worker thread, as every job does; the connection is closed there too."""
    connection = sqlite3.connect(os.environ.get("NOTES_DB", "notes.db"), timeout=BUSY_S)
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS note (title TEXT PRIMARY KEY, text TEXT NOT NULL)")
    return connection


def write(connection: sqlite3.Connection, title: str, text: str) -> None:
    with connection:
        connection.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (title, text))


class Notes(offload_pb2_grpc.NotesServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.db = shard.offload(open_database, name="notes", capacity=100)

    async def Write(self, request: offload_pb2.Note, context: Any) -> offload_pb2.WriteReply:
        await self.db.run(lambda connection: write(connection, request.title, request.text))
        return offload_pb2.WriteReply()

    async def Read(self, request: offload_pb2.ReadRequest, context: Any) -> offload_pb2.Note:
        query = "SELECT text FROM note WHERE title = ?"
        row = await self.db.run(lambda connection: connection.execute(query, (request.title,)).fetchone())
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no note {request.title!r}")
        return offload_pb2.Note(title=request.title, text=row[0])
